use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::build::observer::{Observer, Stage, Unit, go_on};
use crate::{Error, Result};

/// Overlaps that are counted at once, by an upper bound: some 25 bytes each.
const MAX_ENTRIES: usize = 1 << 24;

/// An n-gram that may be chosen, by its place in the queue.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) freq: u32,
    /// Its tokens.
    pub(super) n: usize,
    /// Whether it can be an n-token. One that holds a removed token can not: it would never match (quirk 1).
    pub(super) is_possible: bool,
}

/// An n-gram that loses occurrences when another is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affected {
    pub(super) place: u32,
    /// How often the two overlap.
    pub(super) times: u32,
}

/// Which n-grams overlap others, and how often.
pub(super) trait Overlaps {
    /// For each of the wanted n-grams those still queued that it affects, in the order in which they are first seen.
    fn count(&self, wanted: &[u32], is_queued: &[bool]) -> Result<Vec<Vec<Affected>>>;

    /// At least as many as [`Overlaps::count`] finds for one.
    fn max_entries(&self, place: u32) -> usize;
}

/// An n-gram that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) place: u32,
    /// Occurrences that it had left. Overlaps are subtracted once for each chosen neighbour, so it may be negative (kept).
    pub(super) freq: i64,
}

/// Chooses greedily as the reference does: again and again the n-gram with the largest frequency × length (not the
/// tokens it saves, which would be length − 1), whose overlaps then lose their common occurrences. Of equal ones the
/// one that has kept its frequency for longest; at first that is the order of the queue.
///
/// Where the reference lists n-grams that can never match, they take their occurrences here too, but no place in the
/// list: choosing goes on until `num` are found. (The queue of the reference also holds the removed tokens, alone. They
/// affect nothing, and it ends with an assertion when it reaches one; here they are not queued.)
pub(super) fn choose(
    candidates: &[Candidate],
    num: usize,
    overlaps: &impl Overlaps,
    observer: &dyn Observer,
) -> Result<Vec<Chosen>> {
    observer.begin(&Stage { name: "choosing n-tokens", unit: Unit::Choices, total: Some(num as u64) });
    let mut queue = Queue::new(candidates);
    let mut counted = HashMap::new();
    let mut chosen = Vec::with_capacity(num);
    while chosen.len() < num {
        go_on(observer)?;
        let Some(best) = queue.peek() else {
            return Err(Error::NotReachable { what: "n-tokens", asked: num, reachable: chosen.len() });
        };
        if !counted.contains_key(&best) {
            let wanted = queue.first(2 * (num - chosen.len()) + 64, &counted, overlaps);
            counted.extend(wanted.iter().copied().zip(overlaps.count(&wanted, &queue.is_queued)?));
        }
        let freq = queue.take(best);
        for affected in counted.remove(&best).into_iter().flatten() {
            queue.lower(affected);
        }
        if candidates[best as usize].is_possible {
            chosen.push(Chosen { place: best, freq });
            observer.advance(1);
        }
    }
    Ok(chosen)
}

/// The n-grams not yet chosen.
struct Queue<'a> {
    candidates: &'a [Candidate],
    freqs: Vec<i64>,
    is_queued: Vec<bool>,
    /// When each got its frequency.
    since: Vec<u64>,
    now: u64,
    /// One entry for each queued n-gram, of now or of earlier: frequencies only fall, so that an old entry stands too
    /// high, and is set right when it comes to the top.
    heap: BinaryHeap<(i64, Reverse<u64>, u32)>,
}

impl<'a> Queue<'a> {
    fn new(candidates: &'a [Candidate]) -> Self {
        let num = candidates.len();
        let mut queue = Self {
            candidates,
            freqs: candidates.iter().map(|candidate| i64::from(candidate.freq)).collect(),
            is_queued: vec![true; num],
            since: (0..num as u64).collect(),
            now: num as u64,
            heap: BinaryHeap::new(),
        };
        queue.heap = (0..num as u32).map(|place| queue.entry(place)).collect();
        queue
    }

    fn entry(&self, place: u32) -> (i64, Reverse<u64>, u32) {
        let idx = place as usize;
        (self.freqs[idx] * self.candidates[idx].n as i64, Reverse(self.since[idx]), place)
    }

    fn peek(&mut self) -> Option<u32> {
        loop {
            let found = self.heap.peek().copied()?;
            let right = self.entry(found.2);
            if found == right {
                return Some(found.2);
            }
            self.heap.pop();
            self.heap.push(right);
        }
    }

    /// Takes the n-gram that [`Queue::peek`] found; its frequency.
    fn take(&mut self, place: u32) -> i64 {
        self.heap.pop();
        self.is_queued[place as usize] = false;
        self.freqs[place as usize]
    }

    fn lower(&mut self, affected: Affected) {
        let idx = affected.place as usize;
        if self.is_queued[idx] {
            self.freqs[idx] -= i64::from(affected.times);
            self.since[idx] = self.now;
            self.now += 1;
        }
    }

    /// The first `max` of the queue whose overlaps are not counted, fewer where those would take too much memory.
    fn first(&self, max: usize, counted: &HashMap<u32, Vec<Affected>>, overlaps: &impl Overlaps) -> Vec<u32> {
        let mut open: Vec<u32> = (0..self.candidates.len() as u32)
            .filter(|place| self.is_queued[*place as usize] && !counted.contains_key(place))
            .collect();
        if open.len() > max {
            open.select_nth_unstable_by_key(max - 1, |place| Reverse(self.entry(*place)));
            open.truncate(max);
        }
        open.sort_unstable_by_key(|place| Reverse(self.entry(*place)));
        let mut num_entries = 0;
        let fits = |place: &u32| {
            let is_first = num_entries == 0;
            num_entries += overlaps.max_entries(*place);
            is_first || num_entries <= MAX_ENTRIES
        };
        open.into_iter().take_while(fits).collect()
    }
}

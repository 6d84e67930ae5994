//! The threads on which chat templates are rendered and texts encoded, and the queue before them.
//!
//! A long text never holds up a short one: short ones go first, long ones take all threads but one, and between two
//! pieces of a text its thread does what should go before it. What is generated from goes before what is only tokenized.
//! Nobody waits for ever: every eighth turn is the longest waiter's.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fused_status::{Code, Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::events;
use crate::text_memory::{TextMemory, TextShare};

/// How much the encoding threads stand back on Linux (0 to 19): where cores are short, an engine in the same process or on
/// the same machine goes on with its steps before texts are encoded, of which there may be megabytes.
const NICENESS: i32 = 5;
/// From this size on a text is long: some milliseconds' work where a tokenizer is slow.
const LONG_BYTES: usize = 32 << 10;
/// Every so many turns the one that waits longest is next, whatever its rank.
const FAIR_TURN: u64 = 8;
/// How much a piece of work lets go before it at a time.
const MAX_LET_PAST: usize = 8;

/// What a text is encoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Something is generated from it: somebody waits for the first token.
    Generation,
    /// The answer is tokens or text.
    Translation,
}

/// Which goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    ShortGeneration,
    LongGeneration,
    ShortTranslation,
    LongTranslation,
}

impl Rank {
    const ALL: [Self; 4] =
        [Self::ShortGeneration, Self::LongGeneration, Self::ShortTranslation, Self::LongTranslation];

    fn new(purpose: Purpose, num_bytes: usize) -> Self {
        match (purpose, num_bytes < LONG_BYTES) {
            (Purpose::Generation, true) => Self::ShortGeneration,
            (Purpose::Generation, false) => Self::LongGeneration,
            (Purpose::Translation, true) => Self::ShortTranslation,
            (Purpose::Translation, false) => Self::LongTranslation,
        }
    }

    fn is_long(self) -> bool {
        matches!(self, Self::LongGeneration | Self::LongTranslation)
    }
}

/// Threads and queue.
pub(crate) struct EncodePool {
    threads: ThreadPool,
    queue: Arc<Queue>,
    generation: Room,
    translation: Room,
}

/// What texts of one purpose have for themselves: however much is tokenized, what is generated from finds room.
struct Room {
    /// Running or waiting texts.
    places: Arc<Semaphore>,
    memory: TextMemory,
}

/// A piece of work's place in the queue, and the memory that its text and tokens take.
pub(crate) struct Place {
    _place: OwnedSemaphorePermit,
    memory: TextShare,
}

impl Place {
    /// Leaves the queue and keeps the memory.
    pub(crate) fn into_memory(self) -> TextShare {
        self.memory
    }
}

/// Work that waits or runs. Dropped while it waits, it is taken out of the queue.
#[must_use]
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    key: Key,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Not dropped under the lock: it may own a whole text.
        let abandoned = self.queue.lock().waiting.remove(&self.key);
        drop(abandoned);
    }
}

/// The thread that works on something.
pub(crate) struct Worker<'q> {
    queue: &'q Queue,
    rank: Rank,
}

impl Worker<'_> {
    /// Does what should go before the work at hand; to be called every millisecond or so.
    pub(crate) fn let_others_past(&self) {
        for _ in 0..MAX_LET_PAST {
            let Some((rank, work)) = self.queue.next(Some(self.rank)) else { return };
            self.queue.run(rank, work);
        }
    }
}

type Work = Box<dyn FnOnce(&Worker<'_>) + Send>;
/// By rank, then by arrival.
type Key = (Rank, u64);

struct Queue {
    state: Mutex<State>,
    /// Long texts that run at once: so many threads are never free for short ones.
    max_long: usize,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<Key, Work>,
    num_arrived: u64,
    num_turns: u64,
    num_long: usize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, rank: Rank, work: Work) -> Key {
        let mut state = self.lock();
        let key = (rank, state.num_arrived);
        state.num_arrived += 1;
        state.waiting.insert(key, work);
        key
    }

    /// What is to be done next, by a thread that has nothing to do or whose work at hand has this rank.
    fn next(&self, at_hand: Option<Rank>) -> Option<(Rank, Work)> {
        let mut state = self.lock();
        let is_fair_turn = at_hand.is_none() && {
            state.num_turns += 1;
            state.num_turns.is_multiple_of(FAIR_TURN)
        };
        // One thread never does two long texts at once more than it counts for.
        let has_room = state.num_long < self.max_long || at_hand.is_some_and(Rank::is_long);
        let mut candidates = Rank::ALL
            .into_iter()
            .take_while(|rank| at_hand.is_none_or(|at_hand| *rank < at_hand))
            .filter(|rank| has_room || !rank.is_long())
            .filter_map(|rank| state.waiting.range((rank, 0)..=(rank, u64::MAX)).next().map(|(key, _)| *key));
        let key = if is_fair_turn { candidates.min_by_key(|(_, at)| *at) } else { candidates.next() }?;
        let work = state.waiting.remove(&key)?;
        state.num_long += usize::from(key.0.is_long());
        Some((key.0, work))
    }

    /// A fault in a template engine or tokenizer must not take the process along, as rayon would have it. Whoever waits
    /// for the work sees that it is gone.
    fn run(&self, rank: Rank, work: Work) {
        let worker = Worker { queue: self, rank };
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| work(&worker)));
        self.lock().num_long -= usize::from(rank.is_long());
    }

    /// Until nothing is left that may run: a long text that waited for another is done by the thread that was free of it.
    fn work(&self) {
        while let Some((rank, work)) = self.next(None) {
            self.run(rank, work);
        }
    }
}

impl EncodePool {
    pub(crate) fn new(
        num_threads: usize,
        max_waiting: usize,
        max_memory_bytes: usize,
    ) -> std::result::Result<Self, crate::Error> {
        let num_threads = num_threads.max(1);
        let threads = ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .thread_name(|idx| format!("encode-{idx}"))
            .start_handler(|_| {
                // Where the system refuses, they are like all others.
                let _ = rustix::process::nice(NICENESS);
            })
            .build()
            .map_err(crate::Error::Threads)?;
        let num_places = num_threads.saturating_add(max_waiting).min(Semaphore::MAX_PERMITS);
        let room = || Room {
            places: Arc::new(Semaphore::new(num_places)),
            memory: TextMemory::new(max_memory_bytes / 2),
        };
        let queue = Queue { state: Mutex::default(), max_long: (num_threads - 1).max(1) };
        Ok(Self { threads, queue: Arc::new(queue), generation: room(), translation: room() })
    }

    /// The memory of answers that are tokens or text.
    pub(crate) fn answer_memory(&self) -> &TextMemory {
        &self.translation.memory
    }

    /// Lets a piece of work run on a thread of the pool, which takes `memory_bytes` for a text of `num_bytes`. A panic in
    /// it ends it and nothing else. It is given its place in the queue, to be given back before anybody is told that the
    /// work is done: who hears of it may come with more. Work whose ticket is dropped before it begins is not done.
    ///
    /// # Errors
    /// `QueueFull` at once where no place or memory is free; `PayloadTooLarge` where there never is so much.
    pub(crate) fn spawn(
        &self,
        purpose: Purpose,
        num_bytes: usize,
        memory_bytes: usize,
        work: impl FnOnce(&Worker<'_>, Place) + Send + 'static,
    ) -> Result<Ticket> {
        let room = match purpose {
            Purpose::Generation => &self.generation,
            Purpose::Translation => &self.translation,
        };
        let Ok(place) = Arc::clone(&room.places).try_acquire_owned() else {
            return Err(Error::new(Code::QueueFull, "too many texts are waiting to be encoded; try again"));
        };
        let place = Place { _place: place, memory: room.memory.share(memory_bytes)? };
        let rank = Rank::new(purpose, num_bytes);
        let key = self.queue.push(rank, Box::new(move |worker| work(worker, place)));
        let queue = Arc::clone(&self.queue);
        self.threads.spawn_fifo(move || queue.work());
        Ok(Ticket { queue: Arc::clone(&self.queue), key })
    }

    /// Runs a piece of work on a thread of the pool and waits for its answer.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); what the work itself answers.
    ///
    /// # Cancel safety
    /// Work whose caller is gone before it begins is not done.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        purpose: Purpose,
        num_bytes: usize,
        memory_bytes: usize,
        work: impl FnOnce(&Worker<'_>, &dyn Fn() -> bool) -> Result<T> + Send + 'static,
    ) -> Result<(T, TextShare)> {
        let (answer, answered) = oneshot::channel();
        let _ticket = self.spawn(purpose, num_bytes, memory_bytes, move |worker, place| {
            let result = work(worker, &|| answer.is_closed());
            let memory = place.into_memory();
            // The caller may have gone meanwhile.
            let _ = answer.send(result.map(|done| (done, memory)));
        })?;
        answered.await.unwrap_or_else(|gone| {
            events::encoder_panicked();
            Err(Error::internal(&gone))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    fn pool(num_threads: usize, max_waiting: usize) -> EncodePool {
        EncodePool::new(num_threads, max_waiting, 2 << 20).unwrap()
    }

    /// Work that begins, says so, and waits to be let go.
    struct Blocker {
        begun: Receiver<()>,
        release: SyncSender<()>,
        _ticket: Ticket,
    }

    fn block(pool: &EncodePool, num_bytes: usize) -> Blocker {
        let (begin, begun) = sync_channel(1);
        let (release, released) = sync_channel(1);
        let ticket = pool.spawn(Purpose::Translation, num_bytes, 0, move |_, _| {
            begin.send(()).unwrap();
            released.recv().unwrap();
        });
        Blocker { begun, release, _ticket: ticket.unwrap() }
    }

    /// Work that notes its name.
    fn note(
        pool: &EncodePool,
        log: &SyncSender<&'static str>,
        what: Purpose,
        num_bytes: usize,
        name: &'static str,
    ) -> Ticket {
        let log = log.clone();
        pool.spawn(what, num_bytes, 0, move |_, _| log.send(name).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_empties_again() {
        let pool = pool(1, 1);
        let first = block(&pool, 1);
        first.begun.recv().unwrap();
        let mut waiting = Box::pin(pool.run(Purpose::Translation, 1, 0, |_, _| Ok(2)));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let refused = pool.run(Purpose::Translation, 1, 0, |_, _| Ok(3)).await;
        assert_eq!(refused.err().unwrap().code(), Code::QueueFull);
        // What is generated from has places of its own.
        let mut other = Box::pin(pool.run(Purpose::Generation, 1, 0, |_, _| Ok(5)));
        assert!(futures_util::poll!(&mut other).is_pending());
        first.release.send(()).unwrap();
        assert_eq!(waiting.await.unwrap().0, 2);
        assert_eq!(other.await.unwrap().0, 5);
        assert_eq!(pool.run(Purpose::Translation, 1, 0, |_, _| Ok(4)).await.unwrap().0, 4);
    }

    #[tokio::test]
    async fn memory_is_held_from_the_queue_until_the_answer_is_gone() {
        let pool = pool(1, 8);
        let run = |num_bytes| pool.run(Purpose::Translation, num_bytes, num_bytes, |_, _| Ok(()));
        let (_, mut held) = run(600 << 10).await.unwrap();
        assert_eq!(run(600 << 10).await.err().unwrap().code(), Code::QueueFull);
        assert_eq!(run(2 << 20).await.err().unwrap().code(), Code::PayloadTooLarge);
        pool.run(Purpose::Generation, 1, 1 << 20, |_, _| Ok(())).await.unwrap();
        held.shrink_to(400 << 10);
        let (_, other) = run(600 << 10).await.unwrap();
        drop((held, other));
        run(1 << 20).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_one_requests_fault() {
        let pool = pool(1, 0);
        let broken =
            pool.run(Purpose::Generation, LONG_BYTES, 0, |_, _| -> Result<()> { panic!("on purpose") });
        assert_eq!(broken.await.err().unwrap().code(), Code::Internal);
        // Nor does it keep the place of long ones.
        assert_eq!(pool.run(Purpose::Generation, LONG_BYTES, 0, |_, _| Ok(1)).await.unwrap().0, 1);
    }

    #[test]
    fn long_texts_leave_a_thread_to_short_ones() {
        let pool = pool(3, 16);
        let long: Vec<_> = (0..3).map(|_| block(&pool, LONG_BYTES)).collect();
        for running in &long[..2] {
            running.begun.recv().unwrap();
        }
        let (log, noted) = sync_channel(4);
        let _short = note(&pool, &log, Purpose::Translation, 1, "short");
        assert_eq!(noted.recv().unwrap(), "short");
        assert!(long[2].begun.try_recv().is_err());
        long[0].release.send(()).unwrap();
        long[2].begun.recv().unwrap();
        for running in &long[1..] {
            running.release.send(()).unwrap();
        }
    }

    #[test]
    fn short_ones_and_what_is_generated_from_go_first_and_nobody_waits_for_ever() {
        let pool = pool(1, 64);
        let first = block(&pool, 1);
        first.begun.recv().unwrap();
        let (log, noted) = sync_channel(64);
        use Purpose::{Generation, Translation};
        let mut tickets = vec![
            note(&pool, &log, Translation, LONG_BYTES, "long translation"),
            note(&pool, &log, Translation, 1, "short translation"),
            note(&pool, &log, Generation, LONG_BYTES, "long generation"),
        ];
        tickets.extend((0..16).map(|_| note(&pool, &log, Generation, 1, "short generation")));
        first.release.send(()).unwrap();
        let order: Vec<_> = (0..tickets.len()).map(|_| noted.recv().unwrap()).collect();
        // The blocker had the first turn: the eighth and the sixteenth are the longest waiters'.
        assert_eq!(order.iter().position(|name| *name == "long translation"), Some(6));
        assert_eq!(order.iter().position(|name| *name == "short translation"), Some(14));
        assert_eq!(order[18], "long generation");
    }

    #[test]
    fn between_two_pieces_of_a_text_others_go_past() {
        let pool = Arc::new(pool(1, 64));
        let (log, noted) = sync_channel(64);
        let (begin, begun) = sync_channel(1);
        let (go_on, gone_on) = sync_channel::<()>(1);
        let done = log.clone();
        let _long = pool
            .spawn(Purpose::Translation, LONG_BYTES, 0, move |worker, _| {
                begin.send(()).unwrap();
                gone_on.recv().unwrap();
                worker.let_others_past();
                done.send("long").unwrap();
            })
            .unwrap();
        begun.recv().unwrap();
        let _others = [
            note(&pool, &log, Purpose::Translation, LONG_BYTES, "other long"),
            note(&pool, &log, Purpose::Generation, LONG_BYTES, "generation"),
            note(&pool, &log, Purpose::Translation, 1, "short"),
        ];
        go_on.send(()).unwrap();
        let order: Vec<_> = (0..4).map(|_| noted.recv().unwrap()).collect();
        assert_eq!(order, ["generation", "short", "long", "other long"]);
    }

    #[test]
    fn what_nobody_waits_for_is_taken_out_of_the_queue_with_its_memory() {
        let pool = pool(1, 1);
        let first = block(&pool, 1);
        first.begun.recv().unwrap();
        let (log, noted) = sync_channel(4);
        for _ in 0..3 {
            let log = log.clone();
            let whole = 1 << 20;
            drop(
                pool.spawn(Purpose::Generation, whole, whole, move |_, _| log.send("abandoned").unwrap())
                    .unwrap(),
            );
        }
        let _kept = note(&pool, &log, Purpose::Generation, 1, "kept");
        first.release.send(()).unwrap();
        assert_eq!(noted.recv().unwrap(), "kept");
        assert!(noted.try_recv().is_err());
    }
}

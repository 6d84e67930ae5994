use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::FixedState;
use rayon::prelude::*;

use super::NUM_SHARDS;
use super::piece::{self, Piece};
use super::token_text::TokenTexts;
use crate::build::observer::{Observer, Stage, Unit};
use crate::build::spool::Spool;
use crate::{Result, TokenId};

/// No n-gram: not one that is counted, or not one that was seen often enough.
pub(super) const NONE: u32 = u32::MAX;

/// The n-grams (n from 2) of a corpus that may become n-tokens, most frequent first.
///
/// They are counted one length after the other. An n-gram is never seen more often than what it begins or ends with, so
/// once shorter ones alone fill the list, longer ones around rarer ones need not be counted: the list stays exactly
/// what it would be if all were counted, and memory is bounded by the n-grams that have a chance.
pub(super) struct NGrams {
    /// By length, from 2.
    levels: Vec<Level>,
    queue: Vec<Queued>,
}

/// N-grams of one length.
struct Level {
    /// Their length.
    n: usize,
    /// By the id of the n-gram without its last token (for two tokens: the first one's id), and the last token.
    ids: HashMap<u64, u32, FixedState>,
    grams: Vec<Gram>,
    /// By id: the place in the queue.
    places: Vec<u32>,
}

struct Gram {
    key: u64,
    count: Count,
    all_digits: bool,
}

/// How often an n-gram was seen, and where first.
#[derive(Clone, Copy)]
struct Count {
    freq: u32,
    document: u32,
    place: u32,
}

struct Queued {
    len: usize,
    id: u32,
    freq: u32,
}

impl NGrams {
    /// Counts n-grams of up to `max_n` tokens and keeps the `max` most frequent; of equally frequent ones those that the
    /// reference counts first: document by document, within one the shorter first, then from left to right.
    pub(super) fn count(
        spool: &Spool,
        texts: &TokenTexts,
        max_n: usize,
        max: usize,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let mut ngrams = Self { levels: Vec::new(), queue: Vec::new() };
        let total = Some((max_n as u64 - 1) * spool.num_tokens());
        observer.begin(&Stage { name: "counting n-grams", unit: Unit::Tokens, total });
        let mut freqs = Vec::new();
        let mut min_freq = 1;
        for _ in 2..=max_n {
            let mut grams = ngrams.count_level(spool, texts, observer)?;
            freqs.extend(grams.iter().filter(|gram| !gram.all_digits).map(|gram| gram.count.freq));
            if freqs.len() > max {
                freqs.select_nth_unstable_by_key(max - 1, |freq| Reverse(*freq));
                freqs.truncate(max);
                min_freq = freqs[max - 1];
            }
            grams.retain(|gram| gram.count.freq >= min_freq);
            ngrams.levels.push(Level::new(ngrams.levels.len() + 2, grams));
        }
        ngrams.fill_queue(max);
        Ok(ngrams)
    }

    /// Counts the n-grams that are one token longer than those counted so far.
    fn count_level(&self, spool: &Spool, texts: &TokenTexts, observer: &dyn Observer) -> Result<Vec<Gram>> {
        let mut shards = vec![HashMap::<u64, Count, FixedState>::default(); NUM_SHARDS];
        piece::for_each_group(spool, observer, |pieces| {
            let found: Vec<_> = pieces.par_iter().map(|piece| self.occurrences(piece, texts)).collect();
            shards.par_iter_mut().enumerate().for_each(|(shard, counts)| {
                for (key, first) in found.iter().flat_map(|piece| &piece[shard]) {
                    match counts.entry(*key) {
                        Entry::Occupied(count) => {
                            let freq = &mut count.into_mut().freq;
                            *freq = freq.saturating_add(1);
                        }
                        Entry::Vacant(place) => {
                            place.insert(*first);
                        }
                    }
                }
            });
            observer.advance(pieces.iter().map(|piece| piece.places.len() as u64).sum());
        })?;
        let gram = |(key, count)| Gram { key, count, all_digits: self.is_all_digits(key, texts) };
        Ok(shards.into_iter().flatten().map(gram).collect())
    }

    /// The next longer n-grams that begin in a piece, by shard, each as if it were the first of its kind.
    fn occurrences(&self, piece: &Piece<'_>, texts: &TokenTexts) -> Vec<Vec<(u64, Count)>> {
        let n = self.levels.len() + 2;
        let end = piece.tokens.len().min(piece.places.end + n - 1);
        let tokens = &piece.tokens[piece.places.start..end];
        // A banned token and all around it are left out here: the reference counts and then drops them.
        let first =
            |id: &TokenId| if texts.get(*id).is_some_and(|token| !token.is_banned) { id.0 } else { NONE };
        let mut ids: Vec<u32> = tokens.iter().map(first).collect();
        let mut shards = vec![Vec::new(); NUM_SHARDS];
        let goes_on = |id: TokenId| texts.get(id).is_some_and(|token| !token.begins_word);
        for level in &self.levels {
            level.extend(&mut ids, tokens);
        }
        for place in 0..ids.len().saturating_sub(1).min(piece.places.len()) {
            let Some(last) = tokens.get(place + n - 1) else { break };
            if ids[place] == NONE || ids[place + 1] == NONE || !goes_on(*last) {
                continue;
            }
            let key = key(ids[place], *last);
            let place = (piece.places.start + place) as u32;
            shards[shard(key)].push((key, Count { freq: 1, document: piece.document, place }));
        }
        shards
    }

    fn is_all_digits(&self, key: u64, texts: &TokenTexts) -> bool {
        let (prefix, last) = parts(key);
        let is_digit = |id| texts.get(id).is_some_and(|token| token.is_digit);
        let before = match self.levels.last() {
            Some(level) => level.grams[prefix as usize].all_digits,
            None => is_digit(TokenId(prefix)),
        };
        before && is_digit(last)
    }

    fn fill_queue(&mut self, max: usize) {
        let mut list: Vec<_> = (2..)
            .zip(&self.levels)
            .flat_map(|(len, level)| (0..).zip(&level.grams).map(move |(id, gram)| (len, id, gram)))
            .filter(|(_, _, gram)| !gram.all_digits)
            .map(|(len, id, Gram { count, .. })| {
                (
                    (Reverse(count.freq), count.document, len, count.place),
                    Queued { len, id, freq: count.freq },
                )
            })
            .collect();
        list.par_sort_unstable_by_key(|(key, _)| *key);
        list.truncate(max);
        self.queue = list.into_iter().map(|(_, queued)| queued).collect();
        for (place, queued) in (0..).zip(&self.queue) {
            self.levels[queued.len - 2].places[queued.id as usize] = place;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn max_n(&self) -> usize {
        self.levels.len() + 1
    }

    /// Tokens of the n-gram at a place of the queue.
    pub(super) fn num_tokens(&self, place: u32) -> usize {
        self.queue[place as usize].len
    }

    pub(super) fn freq(&self, place: u32) -> u32 {
        self.queue[place as usize].freq
    }

    pub(super) fn tokens(&self, place: u32) -> Vec<TokenId> {
        let Queued { len, mut id, .. } = self.queue[place as usize];
        let mut tokens = Vec::with_capacity(len);
        for level in self.levels[..len - 1].iter().rev() {
            let (prefix, last) = parts(level.grams[id as usize].key);
            tokens.push(last);
            id = prefix;
        }
        tokens.push(TokenId(id));
        tokens.reverse();
        tokens
    }

    /// By length from 2 and by place of the tokens: which n-gram of the queue begins there, or [`NONE`].
    pub(super) fn places_in(&self, tokens: &[TokenId]) -> Vec<Vec<u32>> {
        let mut ids: Vec<u32> = tokens.iter().map(|id| id.0).collect();
        let places = |level: &Level| {
            level.extend(&mut ids, tokens);
            ids.iter().map(|id| level.places.get(*id as usize).copied().unwrap_or(NONE)).collect()
        };
        self.levels.iter().map(places).collect()
    }
}

impl Level {
    fn new(n: usize, grams: Vec<Gram>) -> Self {
        let ids = (0..).zip(&grams).map(|(id, gram)| (gram.key, id)).collect();
        Self { n, ids, places: vec![NONE; grams.len()], grams }
    }

    /// Turns the ids of n-grams one token shorter, by place, into those of this length.
    fn extend(&self, ids: &mut Vec<u32>, tokens: &[TokenId]) {
        ids.truncate((tokens.len() + 1).saturating_sub(self.n));
        for (id, last) in ids.iter_mut().zip(tokens.iter().skip(self.n - 1)) {
            if *id != NONE {
                *id = self.ids.get(&key(*id, *last)).copied().unwrap_or(NONE);
            }
        }
    }
}

fn key(prefix: u32, last: TokenId) -> u64 {
    u64::from(prefix) << 32 | u64::from(last.0)
}

fn parts(key: u64) -> (u32, TokenId) {
    ((key >> 32) as u32, TokenId(key as u32))
}

/// Spreads keys evenly: Fibonacci hashing.
fn shard(key: u64) -> usize {
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % NUM_SHARDS
}

use std::collections::HashMap;

use foldhash::fast::FixedState;
use rayon::prelude::*;

use super::NUM_SHARDS;
use super::choice::{Affected, Overlaps};
use super::ngrams::{NGrams, NONE};
use super::piece::{self, Piece};
use crate::Result;
use crate::build::observer::Observer;
use crate::build::spool::Spool;

/// Overlaps seen less often are forgotten, which lets rare n-grams stand in front of longer ones (quirk 16, kept).
const MIN_AFFECTED: u32 = 3;

/// Counts overlaps in the corpus for the n-grams that are asked for, one pass over it for each question.
///
/// The reference counts every pair of overlapping n-grams beforehand. Only what the chosen ones overlap is ever looked
/// at, and that is a small part.
pub(super) struct CorpusOverlaps<'a> {
    pub(super) spool: &'a Spool,
    pub(super) ngrams: &'a NGrams,
    pub(super) observer: &'a dyn Observer,
}

/// Overlaps counted for one part of the n-grams asked for, in the order in which they were first seen.
#[derive(Default)]
struct Shard {
    idx: HashMap<u64, u32, FixedState>,
    overlaps: Vec<Overlap>,
}

struct Overlap {
    row: u32,
    affected: Affected,
}

impl Overlaps for CorpusOverlaps<'_> {
    fn count(&self, wanted: &[u32], is_queued: &[bool]) -> Result<Vec<Vec<Affected>>> {
        let mut rows = vec![NONE; self.ngrams.len()];
        for (row, place) in (0..).zip(wanted) {
            rows[*place as usize] = row;
        }
        let mut shards: Vec<Shard> = (0..NUM_SHARDS).map(|_| Shard::default()).collect();
        piece::for_each_group(self.spool, self.observer, |pieces| {
            let found: Vec<_> =
                pieces.par_iter().map(|piece| self.overlaps(piece, &rows, is_queued)).collect();
            shards.par_iter_mut().enumerate().for_each(|(idx, shard)| {
                found.iter().flat_map(|piece| &piece[idx]).for_each(|(row, place)| shard.add(*row, *place));
            });
        })?;
        let mut counted = vec![Vec::new(); wanted.len()];
        for Overlap { row, affected } in shards.into_iter().flat_map(|shard| shard.overlaps) {
            if affected.times >= MIN_AFFECTED {
                counted[row as usize].push(affected);
            }
        }
        Ok(counted)
    }

    /// Each occurrence overlaps at most so many others, and there are only so many to overlap.
    fn max_entries(&self, place: u32) -> usize {
        let n = self.ngrams.num_tokens(place);
        let around: usize = (2..=self.ngrams.max_n()).map(|len| n + len - 1).sum();
        self.ngrams.len().min(around * self.ngrams.freq(place) as usize)
    }
}

impl CorpusOverlaps<'_> {
    /// Overlaps of the wanted n-grams that begin in a piece, by shard: the row of the one, the place of the other. They
    /// come in the reference's order: the one from left to right, the shorter first, and for it the other likewise.
    fn overlaps(&self, piece: &Piece<'_>, rows: &[u32], is_queued: &[bool]) -> Vec<Vec<(u32, u32)>> {
        let max_n = self.ngrams.max_n();
        let start = piece.places.start.saturating_sub(max_n - 1);
        let end = piece.tokens.len().min(piece.places.end + 2 * (max_n - 1));
        let lengths = self.ngrams.places_in(&piece.tokens[start..end]);
        let mut shards = vec![Vec::new(); NUM_SHARDS];
        for one_start in piece.places.start - start..piece.places.end - start {
            for (one_n, ones) in (2..).zip(&lengths) {
                let Some(one) = ones.get(one_start).copied().filter(|one| *one != NONE) else { continue };
                let row = rows[one as usize];
                if row == NONE {
                    continue;
                }
                let shard = &mut shards[row as usize % NUM_SHARDS];
                for other_start in one_start.saturating_sub(max_n - 1)..one_start + one_n {
                    for (other_n, others) in (2..).zip(&lengths) {
                        if other_start + other_n <= one_start {
                            continue;
                        }
                        let Some(other) = others.get(other_start).copied() else { break };
                        // An n-gram that overlaps itself is no longer queued when that would count.
                        if other != NONE && other != one && is_queued[other as usize] {
                            shard.push((row, other));
                        }
                    }
                }
            }
        }
        shards
    }
}

impl Shard {
    fn add(&mut self, row: u32, place: u32) {
        let next = self.overlaps.len() as u32;
        let idx = *self.idx.entry(u64::from(row) << 32 | u64::from(place)).or_insert(next);
        match self.overlaps.get_mut(idx as usize) {
            Some(overlap) => overlap.affected.times = overlap.affected.times.saturating_add(1),
            None => self.overlaps.push(Overlap { row, affected: Affected { place, times: 1 } }),
        }
    }
}

use std::ops::Range;

use crate::simd::{LANES, Simd};

/// Keys in a block.
pub(super) const BLOCK: usize = 4 * LANES;

/// Scores or weights of LINES lines for the keys of one block.
pub(super) type Block<const LINES: usize> = [[f32; BLOCK]; LINES];

/// One key and value head of one layer in a slot.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) slot: &'a [f32],
    pub(super) token_stride: usize,
    pub(super) head_dim: usize,
    /// Of this head, within a token.
    pub(super) key_offset: usize,
    pub(super) value_offset: usize,
}

impl<'a> Head<'a> {
    #[inline(always)]
    fn key(&self, token: usize) -> &'a [f32] {
        &self.slot[token * self.token_stride + self.key_offset..][..self.head_dim]
    }

    #[inline(always)]
    fn value(&self, token: usize) -> &'a [f32] {
        &self.slot[token * self.token_stride + self.value_offset..][..self.head_dim]
    }
}

/// LINES lines on one block. They share loads, never sums.
pub(super) struct Tile<'a, const LINES: usize> {
    pub(super) head: Head<'a>,
    pub(super) queries: [&'a [f32]; LINES],
    /// The block's first token.
    pub(super) block_start: usize,
    /// Tokens of the block that some line sees, at least one: those beyond may not even be mapped.
    pub(super) tokens: Range<usize>,
}

impl<const LINES: usize> Tile<'_, LINES> {
    /// Writes query · key for the tile's tokens, KEYS keys at a time; LINES · KEYS is [`LANES`].
    #[inline(always)]
    pub(super) fn scores<S: Simd, const KEYS: usize>(&self, simd: S, scores: &mut Block<LINES>) {
        const { assert!(LINES * KEYS == LANES, "one vector holds the tile's sums") };
        let num_vectors = self.head.head_dim / LANES;
        let mut queries = [[].as_slice(); LINES];
        for (query, from) in queries.iter_mut().zip(&self.queries) {
            *query = &from.as_chunks::<LANES>().0[..num_vectors];
        }
        for first in self.tokens.clone().step_by(KEYS) {
            let mut keys = [[].as_slice(); KEYS];
            for (idx, key) in keys.iter_mut().enumerate() {
                // The last token stands in for those behind it, whose sums nobody takes.
                let token = (first + idx).min(self.tokens.end - 1);
                *key = &self.head.key(token).as_chunks::<LANES>().0[..num_vectors];
            }
            let mut sums = [[simd.splat(0.0); KEYS]; LINES];
            for at in 0..num_vectors {
                let mut key_vectors = [simd.splat(0.0); KEYS];
                for (vector, key) in key_vectors.iter_mut().zip(&keys) {
                    *vector = simd.load(&key[at]);
                }
                for (query, sums) in queries.iter().zip(&mut sums) {
                    let query = simd.load(&query[at]);
                    for (key, sum) in key_vectors.iter().zip(sums) {
                        *sum = simd.mul_add(query, *key, *sum);
                    }
                }
            }
            if !self.head.head_dim.is_multiple_of(LANES) {
                self.add_rests(simd, first, &mut sums);
            }
            let mut all = [simd.splat(0.0); LANES];
            for (all, sums) in all.chunks_exact_mut(KEYS).zip(&sums) {
                all.copy_from_slice(sums);
            }
            let mut lanes = [0.0; LANES];
            simd.store(&mut lanes, simd.sums(all));
            let start = first - self.block_start;
            let num_keys = KEYS.min(self.tokens.end - first);
            for (scores, sums) in scores.iter_mut().zip(lanes.chunks_exact(KEYS)) {
                scores[start..start + num_keys].copy_from_slice(&sums[..num_keys]);
            }
        }
    }

    /// What a head has beyond whole vectors.
    #[inline(always)]
    fn add_rests<S: Simd, const KEYS: usize>(
        &self,
        simd: S,
        first: usize,
        sums: &mut [[S::F32; KEYS]; LINES],
    ) {
        for (query, sums) in self.queries.iter().zip(sums) {
            let query = simd.load_partial(query.as_chunks::<LANES>().1);
            for (idx, sum) in sums.iter_mut().enumerate() {
                let key = self.head.key((first + idx).min(self.tokens.end - 1));
                *sum = simd.mul_add(query, simd.load_partial(key.as_chunks::<LANES>().1), *sum);
            }
        }
    }

    /// Σ weight · value over the tile's tokens, for VECTORS whole vectors of the head from element `at` on.
    #[inline(always)]
    pub(super) fn weighted<S: Simd, const VECTORS: usize>(
        &self,
        simd: S,
        weights: &Block<LINES>,
        at: usize,
    ) -> [[S::F32; VECTORS]; LINES] {
        let mut line_weights = [[].as_slice(); LINES];
        for (of_line, weights) in line_weights.iter_mut().zip(weights) {
            *of_line = &weights[self.tokens.start - self.block_start..][..self.tokens.len()];
        }
        let mut sums = [[simd.splat(0.0); VECTORS]; LINES];
        for idx in 0..self.tokens.len() {
            let value = &self.head.value(self.tokens.start + idx)[at..][..VECTORS * LANES];
            let (value, _) = value.as_chunks::<LANES>();
            let mut vectors = [simd.splat(0.0); VECTORS];
            for (vector, value) in vectors.iter_mut().zip(value) {
                *vector = simd.load(value);
            }
            for (weights, sums) in line_weights.iter().zip(&mut sums) {
                let weight = simd.splat(weights[idx]);
                for (vector, sum) in vectors.iter().zip(sums) {
                    *sum = simd.mul_add(weight, *vector, *sum);
                }
            }
        }
        sums
    }

    /// The same for the elements from `at` on, fewer than a vector.
    #[inline(always)]
    pub(super) fn weighted_rest<S: Simd>(
        &self,
        simd: S,
        weights: &Block<LINES>,
        at: usize,
    ) -> [[S::F32; 1]; LINES] {
        let mut sums = [[simd.splat(0.0)]; LINES];
        for token in self.tokens.clone() {
            let value = simd.load_partial(&self.head.value(token)[at..]);
            for (weights, [sum]) in weights.iter().zip(&mut sums) {
                *sum = simd.mul_add(simd.splat(weights[token - self.block_start]), value, *sum);
            }
        }
        sums
    }
}

//! Causal attention of new tokens over the keys and values in their sequence's slot.
//!
//! out = softmax(scale · q kᵀ) v for each query token and head; a query at position p sees the keys at positions
//! max(0, p + 1 − window) … p. Heads share key and value heads in groups (GQA, arXiv 2305.13245). Softmax is computed
//! online (arXiv 1805.02867) over blocks of [`BLOCK`] keys, so that scratch memory does not grow with the context, and a
//! block's keys and values are read from memory once for all the queries of a task.
//!
//! Batch invariance: blocks lie at multiples of [`BLOCK`] from the sequence's start. What happens to one query and head
//! so depends on its position only, not on the chunk its token came in.

use std::ops::Range;

use crate::parallel;
use crate::simd::{self, Kernel, LANES, Simd};

/// Keys in a block.
const BLOCK: usize = 4 * LANES;
/// Query tokens in a task at most.
const TASK_QUERIES: usize = 16;
/// Queries, each of one token and head, that walk over the keys together.
const MAX_LINES: usize = 64;

/// One layer's attention: its shape, and where its keys and values are. Lengths and offsets count f32.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Tokens that a query sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// From a token to the next in a slot.
    pub token_stride: usize,
    /// Where this layer's keys begin in a token.
    pub keys_offset: usize,
    /// Where this layer's values begin in a token.
    pub values_offset: usize,
}

/// One sequence of a batch.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSequence<'a> {
    /// All tokens of the sequence, the new ones included: `[token][layer][K|V][kv head][dim]`.
    pub slot: &'a [f32],
    /// How many of the last tokens are new: those are the queries.
    pub num_queries: usize,
}

/// Attention for all sequences of a batch. A row of `queries` (one a new token, in the order of the sequences, cut to
/// whole rows of `query_stride`) begins with its heads; `out` is [new tokens, heads · dim].
///
/// # Panics
/// The shapes disagree.
pub fn attention(
    shape: &Attention,
    sequences: &[AttentionSequence<'_>],
    queries: &[f32],
    query_stride: usize,
    out: &mut [f32],
) {
    let out_stride = shape.num_heads * shape.head_dim;
    let num_rows: usize = sequences.iter().map(|sequence| sequence.num_queries).sum();
    assert!(
        query_stride >= out_stride && shape.num_heads.is_multiple_of(shape.num_kv_heads),
        "heads disagree"
    );
    assert!(queries.len() == num_rows * query_stride && out.len() == num_rows * out_stride, "rows disagree");

    let work: usize = sequences.iter().map(|sequence| sequence.work(shape)).sum();
    let num_blocks: usize =
        sequences.iter().map(|sequence| sequence.num_queries.div_ceil(TASK_QUERIES)).sum();
    let num_tasks = parallel::num_tasks(work, num_blocks * shape.num_kv_heads);
    // Few blocks of queries (decodes): split by heads as well.
    let kv_heads_per_task = shape.num_kv_heads.div_ceil(num_tasks.div_ceil(num_blocks.max(1)));
    let group = shape.num_heads / shape.num_kv_heads;

    let mut tasks = Vec::with_capacity(num_tasks.max(num_blocks));
    let (mut queries, mut out) = (queries, out);
    for sequence in sequences {
        let slot_tokens = sequence.slot.len() / shape.token_stride;
        assert!(slot_tokens >= sequence.num_queries, "the slot lacks the new tokens");
        let mut position = slot_tokens - sequence.num_queries;
        let mut num_left = sequence.num_queries;
        while num_left > 0 {
            let num_queries = num_left.min(TASK_QUERIES);
            let (block_queries, rest_queries) = queries.split_at(num_queries * query_stride);
            let (block_out, rest_out) = out.split_at_mut(num_queries * out_stride);
            let width = kv_heads_per_task * group * shape.head_dim;
            for (idx, out) in parallel::column_blocks(block_out, out_stride, width).into_iter().enumerate() {
                tasks.push(Task {
                    shape,
                    slot: sequence.slot,
                    position,
                    first_kv_head: idx * kv_heads_per_task,
                    queries: block_queries,
                    query_stride,
                    out,
                });
            }
            (queries, out) = (rest_queries, rest_out);
            position += num_queries;
            num_left -= num_queries;
        }
    }
    if num_tasks <= 1 {
        tasks.into_iter().for_each(simd::run);
    } else {
        parallel::for_each(tasks, simd::run);
    }
}

impl AttentionSequence<'_> {
    /// About how many multiply-adds it costs.
    fn work(&self, shape: &Attention) -> usize {
        let num_tokens = self.slot.len() / shape.token_stride;
        let num_keys = num_tokens.min(shape.window.unwrap_or(usize::MAX));
        // Twice: keys and values; and a vector of scores costs as much as 8 of products.
        self.num_queries * num_keys * shape.num_heads * (2 * shape.head_dim + 8 * LANES)
    }
}

/// Some consecutive query tokens of one sequence, and some of its key and value heads.
struct Task<'a> {
    shape: &'a Attention,
    slot: &'a [f32],
    /// Of the first query token.
    position: usize,
    first_kv_head: usize,
    queries: &'a [f32],
    query_stride: usize,
    /// One slice a query token: the heads of this task.
    out: Vec<&'a mut [f32]>,
}

impl Kernel for Task<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let head_dim = self.shape.head_dim;
        let group = self.shape.num_heads / self.shape.num_kv_heads;
        let num_kv_heads = self.out[0].len() / (group * head_dim);
        for kv_head in 0..num_kv_heads {
            let num_lines = self.out.len() * group;
            for first_line in (0..num_lines).step_by(MAX_LINES) {
                let lines = first_line..num_lines.min(first_line + MAX_LINES);
                self.walk(simd, kv_head, group, lines);
            }
        }
    }
}

/// The online softmax of one query and head: the greatest score so far, and the sum of e^(score − greatest).
#[derive(Clone, Copy)]
struct Softmax {
    greatest: f32,
    sum: f32,
}

impl Task<'_> {
    /// Takes some lines (query tokens times heads of a group) over all keys they see.
    #[inline(always)]
    fn walk<S: Simd>(&mut self, simd: S, kv_head: usize, group: usize, lines: Range<usize>) {
        let Attention { head_dim, scale, window, token_stride, .. } = *self.shape;
        let head_offset = (self.first_kv_head + kv_head) * head_dim;
        let keys_offset = self.shape.keys_offset + head_offset;
        let values_offset = self.shape.values_offset + head_offset;
        let seen_by =
            |position: usize| (position + 1).saturating_sub(window.unwrap_or(usize::MAX))..position + 1;
        let first_seen = seen_by(self.position + lines.start / group).start;
        let end_seen = seen_by(self.position + (lines.end - 1) / group).end;

        let mut softmax = [Softmax { greatest: f32::NEG_INFINITY, sum: 0.0 }; MAX_LINES];
        for line in lines.clone() {
            let head = kv_head * group + line % group;
            self.out[line / group][head * head_dim..][..head_dim].fill(0.0);
        }
        for block_start in (first_seen / BLOCK * BLOCK..end_seen).step_by(BLOCK) {
            for (line, softmax) in lines.clone().zip(&mut softmax) {
                let (row, head) = (line / group, kv_head * group + line % group);
                let seen = seen_by(self.position + row);
                let keys = seen.start.max(block_start)..seen.end.min(block_start + BLOCK);
                if keys.is_empty() {
                    continue;
                }
                let head_in_row = self.first_kv_head * group + head;
                let query = &self.queries[row * self.query_stride + head_in_row * head_dim..][..head_dim];
                let out = &mut self.out[row][head * head_dim..][..head_dim];
                let plane = Plane { slot: self.slot, token_stride, head_dim, offset: keys_offset };
                let mut scores = [f32::NEG_INFINITY; BLOCK];
                plane.scores(simd, query, scale, block_start, &keys, &mut scores);
                let correction = softmax.weigh(simd, &mut scores);
                let plane = Plane { offset: values_offset, ..plane };
                plane.weighted_sum(simd, &scores, block_start, &keys, correction, out);
            }
        }
        for (line, softmax) in lines.zip(&softmax) {
            let head = kv_head * group + line % group;
            let scale = simd.splat(1.0 / softmax.sum);
            for out in self.out[line / group][head * head_dim..][..head_dim].chunks_mut(LANES) {
                simd.store_partial(out, simd.mul(simd.load_partial(out), scale));
            }
        }
    }
}

impl Softmax {
    /// Turns a block's scores into weights relative to the greatest score so far, and returns what earlier weights are
    /// to be multiplied by.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, scores: &mut [f32; BLOCK]) -> f32 {
        let (vectors, _) = scores.as_chunks_mut::<LANES>();
        let mut greatest = simd.splat(self.greatest);
        for vector in vectors.iter() {
            greatest = simd.max(greatest, simd.load(vector));
        }
        let mut lanes = [0.0; LANES];
        simd.store(&mut lanes, greatest);
        let greatest = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if a > b { a } else { b });

        let shift = simd.splat(greatest);
        let mut sum = simd.splat(0.0);
        for vector in vectors.iter_mut() {
            let weights = simd::exp(simd, simd.sub(simd.load(vector), shift));
            simd.store(vector, weights);
            sum = simd.add(sum, weights);
        }
        simd.store(&mut lanes, simd::exp(simd, simd.sub(simd.splat(self.greatest), shift)));
        let correction = lanes[0];
        self.sum = self.sum * correction + simd.sum(sum);
        self.greatest = greatest;
        correction
    }
}

/// One head's keys, or its values, at each token of a slot.
#[derive(Clone, Copy)]
struct Plane<'a> {
    slot: &'a [f32],
    token_stride: usize,
    head_dim: usize,
    /// Within a token.
    offset: usize,
}

impl<'a> Plane<'a> {
    #[inline(always)]
    fn token(&self, token: usize) -> &'a [f32] {
        &self.slot[token * self.token_stride + self.offset..][..self.head_dim]
    }

    /// Writes scale · (query · key) for each of the block's `keys`; the other scores stay.
    #[inline(always)]
    fn scores<S: Simd>(
        &self,
        simd: S,
        query: &[f32],
        scale: f32,
        block_start: usize,
        keys: &Range<usize>,
        scores: &mut [f32; BLOCK],
    ) {
        let (query_vectors, query_rest) = query.as_chunks::<LANES>();
        for (vector_idx, scores) in scores.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let start = block_start + vector_idx * LANES;
            let seen = keys.start.max(start)..keys.end.min(start + LANES);
            if seen.is_empty() {
                continue;
            }
            // Keys that are not seen may not even be mapped; any that is seen stands in for them.
            let mut rows = [self.token(seen.start); LANES];
            for token in seen.clone() {
                rows[token - start] = self.token(token);
            }
            let mut sums = [simd.splat(0.0); LANES];
            for (idx, query) in query_vectors.iter().enumerate() {
                let query = simd.load(query);
                for (row, sum) in rows.iter().zip(&mut sums) {
                    *sum = simd.mul_add(query, simd.load(&row.as_chunks::<LANES>().0[idx]), *sum);
                }
            }
            if !query_rest.is_empty() {
                let query = simd.load_partial(query_rest);
                for (row, sum) in rows.iter().zip(&mut sums) {
                    *sum = simd.mul_add(query, simd.load_partial(row.as_chunks::<LANES>().1), *sum);
                }
            }
            let mut lanes = [0.0; LANES];
            simd.store(&mut lanes, simd.mul(simd.sums(sums), simd.splat(scale)));
            let seen = seen.start - start..seen.end - start;
            scores[seen.clone()].copy_from_slice(&lanes[seen]);
        }
    }

    /// out = correction · out + Σ weight · value over `values` of the block.
    #[inline(always)]
    fn weighted_sum<S: Simd>(
        &self,
        simd: S,
        weights: &[f32; BLOCK],
        block_start: usize,
        values: &Range<usize>,
        correction: f32,
        out: &mut [f32],
    ) {
        let weights = &weights[values.start - block_start..values.end - block_start];
        let block = Block { plane: *self, first_token: values.start, weights, correction };
        let mut at = 0;
        while at < self.head_dim {
            let len = self.head_dim - at;
            if len >= 4 * LANES {
                block.add_to::<S, 4>(simd, at, &mut out[at..]);
                at += 4 * LANES;
            } else if len >= 2 * LANES {
                block.add_to::<S, 2>(simd, at, &mut out[at..]);
                at += 2 * LANES;
            } else {
                block.add_partial_to(simd, at, &mut out[at..at + len.min(LANES)]);
                at += LANES;
            }
        }
    }
}

/// The weighted values of one block.
struct Block<'a> {
    plane: Plane<'a>,
    first_token: usize,
    weights: &'a [f32],
    correction: f32,
}

impl Block<'_> {
    /// VECTORS vectors of the head from element `at` on. Tokens at even and odd positions are summed apart, so that few
    /// vectors still make enough independent sums to hide the latency of an addition.
    #[inline(always)]
    fn add_to<S: Simd, const VECTORS: usize>(&self, simd: S, at: usize, out: &mut [f32]) {
        let (out, _) = out.as_chunks_mut::<LANES>();
        let mut sums = [[simd.splat(0.0); VECTORS]; 2];
        for (idx, &weight) in self.weights.iter().enumerate() {
            let token = self.first_token + idx;
            let (values, _) = self.plane.token(token)[at..].as_chunks::<LANES>();
            let weight = simd.splat(weight);
            for (value, sum) in values.iter().zip(&mut sums[token % 2]) {
                *sum = simd.mul_add(weight, simd.load(value), *sum);
            }
        }
        let correction = simd.splat(self.correction);
        for ((out, even), odd) in out.iter_mut().zip(sums[0]).zip(sums[1]) {
            simd.store(out, simd.mul_add(simd.load(out), correction, simd.add(even, odd)));
        }
    }

    /// The same for the last vector of a head, which may not be whole.
    #[inline(always)]
    fn add_partial_to<S: Simd>(&self, simd: S, at: usize, out: &mut [f32]) {
        let mut sum = simd.splat(0.0);
        for (idx, &weight) in self.weights.iter().enumerate() {
            let values = &self.plane.token(self.first_token + idx)[at..][..out.len()];
            sum = simd.mul_add(simd.splat(weight), simd.load_partial(values), sum);
        }
        let old = simd.load_partial(out);
        simd.store_partial(out, simd.mul_add(old, simd.splat(self.correction), sum));
    }
}

#[cfg(test)]
mod tests;

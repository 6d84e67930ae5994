//! Causal attention of new tokens over the keys and values in their sequence's slot.
//!
//! out = softmax(scale · q kᵀ) v for each query token and head; a query at position p sees the keys at positions
//! max(0, p + 1 − window) … p. Heads share key and value heads in groups (GQA, arXiv 2305.13245). Softmax is computed
//! online (arXiv 1805.02867) over blocks of keys, so that scratch memory does not grow with the context, and a block's
//! keys and values are read from memory once for all the queries of a task.
//!
//! A *line* is a query of one token and one head. Batch invariance: blocks lie at multiples of [`tile::BLOCK`] from the
//! sequence's start, so that what happens to a line depends on its position only, not on the chunk its token came in nor
//! on the lines computed beside it.

mod tile;
mod walk;

use crate::parallel;
use crate::simd::{self, LANES};

/// Query tokens in a task at most.
const TASK_QUERIES: usize = 16;

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

/// Attention for all sequences of a batch. `queries` has a row of `query_stride` for each new token, in the order of the
/// sequences, which begins with the token's query heads; `out` is `[new tokens, heads · dim]`.
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

#[cfg(test)]
mod tests;

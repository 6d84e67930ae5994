use std::ops::Range;

use super::Task;
use super::tile::{BLOCK, Block, Head, Tile};
use crate::simd::{self, Kernel, LANES, Simd};

impl Kernel for Task<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let group = self.shape.num_heads / self.shape.num_kv_heads;
        Walk { num_kv_heads: self.out[0].len() / (group * self.shape.head_dim), group, task: self }.run(simd);
    }
}

/// All lines of a task on their way over the keys: for each key and value head, for each query token, the group's heads.
///
/// Blocks of keys are the outermost loop. A token's keys and values of all heads lie side by side, but those of the next
/// token are far away, in another page of memory even for small models: one head at a time, each page would be visited
/// once for every head. (Asking for the next block's lines ahead made decodes of 16 sequences no faster, and attention
/// of 64 by 7 to 16 %, in few and noisy runs: not done.)
struct Walk<'a> {
    task: Task<'a>,
    /// Query heads of a key and value head.
    group: usize,
    /// Of the task.
    num_kv_heads: usize,
}

/// The online softmax of a line: the greatest score so far, and the sum of e^(score − greatest).
#[derive(Clone, Copy)]
struct Softmax {
    greatest: f32,
    sum: f32,
}

/// A tile's scores, weighed, and what is to become of what its lines have summed up before.
struct Weighed<const LINES: usize> {
    first_line: usize,
    weights: Block<LINES>,
    corrections: [f32; LINES],
}

impl<'a> Walk<'a> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let num_queries = self.task.out.len();
        let lines_per_head = num_queries * self.group;
        let seen = self.seen_by(0).start..self.task.position + num_queries;
        let mut softmax =
            vec![Softmax { greatest: f32::NEG_INFINITY, sum: 0.0 }; self.num_kv_heads * lines_per_head];
        self.task.out.iter_mut().for_each(|out| out.fill(0.0));
        for block_start in (seen.start / BLOCK * BLOCK..seen.end).step_by(BLOCK) {
            for (kv_head, softmax) in softmax.chunks_exact_mut(lines_per_head).enumerate() {
                let mut line = kv_head * lines_per_head;
                let mut softmax = softmax;
                while !softmax.is_empty() {
                    // Sixteen scores at a time, for as many lines as there are: a key is then loaded for several.
                    let num_lines = match softmax.len() {
                        1 => self.tile::<S, 1, 16>(simd, block_start, line, softmax),
                        2 | 3 => self.tile::<S, 2, 8>(simd, block_start, line, softmax),
                        _ => self.tile::<S, 4, 4>(simd, block_start, line, softmax),
                    };
                    line += num_lines;
                    softmax = &mut softmax[num_lines..];
                }
            }
        }
        for (line, softmax) in softmax.iter().enumerate() {
            let scale = simd.splat(1.0 / softmax.sum);
            for out in self.out_of(line).chunks_mut(LANES) {
                simd.store_partial(out, simd.mul(simd.load_partial(out), scale));
            }
        }
    }

    /// Takes LINES lines over one block; returns LINES.
    #[inline(always)]
    fn tile<S: Simd, const LINES: usize, const KEYS: usize>(
        &mut self,
        simd: S,
        block_start: usize,
        first_line: usize,
        softmax: &mut [Softmax],
    ) -> usize {
        let block_end = block_start + BLOCK;
        let mut queries = [[].as_slice(); LINES];
        let mut seen = [const { 0..0 }; LINES];
        let mut tokens = block_end..block_start;
        for (idx, (query, seen)) in queries.iter_mut().zip(&mut seen).enumerate() {
            *query = self.query_of(first_line + idx);
            let all = self.seen_by(first_line + idx);
            *seen = all.start.max(block_start)..all.end.min(block_end);
            if seen.start < seen.end {
                tokens = tokens.start.min(seen.start)..tokens.end.max(seen.end);
            }
        }
        if tokens.is_empty() {
            return LINES;
        }

        let tile = Tile { head: self.head_of(first_line), queries, block_start, tokens };
        let mut weighed = Weighed { first_line, weights: [[0.0; BLOCK]; LINES], corrections: [1.0; LINES] };
        tile.scores::<S, KEYS>(simd, &mut weighed.weights);
        for (idx, (weights, seen)) in weighed.weights.iter_mut().zip(&seen).enumerate() {
            if seen.is_empty() {
                weights.fill(0.0);
            } else {
                let seen = seen.start - block_start..seen.end - block_start;
                weighed.corrections[idx] = softmax[idx].weigh(simd, self.task.shape.scale, &seen, weights);
            }
        }
        self.add_values(simd, &tile, &weighed);
        LINES
    }

    /// out = correction · out + Σ weight · value for a tile's lines.
    #[inline(always)]
    fn add_values<S: Simd, const LINES: usize>(
        &mut self,
        simd: S,
        tile: &Tile<'_, LINES>,
        weighed: &Weighed<LINES>,
    ) {
        let head_dim = self.task.shape.head_dim;
        let mut at = 0;
        while at < head_dim {
            let num_vectors = (head_dim - at) / LANES;
            if num_vectors >= 4 && S::MANY_REGISTERS {
                let sums = tile.weighted::<S, 4>(simd, &weighed.weights, at);
                at = self.add(simd, weighed, &sums, at);
            } else if num_vectors >= 2 && S::MANY_REGISTERS {
                let sums = tile.weighted::<S, 2>(simd, &weighed.weights, at);
                at = self.add(simd, weighed, &sums, at);
            } else if num_vectors >= 1 {
                let sums = tile.weighted::<S, 1>(simd, &weighed.weights, at);
                at = self.add(simd, weighed, &sums, at);
            } else {
                let sums = tile.weighted_rest(simd, &weighed.weights, at);
                at = self.add(simd, weighed, &sums, at);
            }
        }
    }

    /// out = correction · out + sum from element `at` on; returns where it ends.
    #[inline(always)]
    fn add<S: Simd, const LINES: usize, const VECTORS: usize>(
        &mut self,
        simd: S,
        weighed: &Weighed<LINES>,
        sums: &[[S::F32; VECTORS]; LINES],
        at: usize,
    ) -> usize {
        for (idx, (sums, correction)) in sums.iter().zip(weighed.corrections).enumerate() {
            let correction = simd.splat(correction);
            let out = &mut self.out_of(weighed.first_line + idx)[at..];
            for (out, sum) in out.chunks_mut(LANES).zip(sums) {
                simd.store_partial(out, simd.mul_add(simd.load_partial(out), correction, *sum));
            }
        }
        at + VECTORS * LANES
    }

    /// The tokens that a line sees.
    #[inline(always)]
    fn seen_by(&self, line: usize) -> Range<usize> {
        let end = self.task.position + self.place_of(line).query + 1;
        end.saturating_sub(self.task.shape.window.unwrap_or(usize::MAX))..end
    }

    #[inline(always)]
    fn query_of(&self, line: usize) -> &'a [f32] {
        let Place { query, head, .. } = self.place_of(line);
        let head = self.task.first_kv_head * self.group + head;
        let head_dim = self.task.shape.head_dim;
        &self.task.queries[query * self.task.query_stride + head * head_dim..][..head_dim]
    }

    #[inline(always)]
    fn out_of(&mut self, line: usize) -> &mut [f32] {
        let Place { query, head, .. } = self.place_of(line);
        let head_dim = self.task.shape.head_dim;
        &mut self.task.out[query][head * head_dim..][..head_dim]
    }

    /// The keys and values that a line looks at.
    #[inline(always)]
    fn head_of(&self, line: usize) -> Head<'a> {
        let shape = self.task.shape;
        let offset = (self.task.first_kv_head + self.place_of(line).kv_head) * shape.head_dim;
        Head {
            slot: self.task.slot,
            token_stride: shape.token_stride,
            head_dim: shape.head_dim,
            key_offset: shape.keys_offset + offset,
            value_offset: shape.values_offset + offset,
        }
    }

    #[inline(always)]
    fn place_of(&self, line: usize) -> Place {
        let lines_per_head = self.task.out.len() * self.group;
        let (kv_head, rest) = (line / lines_per_head, line % lines_per_head);
        Place { query: rest / self.group, head: kv_head * self.group + rest % self.group, kv_head }
    }
}

/// Where a line stands: heads are counted from the task's first.
struct Place {
    query: usize,
    head: usize,
    kv_head: usize,
}

impl Softmax {
    /// Turns a block's products into weights relative to the greatest score so far, 0 where they are not `seen`, and
    /// returns what earlier weights are to be multiplied by.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, simd: S, scale: f32, seen: &Range<usize>, scores: &mut [f32; BLOCK]) -> f32 {
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let scale = simd.splat(scale);
        let mut greatest = simd.splat(self.greatest);
        for vector in scores.as_chunks_mut::<LANES>().0 {
            let scaled = simd.mul(simd.load(vector), scale);
            simd.store(vector, scaled);
            greatest = simd.max(greatest, scaled);
        }
        let mut lanes = [0.0; LANES];
        simd.store(&mut lanes, greatest);
        let greatest = lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b });

        let shift = simd.splat(greatest);
        simd.store(&mut lanes, simd::exp(simd, simd.sub(simd.splat(self.greatest), shift)));
        let correction = lanes[0];
        for vector in scores.as_chunks_mut::<LANES>().0 {
            simd.store(vector, simd::exp(simd, simd.sub(simd.load(vector), shift)));
        }
        // e^-∞ comes out as 1e-38; what a line does not see must not change a bit.
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let mut sum = simd.splat(0.0);
        for vector in scores.as_chunks::<LANES>().0 {
            sum = simd.add(sum, simd.load(vector));
        }
        self.sum = self.sum * correction + simd.sum(sum);
        self.greatest = greatest;
        correction
    }
}

use fused_gpu::{Buffer, Gpu, Result};
use fused_kernels::cuda::{HeadShape, partial_bytes};

use crate::model::{FeedForward, Shape};

/// Logits computed at once, so that a long prompt's log-probabilities do not take memory by the gigabyte.
pub(super) const MAX_LOGIT_ROWS: usize = 512;

/// What a step's rows are between the kernels. Nothing is allocated in a step.
#[derive(Debug)]
pub(super) struct Scratch {
    /// f32 `[rows, hidden]`.
    pub(super) residual: Buffer,
    /// `[rows, hidden]`.
    pub(super) normed: Buffer,
    /// `[rows, (heads + 2 kv heads) · dim]`.
    pub(super) qkv: Buffer,
    /// `[rows, heads · dim]`.
    pub(super) attention: Buffer,
    /// f32: attention's parts.
    pub(super) partial: Buffer,
    /// u32: how many pieces of a context are done; zeros between launches.
    pub(super) counters: Buffer,
    /// `[rows, intermediate]`, twice that where gated.
    pub(super) up: Buffer,
    /// `[rows, intermediate]`.
    pub(super) inner: Buffer,
    /// `[logit rows, hidden]`.
    pub(super) last: Buffer,
    /// f32 `[logit rows, vocabulary]`.
    pub(super) logits: Buffer,
    pub(super) max_logit_rows: usize,
}

impl Scratch {
    /// `num_parts`: of contexts that decode attention cuts.
    pub(super) fn new(
        gpu: &Gpu,
        shape: &Shape,
        heads: &HeadShape,
        max_rows: usize,
        num_parts: usize,
    ) -> Result<Self> {
        let num_queries = shape.num_heads * shape.head_dim;
        let num_kv = 2 * shape.num_kv_heads * shape.head_dim;
        let num_up = match shape.feed_forward {
            FeedForward::Plain => shape.intermediate_size,
            FeedForward::Gated => 2 * shape.intermediate_size,
        };
        let max_logit_rows = max_rows.min(MAX_LOGIT_ROWS);
        Ok(Self {
            residual: gpu.alloc_zeroed(4 * max_rows * shape.hidden_size)?,
            normed: gpu.alloc_zeroed(2 * max_rows * shape.hidden_size)?,
            qkv: gpu.alloc_zeroed(2 * max_rows * (num_queries + num_kv))?,
            attention: gpu.alloc_zeroed(2 * max_rows * num_queries)?,
            partial: gpu.alloc_zeroed(partial_bytes(heads, num_parts))?,
            counters: gpu.alloc_zeroed(4 * shape.num_kv_heads * num_parts)?,
            up: gpu.alloc_zeroed(2 * max_rows * num_up)?,
            inner: gpu.alloc_zeroed(2 * max_rows * shape.intermediate_size)?,
            last: gpu.alloc_zeroed(2 * max_logit_rows * shape.hidden_size)?,
            logits: gpu.alloc_zeroed(4 * max_logit_rows * shape.vocab_size)?,
            max_logit_rows,
        })
    }
}

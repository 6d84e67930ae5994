use crate::model::{FeedForward, Positions, Shape};

/// A step's intermediate results, kept from step to step: they grow to the largest batch and then stay.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The residual stream, `[rows, hidden]`.
    pub(super) hidden: Vec<f32>,
    /// Normed, or what is added to the residual stream next: `[rows, hidden]`.
    pub(super) normed: Vec<f32>,
    /// Queries, keys and values, `[rows, (heads + 2 kv heads) · dim]`.
    pub(super) qkv: Vec<f32>,
    /// `[rows, heads · dim]`.
    pub(super) attention: Vec<f32>,
    /// `[rows, intermediate]`, or twice as wide where gated.
    pub(super) up: Vec<f32>,
    /// What `up` becomes where gated, `[rows, intermediate]`.
    pub(super) gated: Vec<f32>,
    /// Rotations, `[rows, 2, pairs]`.
    pub(super) angles: Vec<f32>,
    /// Some rows of the residual stream whose logits are wanted, `[some, hidden]`.
    pub(super) last: Vec<f32>,
    /// The same, normed.
    pub(super) last_normed: Vec<f32>,
    /// `[some, vocabulary]`.
    pub(super) logits: Vec<f32>,
}

impl Scratch {
    /// Makes room for a batch of rows.
    pub(super) fn resize(&mut self, shape: &Shape, positions: &Positions, num_rows: usize) {
        let angles_width = match positions {
            Positions::Learned(_) => 0,
            Positions::Rotary(_) => shape.head_dim,
        };
        self.angles.resize(num_rows * angles_width, 0.0);
        self.hidden.resize(num_rows * shape.hidden_size, 0.0);
        self.qkv.resize(num_rows * qkv_width(shape), 0.0);
        self.resize_inner(shape, num_rows);
    }

    /// Goes on with some rows of `hidden` and `qkv`, in ascending order.
    pub(super) fn keep(&mut self, shape: &Shape, rows: impl Iterator<Item = usize>) {
        let mut num_kept = 0;
        for row in rows {
            for (buffer, width) in [(&mut self.hidden, shape.hidden_size), (&mut self.qkv, qkv_width(shape))]
            {
                buffer.copy_within(row * width..(row + 1) * width, num_kept * width);
            }
            num_kept += 1;
        }
        self.hidden.truncate(num_kept * shape.hidden_size);
        self.qkv.truncate(num_kept * qkv_width(shape));
        self.resize_inner(shape, num_kept);
    }

    /// What is written before it is read in every layer.
    fn resize_inner(&mut self, shape: &Shape, num_rows: usize) {
        let (up_width, gated_width) = match shape.feed_forward {
            FeedForward::Plain => (shape.intermediate_size, 0),
            FeedForward::Gated => (2 * shape.intermediate_size, shape.intermediate_size),
        };
        self.normed.resize(num_rows * shape.hidden_size, 0.0);
        self.attention.resize(num_rows * shape.num_heads * shape.head_dim, 0.0);
        self.up.resize(num_rows * up_width, 0.0);
        self.gated.resize(num_rows * gated_width, 0.0);
    }
}

fn qkv_width(shape: &Shape) -> usize {
    (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
}

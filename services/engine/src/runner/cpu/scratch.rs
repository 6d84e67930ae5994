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
        let num_heads = shape.num_heads + 2 * shape.num_kv_heads;
        let (up_width, gated_width) = match shape.feed_forward {
            FeedForward::Plain => (shape.intermediate_size, 0),
            FeedForward::Gated => (2 * shape.intermediate_size, shape.intermediate_size),
        };
        let angles_width = match positions {
            Positions::Learned(_) => 0,
            Positions::Rotary(frequencies) => 2 * frequencies.len(),
        };
        for (buffer, width) in [
            (&mut self.hidden, shape.hidden_size),
            (&mut self.normed, shape.hidden_size),
            (&mut self.qkv, num_heads * shape.head_dim),
            (&mut self.attention, shape.num_heads * shape.head_dim),
            (&mut self.up, up_width),
            (&mut self.gated, gated_width),
            (&mut self.angles, angles_width),
        ] {
            buffer.resize(num_rows * width, 0.0);
        }
    }
}

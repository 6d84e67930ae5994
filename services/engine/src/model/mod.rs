//! A model's weights, called by what they do, whatever the family calls them.
//!
//! The families served here are one shape with options: which norm, gated or plain feed-forward, rotary or learned
//! positions. `gpt2` and `llama` know what a checkpoint calls the parts and how it stores them, and fuse them into
//! a [`Model`]; a runner then needs to know no family. With a patch vocabulary the matrices of the adapted model are
//! made on the way (`adapt`). Matrices go through the runner's `place` as they are read, some layers at a time, so that
//! no more than those stand in memory twice.

mod adapt;
#[cfg(feature = "cuda")]
mod dummy;
mod error;
mod gpt2;
mod llama;
mod rope;
mod source;
mod tensor;

use std::sync::Mutex;
use std::thread::available_parallelism;

use fused_checkpoint::{Activation, Checkpoint, ModelConfig};
use fused_vocabulary::PatchVocabulary;
use fused_vocabulary::import::PatchEmbeddings;

use crate::events;

pub use error::Error;
pub use rope::Rotary;
pub use tensor::Tensor;

/// A decoder-only transformer. `W` is a weight matrix `[outputs, inputs]` as the runner's device holds it.
#[derive(Debug)]
pub struct Model<W> {
    /// Sizes of one layer, and what its attention sees.
    pub shape: Shape,
    /// `[vocabulary, hidden]`.
    pub embedding: W,
    /// How positions are told apart.
    pub positions: Positions,
    /// In order.
    pub layers: Vec<Layer<W>>,
    /// Before the head.
    pub final_norm: Norm,
    /// `[vocabulary, hidden]`; nothing where it is the embedding.
    pub head: Option<W>,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Token ids: rows of embedding and head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Tokens of the longest sequence.
    pub max_positions: usize,
    /// The epsilon of all norms.
    pub norm_eps: f32,
    /// The non-linearity of the feed-forward part.
    pub activation: Activation,
    /// What it is applied to.
    pub feed_forward: FeedForward,
}

impl Shape {
    /// Tokens of context at which attention does as much as everything else in a layer: two operations for each weight, and
    /// four for each element of all query heads and token of context.
    #[must_use]
    pub fn attention_parity(&self) -> usize {
        let attention = self.num_heads * self.head_dim;
        let num_up = match self.feed_forward {
            FeedForward::Plain => 1,
            FeedForward::Gated => 2,
        };
        let outputs =
            2 * attention + 2 * self.num_kv_heads * self.head_dim + (num_up + 1) * self.intermediate_size;
        (outputs * self.hidden_size / (2 * attention).max(1)).max(1)
    }
}

/// Layers that are read, checked and placed at once, where there are as many cores: each is in memory twice meanwhile.
const MAX_LOADERS: usize = 8;

/// How the feed-forward part is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// down(f(up(x))).
    Plain,
    /// down(f(gate(x)) · up(x)); gate and up are one matrix, gate's rows first.
    Gated,
}

/// How positions are told apart.
#[derive(Debug)]
pub enum Positions {
    /// Rows `[max_positions, hidden]` added to the embedding.
    Learned(Vec<f32>),
    /// Queries and keys are turned.
    Rotary(Rotary),
}

/// One layer.
#[derive(Debug)]
pub struct Layer<W> {
    /// Before attention.
    pub attention_norm: Norm,
    /// Queries, keys and values: `[(heads + 2 kv heads) · dim, hidden]`.
    pub qkv: Linear<W>,
    /// RMSNorm weights `[dim]` for each head's query and key, before they are turned.
    pub qk_norm: Option<QkNorm>,
    /// `[hidden, heads · dim]`.
    pub attention_output: Linear<W>,
    /// Before the feed-forward part.
    pub feed_forward_norm: Norm,
    /// `[intermediate, hidden]`, or twice as many rows where gated.
    pub up: Linear<W>,
    /// `[hidden, intermediate]`.
    pub down: Linear<W>,
    /// Tokens that a query sees, itself included; nothing: all.
    pub window: Option<usize>,
    /// What attention scores are multiplied by.
    pub attention_scale: f32,
}

/// The weights of a norm, `[width]`.
#[derive(Debug)]
pub enum Norm {
    /// RMSNorm.
    Rms(Vec<f32>),
    /// LayerNorm.
    Layer {
        /// What the normed value is multiplied by.
        weight: Vec<f32>,
        /// What is added then.
        bias: Vec<f32>,
    },
}

/// The norms of queries and keys.
#[derive(Debug)]
pub struct QkNorm {
    /// Of queries.
    pub query: Vec<f32>,
    /// Of keys.
    pub key: Vec<f32>,
}

/// A matrix and its bias.
#[derive(Debug)]
pub struct Linear<W> {
    /// `[outputs, inputs]`.
    pub weight: W,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

impl<W: Send> Model<W> {
    /// Loads all weights, several layers at a time; `place` puts a matrix where the runner wants it. Where they are adapted to `patch` on the way,
    /// `embeddings` are the adapted matrices, or they are computed from the base model's.
    ///
    /// # Errors
    /// A tensor that is missing, or of another shape or type than `config` says; a patch vocabulary that does not belong
    /// to these weights; the device has no room; the system has no threads to give.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        patch: Option<&PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
        place: &(dyn Fn(Tensor) -> Result<W, Error> + Sync),
    ) -> Result<Self, Error> {
        let patch = adapt::needed(config, patch)?;
        let source = source::Source { checkpoint, config, patch, embeddings, place, used: Mutex::default() };
        let loaders = rayon::ThreadPoolBuilder::new()
            .num_threads(available_parallelism().map_or(1, usize::from).min(MAX_LOADERS))
            .thread_name(|idx| format!("loader-{idx}"))
            .build()
            .map_err(|error| Error::Place(error.into()))?;
        let model = loaders.install(|| match &config.rope {
            // In GPT-2 alone.
            None => gpt2::load(&source),
            Some(rope) => llama::load(&source, rope),
        })?;
        if let unused @ [first, ..] = &*source.unused() {
            events::weights_unused(first, unused.len());
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests;

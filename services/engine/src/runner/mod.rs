//! Runs one step's batch on a device: forward pass and sampling.
//!
//! The core decides, a runner runs. Runners differ in the device only, so that scheduler and KV memory are the same
//! code on CPU, on GPU and in simulation.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
pub(crate) mod mock;

use fused_virtual_memory::VirtualMemory;
use fused_vocabulary::TokenId;

use crate::kv::{KvCache, KvCopy, SlotId};
use crate::sampler::{SampleStep, SampledToken, TokenLogprobs};

/// What one sequence does in one step: `tokens` are appended behind `context_len` tokens that its slot already holds.
#[derive(Debug)]
pub struct SequenceStep<'a> {
    /// Where the sequence's keys and values are. Mapped for `context_len + tokens.len()` tokens.
    pub slot: SlotId,
    /// Tokens whose keys and values the slot holds.
    pub context_len: usize,
    /// The new tokens, at least one: a chunk of the prompt, or the token sampled last.
    pub tokens: &'a [TokenId],
    /// How to draw the token behind the last of `tokens`; `None` while the prompt is not finished.
    pub sample: Option<SampleStep<'a>>,
    /// Log-probabilities of the prompt's own tokens, where asked for.
    pub prompt_logprobs: Option<PromptLogprobStep<'a>>,
}

/// Which prompt tokens this step predicts.
#[derive(Clone, Copy, Debug)]
pub struct PromptLogprobStep<'a> {
    /// The prompt token that follows `tokens[i]`, for every `i` that has one.
    pub targets: &'a [TokenId],
    /// How many of the likeliest to return beside the target.
    pub num_top: u32,
}

/// What one sequence got out of one step.
#[derive(Clone, Debug, Default)]
pub struct SequenceOutput {
    /// The drawn token, where `sample` was given.
    pub sampled: Option<SampledToken>,
    /// One a target of `prompt_logprobs`.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

/// A forward pass failed; the device is unusable from then on.
#[derive(Debug, thiserror::Error)]
#[error("the forward pass failed on {device}: {message}")]
pub struct RunnerError {
    /// Which device.
    pub device: String,
    /// What it reported.
    pub message: String,
}

impl RunnerError {
    /// What went wrong on the way to a runner's device.
    pub(crate) fn new<R: Runner>(error: &dyn std::error::Error) -> Self {
        Self { device: std::any::type_name::<R>().to_owned(), message: error.to_string() }
    }
}

/// A device that runs batches.
pub trait Runner: Send + 'static {
    /// The memory the device computes on.
    type Memory: VirtualMemory;

    /// Runs all sequences in one batch, writes their keys and values into their slots and returns one output a
    /// sequence, in order. A sequence's output does not depend on what else is in the batch, bit for bit.
    ///
    /// # Errors
    /// The device failed.
    fn step(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<Self::Memory>,
    ) -> Result<Vec<SequenceOutput>, RunnerError>;

    /// Copies keys and values between slots, in order, before the next step.
    ///
    /// # Errors
    /// The device failed.
    fn copy(&mut self, copies: &[KvCopy], kv: &KvCache<Self::Memory>) -> Result<(), RunnerError>;
}

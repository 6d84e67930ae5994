//! Runs one step's batch on a device: forward pass and sampling.
//!
//! The core decides, a runner runs. Runners differ in the device only, so that scheduler and KV memory are the same
//! code on CPU, on GPU and in simulation.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
pub(crate) mod mock;

use std::time::Duration;

use fused_virtual_memory::VirtualMemory;
use fused_vocabulary::TokenId;

use crate::kv::{KvCache, KvCopy, SlotId, SlotUse};
use crate::sampler::{SampleStep, SampledToken, TokenLogprobs};

/// What one sequence does in one step: new tokens are appended behind `context_len` tokens that its slot already holds.
#[derive(Debug)]
pub struct SequenceStep<'a> {
    /// Where the sequence's keys and values are. Mapped for `context_len + num_tokens()` tokens.
    pub slot: SlotId,
    /// Tokens whose keys and values the slot holds, or will when the steps launched before are done.
    pub context_len: usize,
    /// The new tokens, at least one: a chunk of the prompt, or the token sampled last.
    pub tokens: &'a [TokenId],
    /// Where the new token is the one that the step launched before draws, and so is known to the device alone: which of that
    /// step's sequences draws it. `tokens` is empty then.
    pub drawn_by: Option<usize>,
    /// How to draw the token behind the last of `tokens`; `None` while the prompt is not finished.
    pub sample: Option<SampleStep<'a>>,
    /// Log-probabilities of the prompt's own tokens, where asked for.
    pub prompt_logprobs: Option<PromptLogprobStep<'a>>,
}

impl SequenceStep<'_> {
    /// How many tokens are new.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + usize::from(self.drawn_by.is_some())
    }

    /// What it does with its slot.
    pub(crate) fn slot_use(&self) -> SlotUse {
        SlotUse { slot: self.slot, context_len: self.context_len, num_tokens: self.num_tokens() }
    }
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
        Self::on(std::any::type_name::<R>(), error)
    }

    /// What went wrong on a device, with all that lies behind it.
    pub(crate) fn on(device: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self { device: device.into(), message: fused_status::with_causes(error) }
    }
}

/// A device that runs batches.
pub trait Runner: Send + 'static {
    /// The memory the device computes on.
    type Memory: VirtualMemory;

    /// How many steps may be launched before the first of them has been finished: 1, or 2, with which the device has the next
    /// step before the last one's tokens are read. (With more, several tokens of a sequence would be unknown at a time.)
    fn max_in_flight(&self) -> usize {
        1
    }

    /// Tokens of context at which attention takes as long as everything else that is computed for a token; `None` where that
    /// is not known, or contexts do not matter.
    fn attention_parity(&self) -> Option<usize> {
        None
    }

    /// How long a token of a prompt takes, as long as no step has shown it. The watchdog bears ten times that: a second a
    /// token, as tens of billions of parameters take on a few cores.
    fn assumed_token_time(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// Has the device run all sequences in one batch, behind the steps launched before, and write their keys and values into
    /// their slots, which it holds until the step is finished. At least one sequence. On the CPU a sequence's output does not
    /// depend on what else is in the batch, bit for bit.
    ///
    /// # Errors
    /// The device failed, or more steps are in flight than may be.
    fn launch(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<Self::Memory>,
    ) -> Result<(), RunnerError>;

    /// Waits for the step launched first of those that are in flight, and returns one output a sequence, in order. None are
    /// returned where no step is.
    ///
    /// # Errors
    /// The device failed.
    fn finish(&mut self) -> Result<Vec<SequenceOutput>, RunnerError>;

    /// Launches a step while none is in flight, and finishes it.
    ///
    /// # Errors
    /// Those of the two.
    fn step(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<Self::Memory>,
    ) -> Result<Vec<SequenceOutput>, RunnerError> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        self.launch(sequences, kv)?;
        self.finish()
    }

    /// Copies keys and values between slots, in order, before the next step is launched. What is copied was computed by
    /// finished steps.
    ///
    /// # Errors
    /// The device failed.
    fn copy(&mut self, copies: &[KvCopy], kv: &KvCache<Self::Memory>) -> Result<(), RunnerError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_goes_down_to_the_systems_word() {
        let source = std::io::Error::from_raw_os_error(12);
        let memory = fused_virtual_memory::Error::System { call: "mmap", source };
        let error = RunnerError::on("cpu", &crate::kv::Error::from(memory)).to_string();
        for word in ["cpu", "virtual memory for keys and values failed", "mmap", "os error 12"] {
            assert!(error.contains(word), "{error}");
        }
    }
}

//! A runner without a model: the next token is a hash of everything before it, so that a wrong context, a mixed-up slot
//! or a forgotten token changes all that follows.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;

use fused_virtual_memory::SimulatedMemory;
use fused_vocabulary::TokenId;

use super::{Runner, RunnerError, SequenceOutput, SequenceStep};
use crate::kv::{KvCache, SlotId};
use crate::sampler::{SampledToken, TokenLogprobs};

/// Tokens are below this.
const VOCAB_SIZE: u64 = 100;

/// Computes nothing, and checks that what it is asked is possible.
#[derive(Debug, Default)]
pub(crate) struct MockRunner {
    /// What each slot holds.
    pub(crate) contexts: HashMap<SlotId, Vec<TokenId>>,
    pub(crate) num_steps: usize,
    pub(crate) fault: Option<Fault>,
    /// Where set, every step waits for a word; when nobody is left to say one, it waits no more.
    pub(crate) gate: Option<Receiver<()>>,
}

/// What goes wrong, and in which step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Error {
        step: usize,
    },
    Panic {
        step: usize,
    },
    /// An output is missing.
    Short {
        step: usize,
    },
}

impl Runner for MockRunner {
    type Memory = SimulatedMemory;

    fn step(
        &mut self,
        sequences: &[SequenceStep<'_>],
        _kv: &mut KvCache<SimulatedMemory>,
    ) -> Result<Vec<SequenceOutput>, RunnerError> {
        self.num_steps += 1;
        if let Some(gate) = &self.gate {
            // An error: nobody is left.
            let _ = gate.recv();
        }
        let mut outputs: Vec<_> = sequences.iter().map(|sequence| self.run(sequence)).collect();
        match self.fault {
            Some(Fault::Error { step }) if step == self.num_steps => {
                Err(RunnerError { device: "mock".to_owned(), message: "told to fail".to_owned() })
            }
            Some(Fault::Panic { step }) if step == self.num_steps => panic!("told to panic"),
            Some(Fault::Short { step }) if step == self.num_steps => {
                outputs.pop();
                Ok(outputs)
            }
            _ => Ok(outputs),
        }
    }
}

impl MockRunner {
    fn run(&mut self, step: &SequenceStep<'_>) -> SequenceOutput {
        let context = self.contexts.entry(step.slot).or_default();
        assert!(!step.tokens.is_empty(), "a sequence without tokens");
        assert!(step.context_len <= context.len(), "a context that was never computed");
        context.truncate(step.context_len);
        context.extend_from_slice(step.tokens);
        let sampled = step.sample.map(|sample| {
            assert_eq!(context[..], [sample.prompt, sample.output].concat(), "a slot of somebody else");
            let token = next_token(context, sample.sequence_idx, sample.banned);
            let logprobs = sample.num_logprobs.map(|_| logprobs(token, context.len()));
            SampledToken { token, logprobs }
        });
        let prompt_logprobs = step.prompt_logprobs.map_or(Vec::new(), |prompt| {
            let positions = step.context_len + 1..;
            prompt.targets.iter().zip(positions).map(|(token, position)| logprobs(*token, position)).collect()
        });
        SequenceOutput { sampled, prompt_logprobs }
    }
}

/// Says at which position it was computed.
fn logprobs(token: TokenId, position: usize) -> TokenLogprobs {
    TokenLogprobs { token, logprob: -(position as f32), top: Vec::new() }
}

/// The token behind `context`, in the sequence with this index.
pub(crate) fn next_token(context: &[TokenId], sequence_idx: u32, banned: &[TokenId]) -> TokenId {
    let mix =
        |hash: u64, value: u32| (hash ^ u64::from(value)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    let hash =
        context.iter().fold(mix(0xcbf2_9ce4_8422_2325, sequence_idx), |hash, token| mix(hash, token.0));
    let mut token = TokenId(u32::try_from(hash % VOCAB_SIZE).unwrap_or(0));
    while banned.contains(&token) {
        token = TokenId(u32::try_from(u64::from(token.0 + 1) % VOCAB_SIZE).unwrap_or(0));
    }
    token
}

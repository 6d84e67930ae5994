//! A runner without a model: the next token is a hash of everything before it, so that a wrong context, a mixed-up slot
//! or a forgotten token changes all that follows. Its keys and values are the tokens themselves, and it reads them back from
//! the slot's memory each time: a page in the wrong place is a wrong context too.

use std::sync::mpsc::Receiver;

use fused_virtual_memory::SimulatedMemory;
use fused_vocabulary::TokenId;

use super::{Runner, RunnerError, SequenceOutput, SequenceStep};
use crate::kv::{KvCache, KvCopy, SlotUse};
use crate::sampler::{SampledToken, TokenLogprobs};

/// Tokens are below this.
const VOCAB_SIZE: u64 = 100;

/// Computes nothing, and checks that what it is asked is possible.
#[derive(Debug, Default)]
pub(crate) struct MockRunner {
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
        kv: &KvCache<SimulatedMemory>,
    ) -> Result<Vec<SequenceOutput>, RunnerError> {
        self.num_steps += 1;
        if let Some(gate) = &self.gate {
            // An error: nobody is left.
            let _ = gate.recv();
        }
        let uses = sequences.iter().map(|sequence| SlotUse {
            slot: sequence.slot,
            context_len: sequence.context_len,
            num_tokens: sequence.tokens.len(),
        });
        let _pinned = kv.pin(uses).unwrap();
        let mut outputs: Vec<_> = sequences.iter().map(|sequence| run(sequence, kv)).collect();
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

    fn copy(&mut self, copies: &[KvCopy], kv: &KvCache<SimulatedMemory>) -> Result<(), RunnerError> {
        for copy in copies {
            let _pinned = kv.pin_copy(copy).unwrap();
            let mut bytes = vec![0; copy.bytes.len()];
            kv.memory().read(kv.range(copy.from), copy.bytes.start, &mut bytes).unwrap();
            kv.memory().write(kv.range(copy.to), copy.bytes.start, &bytes).unwrap();
        }
        Ok(())
    }
}

fn run(step: &SequenceStep<'_>, kv: &KvCache<SimulatedMemory>) -> SequenceOutput {
    assert!(!step.tokens.is_empty(), "a sequence without tokens");
    let end = step.context_len + step.tokens.len();
    let range = kv.range_of(step.slot, end).unwrap();
    let token_bytes = kv.layout().token_bytes();
    for (token, position) in step.tokens.iter().zip(step.context_len..) {
        let mut bytes = vec![0; token_bytes];
        bytes[..4].copy_from_slice(&token.0.to_le_bytes());
        // The end of a token too must be there: it may lie in another page.
        bytes[token_bytes - 4..].copy_from_slice(&token.0.to_le_bytes());
        kv.memory().write(range, position * token_bytes, &bytes).unwrap();
    }
    let mut bytes = vec![0; end * token_bytes];
    kv.memory().read(range, 0, &mut bytes).unwrap();
    let context: Vec<_> = bytes
        .chunks_exact(token_bytes)
        .map(|token| {
            assert_eq!(token[..4], token[token_bytes - 4..], "half a token");
            TokenId(u32::from_le_bytes(token[..4].try_into().unwrap()))
        })
        .collect();
    let sampled = step.sample.map(|sample| {
        let token = next_token(&context, sample.sequence_idx, sample.banned);
        let logprobs = sample.num_logprobs.map(|_| logprobs(token, context.len()));
        SampledToken { token, logprobs }
    });
    let prompt_logprobs = step.prompt_logprobs.map_or(Vec::new(), |prompt| {
        let positions = step.context_len + 1..;
        prompt.targets.iter().zip(positions).map(|(token, position)| logprobs(*token, position)).collect()
    });
    SequenceOutput { sampled, prompt_logprobs }
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

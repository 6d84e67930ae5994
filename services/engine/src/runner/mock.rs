//! A runner without a model: the next token is a hash of everything before it, so that a wrong context, a mixed-up slot
//! or a forgotten token changes all that follows. Its keys and values are the tokens themselves, and it reads them back from
//! the slot's memory each time: a page in the wrong place is a wrong context too.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use fused_virtual_memory::{Pinned, SimulatedMemory};
use fused_vocabulary::TokenId;

use super::{Runner, RunnerError, SequenceOutput, SequenceStep};
use crate::kv::{KvCache, KvCopy};
use crate::sampler::{SampledToken, TokenLogprobs};

/// Tokens are below this.
const VOCAB_SIZE: u64 = 100;

/// Computes nothing, and checks that what it is asked is possible.
#[derive(Debug, Default)]
pub(crate) struct MockRunner {
    /// Steps that it may have in flight beside the oldest.
    pub(crate) num_ahead: usize,
    pub(crate) in_flight: VecDeque<InFlight>,
    /// What each sequence of the last step drew.
    pub(crate) drawn: Vec<Option<TokenId>>,
    pub(crate) num_steps: usize,
    /// What penalties count for each sequence of the last step that draws: tokens and how often they are in the output.
    pub(crate) occurrences: Vec<Vec<(u32, u32)>>,
    pub(crate) fault: Option<Fault>,
    /// Where set, every step waits for a word; when nobody is left to say one, it waits no more.
    pub(crate) gate: Option<Receiver<()>>,
}

/// A step that is not finished: nothing of its slots may be unmapped.
#[derive(Debug)]
pub(crate) struct InFlight {
    number: usize,
    outputs: Vec<SequenceOutput>,
    _pinned: Pinned<SimulatedMemory>,
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

    fn max_in_flight(&self) -> usize {
        1 + self.num_ahead
    }

    fn launch(
        &mut self,
        sequences: &[SequenceStep<'_>],
        kv: &KvCache<SimulatedMemory>,
    ) -> Result<(), RunnerError> {
        assert!(self.in_flight.len() < self.max_in_flight(), "too many steps in flight");
        self.num_steps += 1;
        if let Some(gate) = &self.gate {
            // An error: nobody is left.
            let _ = gate.recv();
        }
        let counted = sequences.iter().filter_map(|sequence| sequence.sample?.occurrences);
        let counted = counted.map(|counted| counted.as_slice().iter().map(|o| (o.token, o.count)).collect());
        self.occurrences = counted.collect();
        let pinned = kv.pin(sequences.iter().map(SequenceStep::slot_use)).unwrap();
        let drawn = std::mem::take(&mut self.drawn);
        let outputs: Vec<_> = sequences
            .iter()
            .map(|sequence| {
                let Some(by) = sequence.drawn_by else { return run(sequence, sequence.tokens, kv) };
                assert!(sequence.tokens.is_empty() && !self.in_flight.is_empty(), "a token nobody draws");
                run(sequence, &[drawn[by].unwrap()], kv)
            })
            .collect();
        let token = |output: &SequenceOutput| output.sampled.as_ref().map(|sampled| sampled.token);
        self.drawn = outputs.iter().map(token).collect();
        self.in_flight.push_back(InFlight { number: self.num_steps, outputs, _pinned: pinned });
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<SequenceOutput>, RunnerError> {
        let Some(InFlight { number, mut outputs, .. }) = self.in_flight.pop_front() else {
            return Ok(Vec::new());
        };
        match self.fault {
            Some(Fault::Error { step }) if step == number => {
                Err(RunnerError { device: "mock".to_owned(), message: "told to fail".to_owned() })
            }
            Some(Fault::Panic { step }) if step == number => panic!("told to panic"),
            Some(Fault::Short { step }) if step == number => {
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

fn run(step: &SequenceStep<'_>, tokens: &[TokenId], kv: &KvCache<SimulatedMemory>) -> SequenceOutput {
    assert!(!tokens.is_empty(), "a sequence without tokens");
    let end = step.context_len + tokens.len();
    let range = kv.range_of(step.slot, end).unwrap();
    let token_bytes = kv.layout().token_bytes();
    for (token, position) in tokens.iter().zip(step.context_len..) {
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

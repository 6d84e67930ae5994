use fused_vocabulary::TokenId;

use crate::kv;
use crate::model::Shape;
use crate::runner::SequenceStep;

/// Why a step cannot be run. All of these are faults of the engine: requests are checked before they are scheduled.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("token {token} is not below the vocabulary's size {vocab_size}")]
    Token { token: TokenId, vocab_size: usize },
    #[error("position {position} is not below the model's {max_positions}")]
    Position { position: usize, max_positions: usize },
    #[error("a sequence has no tokens to run")]
    NoTokens,
    #[error("keys and values cannot be reached")]
    Kv(#[from] kv::Error),
    #[error("keys and values cannot be reached")]
    Memory(#[from] fused_virtual_memory::Error),
    #[error("a slot does not hold whole tokens of f32")]
    Slot,
}

/// A step's rows: the new tokens of all sequences, one after the other.
pub(super) struct Batch<'a> {
    pub(super) sequences: &'a [SequenceStep<'a>],
    pub(super) num_rows: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(shape: &Shape, sequences: &'a [SequenceStep<'a>]) -> Result<Self, Error> {
        let (vocab_size, max_positions) = (shape.vocab_size, shape.max_positions);
        for sequence in sequences {
            if let Some(&token) = sequence.tokens.iter().find(|token| token.row() >= vocab_size) {
                return Err(Error::Token { token, vocab_size });
            }
            let last = sequence.tokens.len().checked_sub(1).ok_or(Error::NoTokens)?;
            let position = sequence.context_len.saturating_add(last);
            if position >= max_positions {
                return Err(Error::Position { position, max_positions });
            }
        }
        let num_rows = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        Ok(Self { sequences, num_rows })
    }

    /// The token and its position in each row.
    pub(super) fn rows(&self) -> impl Iterator<Item = (TokenId, usize)> {
        self.sequences
            .iter()
            .flat_map(|sequence| sequence.tokens.iter().zip(sequence.context_len..))
            .map(|(&token, position)| (token, position))
    }
}

/// How many of a sequence's last rows its output is made from.
pub(super) fn num_wanted(sequence: &SequenceStep<'_>) -> usize {
    match (&sequence.prompt_logprobs, &sequence.sample) {
        (Some(_), _) => sequence.tokens.len(),
        (None, Some(_)) => 1,
        (None, None) => 0,
    }
}

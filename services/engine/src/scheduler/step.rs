use fused_vocabulary::TokenId;

use crate::kv::{self, SlotId};

/// Which sequence; ordered by turn, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    /// When its request's turn is; the lower the earlier. The same for all where arrival alone decides.
    pub turn: i64,
    /// Number of its request, counted from the start of the engine.
    pub request: u64,
    /// Which of the request's sequences.
    pub idx: u32,
}

/// What runs next.
#[derive(Debug, Default)]
pub struct Step {
    /// Each sequence at most once.
    pub scheduled: Vec<Scheduled>,
    /// Sequences that have got a slot, with the number of their tokens that were computed before.
    pub admitted: Vec<(SequenceId, usize)>,
    /// Sequences that gave way: their slots are free and they wait again.
    pub preempted: Vec<SequenceId>,
    /// Sequences for which there is no memory although nobody is left to give way; removed.
    pub failed: Vec<(SequenceId, kv::Error)>,
    /// Whether it was decided while steps are in flight, whose sequences keep what they have: nobody gives way for it, and nobody
    /// shares what has to be made read-only first.
    pub is_ahead: bool,
    /// Whether somebody is left out for that.
    pub is_held_up: bool,
}

impl Step {
    /// Whether nothing runs and nothing has changed, so that the next step would be the same.
    pub fn is_empty(&self) -> bool {
        let Self { scheduled, admitted, preempted, failed, is_ahead: _, is_held_up: _ } = self;
        scheduled.is_empty() && admitted.is_empty() && preempted.is_empty() && failed.is_empty()
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// Which sequence.
    pub id: SequenceId,
    /// Memory for `context_len + num_tokens` tokens is mapped.
    pub slot: SlotId,
    /// Tokens computed in earlier steps, or by others.
    pub context_len: usize,
    /// Tokens of this step, at least one.
    pub num_tokens: usize,
    /// Whether this step computes the last token there is of a complete prompt, so that the next one can be drawn.
    pub reaches_end: bool,
}

/// What a sequence's tokens are, for those that ask for a slot.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// All that are known.
    pub tokens: &'a [TokenId],
    /// Only sequences with the same one share a prefix.
    pub salt: Option<&'a str>,
    /// Whether what others have computed will do.
    pub reuses: bool,
}

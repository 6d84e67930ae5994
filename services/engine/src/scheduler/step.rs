use fused_vocabulary::TokenId;

use crate::kv::{self, SlotId};

/// Which sequence; ordered by turn, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId {
    /// When its request's turn is; the lower the earlier. The same for all where arrival alone decides.
    pub(crate) turn: i64,
    /// Number of its request, counted from the start of the engine.
    pub(crate) request: u64,
    /// Which of the request's sequences.
    pub(crate) idx: u32,
}

/// What runs next.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// Each sequence at most once.
    pub(crate) scheduled: Vec<Scheduled>,
    /// Sequences that have got a slot, with the number of their tokens that were computed before.
    pub(crate) admitted: Vec<(SequenceId, usize)>,
    /// Sequences that gave way: their slots are free and they wait again.
    pub(crate) preempted: Vec<SequenceId>,
    /// Sequences for which there is no memory although nobody is left to give way; removed.
    pub(crate) failed: Vec<(SequenceId, kv::Error)>,
}

impl Step {
    /// Whether nothing runs and nothing has changed, so that the next step would be the same.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { scheduled, admitted, preempted, failed } = self;
        scheduled.is_empty() && admitted.is_empty() && preempted.is_empty() && failed.is_empty()
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheduled {
    pub(crate) id: SequenceId,
    /// Memory for `context_len + num_tokens` tokens is mapped.
    pub(crate) slot: SlotId,
    /// Tokens computed in earlier steps, or by others.
    pub(crate) context_len: usize,
    /// Tokens of this step, at least one.
    pub(crate) num_tokens: usize,
    /// Whether this step computes the last token there is of a complete prompt, so that the next one can be drawn.
    pub(crate) reaches_end: bool,
}

/// What a sequence's tokens are, for those that ask for a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// All that are known.
    pub(crate) tokens: &'a [TokenId],
    /// Only sequences with the same one share a prefix.
    pub(crate) salt: Option<&'a str>,
    /// Whether what others have computed will do.
    pub(crate) reuses: bool,
}

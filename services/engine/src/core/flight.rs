use std::time::Instant;

use crate::kv::SlotId;
use crate::scheduler::Scheduled;

/// A step that the device has been given and whose outputs are not read as yet.
#[derive(Debug)]
pub(super) struct Flight {
    /// Its sequences, as the runner knows them.
    pub(super) scheduled: Vec<Scheduled>,
    /// Which of them draw a token.
    pub(super) draws: Vec<bool>,
    /// Slots of sequences that have ended since: given back when the step has come down.
    pub(super) ended: Vec<SlotId>,
    pub(super) launched: Instant,
    /// See [`pulse::work`](super::pulse::work).
    pub(super) work: f64,
}

impl Flight {
    pub(super) fn num_tokens(&self) -> usize {
        self.scheduled.iter().map(|scheduled| scheduled.num_tokens).sum()
    }

    /// Whether the step works on this slot.
    pub(super) fn holds(&self, slot: SlotId) -> bool {
        self.scheduled.iter().any(|scheduled| scheduled.slot == slot)
    }
}

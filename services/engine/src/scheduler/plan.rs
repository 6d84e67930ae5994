use super::policy::{Prefills, StepKind};
use super::progress::Running;
use super::{Scheduled, SequenceId, Step};
use crate::ChunkSchedule;

/// Tokens that a chunk schedule leaves a prompt at least, or many decodes would keep it from ever ending.
const MIN_CHUNK_TOKENS: usize = 32;

/// A step in the making.
pub(super) struct Plan {
    pub(super) step: Step,
    kind: StepKind,
    chunks: Option<ChunkSchedule>,
    /// The most tokens of the step.
    budget: usize,
    num_tokens: usize,
}

impl Plan {
    /// `step`: what a kind of step that came to nothing has changed, as yet without sequences that run.
    pub(super) fn new(kind: StepKind, chunks: Option<ChunkSchedule>, budget: usize, step: Step) -> Self {
        Self { step, kind, chunks, budget, num_tokens: 0 }
    }

    pub(super) fn kind(&self) -> StepKind {
        self.kind
    }

    /// Whether anything more can be in the step.
    pub(super) fn is_full(&self) -> bool {
        self.num_tokens >= self.budget
    }

    /// How many of a sequence's `num_uncomputed` tokens, behind `num_computed`, are in this step: 0 where it must wait.
    pub(super) fn share(&self, num_computed: usize, num_uncomputed: usize, is_decode: bool) -> usize {
        let left = self.budget.saturating_sub(self.num_tokens);
        if is_decode {
            return num_uncomputed.min(left);
        }
        match self.kind.prefills {
            Prefills::None => 0,
            Prefills::Chunks => {
                let chunk = self.chunks.map_or(left, |chunks| {
                    let chunk = chunks.chunk_size(num_computed).saturating_sub(self.num_tokens);
                    chunk.max(MIN_CHUNK_TOKENS).min(left)
                });
                num_uncomputed.min(chunk)
            }
            // One that is longer than any budget has a step to itself.
            Prefills::Whole if num_uncomputed <= left || self.step.scheduled.is_empty() => num_uncomputed,
            Prefills::Whole => 0,
        }
    }

    pub(super) fn add(&mut self, id: SequenceId, running: &Running, num_tokens: usize) {
        self.num_tokens += num_tokens;
        self.step.scheduled.push(Scheduled {
            id,
            slot: running.slot,
            context_len: running.num_computed,
            num_tokens,
            reaches_end: running.progress.prompt_is_complete() && num_tokens == running.num_uncomputed(),
        });
    }

    pub(super) fn withdraw(&mut self, id: SequenceId) {
        if let Some(idx) = self.step.scheduled.iter().position(|scheduled| scheduled.id == id) {
            self.num_tokens -= self.step.scheduled.remove(idx).num_tokens;
        }
    }
}

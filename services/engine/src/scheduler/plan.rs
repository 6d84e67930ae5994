use super::policy::{Prefills, StepKind};
use super::progress::Running;
use super::{Scheduled, SequenceId, Step};
use crate::ChunkSize;

/// A step in the making.
pub(super) struct Plan {
    pub(super) step: Step,
    kind: StepKind,
    chunks: ChunkSize,
    /// The most that the step may cost, in tokens without a context.
    budget: usize,
    cost: usize,
    /// Of what is left, for one that comes later.
    set_aside: usize,
    num_tokens: usize,
}

impl Plan {
    /// `step`: what a kind of step that came to nothing has changed, as yet without sequences that run.
    pub(super) fn new(kind: StepKind, chunks: ChunkSize, budget: usize, step: Step) -> Self {
        Self { step, kind, chunks, budget, cost: 0, set_aside: 0, num_tokens: 0 }
    }

    pub(super) fn kind(&self) -> StepKind {
        self.kind
    }

    /// What the budget leaves.
    pub(super) fn left(&self) -> usize {
        self.budget.saturating_sub(self.cost).saturating_sub(self.set_aside)
    }

    /// Whether nothing more can be in the step.
    pub(super) fn is_full(&self) -> bool {
        self.left() == 0
    }

    /// Keeps this much of the budget for one that comes later, in place of what was kept before.
    pub(super) fn set_aside(&mut self, cost: usize) {
        self.set_aside = cost;
    }

    /// What so many tokens of a prompt behind `context_len` cost.
    pub(super) fn cost(&self, context_len: usize, num_tokens: usize) -> usize {
        match self.kind.prefills {
            Prefills::Shared | Prefills::Chunks => self.chunks.cost(context_len, num_tokens),
            Prefills::Whole | Prefills::None => num_tokens,
        }
    }

    /// How many of a sequence's `num_uncomputed` tokens, behind `num_computed`, are in this step: 0 where it must wait.
    pub(super) fn share(&self, num_computed: usize, num_uncomputed: usize, is_decode: bool) -> usize {
        let left = self.left();
        if is_decode {
            return num_uncomputed.min(left);
        }
        match self.kind.prefills {
            Prefills::None => 0,
            Prefills::Shared | Prefills::Chunks => {
                num_uncomputed.min(self.chunks.most_tokens(num_computed, left, self.num_tokens))
            }
            // One that is longer than any budget has a step to itself.
            Prefills::Whole if num_uncomputed <= left || self.step.scheduled.is_empty() => num_uncomputed,
            Prefills::Whole => 0,
        }
    }

    pub(super) fn add(&mut self, id: SequenceId, running: &Running, num_tokens: usize) {
        self.num_tokens += num_tokens;
        self.cost += self.cost_of(running.num_computed, num_tokens);
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
            let Scheduled { context_len, num_tokens, .. } = self.step.scheduled.remove(idx);
            self.num_tokens -= num_tokens;
            self.cost -= self.cost_of(context_len, num_tokens);
        }
    }

    /// A decode takes one of the budget whatever its context, or the budget would not have room for all of them.
    fn cost_of(&self, context_len: usize, num_tokens: usize) -> usize {
        if num_tokens == 1 { 1 } else { self.cost(context_len, num_tokens) }
    }
}

//! Who runs how many tokens in the next step: stall-free batching with chunked prefill (Sarathi-Serve, OSDI'24), and the
//! policies it is compared with.
//!
//! Every step has a budget of tokens. By default running decodes come first, one token each; then the prompts being
//! prefilled, in chunks of what the budget leaves; then waiting sequences, as long as slots and memory last. So a long prompt
//! never holds up a decode, and as shorter prompts share the budget with it (`prefills`), none of those either. Other policies divide the same work otherwise (`policy`). Pure: no clock, no I/O, no randomness;
//! plain numbers in, a plan out.
//!
//! Turn and arrival decide all order. Where memory runs short the last in order gives way, and after the fourth time those
//! that have done so less often; it is then admitted only with memory for what it is likely to come to. Before it, and also
//! where slots run short, those give way whose prompt does not come on.

mod admission;
mod forecast;
mod output_lengths;
mod plan;
mod policy;
mod prefills;
mod progress;
mod running;
mod step;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;

use fused_virtual_memory::VirtualMemory;

use crate::kv::{KvCache, SlotId};
use crate::{ChunkSize, PolicyName, PrefillOrder};
use admission::NoRoom;
pub use forecast::{Newcomer, Pace, Room};
use output_lengths::OutputLengths;
use plan::Plan;
use policy::{Admits, Prefills, StepKind};
use progress::{Progress, Running, WaitsFor};
pub use step::{Known, Scheduled, SequenceId, Step};
use waiting::Waiting;

/// How often a sequence gives way to an older one before others give way in its place; from then on it is admitted with the
/// memory that its output is likely to need. Before its prompt is complete it does so once at most, and then waits for the
/// rest of that.
const MAX_PREEMPTIONS: u32 = 4;

/// How steps are made.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Which kinds of steps there are.
    pub policy: PolicyName,
    /// The most tokens of one step; at least the number of running sequences, so that no decode is ever left out and a
    /// prefill always gets some.
    pub token_budget: usize,
    /// Which prompts share what the decodes leave of the budget; `sarathi` alone has a choice.
    pub prefill_order: PrefillOrder,
    /// How large a chunk may be of what the budget leaves.
    pub chunks: ChunkSize,
}

/// Waiting and running sequences, both in order. A sequence is in one of them.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: Waiting,
    running: BTreeMap<SequenceId, Running>,
    no_room: NoRoom,
    lengths: OutputLengths,
}

impl Scheduler {
    /// Nobody waits and nobody runs.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            waiting: Waiting::default(),
            running: BTreeMap::new(),
            no_room: NoRoom::default(),
            lengths: OutputLengths::default(),
        }
    }

    /// Puts a sequence without tokens into the queue.
    pub fn add(&mut self, id: SequenceId) {
        self.waiting.insert(id, Progress::default());
    }

    /// More tokens of a sequence are known: a chunk of its prompt.
    pub fn extend(&mut self, id: SequenceId, num_tokens: usize) {
        self.update(id, |progress| {
            progress.num_tokens += num_tokens;
            if progress.waits_for == WaitsFor::More && num_tokens > 0 {
                progress.waits_for = WaitsFor::Nothing;
            }
        });
    }

    /// The prompt of a sequence has arrived whole. `max_tokens`: of prompt and output; `num_cached`: those that need not be
    /// computed, as far as is known now.
    pub fn complete_prompt(&mut self, id: SequenceId, max_tokens: usize, num_cached: usize) {
        self.update(id, |progress| {
            progress.num_prompt = progress.num_tokens;
            progress.max_tokens = Some(max_tokens);
            progress.num_cached = num_cached;
        });
    }

    /// Where a running sequence's keys and values are.
    #[must_use]
    pub fn slot(&self, id: SequenceId) -> Option<SlotId> {
        self.running.get(&id).map(|running| running.slot)
    }

    /// Notes that a sequence has ended by itself, with an output of so many tokens: what those behind it are likely to take.
    pub fn note_output(&mut self, num_tokens: usize) {
        self.lengths.note(num_tokens);
    }

    /// Forgets a sequence. Returns the slot that it had, for the caller to give back when no step works on it any more.
    pub fn remove(&mut self, id: SequenceId) -> Option<SlotId> {
        if let Some(running) = self.running.remove(&id) {
            return Some(running.slot);
        }
        self.waiting.remove(id);
        None
    }

    /// Decides the next step and maps the memory for it. `known` says what the tokens of a sequence are. `is_ahead`: steps are
    /// in flight.
    pub fn schedule<'a, M: VirtualMemory>(
        &mut self,
        kv: &mut KvCache<M>,
        known: impl Fn(SequenceId) -> Option<Known<'a>>,
        is_ahead: bool,
    ) -> Step {
        let mut step = Step { is_ahead, ..Step::default() };
        for kind in policy::steps(&self.config) {
            let mut plan = Plan::new(*kind, self.config.chunks, self.budget(kind, kv), step);
            self.fill(&mut plan, kv, &known);
            step = plan.step;
            if !step.scheduled.is_empty() {
                break;
            }
        }
        step
    }

    /// Records that a sequence runs as scheduled: what is decided from now on comes behind that. `has_next`: it draws a token,
    /// which is to be computed next.
    pub fn commit(&mut self, scheduled: &Scheduled, has_next: bool) {
        if let Some(running) = self.running.get_mut(&scheduled.id) {
            running.num_computed += scheduled.num_tokens;
            running.progress.num_tokens += usize::from(has_next);
        }
    }

    /// Sequences that have a slot.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that have none.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens ready and to be computed, apart from the one that every decode is about to compute.
    pub fn num_tokens_to_prefill(&self) -> usize {
        let prefills = self.running.values().filter(|running| !running.is_decode());
        self.waiting.num_uncached_tokens() + prefills.map(Running::num_uncomputed).sum::<usize>()
    }

    /// Of those, the ones of one sequence.
    pub fn num_tokens_to_prefill_of(&self, id: SequenceId) -> usize {
        let running = self.running.get(&id).filter(|running| !running.is_decode());
        running.map_or_else(|| self.waiting.num_uncached_tokens_of(id), Running::num_uncomputed)
    }

    /// No sequence in two queues, no slot twice, no token miscounted; for debug builds.
    pub fn is_consistent(&self) -> bool {
        let mut slots: Vec<_> = self.running.values().map(|running| running.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.len() == self.running.len()
            && !self.running.keys().any(|id| self.waiting.contains(*id))
            && self.waiting.is_consistent()
    }

    /// Whole prompts are computed as far as the model reads, whatever the budget for chunks, and whoever decodes beside them.
    fn budget<M: VirtualMemory>(&self, kind: &StepKind, kv: &KvCache<M>) -> usize {
        match kind.prefills {
            Prefills::Whole => {
                self.config.token_budget.max(kv.size().max_model_len + kv.size().num_sequences)
            }
            Prefills::Shared | Prefills::Chunks | Prefills::None => self.config.token_budget,
        }
    }

    fn fill<'a, M: VirtualMemory>(
        &mut self,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        known: &impl Fn(SequenceId) -> Option<Known<'a>>,
    ) {
        let kind = plan.kind();
        // Decided now: what is admitted below belongs to this step, and does not keep the next from it.
        let admits = match kind.admits {
            Admits::Always => true,
            Admits::WhenIdle => self.running.values().all(Running::is_stalled),
            Admits::Never => false,
        };
        if kind.has_decodes {
            self.continue_running(plan, kv, Running::is_decode);
        }
        // Whoever is short of memory comes before those who would take it here; in the next step, when others may give way.
        if plan.step.is_held_up {
            return;
        }
        match kind.prefills {
            Prefills::None => {}
            Prefills::Shared => return self.share_prefills(plan, kv, known, admits),
            Prefills::Chunks | Prefills::Whole => {
                self.continue_running(plan, kv, |running| !running.is_decode())
            }
        }
        if admits && !plan.step.is_held_up {
            self.admit_waiting(plan, kv, known);
        }
    }

    fn update(&mut self, id: SequenceId, change: impl FnOnce(&mut Progress)) {
        match self.running.get_mut(&id) {
            Some(running) => change(&mut running.progress),
            None => self.waiting.update(id, change),
        }
    }
}

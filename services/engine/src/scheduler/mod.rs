//! Who runs how many tokens in the next step: stall-free batching with chunked prefill (Sarathi-Serve, OSDI'24).
//!
//! Every step has a budget of tokens. Running decodes come first, one token each; then the prompts being prefilled, in
//! chunks of what the budget leaves; then waiting sequences, as long as slots and memory last. So a long prompt never
//! holds up a decode. Pure: no clock, no I/O, no randomness; plain numbers in, a plan out. Arrival decides all order, and
//! where memory runs short the youngest gives way; before it, and also where slots run short, those whose prompt does not
//! come on.

mod progress;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;

use fused_virtual_memory::VirtualMemory;

use crate::kv::{self, KvCache, SlotId};
use progress::{Progress, Running};
use waiting::Waiting;

/// Which sequence; ordered by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId {
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
    /// Sequences that gave way: their slots are free and they wait again, to be computed from their first token on.
    pub(crate) preempted: Vec<SequenceId>,
    /// Sequences for which there is no memory although nobody is left to give way; removed.
    pub(crate) failed: Vec<(SequenceId, kv::Error)>,
}

impl Step {
    /// Whether nothing runs and nothing has changed, so that the next step would be the same.
    pub(crate) fn is_empty(&self) -> bool {
        self.scheduled.is_empty() && self.preempted.is_empty() && self.failed.is_empty()
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheduled {
    pub(crate) id: SequenceId,
    /// Memory for `context_len + num_tokens` tokens is mapped.
    pub(crate) slot: SlotId,
    /// Tokens computed in earlier steps.
    pub(crate) context_len: usize,
    /// Tokens of this step, at least one.
    pub(crate) num_tokens: usize,
    /// Whether this step computes the last token there is of a complete prompt, so that the next one can be drawn.
    pub(crate) reaches_end: bool,
}

/// Waiting and running sequences, both in order of arrival. A sequence is in one of them.
#[derive(Debug)]
pub(crate) struct Scheduler {
    token_budget: usize,
    waiting: Waiting,
    running: BTreeMap<SequenceId, Running>,
}

impl Scheduler {
    /// `token_budget`: the most tokens of one step; at least the number of slots, so that no decode is ever left out and
    /// a prefill, which has a slot too, always gets some.
    pub(crate) fn new(token_budget: usize) -> Self {
        Self { token_budget, waiting: Waiting::default(), running: BTreeMap::new() }
    }

    /// Puts a sequence without tokens into the queue.
    pub(crate) fn add(&mut self, id: SequenceId) {
        self.waiting.insert(id, Progress::default());
    }

    /// More tokens of a sequence are known: a chunk of its prompt, or one that was drawn.
    pub(crate) fn extend(&mut self, id: SequenceId, num_tokens: usize) {
        self.update(id, |progress| progress.num_tokens += num_tokens);
    }

    /// The prompt of a sequence has arrived whole.
    pub(crate) fn complete_prompt(&mut self, id: SequenceId) {
        self.update(id, |progress| progress.prompt_is_complete = true);
    }

    /// Forgets a sequence and gives its slot back. Returns the bytes that were mapped for it, `None` if it is unknown.
    pub(crate) fn remove<M: VirtualMemory>(&mut self, id: SequenceId, kv: &mut KvCache<M>) -> Option<usize> {
        if let Some(running) = self.running.remove(&id) {
            return Some(kv.release(running.slot));
        }
        self.waiting.remove(id).map(|_| 0)
    }

    /// Decides the next step and maps the memory for it.
    pub(crate) fn schedule<M: VirtualMemory>(&mut self, kv: &mut KvCache<M>) -> Step {
        let mut plan = Plan { step: Step::default(), budget: self.token_budget };
        for decodes in [true, false] {
            let ids: Vec<_> =
                self.running.iter().filter(|(_, r)| r.is_decode() == decodes).map(|(id, _)| *id).collect();
            for id in ids {
                self.continue_running(id, &mut plan, kv);
            }
        }
        self.admit_waiting(&mut plan, kv);
        plan.step
    }

    /// Records that a step has run.
    pub(crate) fn commit(&mut self, step: &Step) {
        for scheduled in &step.scheduled {
            if let Some(running) = self.running.get_mut(&scheduled.id) {
                running.num_computed += scheduled.num_tokens;
            }
        }
    }

    /// Sequences that have a slot.
    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that have none.
    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens ready and not computed as yet, apart from the one that every decode is about to compute.
    pub(crate) fn num_tokens_to_prefill(&self) -> usize {
        let prefills = self.running.values().filter(|running| !running.is_decode());
        self.waiting.num_ready_tokens() + prefills.map(Running::num_uncomputed).sum::<usize>()
    }

    /// No sequence in two queues, no slot twice, no token miscounted; for debug builds.
    pub(crate) fn is_consistent(&self) -> bool {
        let mut slots: Vec<_> = self.running.values().map(|running| running.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.len() == self.running.len()
            && !self.running.keys().any(|id| self.waiting.contains(*id))
            && self.waiting.is_consistent()
    }

    /// Schedules what the budget leaves of a running sequence; makes others give way where memory is short.
    fn continue_running<M: VirtualMemory>(&mut self, id: SequenceId, plan: &mut Plan, kv: &mut KvCache<M>) {
        // Unknown once it has given way in this very step.
        while let Some(running) = self.running.get(&id) {
            if running.num_uncomputed() == 0 || plan.budget == 0 {
                return;
            }
            match kv.ensure(running.slot, running.progress.num_tokens) {
                Ok(()) => return plan.add(id, running),
                Err(kv::Error::OutOfPages) if self.running.len() > 1 => {
                    let youngest = self.running.last_key_value().map_or(id, |(youngest, _)| *youngest);
                    self.preempt(self.youngest_stalled().unwrap_or(youngest), plan, kv);
                }
                Err(error) => {
                    self.remove(id, kv);
                    plan.step.failed.push((id, error));
                }
            }
        }
    }

    /// Takes a sequence's slot and lets it wait again; by its age it stands before all that never ran.
    fn preempt<M: VirtualMemory>(&mut self, id: SequenceId, plan: &mut Plan, kv: &mut KvCache<M>) {
        if let Some(mut running) = self.running.remove(&id) {
            kv.release(running.slot);
            plan.withdraw(id);
            // Or it would be the first to take the slot that it has just given.
            running.progress.waits_for_all = running.is_stalled();
            self.waiting.insert(id, running.progress);
            plan.step.preempted.push(id);
        }
    }

    /// First come, first served: one that does not fit holds up those behind it, or it would starve. Whoever has just
    /// given way does not fit: part of what it gave is taken.
    fn admit_waiting<M: VirtualMemory>(&mut self, plan: &mut Plan, kv: &mut KvCache<M>) {
        while let Some((id, progress)) = self.waiting.first_ready() {
            if plan.budget == 0 {
                return;
            }
            let Some(slot) = self.acquire(progress.num_tokens, plan, kv) else { return };
            self.waiting.remove(id);
            let running = Running { progress, slot, num_computed: 0 };
            match kv.ensure(slot, progress.num_tokens) {
                Ok(()) => {
                    plan.add(id, &running);
                    self.running.insert(id, running);
                }
                Err(error) => {
                    kv.release(slot);
                    plan.step.failed.push((id, error));
                }
            }
        }
    }

    /// A slot for a new sequence with memory for so many tokens, if need be one whose holder is stalled.
    fn acquire<M: VirtualMemory>(
        &mut self,
        num_tokens: usize,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
    ) -> Option<SlotId> {
        loop {
            let slot = if kv.has_room_for(num_tokens) { kv.acquire(num_tokens) } else { None };
            if slot.is_some() {
                return slot;
            }
            self.preempt(self.youngest_stalled()?, plan, kv);
        }
    }

    /// The youngest sequence that cannot go on because its prompt does not.
    fn youngest_stalled(&self) -> Option<SequenceId> {
        self.running.iter().rev().find(|(_, running)| running.is_stalled()).map(|(id, _)| *id)
    }

    fn update(&mut self, id: SequenceId, change: impl FnOnce(&mut Progress)) {
        match self.running.get_mut(&id) {
            Some(running) => change(&mut running.progress),
            None => self.waiting.update(id, change),
        }
    }
}

/// A step in the making.
struct Plan {
    step: Step,
    /// Tokens still to be given out.
    budget: usize,
}

impl Plan {
    fn add(&mut self, id: SequenceId, running: &Running) {
        let num_tokens = running.num_uncomputed().min(self.budget);
        self.budget -= num_tokens;
        self.step.scheduled.push(Scheduled {
            id,
            slot: running.slot,
            context_len: running.num_computed,
            num_tokens,
            reaches_end: running.progress.prompt_is_complete && num_tokens == running.num_uncomputed(),
        });
    }

    fn withdraw(&mut self, id: SequenceId) {
        if let Some(idx) = self.step.scheduled.iter().position(|scheduled| scheduled.id == id) {
            self.budget += self.step.scheduled.remove(idx).num_tokens;
        }
    }
}

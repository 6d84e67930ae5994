//! Sequences that have a slot: who goes on, and who gives way where memory runs short.

use fused_virtual_memory::VirtualMemory;

use super::plan::Plan;
use super::progress::{Running, WaitsFor};
use super::{MAX_PREEMPTIONS, Scheduler, SequenceId};
use crate::kv::{self, KvCache};

impl Scheduler {
    /// Schedules the running sequences that `are_meant`, in order.
    pub(super) fn continue_running<M: VirtualMemory>(
        &mut self,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        are_meant: fn(&Running) -> bool,
    ) {
        let mut without_memory = Vec::new();
        for (id, running) in self.running.iter().filter(|(_, running)| are_meant(running)) {
            if plan.is_full() {
                break;
            }
            let num_tokens = plan.share(running.num_computed, running.num_uncomputed(), running.is_decode());
            if num_tokens == 0 {
                continue;
            }
            match kv.ensure(running.slot, running.progress.num_tokens) {
                Ok(()) => plan.add(*id, running, num_tokens),
                Err(_) => without_memory.push(*id),
            }
        }
        for id in without_memory {
            self.continue_one(id, plan, kv);
        }
    }

    /// Schedules a running sequence; makes others give way for it where it needs more memory than there is.
    pub(super) fn continue_one<M: VirtualMemory>(
        &mut self,
        id: SequenceId,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
    ) {
        // Unknown once it has given way in this very step.
        while let Some(running) = self.running.get(&id) {
            let num_tokens = plan.share(running.num_computed, running.num_uncomputed(), running.is_decode());
            if num_tokens == 0 {
                return;
            }
            match kv.ensure(running.slot, running.progress.num_tokens) {
                Ok(()) => return plan.add(id, running, num_tokens),
                Err(_) if plan.step.is_ahead => {
                    plan.step.is_held_up = true;
                    return;
                }
                Err(kv::Error::OutOfPages) if self.running.len() > 1 => {
                    let victim = self.victim().unwrap_or(id);
                    self.preempt(victim, plan, kv);
                }
                // What is about to be copied stays where it is during this step.
                Err(kv::Error::OutOfPages) if kv.has_copies() => return,
                Err(error) => {
                    if let Some(slot) = self.remove(id) {
                        kv.release(slot);
                    }
                    plan.step.failed.push((id, error));
                }
            }
        }
    }

    /// Who gives way: who is stalled, or else the last in order of those who have not done so too often. Those have all the
    /// memory that they may need, and never ask for more.
    fn victim(&self) -> Option<SequenceId> {
        let last = |may: fn(&Running) -> bool| {
            self.running.iter().rev().find(|(_, running)| may(running)).map(|(id, _)| *id)
        };
        last(Running::is_stalled)
            .or_else(|| last(|running| running.progress.num_preemptions < MAX_PREEMPTIONS))
            .or_else(|| last(|_| true))
    }

    /// Takes a sequence's slot and lets it wait again; by its age it stands before all that never ran.
    pub(super) fn preempt<M: VirtualMemory>(&mut self, id: SequenceId, plan: &mut Plan, kv: &mut KvCache<M>) {
        if let Some(mut running) = self.running.remove(&id) {
            kv.release(running.slot);
            plan.withdraw(id);
            if running.progress.prompt_is_complete() {
                running.progress.num_preemptions += 1;
            } else {
                // Or it would be the first to take the slot that it has just given, and how much memory it may need, which
                // is what bounds how often it gives way, is not known before its prompt is.
                running.progress.waits_for = WaitsFor::All;
            }
            // How much of it is still there is found out when it is admitted again.
            running.progress.num_cached = 0;
            self.waiting.insert(id, running.progress);
            plan.step.preempted.push(id);
        }
    }

    /// The last in order that cannot go on because its prompt does not.
    pub(super) fn stalled(&self) -> Option<SequenceId> {
        self.running.iter().rev().find(|(_, running)| running.is_stalled()).map(|(id, _)| *id)
    }
}

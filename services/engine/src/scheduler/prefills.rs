//! Which prompts share what a step's decodes leave of its budget.
//!
//! The first in order has at least a quarter of it; shorter ones, the shortest first, may have the rest, and the first gets
//! what they leave. So a prompt of a hundred thousand tokens holds up nobody behind it, and nobody starves: each becomes the
//! first in time, and takes at most four times as long as alone. One that is longer than the first gets nothing before that
//! is done, since both would only come later.

use std::collections::BTreeSet;

use fused_virtual_memory::VirtualMemory;

use super::admission::Looking;
use super::plan::Plan;
use super::{Known, Scheduler, SequenceId};
use crate::kv::KvCache;

/// The part of what the decodes leave that the first in order has whoever else comes: one in four.
const FIRST_PART: usize = 4;
/// Waiting sequences that may take their turn before the first in order, of those behind it.
const MAX_LOOKED_AHEAD: usize = 64;

impl Scheduler {
    /// Fills a step with chunks of prompts, of those that have a slot and, where `admits` says so, of those that wait.
    pub(super) fn share_prefills<'a, M: VirtualMemory>(
        &mut self,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        known: &impl Fn(SequenceId) -> Option<Known<'a>>,
        admits: bool,
    ) {
        let kept = plan.left().div_ceil(FIRST_PART);
        let mut looking = Looking::new(admits, true);
        let mut served = BTreeSet::new();
        while !plan.is_full() {
            let Some(first) = self.first_prefill(plan, kv, known, &mut looking, &served) else { return };
            let Some(num_tokens) = self.num_to_prefill(first) else { return };
            if plan.cost(self.context_len(first), num_tokens) > kept {
                plan.set_aside(kept.min(plan.left()));
                self.serve_shorter(first, num_tokens, plan, kv, known, &mut looking, &mut served);
                plan.set_aside(0);
            }
            self.continue_one(first, plan, kv);
            served.insert(first);
        }
    }

    /// The first in order that has a prompt to compute and is not in the step; it gets a slot if it has none.
    fn first_prefill<'a, M: VirtualMemory>(
        &mut self,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        known: &impl Fn(SequenceId) -> Option<Known<'a>>,
        looking: &mut Looking,
        served: &BTreeSet<SequenceId>,
    ) -> Option<SequenceId> {
        loop {
            let running = self.prefills().find(|id| !served.contains(id));
            let waiting = looking.next(self).filter(|id| running.is_none_or(|running| *id < running));
            let Some(id) = waiting else { return running };
            if self.admit_next(id, plan, kv, known, looking) {
                return Some(id);
            }
        }
    }

    /// Puts prompts into the step that have fewer than `num_tokens` to compute, the shortest first.
    #[expect(clippy::too_many_arguments, reason = "what every part of a decision works on, and two numbers")]
    fn serve_shorter<'a, M: VirtualMemory>(
        &mut self,
        first: SequenceId,
        num_tokens: usize,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        known: &impl Fn(SequenceId) -> Option<Known<'a>>,
        looking: &mut Looking,
        served: &mut BTreeSet<SequenceId>,
    ) {
        let running = self.prefills().filter(|id| *id != first && !served.contains(id));
        let waiting = looking.all(self).take(MAX_LOOKED_AHEAD);
        let shorter = running.chain(waiting).filter_map(|id| Some((self.num_to_prefill(id)?, id)));
        let mut shorter: Vec<_> = shorter.filter(|(num, _)| *num < num_tokens).collect();
        shorter.sort_unstable();
        for (_, id) in shorter {
            if plan.is_full() {
                return;
            }
            let waits = self.slot(id).is_none();
            if waits && !looking.allows(self, id) {
                continue;
            }
            if !waits || self.admit_next(id, plan, kv, known, looking) {
                self.continue_one(id, plan, kv);
                served.insert(id);
            }
        }
    }

    /// Running sequences that have more to compute than a decode has, in order.
    fn prefills(&self) -> impl Iterator<Item = SequenceId> {
        let prefills = self.running.iter().filter(|(_, r)| !r.is_decode() && r.num_uncomputed() > 0);
        prefills.map(|(id, _)| *id)
    }

    /// Tokens that a sequence has to compute before it draws one.
    fn num_to_prefill(&self, id: SequenceId) -> Option<usize> {
        match self.running.get(&id) {
            Some(running) => Some(running.num_uncomputed()),
            None => self.waiting.get(id).map(|progress| progress.num_uncached().max(1)),
        }
    }

    fn context_len(&self, id: SequenceId) -> usize {
        self.running.get(&id).map_or(0, |running| running.num_computed)
    }
}

//! Who runs how many tokens in the next step: stall-free batching with chunked prefill (Sarathi-Serve, OSDI'24), and the
//! policies it is compared with.
//!
//! Every step has a budget of tokens. By default running decodes come first, one token each; then the prompts being
//! prefilled, in chunks of what the budget leaves; then waiting sequences, as long as slots and memory last. So a long prompt
//! never holds up a decode. Other policies divide the same work otherwise (`policy`). Pure: no clock, no I/O, no randomness;
//! plain numbers in, a plan out.
//!
//! Turn and arrival decide all order. Where memory runs short the last in order gives way, a bounded number of times: after
//! that it is admitted only with memory for all it may come to. Before it, and also where slots run short, those give way
//! whose prompt does not come on.

mod plan;
mod policy;
mod progress;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;

use fused_virtual_memory::VirtualMemory;
use fused_vocabulary::TokenId;

use crate::kv::{self, Admission, Candidate, KvCache, SlotId};
use crate::{ChunkSchedule, PolicyName};
use plan::Plan;
use policy::{Admits, Prefills, StepKind};
use progress::{Progress, Running, WaitsFor};
use waiting::Waiting;

/// How often a sequence gives way to an older one; the next time it is admitted with all the memory it may need.
const MAX_PREEMPTIONS: u32 = 4;
/// Sequences passed over in one step because another computes their prefix. Behind them nobody is looked at.
const MAX_PASSED_OVER: usize = 64;

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
}

impl Step {
    /// Whether nothing runs and nothing has changed, so that the next step would be the same.
    pub fn is_empty(&self) -> bool {
        let Self { scheduled, admitted, preempted, failed } = self;
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

/// How steps are made.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Which kinds of steps there are.
    pub policy: PolicyName,
    /// The most tokens of one step; at least the number of running sequences, so that no decode is ever left out and a
    /// prefill always gets some.
    pub token_budget: usize,
    /// Chunks that become smaller as a prompt goes on; none: all that the budget leaves.
    pub chunk_schedule: Option<ChunkSchedule>,
}

/// Waiting and running sequences, both in order. A sequence is in one of them.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: Waiting,
    running: BTreeMap<SequenceId, Running>,
    /// For whom there was no room, and how many slots had been released then: before another one is, or could be, there is
    /// none.
    blocked: Option<(SequenceId, u64)>,
}

impl Scheduler {
    /// Nobody waits and nobody runs.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        Self { config, waiting: Waiting::default(), running: BTreeMap::new(), blocked: None }
    }

    /// Puts a sequence without tokens into the queue.
    pub fn add(&mut self, id: SequenceId) {
        self.waiting.insert(id, Progress::default());
    }

    /// More tokens of a sequence are known: a chunk of its prompt, or one that was drawn.
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
            progress.max_tokens = Some(max_tokens);
            progress.num_cached = num_cached;
        });
    }

    /// Forgets a sequence and gives its slot back. Returns the bytes that it needed, `None` if it is unknown.
    pub fn remove<M: VirtualMemory>(&mut self, id: SequenceId, kv: &mut KvCache<M>) -> Option<usize> {
        if let Some(running) = self.running.remove(&id) {
            return Some(kv.release(running.slot));
        }
        self.waiting.remove(id).map(|_| 0)
    }

    /// Decides the next step and maps the memory for it. `known` says what the tokens of a sequence are.
    pub fn schedule<'a, M: VirtualMemory>(
        &mut self,
        kv: &mut KvCache<M>,
        known: impl Fn(SequenceId) -> Option<Known<'a>>,
    ) -> Step {
        let mut step = Step::default();
        for kind in policy::steps(self.config.policy) {
            let mut plan = Plan::new(*kind, self.config.chunk_schedule, self.budget(kind, kv), step);
            self.fill(&mut plan, kv, &known);
            step = plan.step;
            if !step.scheduled.is_empty() {
                break;
            }
        }
        step
    }

    /// Records that a step has run.
    pub fn commit(&mut self, step: &Step) {
        for scheduled in &step.scheduled {
            if let Some(running) = self.running.get_mut(&scheduled.id) {
                running.num_computed += scheduled.num_tokens;
            }
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
            Prefills::Chunks | Prefills::None => self.config.token_budget,
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
        if kind.prefills != Prefills::None {
            self.continue_running(plan, kv, |running| !running.is_decode());
        }
        if admits {
            self.admit_waiting(plan, kv, known);
        }
    }

    /// Schedules the running sequences that `are_meant`, in order.
    fn continue_running<M: VirtualMemory>(
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
            self.continue_short(id, plan, kv);
        }
    }

    /// Schedules a running sequence that needs more memory; makes others give way for it.
    fn continue_short<M: VirtualMemory>(&mut self, id: SequenceId, plan: &mut Plan, kv: &mut KvCache<M>) {
        // Unknown once it has given way in this very step.
        while let Some(running) = self.running.get(&id) {
            let num_tokens = plan.share(running.num_computed, running.num_uncomputed(), running.is_decode());
            if num_tokens == 0 {
                return;
            }
            match kv.ensure(running.slot, running.progress.num_tokens) {
                Ok(()) => return plan.add(id, running, num_tokens),
                Err(kv::Error::OutOfPages) if self.running.len() > 1 => {
                    let victim = self.victim().unwrap_or(id);
                    self.preempt(victim, plan, kv);
                }
                // What is about to be copied stays where it is during this step.
                Err(kv::Error::OutOfPages) if kv.has_copies() => return,
                Err(error) => {
                    self.remove(id, kv);
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
    fn preempt<M: VirtualMemory>(&mut self, id: SequenceId, plan: &mut Plan, kv: &mut KvCache<M>) {
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

    /// In order: one that does not fit holds up those behind it, or it would starve. Whoever has just given way does not fit:
    /// part of what it gave is taken. One whose prefix another sequence is about to compute waits for that, and holds up
    /// nobody.
    fn admit_waiting<'a, M: VirtualMemory>(
        &mut self,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        known: &impl Fn(SequenceId) -> Option<Known<'a>>,
    ) {
        let mut passed_over = None;
        let mut num_passed_over = 0;
        while let Some((id, progress)) = self.waiting.next_ready(passed_over) {
            let num_tokens = plan.share(progress.num_cached, progress.num_uncached().max(1), false);
            let is_blocked = || self.blocked == Some((id, kv.num_releases())) && self.stalled().is_none();
            if plan.is_full() || num_tokens == 0 || is_blocked() {
                return;
            }
            let Some(Known { tokens, salt, reuses }) = known(id) else { return };
            let is_coming = progress.coming.is_some_and(|coming| kv.is_coming(&coming));
            let candidate = Candidate {
                tokens: tokens.get(..progress.num_ready()).unwrap_or(tokens),
                is_arriving: !progress.prompt_is_complete(),
                salt,
                reuses,
                num_reserved: match progress.max_tokens {
                    Some(max_tokens) if progress.num_preemptions >= MAX_PREEMPTIONS => max_tokens,
                    _ => progress.num_tokens,
                },
            };
            match if is_coming { None } else { Some(kv.admit(&candidate)) } {
                Some(Admission::Admitted { slot, num_cached }) => {
                    self.waiting.remove(id);
                    let progress = Progress { num_cached, coming: None, ..progress };
                    let running = Running { progress, slot, num_computed: num_cached };
                    plan.step.admitted.push((id, num_cached));
                    let num_tokens = plan.share(num_cached, running.num_uncomputed(), false);
                    if num_tokens > 0 {
                        plan.add(id, &running, num_tokens);
                    }
                    self.running.insert(id, running);
                }
                Some(Admission::NoRoom) => match self.stalled() {
                    Some(stalled) => self.preempt(stalled, plan, kv),
                    None => {
                        // What is about to be copied cannot be taken in this step, but in the next.
                        self.blocked = (!kv.has_copies()).then(|| (id, kv.num_releases()));
                        return;
                    }
                },
                Some(Admission::AllIsThere) => {
                    self.waiting.update(id, |progress| progress.waits_for = WaitsFor::More);
                }
                Some(Admission::Failed(error)) => {
                    self.waiting.remove(id);
                    plan.step.failed.push((id, error));
                }
                passing => {
                    if let Some(Admission::Coming(coming)) = passing {
                        self.waiting.update(id, |progress| progress.coming = Some(coming));
                    }
                    passed_over = Some(id);
                    num_passed_over += 1;
                    if num_passed_over == MAX_PASSED_OVER {
                        return;
                    }
                }
            }
        }
    }

    /// The last in order that cannot go on because its prompt does not.
    fn stalled(&self) -> Option<SequenceId> {
        self.running.iter().rev().find(|(_, running)| running.is_stalled()).map(|(id, _)| *id)
    }

    fn update(&mut self, id: SequenceId, change: impl FnOnce(&mut Progress)) {
        match self.running.get_mut(&id) {
            Some(running) => change(&mut running.progress),
            None => self.waiting.update(id, change),
        }
    }
}

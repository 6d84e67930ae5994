//! Who gets a slot.

use std::collections::BTreeSet;

use fused_virtual_memory::VirtualMemory;

use super::plan::Plan;
use super::progress::{Progress, Running, WaitsFor};
use super::{Known, MAX_PREEMPTIONS, Scheduler, SequenceId};
use crate::kv::{self, Admission, Candidate, KvCache};

/// Waiting sequences that are asked in one step and get no slot: behind them nobody is looked at.
const MAX_ASKED: usize = 64;

/// How far a step has looked through the waiting sequences.
pub(super) struct Looking {
    /// Sequences that have been asked for, and got a slot or did not.
    asked: BTreeSet<SequenceId>,
    /// Whether those behind one that has no room may be admitted before it.
    may_pass: bool,
    /// The first in order for which there is no room.
    without_room: Option<SequenceId>,
    is_over: bool,
}

/// For which sequences there was no room, and how many slots had been released then: before another one is, there is none.
#[derive(Debug, Default)]
pub(super) struct NoRoom {
    num_releases: u64,
    sequences: BTreeSet<SequenceId>,
}

impl Looking {
    pub(super) fn new(admits: bool, may_pass: bool) -> Self {
        Self { asked: BTreeSet::new(), may_pass, without_room: None, is_over: !admits }
    }

    /// The next in order that may get a slot.
    pub(super) fn next(&self, scheduler: &Scheduler) -> Option<SequenceId> {
        self.all(scheduler).next()
    }

    /// All that may get one, in order; of one request's sequences the first, whose prompt the others share.
    pub(super) fn all<'a>(&'a self, scheduler: &'a Scheduler) -> impl Iterator<Item = SequenceId> + use<'a> {
        let most = self.most_tokens(scheduler);
        let ready = scheduler.waiting.ready().take(if most == 0 { 0 } else { 2 * MAX_ASKED });
        let mut last_request = None;
        let firsts = ready.filter(move |(id, _)| last_request.replace(id.request) != Some(id.request));
        let may = move |id: &SequenceId, num_tokens| num_tokens <= most && !self.asked.contains(id);
        firsts.filter(move |(id, progress)| may(id, progress.num_tokens)).map(|(id, _)| id)
    }

    /// Whether a waiting sequence may get one.
    pub(super) fn allows(&self, scheduler: &Scheduler, id: SequenceId) -> bool {
        let fits = |progress: Progress| progress.num_tokens <= self.most_tokens(scheduler);
        !self.asked.contains(&id) && scheduler.waiting.get(id).is_some_and(fits)
    }

    /// Tokens of a sequence that may still be admitted. Others may pass one that has no room until they have been given as
    /// many tokens as it asks for: so a prompt that waits for much memory holds up no short one, and waits a bounded time
    /// more. A sequence that has given way is passed by none.
    fn most_tokens(&self, scheduler: &Scheduler) -> usize {
        match self.without_room.and_then(|id| scheduler.waiting.get(id)) {
            _ if self.is_over || self.asked.len() >= MAX_ASKED => 0,
            None => usize::MAX,
            Some(first) if !self.may_pass || first.num_preemptions > 0 => 0,
            Some(first) => first.num_tokens.saturating_sub(first.num_passed_tokens),
        }
    }
}

impl Scheduler {
    /// In order: one that does not fit holds up those behind it, or it would starve. Whoever has just given way does not fit:
    /// part of what it gave is taken. One whose prefix another sequence is about to compute waits for that, and holds up
    /// nobody.
    pub(super) fn admit_waiting<'a, M: VirtualMemory>(
        &mut self,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        known: &impl Fn(SequenceId) -> Option<Known<'a>>,
    ) {
        let mut looking = Looking::new(true, false);
        while let Some(id) = looking.next(self) {
            let Some(progress) = self.waiting.get(id) else { return };
            let num_tokens = plan.share(progress.num_cached, progress.num_uncached().max(1), false);
            if plan.is_full() || num_tokens == 0 {
                return;
            }
            if self.admit_next(id, plan, kv, known, &mut looking) {
                self.continue_one(id, plan, kv);
            }
        }
    }

    /// Gives a waiting sequence a slot, if it can have one now. It is not in the step by that.
    pub(super) fn admit_next<'a, M: VirtualMemory>(
        &mut self,
        id: SequenceId,
        plan: &mut Plan,
        kv: &mut KvCache<M>,
        known: &impl Fn(SequenceId) -> Option<Known<'a>>,
        looking: &mut Looking,
    ) -> bool {
        looking.asked.insert(id);
        loop {
            let (Some(progress), Some(Known { tokens, salt, reuses })) = (self.waiting.get(id), known(id))
            else {
                return false;
            };
            if self.no_room.contains(id, kv.num_releases()) && self.stalled().is_none() {
                looking.without_room.get_or_insert(id);
                return false;
            }
            let is_coming = progress.coming.is_some_and(|coming| kv.is_coming(&coming));
            let candidate = Candidate {
                tokens: tokens.get(..progress.num_ready()).unwrap_or(tokens),
                is_arriving: !progress.prompt_is_complete(),
                salt,
                reuses,
                // Alone it needs nothing that others might take.
                num_reserved: match kv.num_live() {
                    0 => progress.num_tokens,
                    _ => self.num_reserved(progress),
                },
                is_ahead: plan.step.is_ahead,
            };
            match if is_coming { None } else { Some(kv.admit(&candidate)) } {
                Some(Admission::Admitted { slot, num_cached }) => {
                    self.waiting.remove(id);
                    if let Some(passed) = looking.without_room {
                        self.waiting.update(passed, |passed| passed.num_passed_tokens += progress.num_tokens);
                    }
                    let progress = Progress { num_cached, coming: None, num_passed_tokens: 0, ..progress };
                    plan.step.admitted.push((id, num_cached));
                    self.running.insert(id, Running { progress, slot, num_computed: num_cached });
                    return true;
                }
                Some(Admission::NoRoom) => match self.stalled() {
                    Some(_) if plan.step.is_ahead => {
                        plan.step.is_held_up = true;
                        looking.is_over = true;
                        return false;
                    }
                    Some(stalled) => self.preempt(stalled, plan, kv),
                    None if kv.num_live() == 0 && !kv.has_copies() => {
                        // The pool has shrunk, and nobody is left whose memory it could wait for.
                        self.waiting.remove(id);
                        plan.step.failed.push((id, kv::Error::OutOfPages));
                    }
                    None => {
                        // What is about to be copied cannot be taken in this step, but in the next.
                        if !kv.has_copies() {
                            self.no_room.insert(id, kv.num_releases());
                        }
                        looking.without_room.get_or_insert(id);
                        looking.is_over |= kv.num_live() >= kv.size().num_sequences;
                        return false;
                    }
                },
                Some(Admission::AllIsThere) => {
                    self.waiting.update(id, |progress| progress.waits_for = WaitsFor::More);
                    // It is not among those who are ready any more, however many there are of its kind.
                    looking.asked.remove(&id);
                    return false;
                }
                Some(Admission::Failed(error)) => {
                    self.waiting.remove(id);
                    plan.step.failed.push((id, error));
                    return false;
                }
                Some(Admission::NotNow) => {
                    plan.step.is_held_up |= plan.step.is_ahead;
                    return false;
                }
                Some(Admission::Coming(coming)) => {
                    self.waiting.update(id, |progress| {
                        progress.coming = Some(coming);
                        // Counted where they are computed, not once more for everybody who waits for them.
                        progress.num_cached = coming.num_tokens();
                    });
                    return false;
                }
                None => return false,
            }
        }
    }

    /// Tokens that there must be memory for. A sequence that has given way too often has it for all that its output is
    /// likely to come to, and for twice as much each time it gives way all the same, so that this ends.
    pub(super) fn num_reserved(&self, progress: Progress) -> usize {
        let Some(num_more) = progress.num_preemptions.checked_sub(MAX_PREEMPTIONS) else {
            return progress.num_tokens;
        };
        let num_likely = self.lengths.remaining(progress.num_output(), progress.num_left());
        let num_reserved = num_likely.saturating_mul(1_usize.checked_shl(num_more).unwrap_or(usize::MAX));
        progress.num_tokens + num_reserved.min(progress.num_left())
    }
}

impl NoRoom {
    fn contains(&self, id: SequenceId, num_releases: u64) -> bool {
        self.num_releases == num_releases && self.sequences.contains(&id)
    }

    fn insert(&mut self, id: SequenceId, num_releases: u64) {
        if self.num_releases != num_releases {
            self.sequences.clear();
            self.num_releases = num_releases;
        }
        self.sequences.insert(id);
    }
}

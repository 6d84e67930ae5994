//! Who gets a slot.

use fused_virtual_memory::VirtualMemory;

use super::plan::Plan;
use super::progress::{Progress, Running, WaitsFor};
use super::{Known, MAX_PREEMPTIONS, Scheduler, SequenceId};
use crate::kv::{self, Admission, Candidate, KvCache};

/// Sequences passed over in one step because another computes their prefix. Behind them nobody is looked at.
const MAX_PASSED_OVER: usize = 64;

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
                    // Alone it needs nothing that others might take.
                    Some(max_tokens) if progress.num_preemptions >= MAX_PREEMPTIONS && kv.num_live() > 0 => {
                        max_tokens
                    }
                    _ => progress.num_tokens,
                },
                is_ahead: plan.step.is_ahead,
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
                    Some(_) if plan.step.is_ahead => {
                        plan.step.is_held_up = true;
                        return;
                    }
                    Some(stalled) => self.preempt(stalled, plan, kv),
                    None if kv.num_live() == 0 && !kv.has_copies() => {
                        // The pool has shrunk, and nobody is left whose memory it could wait for.
                        self.waiting.remove(id);
                        plan.step.failed.push((id, kv::Error::OutOfPages));
                    }
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
                    if let Some(Admission::NotNow) = passing {
                        plan.step.is_held_up |= plan.step.is_ahead;
                    }
                    if let Some(Admission::Coming(coming)) = passing {
                        self.waiting.update(id, |progress| {
                            progress.coming = Some(coming);
                            // Counted where they are computed, not once more for everybody who waits for them.
                            progress.num_cached = coming.num_tokens();
                        });
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
}

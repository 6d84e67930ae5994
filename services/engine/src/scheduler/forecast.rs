//! When a slot and memory come free: how long a request that comes now would wait.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::progress::Running;
use super::{Scheduler, SequenceId};
use crate::PrefillOrder;

/// How fast the machine has been of late.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Seconds from one token of a sequence to its next.
    pub s_per_step: f64,
    /// Seconds that a token of a prompt takes.
    pub s_per_prefill_token: f64,
}

/// Room for sequences, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Sequences that run at the same time, at most.
    pub num_sequences: usize,
    /// Tokens that there is memory for beside those of running sequences.
    pub free_tokens: usize,
    /// Tokens of running sequences that take memory of their own: a prefix that several share counts once.
    pub used_tokens: usize,
}

/// A sequence that is not admitted yet.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer {
    /// Where it stands in order; `None`: behind all.
    pub id: Option<SequenceId>,
    /// Tokens of its prompt that need memory.
    pub num_tokens: usize,
    /// Tokens of its prompt that must be computed.
    pub num_uncached: usize,
}

/// Sequences that run, as far as it is foreseen.
struct Future {
    /// When they end, in microseconds, and what memory they give back.
    ends: BinaryHeap<Reverse<(u64, i64)>>,
    num_free_slots: usize,
    free_tokens: i64,
    /// When the last one was admitted, and when the last prompt is computed; in seconds.
    admitted_s: f64,
    prefilled_s: f64,
}

impl Scheduler {
    /// How long a newcomer waits before its prompt is computed: for those before it in order, other than its `own`, to get
    /// their slots, memory and prompts computed, and for those that run to end. What is not known, how long outputs will
    /// be, is taken from those that have ended.
    pub fn wait(
        &self,
        newcomer: Newcomer,
        pace: Pace,
        room: Room,
        is_own: impl Fn(SequenceId) -> bool,
    ) -> Duration {
        let mut future = self.running_future(pace, room);
        // A prompt shares each step with shorter ones; the first in order has a quarter of it.
        let counts = |num_uncomputed: &usize| *num_uncomputed <= newcomer.num_uncached;
        let running = self.running.values().filter(|running| !running.is_decode());
        let mut num_shorter: usize = running.map(Running::num_uncomputed).filter(counts).sum();
        let is_before = |id: SequenceId| newcomer.id.is_none_or(|own| id < own);
        let before = self.waiting.ready().filter(|(id, _)| is_before(*id) && !is_own(*id));
        for (_, progress) in before {
            let num_uncached = progress.num_uncached();
            let num_output = self.lengths.remaining(progress.num_output(), progress.num_left());
            let num_tokens = progress.num_tokens.saturating_sub(progress.num_cached);
            future.admit(num_tokens, num_uncached, num_output, pace);
            num_shorter += Some(num_uncached).filter(counts).unwrap_or(0);
        }
        future.make_room(newcomer.num_tokens, 0);
        let prefilled_s = match self.config.prefill_order {
            PrefillOrder::Shortest => {
                future.prefilled_s.min(num_shorter as f64 * pace.s_per_prefill_token * 4.0 / 3.0)
            }
            PrefillOrder::Arrival => future.prefilled_s,
        };
        Duration::try_from_secs_f64(future.admitted_s.max(prefilled_s)).unwrap_or(Duration::MAX)
    }

    fn running_future(&self, pace: Pace, room: Room) -> Future {
        let num_tokens: usize = self.running.values().map(|running| running.progress.num_tokens).sum();
        // Less than one where sequences share prefixes.
        let own_part = (room.used_tokens as f64 / num_tokens.max(1) as f64).min(1.0);
        let mut future = Future {
            ends: BinaryHeap::with_capacity(self.running.len()),
            num_free_slots: room.num_sequences.saturating_sub(self.running.len()),
            free_tokens: i64::try_from(room.free_tokens).unwrap_or(i64::MAX),
            admitted_s: 0.0,
            prefilled_s: 0.0,
        };
        for running in self.running.values() {
            let progress = &running.progress;
            let num_output = self.lengths.remaining(progress.num_output(), progress.num_left());
            let mut decodes_from_s = 0.0;
            if !running.is_decode() {
                future.prefilled_s += running.num_uncomputed() as f64 * pace.s_per_prefill_token;
                decodes_from_s = future.prefilled_s;
            }
            let own_tokens = (progress.num_tokens as f64 * own_part) as usize;
            future.run(decodes_from_s, own_tokens, num_output, pace);
            future.free_tokens = future.free_tokens.saturating_add(tokens(own_tokens));
        }
        future
    }
}

impl Future {
    /// A sequence with a slot: from when it draws tokens, what memory it has, and how many tokens it draws. It is counted with
    /// the memory that it has halfway.
    fn run(&mut self, decodes_from_s: f64, num_tokens: usize, num_output: usize, pace: Pace) {
        let ends_s = decodes_from_s + num_output as f64 * pace.s_per_step;
        let taken = tokens(num_tokens + num_output / 2);
        self.free_tokens = self.free_tokens.saturating_sub(taken);
        self.ends.push(Reverse(((ends_s * 1e6) as u64, taken)));
    }

    /// Lets sequences end until another one has a slot and memory.
    fn make_room(&mut self, num_tokens: usize, num_output: usize) {
        while self.num_free_slots == 0 || self.free_tokens < tokens(num_tokens + num_output / 2) {
            let Some(Reverse((at_us, given_back))) = self.ends.pop() else { return };
            self.admitted_s = self.admitted_s.max(at_us as f64 / 1e6);
            self.num_free_slots += 1;
            self.free_tokens = self.free_tokens.saturating_add(given_back);
        }
    }

    fn admit(&mut self, num_tokens: usize, num_uncached: usize, num_output: usize, pace: Pace) {
        self.make_room(num_tokens, num_output);
        self.num_free_slots = self.num_free_slots.saturating_sub(1);
        self.prefilled_s =
            self.prefilled_s.max(self.admitted_s) + num_uncached as f64 * pace.s_per_prefill_token;
        self.run(self.prefilled_s, num_tokens, num_output, pace);
    }
}

fn tokens(num_tokens: usize) -> i64 {
    i64::try_from(num_tokens).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::SchedulerConfig;
    use crate::scheduler::progress::Progress;
    use crate::{ChunkSize, PolicyName};

    const PACE: Pace = Pace { s_per_step: 0.01, s_per_prefill_token: 0.001 };
    const ROOM: Room = Room { num_sequences: 2, free_tokens: 10_000, used_tokens: 0 };

    fn id(request: u64) -> SequenceId {
        SequenceId { turn: 0, request, idx: 0 }
    }

    /// Prompts of these lengths wait; each gets a hundred tokens, as those before it did.
    fn scheduler(prompts: &[usize]) -> Scheduler {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            policy: PolicyName::Sarathi,
            token_budget: 512,
            prefill_order: PrefillOrder::Shortest,
            chunks: ChunkSize::Budget,
        });
        (0..1000).for_each(|_| scheduler.note_output(100));
        for (request, num_tokens) in (0..).zip(prompts) {
            let progress = Progress {
                num_tokens: *num_tokens,
                num_prompt: *num_tokens,
                max_tokens: Some(100_000),
                ..Progress::default()
            };
            scheduler.waiting.insert(id(request), progress);
        }
        scheduler
    }

    fn wait(scheduler: &Scheduler, num_tokens: usize, room: Room) -> f64 {
        let newcomer = Newcomer { id: None, num_tokens, num_uncached: num_tokens };
        scheduler.wait(newcomer, PACE, room, |_| false).as_secs_f64()
    }

    #[test]
    fn a_newcomer_waits_for_slots_to_turn_over() {
        assert_eq!(wait(&scheduler(&[]), 10, ROOM), 0.0);
        assert!(wait(&scheduler(&[10]), 10, ROOM) < 0.1, "a slot is free");
        // Five before it and two slots: two outputs of a second each end before there is one for it.
        let five = wait(&scheduler(&[10; 5]), 10, ROOM);
        assert!((1.95..2.2).contains(&five), "{five}");
    }

    #[test]
    fn a_newcomer_waits_for_memory() {
        let tight = Room { free_tokens: 160, ..ROOM };
        let one_by_one = wait(&scheduler(&[100, 100]), 100, tight);
        assert!((2.0..2.4).contains(&one_by_one), "{one_by_one}");
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one_and_a_long_one_does() {
        let scheduler = scheduler(&[4000]);
        assert!(wait(&scheduler, 10, ROOM) < 0.1);
        assert!(wait(&scheduler, 5000, ROOM) >= 4.0);
    }

    #[test]
    fn nobody_waits_for_its_own_request_or_for_those_behind_it() {
        let scheduler = scheduler(&[1000; 9]);
        let newcomer = Newcomer { id: Some(id(3)), num_tokens: 1000, num_uncached: 1000 };
        assert!(scheduler.wait(newcomer, PACE, ROOM, |_| false) > Duration::from_secs(2));
        assert_eq!(scheduler.wait(newcomer, PACE, ROOM, |id| id.request < 3), Duration::ZERO);
    }
}

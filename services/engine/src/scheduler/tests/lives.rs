//! Anybody may come, grow, leave and be alike, under every policy: everyone is served, in order and in bounds.

use proptest::prelude::*;

use super::*;
use crate::ChunkSchedule;

/// What a sequence is going to do.
#[derive(Clone, Debug)]
struct Life {
    arrives_at: usize,
    /// Earlier where it is lower, whenever it arrives.
    turn: i64,
    /// Sequences of one family begin with the same tokens, so many of them; those of the last one with none.
    family: u32,
    num_common: usize,
    /// Its prompt comes in these, one a step.
    chunks: Vec<usize>,
    num_output: usize,
    aborts_at: Option<usize>,
}

/// Of at most `MAX_MODEL_LEN` tokens.
fn life() -> impl Strategy<Value = Life> {
    let chunks = (1..20usize, prop::collection::vec(0..5usize, 0..4))
        .prop_map(|(first, rest)| [vec![first], rest].concat());
    let aborts_at = prop::option::weighted(0.2, 0..100usize);
    (0..60usize, 0..3i64, 0..3u32, 16..24usize, chunks, 1..11usize, aborts_at).prop_map(
        |(arrives_at, turn, family, num_common, chunks, num_output, aborts_at)| Life {
            arrives_at,
            turn,
            family,
            num_common,
            chunks,
            num_output,
            aborts_at,
        },
    )
}

impl Life {
    fn prompt_len(&self) -> usize {
        self.chunks.iter().sum()
    }

    /// All it will ever come to.
    fn tokens(&self, request: usize) -> Vec<TokenId> {
        let own = 1000 + 100 * u32::try_from(request).unwrap();
        let num_common = if self.family == 0 { 0 } else { self.num_common.min(self.prompt_len()) };
        let num_own = self.prompt_len() + self.num_output - num_common;
        let common = (100 * self.family..).take(num_common);
        common.chain((own..).take(num_own)).map(TokenId).collect()
    }
}

/// What has become of it.
struct Seen {
    id: SequenceId,
    tokens: Vec<TokenId>,
    num_known: usize,
    num_computed: usize,
    num_drawn: usize,
    num_chunks: usize,
    num_preemptions: u32,
    is_done: bool,
}

struct World {
    scheduler: Scheduler,
    kv: KvCache<SimulatedMemory>,
    policy: PolicyName,
    token_budget: usize,
    lives: Vec<Life>,
    seen: Vec<Seen>,
}

impl World {
    fn new(config: SchedulerConfig, kv: KvCache<SimulatedMemory>, lives: Vec<Life>) -> Self {
        let seen = |(request, life): (usize, &Life)| Seen {
            id: SequenceId { turn: life.turn, request: request as u64, idx: 0 },
            tokens: life.tokens(request),
            num_known: 0,
            num_computed: 0,
            num_drawn: 0,
            num_chunks: 0,
            num_preemptions: 0,
            is_done: false,
        };
        let seen = lives.iter().enumerate().map(seen).collect();
        let SchedulerConfig { policy, token_budget, .. } = config;
        Self { scheduler: Scheduler::new(config), kv, policy, token_budget, lives, seen }
    }

    /// What comes from outside before a step.
    fn arrive(&mut self, now: usize) {
        for (life, seen) in self.lives.iter().zip(&mut self.seen) {
            if now == life.arrives_at {
                self.scheduler.add(seen.id);
            }
            if seen.is_done || now < life.arrives_at {
                continue;
            }
            if life.aborts_at == Some(now) {
                if let Some(slot) = self.scheduler.remove(seen.id) {
                    self.kv.release(slot);
                }
                seen.is_done = true;
            } else if let Some(chunk) = life.chunks.get(seen.num_chunks) {
                self.scheduler.extend(seen.id, *chunk);
                seen.num_known += chunk;
                seen.num_chunks += 1;
                if seen.num_chunks == life.chunks.len() {
                    let max_tokens = life.prompt_len() + life.num_output - 1;
                    self.scheduler.complete_prompt(seen.id, max_tokens, 0);
                }
            }
        }
    }

    fn step(&mut self) {
        let running = |is: fn(&Running) -> bool| -> Vec<_> {
            self.scheduler.running.iter().filter(|(_, r)| is(r)).map(|(id, _)| *id).collect()
        };
        let (decodes, stalled) = (running(Running::is_decode), running(Running::is_stalled));
        let seen = &self.seen;
        let known = |id: SequenceId| {
            let seen = seen.get(usize::try_from(id.request).ok()?)?;
            Some(Known { tokens: &seen.tokens[..seen.num_known], salt: None, reuses: true })
        };
        let step = self.scheduler.schedule(&mut self.kv, known, false);
        assert!(step.failed.is_empty());
        self.check_order(&step, &decodes, &stalled);
        for id in &step.preempted {
            let seen = self.seen_mut(*id);
            seen.num_computed = 0;
            seen.num_preemptions += 1;
            let most = MAX_PREEMPTIONS + 1 + MAX_MODEL_LEN.ilog2() + 1;
            assert!(seen.num_preemptions <= most, "it gives way without an end");
        }
        for (id, num_cached) in &step.admitted {
            self.seen_mut(*id).num_computed = *num_cached;
        }
        let _ = self.kv.take_copies();
        let ready = step.scheduled.iter().filter(|scheduled| scheduled.reaches_end).map(|s| s.slot);
        self.kv.map_ahead(ready).unwrap();
        for scheduled in &step.scheduled {
            self.compute(scheduled);
        }
        step.scheduled.iter().for_each(|scheduled| self.scheduler.commit(scheduled, false));
        for scheduled in step.scheduled.iter().filter(|scheduled| scheduled.reaches_end) {
            self.draw(scheduled.id);
        }
        assert!(self.scheduler.is_consistent() && self.kv.is_consistent());
        assert_eq!(self.kv.stats().live_slots, self.scheduler.num_running());
    }

    fn check_order(&self, step: &Step, decodes: &[SequenceId], stalled: &[SequenceId]) {
        let num_tokens = step.scheduled.iter().map(|s| s.num_tokens).sum::<usize>();
        let is_chunked = matches!(self.policy, PolicyName::Sarathi | PolicyName::SimpleChunking);
        assert!(!is_chunked || num_tokens <= self.token_budget);
        if let Some(first) = step.preempted.first().filter(|_| !stalled.is_empty()) {
            assert!(stalled.contains(first), "one that can run gave way before one that cannot");
        }
        for decode in decodes.iter().filter(|_| self.policy == PolicyName::Sarathi) {
            let runs = step.scheduled.iter().any(|s| s.id == *decode && s.reaches_end);
            assert!(runs || step.preempted.contains(decode), "a decode was stalled");
        }
        // The engine sleeps after a step that did nothing: nobody may be left who could have run.
        if step.is_empty() {
            let mut ready = self.scheduler.waiting.ready();
            assert!(!ready.any(|(_, progress)| progress.prompt_is_complete()), "somebody is forgotten");
            assert!(self.scheduler.running.values().all(Running::is_stalled), "somebody does not go on");
        }
    }

    /// Every token exactly once, in order; and memory for it.
    fn compute(&mut self, scheduled: &Scheduled) {
        let Scheduled { id, slot, context_len, num_tokens, reaches_end } = *scheduled;
        let life = &self.lives[usize::try_from(id.request).unwrap()];
        let num_chunks = life.chunks.len();
        let seen = &mut self.seen[usize::try_from(id.request).unwrap()];
        assert_eq!(context_len, seen.num_computed);
        seen.num_computed += num_tokens;
        assert!(num_tokens > 0 && seen.num_computed <= seen.num_known);
        assert!(self.kv.range_of(slot, seen.num_computed).is_ok());
        let is_end = seen.num_computed == seen.num_known && seen.num_chunks == num_chunks;
        assert_eq!(reaches_end, is_end);
        self.kv.computed(slot, &seen.tokens[context_len..seen.num_computed]);
    }

    fn draw(&mut self, id: SequenceId) {
        let num_output = self.lives[usize::try_from(id.request).unwrap()].num_output;
        let seen = self.seen_mut(id);
        seen.num_drawn += 1;
        seen.is_done = seen.num_drawn == num_output;
        if seen.is_done {
            self.scheduler.note_output(num_output);
            if let Some(slot) = self.scheduler.remove(id) {
                self.kv.release(slot);
            }
        } else {
            seen.num_known += 1;
            self.scheduler.extend(id, 1);
        }
    }

    fn seen_mut(&mut self, id: SequenceId) -> &mut Seen {
        &mut self.seen[usize::try_from(id.request).unwrap()]
    }
}

fn chunks() -> impl Strategy<Value = ChunkSize> {
    let schedule =
        (1..24usize, 1..8usize, 1..MAX_MODEL_LEN, 1..6usize).prop_map(|(high, low, max_tokens, stages)| {
            ChunkSize::Schedule(ChunkSchedule { high, low: low.min(high), max_tokens, stages })
        });
    let balanced = (1..60usize).prop_map(|parity_tokens| ChunkSize::Balanced { parity_tokens });
    prop_oneof![Just(ChunkSize::Budget), balanced, schedule]
}

proptest! {
    #[test]
    fn everyone_is_served_in_bounds(
        policy in prop::sample::select(PolicyName::ALL.to_vec()),
        prefill_order in prop::sample::select(vec![PrefillOrder::Shortest, PrefillOrder::Arrival]),
        chunks in chunks(),
        lives in prop::collection::vec(life(), 1..14),
        num_sequences in 1..5usize,
        num_spare_slots in 0..5usize,
        spare_budget in 0..24usize,
        num_pages in 10..26usize,
    ) {
        let token_budget = num_sequences + spare_budget;
        let config = SchedulerConfig { policy, token_budget, prefill_order, chunks };
        // Each step computes a token of somebody, at worst alone and after computing all its known ones again.
        let total: usize = lives.iter().map(|life| life.prompt_len() + life.num_output).sum();
        let kv = cache_with_spare_slots(num_sequences, num_spare_slots, num_pages);
        let mut world = World::new(config, kv, lives);
        for now in 0..100 + total * 4 {
            world.arrive(now);
            world.step();
        }
        prop_assert!(world.seen.iter().all(|seen| seen.is_done), "somebody starves");
        prop_assert_eq!((world.scheduler.num_running(), world.scheduler.num_waiting()), (0, 0));
        prop_assert_eq!(world.scheduler.num_tokens_to_prefill(), 0);
        prop_assert_eq!(world.kv.stats().mapped_bytes, 0);
    }
}

use fused_virtual_memory::SimulatedMemory;
use proptest::prelude::*;

use super::*;
use crate::kv::{KvLayout, KvSize};

const MAX_MODEL_LEN: usize = 40;

/// Eight bytes a token, 32 a page: four tokens.
fn cache(num_sequences: usize, num_pages: usize) -> KvCache<SimulatedMemory> {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 2, bytes_per_element: 2 };
    let pool_bytes = num_pages * 32;
    let memory = SimulatedMemory::new(32, pool_bytes).unwrap();
    let size = KvSize {
        num_sequences,
        num_slots: 2 * num_sequences,
        max_model_len: MAX_MODEL_LEN,
        pool_bytes,
        shares_prefixes: true,
    };
    KvCache::new(memory, layout, size).unwrap()
}

fn sarathi(token_budget: usize) -> Scheduler {
    with_policy(PolicyName::Sarathi, token_budget)
}

fn with_policy(policy: PolicyName, token_budget: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig { policy, token_budget, chunk_schedule: None })
}

fn id(request: u64) -> SequenceId {
    SequenceId { turn: 0, request, idx: 0 }
}

/// No two requests have anything in common.
const NOTHING: [TokenId; MAX_MODEL_LEN] = [TokenId(0); MAX_MODEL_LEN];

fn unshared(_id: SequenceId) -> Option<Known<'static>> {
    Some(Known { tokens: &NOTHING, salt: None, reuses: false })
}

fn arrive(scheduler: &mut Scheduler, request: u64, num_tokens: usize) {
    scheduler.add(id(request));
    scheduler.extend(id(request), num_tokens);
    scheduler.complete_prompt(id(request), MAX_MODEL_LEN, 0);
}

/// `(request, context, tokens, reaches the end)` of what is scheduled.
fn plan(step: &Step) -> Vec<(u64, usize, usize, bool)> {
    let short = |s: &Scheduled| (s.id.request, s.context_len, s.num_tokens, s.reaches_end);
    step.scheduled.iter().map(short).collect()
}

/// Runs one step in which every sequence that reaches its end draws a token.
fn run(scheduler: &mut Scheduler, kv: &mut KvCache<SimulatedMemory>) -> Step {
    let step = scheduler.schedule(kv, unshared);
    scheduler.commit(&step);
    for scheduled in step.scheduled.iter().filter(|scheduled| scheduled.reaches_end) {
        scheduler.extend(scheduled.id, 1);
    }
    step
}

#[test]
fn a_long_prompt_is_prefilled_beside_running_decodes() {
    let (mut scheduler, mut kv) = (sarathi(8), cache(4, 40));
    arrive(&mut scheduler, 0, 3);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 0, 3, true)]);
    arrive(&mut scheduler, 1, 20);
    arrive(&mut scheduler, 2, 2);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 3, 1, true), (1, 0, 7, false)]);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 4, 1, true), (1, 7, 7, false)]);
    assert_eq!(
        plan(&run(&mut scheduler, &mut kv)),
        [(0, 5, 1, true), (1, 14, 6, true), (2, 0, 1, false)],
        "two prefills share what the decode leaves"
    );
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 6, 1, true), (1, 20, 1, true), (2, 1, 1, true)]);
}

#[test]
fn an_arriving_prompt_is_prefilled_as_it_comes_and_draws_nothing_before_its_end() {
    let (mut scheduler, mut kv) = (sarathi(8), cache(4, 40));
    scheduler.add(id(0));
    scheduler.extend(id(0), 1);
    assert!(run(&mut scheduler, &mut kv).scheduled.is_empty());
    arrive(&mut scheduler, 1, 1);
    scheduler.extend(id(0), 4);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 0, 4, false), (1, 0, 1, true)]);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(1, 1, 1, true)]);
    scheduler.complete_prompt(id(0), MAX_MODEL_LEN, 0);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 4, 1, true), (1, 2, 1, true)]);
}

#[test]
fn the_youngest_gives_way_and_is_computed_again_with_what_it_had_drawn() {
    // Ten pages are one sequence of the greatest length.
    let (mut scheduler, mut kv) = (sarathi(64), cache(4, 10));
    arrive(&mut scheduler, 0, 15);
    arrive(&mut scheduler, 1, 15);
    let mut preempted = Vec::new();
    while preempted.is_empty() {
        preempted = run(&mut scheduler, &mut kv).preempted;
    }
    assert_eq!(preempted, [id(1)]);
    let (first, Progress { num_tokens: known, .. }) = scheduler.waiting.next_ready(None).unwrap();
    assert!(first == id(1) && known > 15);
    arrive(&mut scheduler, 2, 1);
    run(&mut scheduler, &mut kv);
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (1, 2), "nobody overtakes it");
    assert!(scheduler.remove(id(0), &mut kv).unwrap() > 0);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(1, 0, known, true), (2, 0, 1, true)]);
}

/// Of its eight tokens seven are computed; the last is kept back until the prompt's end is marked.
fn stalled(scheduler: &mut Scheduler, request: u64, kv: &mut KvCache<SimulatedMemory>) {
    scheduler.add(id(request));
    scheduler.extend(id(request), 8);
    assert_eq!(plan(&run(scheduler, kv)).last(), Some(&(request, 0, 7, false)));
}

#[test]
fn a_prompt_that_does_not_come_on_gives_its_slot_to_one_that_can_run() {
    let (mut scheduler, mut kv) = (sarathi(16), cache(2, 40));
    stalled(&mut scheduler, 0, &mut kv);
    stalled(&mut scheduler, 1, &mut kv);
    assert!(run(&mut scheduler, &mut kv).is_empty(), "nobody needs the slots");
    arrive(&mut scheduler, 2, 3);
    let step = run(&mut scheduler, &mut kv);
    assert_eq!((&step.preempted[..], plan(&step)), (&[id(1)][..], vec![(2, 0, 3, true)]));
    // More of its prompt, but not all: it does not ask for the slot back.
    scheduler.extend(id(1), 2);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(2, 3, 1, true)]);
    assert_eq!(scheduler.num_tokens_to_prefill(), 0);
    scheduler.complete_prompt(id(1), MAX_MODEL_LEN, 0);
    let step = run(&mut scheduler, &mut kv);
    assert_eq!((&step.preempted[..], plan(&step)), (&[id(0)][..], vec![(2, 4, 1, true), (1, 0, 10, true)]));
}

#[test]
fn a_prompt_that_does_not_come_on_gives_its_memory_before_the_youngest_does() {
    // Ten pages of four tokens.
    let (mut scheduler, mut kv) = (sarathi(64), cache(4, 10));
    stalled(&mut scheduler, 0, &mut kv);
    arrive(&mut scheduler, 1, 11);
    arrive(&mut scheduler, 2, 11);
    let mut preempted = Vec::new();
    while preempted.is_empty() {
        preempted = run(&mut scheduler, &mut kv).preempted;
    }
    assert_eq!(preempted, [id(0)]);
}

#[test]
fn a_queue_that_waits_for_its_prompts_is_passed_over_and_counted() {
    let (mut scheduler, mut kv) = (sarathi(8), cache(1, 40));
    for request in 0..100 {
        scheduler.add(id(request));
        scheduler.extend(id(request), 1);
    }
    assert_eq!(scheduler.num_tokens_to_prefill(), 0);
    arrive(&mut scheduler, 100, 3);
    arrive(&mut scheduler, 101, 4);
    assert_eq!(scheduler.num_tokens_to_prefill(), 7);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(100, 0, 3, true)]);
    assert_eq!(scheduler.num_tokens_to_prefill(), 4);
    scheduler.complete_prompt(id(7), MAX_MODEL_LEN, 0);
    assert_eq!(scheduler.num_tokens_to_prefill(), 5);
    scheduler.remove(id(100), &mut kv);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(7, 0, 1, true)], "in order of arrival");
    assert_eq!((scheduler.num_tokens_to_prefill(), scheduler.num_waiting()), (4, 100));
    assert!(scheduler.is_consistent());
}

#[test]
fn removal_gives_the_slot_back() {
    let (mut scheduler, mut kv) = (sarathi(8), cache(1, 10));
    arrive(&mut scheduler, 0, 4);
    arrive(&mut scheduler, 1, 4);
    run(&mut scheduler, &mut kv);
    assert_eq!(scheduler.remove(id(1), &mut kv), Some(0));
    assert_eq!(scheduler.remove(id(1), &mut kv), None);
    assert!(scheduler.remove(id(0), &mut kv).unwrap() >= 32);
    assert_eq!(kv.stats().live_slots, 0);
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (0, 0));
}

#[test]
fn a_machine_without_memory_fails_the_one_and_keeps_going() {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 2, bytes_per_element: 2 };
    let size = KvSize {
        num_sequences: 2,
        num_slots: 2,
        max_model_len: MAX_MODEL_LEN,
        pool_bytes: 320,
        shares_prefixes: true,
    };
    let mut kv = KvCache::new(SimulatedMemory::new(32, 32).unwrap(), layout, size).unwrap();
    let mut scheduler = sarathi(64);
    arrive(&mut scheduler, 0, 30);
    arrive(&mut scheduler, 1, 2);
    let step = run(&mut scheduler, &mut kv);
    assert!(matches!(step.failed[..], [(failed, kv::Error::Memory(_))] if failed == id(0)));
    assert_eq!(plan(&step), [(1, 0, 2, true)]);
}

/// What a sequence is going to do, and what has become of it.
#[derive(Clone, Debug)]
struct Life {
    arrives_at: usize,
    chunks: Vec<usize>,
    num_output: usize,
    aborts_at: Option<usize>,
}

/// Of at most `MAX_MODEL_LEN` tokens.
fn life() -> impl Strategy<Value = Life> {
    let chunks = (1..8usize, prop::collection::vec(0..7usize, 0..4))
        .prop_map(|(first, rest)| [vec![first], rest].concat());
    (0..60usize, chunks, 1..16usize, prop::option::weighted(0.2, 0..100usize)).prop_map(
        |(arrives_at, chunks, num_output, aborts_at)| Life { arrives_at, chunks, num_output, aborts_at },
    )
}

#[derive(Default)]
struct Seen {
    num_known: usize,
    num_computed: usize,
    num_drawn: usize,
    num_chunks: usize,
    done: bool,
}

proptest! {
    #[test]
    fn everyone_is_served_in_bounds(
        lives in prop::collection::vec(life(), 1..12),
        num_slots in 1..5usize,
        spare_budget in 0..12usize,
        num_pages in 10..24usize,
    ) {
        let token_budget = num_slots + spare_budget;
        let (mut scheduler, mut kv) = (sarathi(token_budget), cache(num_slots, num_pages));
        let mut seen: Vec<Seen> = lives.iter().map(|_| Seen::default()).collect();
        let total: usize = lives.iter().map(|life| life.chunks.iter().sum::<usize>() + life.num_output).sum();
        // Each step computes a token of the oldest, at worst alone and after computing all its known ones again.
        let limit = 100 + total * 4;
        for now in 0..limit {
            for (request, (life, seen)) in lives.iter().zip(&mut seen).enumerate() {
                let id = id(request as u64);
                if now == life.arrives_at {
                    scheduler.add(id);
                }
                if seen.done || now < life.arrives_at {
                    continue;
                }
                if life.aborts_at == Some(now) {
                    scheduler.remove(id, &mut kv);
                    seen.done = true;
                } else if let Some(chunk) = life.chunks.get(seen.num_chunks) {
                    scheduler.extend(id, *chunk);
                    seen.num_known += chunk;
                    seen.num_chunks += 1;
                    if seen.num_chunks == life.chunks.len() {
                        scheduler.complete_prompt(id, MAX_MODEL_LEN, 0);
                    }
                }
            }
            let decodes: Vec<_> =
                scheduler.running.iter().filter(|(_, r)| r.is_decode()).map(|(id, _)| *id).collect();
            let oldest = scheduler.running.iter().find(|(_, r)| !r.is_stalled()).map(|(id, _)| *id);
            let stalled: Vec<_> =
                scheduler.running.iter().filter(|(_, r)| r.is_stalled()).map(|(id, _)| *id).collect();
            let step = scheduler.schedule(&mut kv, unshared);
            prop_assert!(step.failed.is_empty());
            prop_assert!(oldest.is_none_or(|oldest| !step.preempted.contains(&oldest)));
            prop_assert!(step.scheduled.iter().map(|s| s.num_tokens).sum::<usize>() <= token_budget);
            if let Some(first) = step.preempted.first().filter(|_| !stalled.is_empty()) {
                prop_assert!(stalled.contains(first), "one that can run gave way before one that cannot");
            }
            for decode in decodes {
                let runs = step.scheduled.iter().any(|s| s.id == decode && s.reaches_end);
                prop_assert!(runs || step.preempted.contains(&decode), "a decode was stalled");
            }
            for id in &step.preempted {
                seen[usize::try_from(id.request).unwrap()].num_computed = 0;
            }
            for scheduled in &step.scheduled {
                let (seen, life) = (&mut seen[usize::try_from(scheduled.id.request).unwrap()],
                    &lives[usize::try_from(scheduled.id.request).unwrap()]);
                // Every token exactly once, in order; and memory for it.
                prop_assert_eq!(scheduled.context_len, seen.num_computed);
                seen.num_computed += scheduled.num_tokens;
                prop_assert!(seen.num_computed <= seen.num_known);
                let at_end = seen.num_computed == seen.num_known && seen.num_chunks == life.chunks.len();
                prop_assert_eq!(scheduled.reaches_end, at_end);
            }
            scheduler.commit(&step);
            for scheduled in step.scheduled.iter().filter(|scheduled| scheduled.reaches_end) {
                let request = usize::try_from(scheduled.id.request).unwrap();
                seen[request].num_drawn += 1;
                if seen[request].num_drawn == lives[request].num_output {
                    scheduler.remove(scheduled.id, &mut kv);
                    seen[request].done = true;
                } else {
                    scheduler.extend(scheduled.id, 1);
                    seen[request].num_known += 1;
                }
            }
            prop_assert!(scheduler.is_consistent() && kv.is_consistent());
            prop_assert_eq!(kv.stats().live_slots, scheduler.num_running());
        }
        prop_assert!(seen.iter().all(|seen| seen.done), "somebody starves");
        prop_assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (0, 0));
        prop_assert_eq!(scheduler.num_tokens_to_prefill(), 0);
    }
}

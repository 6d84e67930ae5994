use fused_virtual_memory::SimulatedMemory;
use fused_vocabulary::TokenId;

use super::admission::Looking;
use super::*;
use crate::kv::{self, KvLayout, KvSize};

mod lives;

const MAX_MODEL_LEN: usize = 40;

/// Eight bytes a token, 32 a page: four tokens.
fn cache(num_sequences: usize, num_pages: usize) -> KvCache<SimulatedMemory> {
    cache_with_spare_slots(num_sequences, num_sequences, num_pages)
}

fn cache_with_spare_slots(
    num_sequences: usize,
    num_spare_slots: usize,
    num_pages: usize,
) -> KvCache<SimulatedMemory> {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 2, bytes_per_element: 2 };
    let pool_bytes = num_pages * 32;
    let memory = SimulatedMemory::new(32, pool_bytes).unwrap();
    let size = KvSize {
        num_sequences,
        num_slots: num_sequences + num_spare_slots,
        max_model_len: MAX_MODEL_LEN,
        pool_bytes,
        shares_prefixes: true,
    };
    KvCache::new(memory, layout, size).unwrap()
}

/// A pool of `num_pages` on a machine where a neighbour has left `num_left` of them.
fn cache_beside_a_neighbour(num_pages: usize, num_left: usize) -> KvCache<SimulatedMemory> {
    let layout = KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 2, bytes_per_element: 2 };
    let size = KvSize {
        num_sequences: 4,
        num_slots: 8,
        max_model_len: MAX_MODEL_LEN,
        pool_bytes: num_pages * 32,
        shares_prefixes: true,
    };
    KvCache::new(SimulatedMemory::new(32, num_left * 32).unwrap(), layout, size).unwrap()
}

fn sarathi(token_budget: usize) -> Scheduler {
    with_policy(PolicyName::Sarathi, token_budget)
}

fn with_policy(policy: PolicyName, token_budget: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig {
        policy,
        token_budget,
        prefill_order: PrefillOrder::default(),
        chunks: ChunkSize::Budget,
    })
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
    let step = scheduler.schedule(kv, unshared, false);
    step.scheduled.iter().for_each(|scheduled| scheduler.commit(scheduled, scheduled.reaches_end));
    step
}

fn remove(scheduler: &mut Scheduler, request: u64, kv: &mut KvCache<SimulatedMemory>) {
    kv.release(scheduler.remove(id(request)).unwrap());
}

#[test]
fn a_long_prompt_is_prefilled_beside_running_decodes() {
    let (mut scheduler, mut kv) = (sarathi(8), cache(4, 40));
    arrive(&mut scheduler, 0, 3);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 0, 3, true)]);
    arrive(&mut scheduler, 1, 20);
    arrive(&mut scheduler, 2, 2);
    let step = plan(&run(&mut scheduler, &mut kv));
    assert_eq!(
        step,
        [(0, 3, 1, true), (2, 0, 2, true), (1, 0, 5, false)],
        "the short one passes the long one"
    );
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 4, 1, true), (2, 2, 1, true), (1, 5, 6, false)]);
}

#[test]
fn in_order_of_arrival_a_prompt_has_all_that_the_decodes_leave() {
    let config = SchedulerConfig {
        policy: PolicyName::Sarathi,
        token_budget: 8,
        prefill_order: PrefillOrder::Arrival,
        chunks: ChunkSize::Budget,
    };
    let (mut scheduler, mut kv) = (Scheduler::new(config), cache(4, 40));
    arrive(&mut scheduler, 1, 14);
    arrive(&mut scheduler, 2, 3);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(1, 0, 8, false)]);
    let step = plan(&run(&mut scheduler, &mut kv));
    assert_eq!(step, [(1, 8, 6, true), (2, 0, 2, false)], "two prefills share what the first leaves");
}

#[test]
fn shorter_prompts_come_first_and_the_first_in_order_keeps_a_quarter() {
    let (mut scheduler, mut kv) = (sarathi(16), cache(8, 80));
    arrive(&mut scheduler, 0, 40);
    for (request, num_tokens) in [(1, 6), (2, 3), (3, 40), (4, 4)] {
        arrive(&mut scheduler, request, num_tokens);
    }
    // The shortest first; one that is no shorter than the first has no part in it.
    let expected = [(2, 0, 3, true), (4, 0, 4, true), (1, 0, 5, false), (0, 0, 4, false)];
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), expected);
    // What is left after three that need a token each is the first one's.
    let expected = [(1, 5, 1, true), (2, 3, 1, true), (4, 4, 1, true), (0, 4, 13, false)];
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), expected);
    assert_eq!(scheduler.num_waiting(), 1);
}

#[test]
fn a_prompt_that_waits_for_memory_is_passed_by_as_many_tokens_as_it_has_itself() {
    // Eighteen pages of four tokens; ten are the first one's.
    let (mut scheduler, mut kv) = (sarathi(64), cache(16, 18));
    arrive(&mut scheduler, 0, 38);
    run(&mut scheduler, &mut kv);
    arrive(&mut scheduler, 1, 36);
    (2..30).for_each(|request| arrive(&mut scheduler, request, 3));
    let mut num_passed = 0;
    for _ in 0..40 {
        let step = scheduler.schedule(&mut kv, unshared, false);
        step.scheduled.iter().for_each(|scheduled| scheduler.commit(scheduled, false));
        num_passed += step.admitted.len();
        assert!(!step.admitted.contains(&(id(1), 0)));
        // Whoever passes ends at once.
        for (id, _) in step.admitted {
            kv.release(scheduler.remove(id).unwrap());
        }
    }
    assert_eq!(num_passed, 12);
    remove(&mut scheduler, 0, &mut kv);
    assert!(run(&mut scheduler, &mut kv).admitted.contains(&(id(1), 0)));
}

#[test]
fn one_that_gave_way_too_often_asks_for_what_its_output_is_likely_to_need() {
    let (mut scheduler, mut kv) = (sarathi(64), cache(4, 20));
    (0..300).for_each(|_| scheduler.note_output(4));
    arrive(&mut scheduler, 0, 8);
    run(&mut scheduler, &mut kv);
    let mut plan = Plan::new(policy::steps(&scheduler.config)[0], ChunkSize::Budget, 64, Step::default());
    for _ in 0..MAX_PREEMPTIONS {
        scheduler.preempt(id(0), &mut plan, &mut kv);
        let progress = scheduler.waiting.get(id(0)).unwrap();
        assert_eq!(scheduler.num_reserved(progress) > progress.num_tokens, progress.num_preemptions >= 4);
        let known = |id| unshared(id);
        assert!(scheduler.admit_next(id(0), &mut plan, &mut kv, &known, &mut Looking::new(true, true)));
    }
    // Nine known, of an output of four: three to come, not the thirty-one that it may.
    let progress = Progress { num_preemptions: MAX_PREEMPTIONS, ..scheduler.running[&id(0)].progress };
    assert_eq!(scheduler.num_reserved(progress), 9 + 3);
    let twice = Progress { num_preemptions: MAX_PREEMPTIONS + 1, ..progress };
    assert_eq!(scheduler.num_reserved(twice), 9 + 6);
    let often = Progress { num_preemptions: u32::MAX, ..progress };
    assert_eq!(scheduler.num_reserved(often), MAX_MODEL_LEN);
}

#[test]
fn an_arriving_prompt_is_prefilled_as_it_comes_and_draws_nothing_before_its_end() {
    let (mut scheduler, mut kv) = (sarathi(8), cache(4, 40));
    scheduler.add(id(0));
    scheduler.extend(id(0), 1);
    assert!(run(&mut scheduler, &mut kv).scheduled.is_empty());
    arrive(&mut scheduler, 1, 1);
    scheduler.extend(id(0), 4);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(1, 0, 1, true), (0, 0, 4, false)]);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(1, 1, 1, true)]);
    scheduler.complete_prompt(id(0), MAX_MODEL_LEN, 0);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 4, 1, true), (1, 2, 1, true)]);
}

#[test]
fn where_a_neighbour_has_the_memory_the_last_gives_way_and_nobody_fails() {
    let (mut scheduler, mut kv) = (sarathi(64), cache_beside_a_neighbour(40, 10));
    (0..3).for_each(|request| arrive(&mut scheduler, request, 11));
    let mut num_preempted = 0;
    for _ in 0..200 {
        let step = run(&mut scheduler, &mut kv);
        assert!(step.failed.is_empty(), "{:?}", step.failed);
        assert!(!step.preempted.contains(&id(0)), "the first in order gives way");
        num_preempted += step.preempted.len();
        for scheduled in step.scheduled {
            if scheduled.context_len + scheduled.num_tokens == MAX_MODEL_LEN - 2 {
                remove(&mut scheduler, scheduled.id.request, &mut kv);
            }
        }
    }
    assert!(num_preempted > 0);
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (0, 0), "everybody was served");
}

#[test]
fn who_does_not_fit_alone_fails_and_does_not_wait_for_ever() {
    let (mut scheduler, mut kv) = (sarathi(64), cache_beside_a_neighbour(40, 3));
    arrive(&mut scheduler, 0, 20);
    arrive(&mut scheduler, 1, 10);
    let mut failed = Vec::new();
    for _ in 0..20 {
        failed.extend(run(&mut scheduler, &mut kv).failed.into_iter().map(|(id, _)| id.request));
    }
    assert_eq!(failed, [0, 1], "at once, and when it has grown");
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (0, 0));
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
    let (first, Progress { num_tokens: known, .. }) = scheduler.waiting.ready().next().unwrap();
    assert!(first == id(1) && known > 15);
    arrive(&mut scheduler, 2, 1);
    run(&mut scheduler, &mut kv);
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (1, 2), "nobody overtakes it");
    remove(&mut scheduler, 0, &mut kv);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(2, 0, 1, true), (1, 0, known, true)]);
}

#[test]
fn who_is_short_of_memory_waits_for_the_steps_in_flight_before_others_give_way() {
    let (mut scheduler, mut kv) = (sarathi(64), cache(4, 10));
    arrive(&mut scheduler, 0, 15);
    arrive(&mut scheduler, 1, 15);
    loop {
        let step = scheduler.schedule(&mut kv, unshared, true);
        assert!(step.preempted.is_empty() && step.failed.is_empty());
        step.scheduled.iter().for_each(|scheduled| scheduler.commit(scheduled, true));
        if step.is_held_up {
            assert!(step.scheduled.len() < 2);
            break;
        }
    }
    assert_eq!(run(&mut scheduler, &mut kv).preempted, [id(1)]);
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
    remove(&mut scheduler, 100, &mut kv);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(7, 0, 1, true)], "in order of arrival");
    assert_eq!((scheduler.num_tokens_to_prefill(), scheduler.num_waiting()), (4, 100));
    assert!(scheduler.is_consistent());
}

#[test]
fn what_another_computes_is_counted_once() {
    let (mut scheduler, mut kv) = (sarathi(64), cache(4, 40));
    for request in 0..3 {
        arrive(&mut scheduler, request, MAX_MODEL_LEN);
    }
    assert_eq!(scheduler.num_tokens_to_prefill(), 3 * MAX_MODEL_LEN);
    let step =
        scheduler.schedule(&mut kv, |_| Some(Known { tokens: &NOTHING, salt: None, reuses: true }), false);
    assert_eq!(plan(&step), [(0, 0, MAX_MODEL_LEN, true)]);
    // Of the others' tokens the last ones, to draw from.
    assert_eq!(scheduler.num_tokens_to_prefill(), MAX_MODEL_LEN + 2);
    let numbers = [0, 1, 2, 3].map(|request| scheduler.num_tokens_to_prefill_of(id(request)));
    assert_eq!(numbers, [MAX_MODEL_LEN, 1, 1, 0]);
    assert!(scheduler.is_consistent());
}

#[test]
fn removal_gives_the_slot_back() {
    let (mut scheduler, mut kv) = (sarathi(8), cache(1, 10));
    arrive(&mut scheduler, 0, 4);
    arrive(&mut scheduler, 1, 4);
    run(&mut scheduler, &mut kv);
    assert_eq!(scheduler.remove(id(1)), None);
    assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (1, 0));
    let slot = scheduler.remove(id(0)).unwrap();
    assert!(kv.needed_bytes(slot) >= 32 && kv.release(slot) >= 32);
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
    assert!(matches!(step.failed[..], [(failed, kv::Error::OutOfPages)] if failed == id(0)));
    assert_eq!(plan(&step), [(1, 0, 2, true)]);
}

#[test]
fn a_prompt_that_stops_coming_while_others_wait_gives_its_slot_too() {
    let (mut scheduler, mut kv) = (sarathi(16), cache(1, 40));
    scheduler.add(id(0));
    scheduler.extend(id(0), 8);
    arrive(&mut scheduler, 1, 3);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(0, 0, 7, false)], "it can run, and keeps its slot");
    let step = run(&mut scheduler, &mut kv);
    assert_eq!((&step.preempted[..], plan(&step)), (&[id(0)][..], vec![(1, 0, 3, true)]));
}

/// Sequences whose tokens are 16 that all have and then their own.
fn alike<'a>(tokens: &'a [Vec<TokenId>]) -> impl Fn(SequenceId) -> Option<Known<'a>> {
    |id| Some(Known { tokens: tokens.get(usize::try_from(id.request).ok()?)?, salt: None, reuses: true })
}

fn run_alike(scheduler: &mut Scheduler, kv: &mut KvCache<SimulatedMemory>, tokens: &[Vec<TokenId>]) -> Step {
    let step = scheduler.schedule(kv, alike(tokens), false);
    let _ = kv.take_copies();
    for Scheduled { id, slot, context_len, num_tokens, .. } in &step.scheduled {
        let tokens = &tokens[usize::try_from(id.request).unwrap()];
        kv.computed(*slot, &tokens[*context_len..context_len + num_tokens]);
    }
    step.scheduled.iter().for_each(|scheduled| scheduler.commit(scheduled, false));
    step
}

fn common_and(own: u32, num_own: u32) -> Vec<TokenId> {
    (0..16).chain((1..=num_own).map(|idx| own * 100 + idx)).map(TokenId).collect()
}

#[test]
fn who_finds_no_room_because_of_a_copy_is_asked_again_after_it() {
    // The first leaves ten pages, from which the second has 16 tokens copied; of the sixth page behind its own five the third
    // needs two.
    let tokens = [common_and(1, 22), common_and(2, 2), (900..908).map(TokenId).collect()];
    let (mut scheduler, mut kv) = (sarathi(64), cache(3, 16));
    arrive(&mut scheduler, 0, 38);
    run_alike(&mut scheduler, &mut kv, &tokens);
    remove(&mut scheduler, 0, &mut kv);
    arrive(&mut scheduler, 1, 18);
    arrive(&mut scheduler, 2, 8);
    assert_eq!(plan(&run_alike(&mut scheduler, &mut kv, &tokens)), [(1, 16, 2, true)]);
    scheduler.extend(id(1), 1);
    let tokens = [tokens[0].clone(), common_and(2, 3), tokens[2].clone()];
    assert_eq!(plan(&run_alike(&mut scheduler, &mut kv, &tokens)), [(1, 18, 1, true), (2, 0, 8, true)]);
}

#[test]
fn a_queue_of_prompts_that_are_there_as_far_as_they_have_come_keeps_nobody_out() {
    let mut tokens = vec![common_and(1, 1); 200];
    tokens.push((900..908).map(TokenId).collect());
    let (mut scheduler, mut kv) = (sarathi(64), cache(3, 40));
    arrive(&mut scheduler, 0, 17);
    run_alike(&mut scheduler, &mut kv, &tokens);
    remove(&mut scheduler, 0, &mut kv);
    for request in 1..200 {
        scheduler.add(id(request));
        scheduler.extend(id(request), 17);
    }
    arrive(&mut scheduler, 200, 8);
    assert_eq!(plan(&run_alike(&mut scheduler, &mut kv, &tokens)), [(200, 0, 8, true)]);
    scheduler.complete_prompt(id(7), MAX_MODEL_LEN, 16);
    let step = run_alike(&mut scheduler, &mut kv, &tokens);
    assert_eq!(plan(&step), [(7, 16, 1, true)]);
}

#[test]
fn a_batch_of_prompts_that_do_not_come_on_lets_others_in() {
    let (mut scheduler, mut kv) = (with_policy(PolicyName::FasterTransformer, 64), cache(3, 40));
    stalled(&mut scheduler, 0, &mut kv);
    arrive(&mut scheduler, 1, 3);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(1, 0, 3, true)]);
    arrive(&mut scheduler, 2, 3);
    assert_eq!(plan(&run(&mut scheduler, &mut kv)), [(1, 3, 1, true)], "a batch is a batch");
}

#[test]
fn the_longest_prompt_finds_its_step_beside_decodes() {
    let (mut scheduler, mut kv) = (with_policy(PolicyName::Orca, 4), cache(3, 60));
    arrive(&mut scheduler, 0, 3);
    arrive(&mut scheduler, 1, 3);
    run(&mut scheduler, &mut kv);
    arrive(&mut scheduler, 2, MAX_MODEL_LEN);
    let step = run(&mut scheduler, &mut kv);
    assert_eq!(plan(&step).last(), Some(&(2, 0, MAX_MODEL_LEN, true)));
}

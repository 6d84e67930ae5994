//! How long the scheduler takes over a step. Run alone and optimised:
//! `cargo test --release -p fused-engine --lib -- --ignored --nocapture scheduler::tests::speed`.

use std::time::{Duration, Instant};

use super::*;

const NUM_RUNNING: usize = 256;
const NUM_WAITING: usize = 1000;
const PROMPT_LEN: usize = 1024;
const NUM_STEPS: usize = 512;

/// Llama-8B's shape in pages of 2 MiB, and memory for the running sequences to `max_len` tokens.
fn llama_cache(num_sequences: usize, max_len: usize) -> KvCache<SimulatedMemory> {
    let layout = KvLayout { num_layers: 32, num_kv_heads: 8, head_dim: 128, bytes_per_element: 2 };
    let pages = |num_tokens: usize| (num_tokens * layout.token_bytes()).div_ceil(2 << 20);
    let pool_bytes = (NUM_RUNNING * pages(max_len) + NUM_RUNNING) * (2 << 20);
    let size = KvSize {
        num_sequences,
        num_slots: 2 * num_sequences,
        max_model_len: 8192,
        pool_bytes,
        shares_prefixes: true,
    };
    KvCache::new(SimulatedMemory::new(2 << 20, pool_bytes).unwrap(), layout, size).unwrap()
}

/// The median and the longest of `NUM_STEPS` steps while `NUM_WAITING` wait.
fn measure(what: &str, kv: &mut KvCache<SimulatedMemory>) -> Duration {
    let mut scheduler = sarathi(NUM_RUNNING + 2048);
    // Half of a prompt is everybody's.
    let tokens: Vec<Vec<_>> = (0..NUM_RUNNING + NUM_WAITING)
        .map(|request| {
            let own = u32::try_from(1_000_000 + 10_000 * request).unwrap();
            (0..512).chain((own..).take(PROMPT_LEN - 512 + 2 * NUM_STEPS)).map(TokenId).collect()
        })
        .collect();
    let mut num_known = vec![PROMPT_LEN; tokens.len()];
    let mut times = Vec::new();
    for request in 0..NUM_RUNNING + NUM_WAITING {
        let id = id(request as u64);
        scheduler.add(id);
        scheduler.extend(id, PROMPT_LEN);
        scheduler.complete_prompt(id, 8192, 0);
    }
    while times.len() < NUM_STEPS {
        let began = Instant::now();
        let step = scheduler.schedule(kv, |id| {
            let request = usize::try_from(id.request).ok()?;
            Some(Known { tokens: &tokens[request][..num_known[request]], salt: None, reuses: true })
        });
        let took = began.elapsed();
        assert!(step.preempted.is_empty() && step.failed.is_empty());
        let _ = kv.take_copies();
        kv.map_ahead(step.scheduled.iter().filter(|s| s.reaches_end).map(|s| s.slot)).unwrap();
        for scheduled in &step.scheduled {
            let request = usize::try_from(scheduled.id.request).unwrap();
            let end = scheduled.context_len + scheduled.num_tokens;
            kv.computed(scheduled.slot, &tokens[request][scheduled.context_len..end]);
        }
        scheduler.commit(&step);
        for scheduled in step.scheduled.iter().filter(|scheduled| scheduled.reaches_end) {
            scheduler.extend(scheduled.id, 1);
            num_known[usize::try_from(scheduled.id.request).unwrap()] += 1;
        }
        if scheduler.num_running() == NUM_RUNNING && step.admitted.is_empty() {
            assert_eq!(scheduler.num_waiting(), NUM_WAITING);
            times.push(took);
        }
    }
    times.sort();
    println!("{what}: median {:?}, longest {:?}", times[NUM_STEPS / 2], times[NUM_STEPS - 1]);
    times[NUM_STEPS / 2]
}

#[test]
#[ignore = "a measurement, of an optimised build on a quiet machine"]
fn a_step_with_256_running_and_1000_waiting_takes_less_than_50_us() {
    let limit = Duration::from_micros(50);
    assert!(measure("all slots are in use", &mut llama_cache(NUM_RUNNING, 4096)) < limit);
}

//! How long the scheduler takes over a step: `cargo bench -p fused-engine --bench scheduler`.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::time::{Duration, Instant};

use fused_engine::kv::{KvCache, KvLayout, KvSize};
use fused_engine::scheduler::{Known, Scheduler, SchedulerConfig, SequenceId};
use fused_engine::{ChunkSize, PolicyName, PrefillOrder};
use fused_virtual_memory::SimulatedMemory;
use fused_vocabulary::TokenId;

const NUM_RUNNING: usize = 256;
const NUM_WAITING: usize = 1000;
/// Prompt tokens of a request, and of every hundredth where lengths are unequal.
const PROMPT_LEN: usize = 1024;
const LONG_PROMPT_LEN: usize = 7000;
const NUM_STEPS: usize = 512;

/// Llama-8B's shape in pages of 2 MiB, and memory for the running sequences to `max_len` tokens.
fn llama_cache(num_sequences: usize, max_len: usize) -> anyhow::Result<KvCache<SimulatedMemory>> {
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
    Ok(KvCache::new(SimulatedMemory::new(2 << 20, pool_bytes)?, layout, size)?)
}

/// A scheduler with its memory, and the tokens of all requests, of which half of each prompt is everybody's.
struct Bench {
    scheduler: Scheduler,
    kv: KvCache<SimulatedMemory>,
    tokens: Vec<Vec<TokenId>>,
    num_known: Vec<usize>,
    /// Whether every hundredth prompt is a long one.
    is_unequal: bool,
}

impl Bench {
    /// `NUM_RUNNING` run, `NUM_WAITING` wait.
    fn new(kv: KvCache<SimulatedMemory>, is_unequal: bool) -> anyhow::Result<Self> {
        let config = SchedulerConfig {
            policy: PolicyName::Sarathi,
            token_budget: NUM_RUNNING + 2048,
            prefill_order: PrefillOrder::default(),
            chunks: ChunkSize::Budget,
        };
        let mut bench = Self {
            scheduler: Scheduler::new(config),
            kv,
            tokens: Vec::new(),
            num_known: Vec::new(),
            is_unequal,
        };
        (0..NUM_RUNNING + NUM_WAITING).for_each(|_| bench.arrive());
        while bench.scheduler.num_running() < NUM_RUNNING {
            bench.step()?;
        }
        Ok(bench)
    }

    fn arrive(&mut self) {
        let request = self.tokens.len();
        let own = 1_000_000 + 10_000 * u32::try_from(request).unwrap_or(u32::MAX);
        let prompt_len = if self.is_unequal && request % 100 == 99 { LONG_PROMPT_LEN } else { PROMPT_LEN };
        let tokens = (0..512).chain((own..).take(prompt_len - 512 + 2 * NUM_STEPS)).map(TokenId);
        self.tokens.push(tokens.collect());
        self.num_known.push(prompt_len);
        let id = SequenceId { turn: 0, request: request as u64, idx: 0 };
        self.scheduler.add(id);
        self.scheduler.extend(id, prompt_len);
        self.scheduler.complete_prompt(id, 8192, 0);
    }

    /// One step of all; how long it took to decide it.
    fn step(&mut self) -> anyhow::Result<Duration> {
        let Self { scheduler, kv, tokens, num_known, .. } = self;
        let began = Instant::now();
        let known = |id: SequenceId| {
            let request = usize::try_from(id.request).ok()?;
            Some(Known { tokens: &tokens[request][..num_known[request]], salt: None, reuses: true })
        };
        let step = scheduler.schedule(kv, known, false);
        let took = began.elapsed();
        anyhow::ensure!(step.preempted.is_empty() && step.failed.is_empty(), "memory is short");
        // Nobody computes anything here.
        drop(kv.take_copies());
        kv.map_ahead(step.scheduled.iter().filter(|s| s.reaches_end).map(|s| s.slot))?;
        for scheduled in &step.scheduled {
            let end = scheduled.context_len + scheduled.num_tokens;
            let tokens = &tokens[usize::try_from(scheduled.id.request)?];
            kv.computed(scheduled.slot, &tokens[scheduled.context_len..end]);
        }
        step.scheduled.iter().for_each(|scheduled| scheduler.commit(scheduled, scheduled.reaches_end));
        for scheduled in step.scheduled.iter().filter(|scheduled| scheduled.reaches_end) {
            num_known[usize::try_from(scheduled.id.request)?] += 1;
        }
        Ok(took)
    }

    /// `NUM_STEPS` steps, before each of which `num_ending` sequences end and as many requests arrive.
    fn run(&mut self, what: &str, num_ending: usize) -> anyhow::Result<()> {
        let mut oldest = 0;
        let times = (0..NUM_STEPS).map(|_| {
            for _ in 0..num_ending {
                let id = SequenceId { turn: 0, request: oldest, idx: 0 };
                if let Some(slot) = self.scheduler.remove(id) {
                    self.kv.release(slot);
                }
                oldest += 1;
                self.arrive();
            }
            self.step()
        });
        let mut times = times.collect::<anyhow::Result<Vec<_>>>()?;
        times.sort();
        let (median, p99) = (times[NUM_STEPS / 2], times[NUM_STEPS * 99 / 100]);
        println!("{what:<60} median {median:>10.1?}   p99 {p99:>10.1?}");
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    println!("schedule(), {NUM_RUNNING} running, {NUM_WAITING} waiting, {NUM_STEPS} steps");
    let mut bench = Bench::new(llama_cache(NUM_RUNNING, 4096)?, false)?;
    bench.run("all slots are in use", 0)?;
    let mut bench = Bench::new(llama_cache(NUM_RUNNING, 4096)?, false)?;
    bench.run("one ends and one is admitted each step", 1)?;
    let mut bench = Bench::new(llama_cache(NUM_RUNNING, 8192)?, true)?;
    bench.run("the same, every hundredth prompt seven times as long", 1)?;
    let mut bench = Bench::new(llama_cache(2 * NUM_RUNNING, 2048)?, false)?;
    bench.run("slots are there, pages are not", 0)
}

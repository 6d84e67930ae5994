//! Prints how fast the CPU runner runs demo-llama, without scheduler, service and gateway: decode steps for one and for
//! several sequences at a context of about 200 tokens, and prefills.
//!
//! `cargo bench -p fused-engine --bench runner`
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::path::Path;
use std::time::{Duration, Instant};

use fused_checkpoint::{Checkpoint, ModelConfig, ModelFiles};
use fused_engine::kv::{KvCache, KvSize, SlotId};
use fused_engine::runner::cpu::CpuRunner;
use fused_engine::runner::{Runner, SequenceStep};
use fused_engine::sampler::{SampleStep, Sampling};
use fused_virtual_memory::LinuxMemory;
use fused_vocabulary::TokenId;

const CONTEXT: usize = 200;
/// Of the one long sequence beside others.
const LONG_CONTEXT: usize = 950;
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/demo-llama");

const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_p: 1.0,
    top_k: 0,
    min_p: 0.0,
    seed: 0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    logit_bias: Vec::new(),
};

fn main() -> anyhow::Result<()> {
    let files = ModelFiles::open(Path::new(MODEL))?;
    let runner = CpuRunner::load(&Checkpoint::open(&files)?, &ModelConfig::parse(&files)?, None, None)?;
    let size = KvSize {
        num_sequences: 64,
        num_slots: 64,
        max_model_len: 1024,
        pool_bytes: 256 << 20,
        shares_prefixes: false,
    };
    let memory = LinuxMemory::new(1 << 18, size.pool_bytes)?;
    let kv = KvCache::new(memory, runner.kv_layout(), size)?;
    println!("demo-llama on {}", runner.device());
    let mut machine = Machine { runner, kv };

    println!("decode at {CONTEXT} tokens:  sequences  µs/step  tokens/s  (fastest: µs/step  tokens/s)");
    for num_sequences in [1, 2, 4, 8, 16, 32, 64] {
        let times = machine.decode(&vec![CONTEXT; num_sequences])?;
        let row = |time: Duration| (time.as_secs_f64() * 1e6, num_sequences as f64 / time.as_secs_f64());
        let ((median, median_rate), (best, best_rate)) = (row(times.median), row(times.best));
        println!("{num_sequences:>33} {median:>8.0} {median_rate:>9.0} {best:>18.0} {best_rate:>9.0}");
    }
    let times = machine.decode(&[[CONTEXT; 15].as_slice(), &[LONG_CONTEXT]].concat())?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "15 at {CONTEXT} beside 1 at {LONG_CONTEXT}: {:>8.0} µs/step (fastest: {:.0})",
        micros(times.median),
        micros(times.best)
    );
    println!("prefill:  tokens       ms  tokens/s  (fastest: ms)");
    for num_tokens in [10, 100, 500, 1000] {
        let times = machine.prefill(num_tokens)?;
        let (median, best) = (times.median.as_secs_f64(), times.best.as_secs_f64());
        println!(
            "{num_tokens:>16} {:>8.2} {:>9.0} {:>14.2}",
            median * 1e3,
            num_tokens as f64 / median,
            best * 1e3
        );
    }
    Ok(())
}

struct Machine {
    runner: CpuRunner,
    kv: KvCache<LinuxMemory>,
}

impl Machine {
    /// Decode steps, all sequences together, each about its context.
    fn decode(&mut self, contexts: &[usize]) -> anyhow::Result<Times> {
        let mut sequences = Vec::new();
        for context in contexts {
            let slot = self.acquire()?;
            self.step(&[(slot, 0)], &prompt(context - 50))?;
            sequences.push((slot, context - 50));
        }
        let times = (0..100).map(|_| {
            let took = self.step(&sequences, &[TokenId(7)]);
            sequences.iter_mut().for_each(|(_, context_len)| *context_len += 1);
            took
        });
        let times = Times::of(times.collect::<anyhow::Result<_>>()?);
        for (slot, _) in sequences {
            self.kv.release(slot);
        }
        Ok(times)
    }

    /// Whole prompts.
    fn prefill(&mut self, num_tokens: usize) -> anyhow::Result<Times> {
        let slot = self.acquire()?;
        let times = (0..30).map(|_| self.step(&[(slot, 0)], &prompt(num_tokens)));
        let times = Times::of(times.collect::<anyhow::Result<_>>()?);
        self.kv.release(slot);
        Ok(times)
    }

    fn acquire(&mut self) -> anyhow::Result<SlotId> {
        Ok(self.kv.acquire(CONTEXT)?)
    }

    /// The same tokens behind each slot's context.
    fn step(&mut self, sequences: &[(SlotId, usize)], tokens: &[TokenId]) -> anyhow::Result<Duration> {
        let sample = SampleStep {
            sampling: &GREEDY,
            sequence_idx: 0,
            position: 0,
            occurrences: None,
            banned: &[],
            num_logprobs: None,
        };
        let start = Instant::now();
        let mut steps = Vec::with_capacity(sequences.len());
        for &(slot, context_len) in sequences {
            self.kv.ensure(slot, context_len + tokens.len())?;
            steps.push(SequenceStep {
                slot,
                context_len,
                tokens,
                sample: Some(sample),
                drawn_by: None,
                prompt_logprobs: None,
            });
        }
        self.runner.step(&steps, &self.kv)?;
        Ok(start.elapsed())
    }
}

fn prompt(num_tokens: usize) -> Vec<TokenId> {
    (0..8000).step_by(13).cycle().map(TokenId).take(num_tokens).collect()
}

/// The fastest says what the code can do where a neighbour has kept a processor busy.
struct Times {
    median: Duration,
    best: Duration,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { median: times[times.len() / 2], best: times[0] }
    }
}

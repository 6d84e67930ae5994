//! Prints how fast the CUDA runner runs shapes of Llama and GPT-2 with random weights, without scheduler, service and gateway:
//! all requests at once, prompts in chunks of 8192 tokens, greedy.
//!
//! `cargo bench -p fused-engine --features cuda --bench cuda_runner [-- NAME]`
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::time::Instant;

use fused_checkpoint::{ModelConfig, ModelFiles};
use fused_engine::kv::{KvCache, KvSize, SlotId};
use fused_engine::runner::cuda::{CudaRunner, StepLimits};
use fused_engine::runner::{Runner, SequenceStep};
use fused_engine::sampler::{SampleStep, Sampling};
use fused_gpu::Gpu;
use fused_virtual_memory::CudaMemory;
use fused_vocabulary::TokenId;

const LLAMA_8B: &str = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":4096,"intermediate_size":14336,
    "num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"vocab_size":128256,
    "max_position_embeddings":131072,"rms_norm_eps":1e-5,"rope_theta":500000.0,"hidden_act":"silu",
    "tie_word_embeddings":false,"torch_dtype":"bfloat16","eos_token_id":128001}"#;
const LLAMA_1B: &str = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":2048,"intermediate_size":8192,
    "num_hidden_layers":16,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":64,"vocab_size":128256,
    "max_position_embeddings":131072,"rms_norm_eps":1e-5,"rope_theta":500000.0,"hidden_act":"silu",
    "tie_word_embeddings":true,"torch_dtype":"bfloat16","eos_token_id":128001}"#;
const GPT2: &str = r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"n_embd":768,"n_layer":12,"n_head":12,"n_positions":1024,
    "n_ctx":1024,"vocab_size":50257,"layer_norm_epsilon":1e-5,"activation_function":"gelu_new","torch_dtype":"bfloat16",
    "eos_token_id":50256}"#;

/// Requests, prompt tokens, output tokens; and the best time known for it on an H200 (vLLM 0.26.0), in seconds.
type Case = (usize, usize, usize, f64);

const CASES: [(&str, &str, &[Case]); 3] = [
    (
        "Llama-8B",
        LLAMA_8B,
        &[
            (1, 128, 256, 1.270),
            (8, 1024, 256, 1.531),
            (64, 1024, 256, 3.5),
            (256, 1024, 256, 10.858),
            (1, 8192, 1, 0.212),
        ],
    ),
    (
        "Llama-1B",
        LLAMA_1B,
        &[
            (1, 128, 256, 0.362),
            (8, 1024, 256, 0.432),
            (64, 1024, 256, 0.843),
            (256, 128, 256, 1.201),
            (1, 8000, 1, 0.0387),
        ],
    ),
    ("GPT-2", GPT2, &[(1, 64, 256, 0.377), (64, 64, 256, 0.589), (256, 64, 256, 1.131)]),
];

const CHUNK: usize = 8192;
const LIMITS: StepLimits = StepLimits { max_rows: CHUNK, max_sequences: 256, max_logprobs: 0 };

static GREEDY: Sampling = Sampling {
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
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let gpu = Gpu::open(0)?;
    println!("{} · driver {}", gpu.name(), gpu.driver_version());
    for (name, config, cases) in
        CASES.iter().filter(|(name, ..)| only.as_deref().is_none_or(|only| *name == only))
    {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("config.json"), config)?;
        std::fs::write(folder.path().join("tokenizer.json"), "{}")?;
        let config = ModelConfig::parse(&ModelFiles::open(folder.path())?)?;
        let began = Instant::now();
        let runner = CudaRunner::dummy(&gpu, &config, 7, LIMITS)?;
        println!("{name}: ready in {:.2} s", began.elapsed().as_secs_f64());
        let pool_bytes = (gpu.free_bytes()? / 20 * 19) >> 21 << 21;
        let size = KvSize {
            num_sequences: 256,
            num_slots: 256,
            max_model_len: config.max_position_embeddings.min(16_384),
            pool_bytes,
            shares_prefixes: false,
        };
        let kv = KvCache::new(CudaMemory::new(0, 2 << 20, pool_bytes)?, runner.kv_layout(), size)?;
        let mut machine = Machine { runner, kv };
        println!(
            "{:>28} {:>9} {:>9} {:>11} {:>11} {:>12}",
            "requests x prompt x output", "s", "x H200", "output/s", "prefill ms", "ms a decode"
        );
        for &(num_requests, num_prompt, num_output, peer_s) in *cases {
            let mut best: Option<(f64, f64)> = None;
            for _ in 0..2 {
                let times = machine.run(num_requests, num_prompt, num_output)?;
                best = Some(best.map_or(times, |best| if times.0 < best.0 { times } else { best }));
            }
            let (total, prefill) = best.unwrap_or_default();
            println!(
                "{:>28} {total:>9.3} {:>9.2} {:>11.0} {:>11.1} {:>12.3}",
                format!("{num_requests} x {num_prompt} x {num_output}"),
                peer_s / total,
                (num_requests * num_output) as f64 / total,
                prefill * 1e3,
                (total - prefill) * 1e3 / (num_output.max(2) - 1) as f64
            );
        }
    }
    Ok(())
}

struct Machine {
    runner: CudaRunner,
    kv: KvCache<CudaMemory>,
}

impl Machine {
    /// Seconds in all, and until every prompt was computed.
    fn run(
        &mut self,
        num_requests: usize,
        num_prompt: usize,
        num_output: usize,
    ) -> anyhow::Result<(f64, f64)> {
        let began = Instant::now();
        let slots = (0..num_requests).map(|_| self.kv.acquire(num_prompt + num_output));
        let slots = slots.collect::<Result<Vec<SlotId>, _>>()?;
        let vocab_size = u32::try_from(self.runner.shape().vocab_size)?;
        let prompt: Vec<_> =
            (0..u32::try_from(num_prompt)?).map(|idx| TokenId(idx * 7919 % vocab_size)).collect();
        let mut tokens = vec![TokenId(0); num_requests];
        let at_once = (CHUNK / num_prompt).max(1);
        for (chunk, slots) in slots.chunks(at_once).enumerate() {
            let steps: Vec<_> = slots.iter().map(|slot| step(*slot, 0, &prompt)).collect();
            for (nth, output) in self.runner.step(&steps, &self.kv)?.into_iter().enumerate() {
                tokens[chunk * at_once + nth] = output.sampled.map_or(TokenId(0), |sampled| sampled.token);
            }
        }
        let prefill = began.elapsed().as_secs_f64();
        for position in num_prompt..num_prompt + num_output - 1 {
            let drawn = {
                let steps: Vec<_> = slots
                    .iter()
                    .zip(&tokens)
                    .map(|(slot, token)| step(*slot, position, std::slice::from_ref(token)))
                    .collect();
                self.runner.step(&steps, &self.kv)?
            };
            for (token, output) in tokens.iter_mut().zip(drawn) {
                *token = output.sampled.map_or(TokenId(0), |sampled| sampled.token);
            }
        }
        let total = began.elapsed().as_secs_f64();
        for slot in slots {
            self.kv.release(slot);
        }
        Ok((total, prefill))
    }
}

fn step(slot: SlotId, context_len: usize, tokens: &[TokenId]) -> SequenceStep<'_> {
    let sample = SampleStep {
        sampling: &GREEDY,
        sequence_idx: 0,
        position: 0,
        occurrences: &[],
        banned: &[],
        num_logprobs: None,
    };
    SequenceStep { slot, context_len, tokens, sample: Some(sample), drawn_by: None, prompt_logprobs: None }
}

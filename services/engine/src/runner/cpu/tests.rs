use fused_checkpoint::ModelFiles;
use fused_testkit::{golden, model_dir};
use fused_vocabulary::TokenId;
use fused_vocabulary::import::PatchEmbeddings;
use serde_json::Value;

use super::*;
use crate::kv::{KvSize, SlotId};
use crate::runner::PromptLogprobStep;
use crate::sampler::{SampleStep, Sampling, TokenLogprobs};

mod reference;

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

const GREEDY_STEP: SampleStep<'static> = SampleStep {
    sampling: &GREEDY,
    sequence_idx: 0,
    position: 0,
    occurrences: None,
    banned: &[],
    num_logprobs: None,
};

/// A model with its memory.
struct Machine {
    runner: CpuRunner,
    kv: KvCache<LinuxMemory>,
}

/// A sequence on a machine.
struct Running {
    slot: SlotId,
    context_len: usize,
    tokens: Vec<TokenId>,
}

impl Machine {
    fn new(model: &str) -> Self {
        let files = ModelFiles::open(&model_dir(model)).unwrap();
        let patch = files.read("patch_vocabulary.json").unwrap();
        let patch = patch.map(|bytes| PatchVocabulary::parse(&bytes).unwrap());
        Self::load(&files, patch.as_ref(), None, None)
    }

    fn load(
        files: &ModelFiles,
        patch: Option<&PatchVocabulary>,
        embeddings: Option<&PatchEmbeddings>,
        max_model_len: Option<usize>,
    ) -> Self {
        let (checkpoint, mut config) = (Checkpoint::open(files).unwrap(), ModelConfig::parse(files).unwrap());
        if let Some(max_model_len) = max_model_len {
            config.limit_context(max_model_len);
        }
        let runner = CpuRunner::load(&checkpoint, &config, patch, embeddings).unwrap();
        let size = KvSize {
            num_sequences: 24,
            num_slots: 24,
            max_model_len: config.max_positions,
            pool_bytes: 64 << 20,
            shares_prefixes: false,
        };
        let kv = KvCache::new(LinuxMemory::new(1 << 16, size.pool_bytes).unwrap(), runner.kv_layout(), size);
        Self { runner, kv: kv.unwrap() }
    }

    fn start(&mut self, tokens: &[TokenId]) -> Running {
        let slot = self.kv.acquire(tokens.len()).unwrap();
        Running { slot, context_len: 0, tokens: tokens.to_vec() }
    }

    /// One step of all sequences together; each runs its tokens and draws the next, which becomes its next tokens.
    fn step(&mut self, running: &mut [Running]) -> Vec<TokenId> {
        let steps: Vec<_> = running
            .iter()
            .map(|sequence| {
                self.kv.ensure(sequence.slot, sequence.context_len + sequence.tokens.len()).unwrap();
                SequenceStep {
                    slot: sequence.slot,
                    context_len: sequence.context_len,
                    tokens: &sequence.tokens,
                    sample: Some(GREEDY_STEP),
                    drawn_by: None,
                    prompt_logprobs: None,
                }
            })
            .collect();
        let outputs = self.runner.step(&steps, &self.kv).unwrap();
        let drawn: Vec<_> = outputs.into_iter().map(|output| output.sampled.unwrap().token).collect();
        for (sequence, drawn) in running.iter_mut().zip(&drawn) {
            sequence.context_len += sequence.tokens.len();
            sequence.tokens = vec![*drawn];
        }
        drawn
    }

    /// The logits of the last step's sequence `idx`. Greedy sampling without penalties leaves them as they were.
    fn logits(&self, idx: usize) -> &[f32] {
        let vocab_size = self.runner.shape().vocab_size;
        &self.runner.scratch.logits[idx * vocab_size..][..vocab_size]
    }

    /// Runs a prompt in chunks of so many tokens; its log-probabilities, where `num_top` of them are asked for, and the
    /// logits after its last token.
    fn prefill(
        &mut self,
        prompt: &[TokenId],
        chunk: usize,
        num_top: Option<u32>,
    ) -> (Vec<TokenLogprobs>, Vec<f32>) {
        let slot = self.kv.acquire(0).unwrap();
        let mut logprobs = Vec::new();
        for (idx, tokens) in prompt.chunks(chunk).enumerate() {
            let context_len = idx * chunk;
            let end = context_len + tokens.len();
            self.kv.ensure(slot, end).unwrap();
            let targets = &prompt[(context_len + 1).min(prompt.len())..prompt.len().min(end + 1)];
            let step = SequenceStep {
                slot,
                context_len,
                tokens,
                sample: (end == prompt.len()).then_some(GREEDY_STEP),
                drawn_by: None,
                prompt_logprobs: num_top.map(|num_top| PromptLogprobStep { targets, num_top }),
            };
            let outputs = self.runner.step(&[step], &self.kv).unwrap();
            assert_eq!(outputs[0].sampled.is_some(), end == prompt.len());
            logprobs.extend(outputs.into_iter().flat_map(|output| output.prompt_logprobs));
        }
        self.kv.release(slot);
        let vocab_size = self.runner.shape().vocab_size;
        let logits = &self.runner.scratch.logits;
        (logprobs, logits[logits.len() - vocab_size..].to_vec())
    }
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap().try_into().unwrap())).collect()
}

fn prompts(golden: &Value) -> &Vec<Value> {
    golden["prompts"].as_array().unwrap()
}

fn assert_close(got: f32, wanted: &Value, what: &str) {
    let wanted = wanted.as_f64().unwrap();
    let error = (f64::from(got) - wanted).abs();
    assert!(error <= 1e-4 * wanted.abs().max(1.0), "{what}: {got} for {wanted}");
}

/// All prompts at once, prefill and decode, against what transformers makes of each alone.
fn check_golden(name: &str) {
    let golden = golden(&format!("{name}.json")).unwrap();
    let prompts = prompts(&golden);
    let model = golden["model"].as_str().unwrap();
    let mut machine = match golden["max_model_len"].as_u64() {
        None => Machine::new(model),
        Some(len) => {
            let files = ModelFiles::open(&model_dir(model)).unwrap();
            Machine::load(&files, None, None, Some(usize::try_from(len).unwrap()))
        }
    };
    let mut running: Vec<_> = prompts.iter().map(|prompt| machine.start(&ids(&prompt["ids"]))).collect();
    let mut drawn = vec![machine.step(&mut running)];
    for (idx, prompt) in prompts.iter().enumerate() {
        let what = format!("{name}, prompt {idx}");
        let logits = machine.logits(idx);
        for (token, wanted) in prompt["logits"].as_array().into_iter().flatten().enumerate() {
            assert_close(logits[token], wanted, &what);
        }
        for top in prompt["top"].as_array().into_iter().flatten() {
            assert_close(logits[usize::try_from(top[0].as_u64().unwrap()).unwrap()], &top[1], &what);
        }
        let sampled = golden["sample_ids"].as_array().into_iter().flatten();
        for (token, wanted) in sampled.zip(prompt["sample"].as_array().into_iter().flatten()) {
            assert_close(logits[usize::try_from(token.as_u64().unwrap()).unwrap()], wanted, &what);
        }
    }
    let num_tokens = prompts[0]["greedy"].as_array().unwrap().len();
    drawn.extend((1..num_tokens).map(|_| machine.step(&mut running)));
    for (idx, prompt) in prompts.iter().enumerate() {
        let got: Vec<_> = drawn.iter().map(|step| step[idx]).collect();
        assert_eq!(got, ids(&prompt["greedy"]), "{name}, prompt {idx}");
    }
}

#[test]
fn demo_llama_writes_what_transformers_writes() {
    check_golden("demo-llama");
}

#[test]
fn demo_llama_tldr_adapted_and_tuned_writes_what_transformers_writes() {
    check_golden("demo-llama-tldr");
}

#[test]
fn demo_gpt2_writes_what_transformers_writes() {
    check_golden("demo-gpt2");
}

#[test]
fn every_shape_of_every_family_writes_what_transformers_writes() {
    for model in [
        "tiny-gpt2",
        "tiny-llama3",
        "tiny-llama-bias",
        "tiny-llama-sharded",
        "tiny-mistral",
        "tiny-qwen2",
        "tiny-qwen3",
        "tiny-one-head",
        "tiny-other-head",
    ] {
        check_golden(model);
    }
}

/// Prompts and outputs on both sides of the first training's context.
#[test]
fn every_rotary_scaling_writes_what_transformers_writes() {
    for golden in [
        "tiny-linear",
        "tiny-yarn",
        "tiny-yarn-mscale",
        "tiny-partial",
        "tiny-dynamic",
        "tiny-dynamic-short",
        "tiny-longrope",
        "tiny-longrope-short",
    ] {
        check_golden(golden);
    }
}

/// 200 tokens, which repeat nothing for long.
fn long_prompt(vocab_size: usize) -> Vec<TokenId> {
    (0..200_u32).map(|idx| TokenId((idx * idx * 7 + idx * 31) % u32::try_from(vocab_size).unwrap())).collect()
}

#[test]
fn a_prompt_in_chunks_is_the_same_as_the_prompt_whole() {
    for model in ["demo-llama", "demo-gpt2", "tiny-mistral", "tiny-qwen3"] {
        let mut machine = Machine::new(model);
        let shape = *machine.runner.shape();
        let mut prompt = long_prompt(shape.vocab_size);
        prompt.truncate(shape.max_positions);
        let (logprobs, logits) = machine.prefill(&prompt, prompt.len(), Some(2));
        assert_eq!(logprobs.len(), prompt.len() - 1);
        for chunk in [1, 7, 64, prompt.len()] {
            let with_logprobs = machine.prefill(&prompt, chunk, Some(2));
            assert_eq!(with_logprobs.0, logprobs, "{model} in chunks of {chunk}");
            assert_eq!(with_logprobs.1, logits, "{model} in chunks of {chunk}");
            // Without them most rows end before the last layer does.
            assert_eq!(machine.prefill(&prompt, chunk, None).1, logits, "{model} in chunks of {chunk}");
        }
    }
}

#[test]
fn a_sequence_in_a_mixed_batch_is_the_same_as_alone() {
    let mut machine = Machine::new("demo-llama");
    let prompt = long_prompt(machine.runner.shape().vocab_size);
    // Decodes at several depths, among them prefills of several lengths.
    let mut running: Vec<_> =
        [1, 3, 64, 65, 130].map(|len| machine.start(&prompt[..len])).into_iter().collect();
    machine.step(&mut running);
    running.extend([2, 40, 129].map(|len| machine.start(&prompt[200 - len..])));
    machine.step(&mut running);
    let together: Vec<Vec<f32>> = (0..running.len()).map(|idx| machine.logits(idx).to_vec()).collect();

    let mut alone = Machine::new("demo-llama");
    for (idx, sequence) in running.iter().enumerate() {
        let mut single = if idx < 5 {
            let mut single = [alone.start(&prompt[..sequence.context_len - 1])];
            alone.step(&mut single);
            single
        } else {
            [alone.start(&prompt[200 - sequence.context_len..])]
        };
        assert_eq!(alone.step(&mut single)[0], sequence.tokens[0]);
        assert_eq!(alone.logits(0), together[idx], "sequence {idx}");
        alone.kv.release(single[0].slot);
    }
}

#[test]
fn a_step_that_cannot_be_run_is_an_error_and_says_why() {
    let mut machine = Machine::new("tiny-llama3");
    let slot = machine.kv.acquire(1).unwrap();
    machine.kv.ensure(slot, 4).unwrap();
    let tokens = [TokenId(1); 5];
    let step = |context_len, tokens| SequenceStep {
        slot,
        context_len,
        tokens,
        sample: Some(GREEDY_STEP),
        drawn_by: None,
        prompt_logprobs: None,
    };
    for (step, expected) in [
        (step(0, &[TokenId(128)]), "token 128"),
        (step(128, &tokens[..1]), "position 128"),
        (step(3, &[]), "no tokens"),
        (step(0, &[]), "no tokens"),
        (step(0, &tokens), "does not hold 5 tokens"),
    ] {
        let error = machine.runner.step(&[step], &machine.kv).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("cpu"), "{error}");
    }
    assert!(machine.runner.step(&[], &machine.kv).unwrap().is_empty());
    machine.runner.step(&[step(0, &tokens[..4])], &machine.kv).unwrap();
}

#[test]
fn logits_that_are_no_numbers_end_nothing() {
    let mut machine = Machine::new("tiny-llama3");
    if let model::Norm::Rms(weight) = &mut machine.runner.model.final_norm {
        weight.fill(f32::NAN);
    }
    let (logprobs, logits) = machine.prefill(&[TokenId(3); 40], 40, Some(1));
    assert_eq!(logprobs.len(), 39);
    assert_eq!(logits.len(), 128);
}

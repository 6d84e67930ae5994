use fused_proto::common::v1::{LogprobParams, SamplingParams, StoppingParams};
use fused_proto::engine::v1::{GenerateOpening, PromptChunk};
use fused_status::{Code, Error};
use proptest::prelude::*;

use super::*;
use crate::ModelInfo;

pub(crate) const VOCAB_SIZE: usize = 100;
pub(crate) const MAX_MODEL_LEN: usize = 64;
pub(crate) const EOS: TokenId = TokenId(99);

pub(crate) fn model() -> ModelInfo {
    ModelInfo {
        name: "mock".to_owned(),
        vocabulary_fingerprint: "f00d".to_owned(),
        max_model_len: MAX_MODEL_LEN,
        vocab_size: VOCAB_SIZE,
        eos_token_ids: vec![EOS],
        architecture: "mock".to_owned(),
        dtype: None,
        device: "mock".to_owned(),
        max_logprobs: 20,
        created_unix_s: 0,
    }
}

pub(crate) fn opening(id: &str) -> GenerateOpening {
    GenerateOpening {
        request_id: Some(id.to_owned()),
        vocabulary_fingerprint: Some("f00d".to_owned()),
        ..GenerateOpening::default()
    }
}

fn validate(opening: GenerateOpening) -> Result<ValidGenerateRequest, Error> {
    ValidGenerateRequest::new(opening, Limits { model: &model() })
}

fn with_sampling(sampling: SamplingParams) -> GenerateOpening {
    GenerateOpening { sampling: Some(sampling), ..opening("a") }
}

fn with_stopping(stopping: StoppingParams) -> GenerateOpening {
    GenerateOpening { stopping: Some(stopping), ..opening("a") }
}

fn salted(salt: &str) -> GenerateOpening {
    GenerateOpening { cache_salt: Some(salt.to_owned()), ..opening("a") }
}

#[test]
fn salt_and_priority_are_taken_as_they_are() {
    let longest = "x".repeat(256);
    for salt in ["a", "\0", "tenant ü", &longest] {
        assert_eq!(validate(salted(salt)).unwrap().cache_salt.as_deref(), Some(salt));
    }
    for priority in [i32::MIN, -1, 0, i32::MAX] {
        let opening = GenerateOpening { priority: Some(priority), ..opening("a") };
        assert_eq!(validate(opening).unwrap().priority, priority);
    }
}

#[test]
fn absent_means_what_the_contract_says() {
    let request = validate(opening("a")).unwrap();
    let Sampling { temperature, top_p, top_k, min_p, repetition_penalty, .. } = request.sampling;
    assert_eq!((temperature, top_p, top_k, min_p, repetition_penalty), (1.0, 1.0, 0, 0.0, 1.0));
    assert_eq!((request.sampling.presence_penalty, request.sampling.frequency_penalty), (0.0, 0.0));
    assert_eq!((request.num_sequences, request.timeout, request.num_logprobs), (1, None, None));
    assert_eq!((request.cache_salt, request.priority), (None, 0));
    assert_eq!(request.stopping.eos_token_ids, [EOS]);
    let other = validate(opening("a")).unwrap();
    assert_ne!(request.sampling.seed, other.sampling.seed, "drawn anew for each");
}

#[test]
fn every_fault_names_its_field() {
    let sampling = SamplingParams::default;
    let stopping = StoppingParams::default;
    let cases = [
        ("request_id", GenerateOpening { request_id: None, ..opening("a") }),
        ("request_id", opening("")),
        ("request_id", opening(&"x".repeat(129))),
        ("vocabulary_fingerprint", GenerateOpening { vocabulary_fingerprint: None, ..opening("a") }),
        ("temperature", with_sampling(SamplingParams { temperature: Some(-0.1), ..sampling() })),
        ("temperature", with_sampling(SamplingParams { temperature: Some(2.1), ..sampling() })),
        ("temperature", with_sampling(SamplingParams { temperature: Some(f32::NAN), ..sampling() })),
        ("top_p", with_sampling(SamplingParams { top_p: Some(0.0), ..sampling() })),
        ("top_p", with_sampling(SamplingParams { top_p: Some(f32::NAN), ..sampling() })),
        ("top_p", with_sampling(SamplingParams { top_p: Some(1.1), ..sampling() })),
        ("min_p", with_sampling(SamplingParams { min_p: Some(1.1), ..sampling() })),
        ("repetition_penalty", with_sampling(SamplingParams { repetition_penalty: Some(0.0), ..sampling() })),
        (
            "repetition_penalty",
            with_sampling(SamplingParams { repetition_penalty: Some(f32::INFINITY), ..sampling() }),
        ),
        ("presence_penalty", with_sampling(SamplingParams { presence_penalty: Some(-2.5), ..sampling() })),
        ("frequency_penalty", with_sampling(SamplingParams { frequency_penalty: Some(2.5), ..sampling() })),
        ("logit_bias", with_sampling(SamplingParams { logit_bias: [(100, 1.0)].into(), ..sampling() })),
        ("logit_bias", with_sampling(SamplingParams { logit_bias: [(1, -101.0)].into(), ..sampling() })),
        ("logit_bias", with_sampling(SamplingParams { logit_bias: [(1, f32::NAN)].into(), ..sampling() })),
        (
            "logit_bias",
            with_sampling(SamplingParams {
                logit_bias: (0..1025).map(|id| (id, 0.0)).collect(),
                ..sampling()
            }),
        ),
        (
            "min_tokens",
            with_stopping(StoppingParams { min_tokens: Some(3), max_tokens: Some(2), ..stopping() }),
        ),
        ("stop_token_ids", with_stopping(StoppingParams { stop_token_ids: vec![100], ..stopping() })),
        ("stop_token_ids", with_stopping(StoppingParams { stop_token_ids: vec![1; 257], ..stopping() })),
        ("num_sequences", GenerateOpening { num_sequences: Some(0), ..opening("a") }),
        ("num_sequences", GenerateOpening { num_sequences: Some(129), ..opening("a") }),
        ("timeout_us", GenerateOpening { timeout_us: Some(0), ..opening("a") }),
        ("cache_salt", salted("")),
        ("cache_salt", salted(&"x".repeat(257))),
        (
            "num_output",
            GenerateOpening {
                logprobs: Some(LogprobParams { num_output: Some(21), ..LogprobParams::default() }),
                ..opening("a")
            },
        ),
        (
            "num_prompt",
            GenerateOpening {
                logprobs: Some(LogprobParams { num_prompt: Some(21), ..LogprobParams::default() }),
                ..opening("a")
            },
        ),
    ];
    for (param, opening) in cases {
        let error = validate(opening.clone()).expect_err(&format!("{opening:?}"));
        assert_eq!((error.code(), error.param()), (Code::InvalidArgument, Some(param)), "{error}");
        assert!(error.message().contains(param), "{error}");
    }
}

#[test]
fn another_vocabulary_is_refused() {
    let other = GenerateOpening { vocabulary_fingerprint: Some("beef".to_owned()), ..opening("a") };
    assert_eq!(validate(other).unwrap_err().code(), Code::VocabularyMismatch);
}

fn read(max_tokens: Option<u32>, chunks: &[&[u32]]) -> Result<Vec<ValidPromptChunk>, Error> {
    let request = validate(with_stopping(StoppingParams { max_tokens, ..StoppingParams::default() }))?;
    let mut reader = PromptReader::new(&request, Limits { model: &model() });
    let chunks = chunks.iter().enumerate().map(|(idx, token_ids)| {
        reader.read(PromptChunk { token_ids: token_ids.to_vec(), last: Some(idx + 1 == chunks.len()) })
    });
    chunks.collect()
}

#[test]
fn a_prompt_comes_in_chunks_and_leaves_room() {
    let chunks = read(None, &[&[1, 2], &[], &[3]]).unwrap();
    assert_eq!(
        chunks[0],
        ValidPromptChunk { tokens: vec![TokenId(1), TokenId(2)], max_tokens: None, occurrences: None }
    );
    assert_eq!(chunks[2].max_tokens, Some(61));
    assert_eq!(read(Some(5), &[&[1]]).unwrap()[0].max_tokens, Some(5));
    assert_eq!(read(Some(1), &[&[1; 63]]).unwrap()[0].max_tokens, Some(1));
    assert_eq!(read(Some(0), &[&[1; 64]]).unwrap()[0].max_tokens, Some(0));
}

#[test]
fn a_prompt_that_does_not_fit_is_told_its_length() {
    for (max_tokens, len) in [(None, 64), (Some(2), 63), (Some(0), 65), (Some(u32::MAX), 1)] {
        let error = read(max_tokens, &[&vec![1; len]]).unwrap_err();
        assert_eq!(error.code(), Code::ContextLengthExceeded);
        let expected = format!(
            "This model's maximum context length is 64 tokens. However, your prompt contains {len} input tokens"
        );
        assert!(error.message().starts_with(&expected), "{error}");
    }
    let error = read(None, &[&[1; 64], &[1]]).unwrap_err();
    assert!(error.message().contains("at least 64 input tokens"), "{error}");
}

#[test]
fn bad_prompts_are_refused() {
    assert_eq!(read(None, &[&[]]).unwrap_err().message(), "the prompt is empty");
    let error = read(None, &[&[1, 2], &[3, 100]]).unwrap_err();
    assert!(error.message().starts_with("token 100 at position 3 "), "{error}");
}

#[test]
fn prompt_logprobs_fit_into_one_message() {
    let logprobs = Some(LogprobParams { num_prompt: Some(20), ..LogprobParams::default() });
    let request = validate(GenerateOpening { logprobs, ..opening("a") }).unwrap();
    let long = ModelInfo { max_model_len: 1 << 20, ..model() };
    let mut reader = PromptReader::new(&request, Limits { model: &long });
    let error = reader.read(PromptChunk { token_ids: vec![1; 20_000], last: Some(true) }).unwrap_err();
    assert_eq!(error.param(), Some("num_prompt"));
}

proptest! {
    #[test]
    fn whatever_passes_is_in_range(
        temperature in prop::option::of(any::<f32>()),
        top_p in prop::option::of(any::<f32>()),
        min_p in prop::option::of(any::<f32>()),
        repetition_penalty in prop::option::of(any::<f32>()),
        bias in any::<f32>(),
        max_tokens in prop::option::of(any::<u32>()),
        lens in prop::collection::vec(0..40usize, 1..4),
    ) {
        let sampling = SamplingParams {
            temperature, top_p, min_p, repetition_penalty, logit_bias: [(1, bias)].into(), ..SamplingParams::default()
        };
        if let Ok(ValidGenerateRequest { sampling, .. }) = validate(with_sampling(sampling)) {
            prop_assert!((0.0..=2.0).contains(&sampling.temperature));
            prop_assert!(sampling.top_p > 0.0 && sampling.top_p <= 1.0);
            prop_assert!((0.0..=1.0).contains(&sampling.min_p));
            prop_assert!(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite());
            prop_assert!(sampling.logit_bias.iter().all(|(_, bias)| bias.abs() <= 100.0));
        }
        let chunks: Vec<_> = lens.iter().map(|len| vec![0; *len]).collect();
        let chunks: Vec<_> = chunks.iter().map(Vec::as_slice).collect();
        let len: usize = lens.iter().sum();
        if let Ok(chunks) = read(max_tokens, &chunks) {
            let max_tokens = chunks.last().and_then(|chunk| chunk.max_tokens).unwrap();
            prop_assert!(len > 0 && len + max_tokens <= MAX_MODEL_LEN);
        } else {
            prop_assert!(len == 0 || len + max_tokens.map_or(1, |max| max as usize) > MAX_MODEL_LEN);
        }
    }
}

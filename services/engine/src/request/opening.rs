use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use fused_proto::common::v1::{SamplingParams, StoppingParams};
use fused_proto::engine::v1::GenerateOpening;
use fused_status::{Code, Error, Result};
use fused_vocabulary::TokenId;

use super::{
    Limits, MAX_CACHE_SALT_BYTES, MAX_GROUP_ID_BYTES, MAX_LOGIT_BIAS, MAX_NUM_SEQUENCES,
    MAX_REQUEST_ID_BYTES, MAX_STOP_TOKEN_IDS, RequestId, Stopping, ValidGenerateRequest,
};
use crate::sampler::Sampling;

impl ValidGenerateRequest {
    /// Checks an opening against the contract's ranges and this engine's limits.
    ///
    /// # Errors
    /// The field at fault, by its name, and what it may be.
    pub(crate) fn new(opening: GenerateOpening, limits: Limits<'_>) -> Result<Self> {
        let id = request_id(opening.request_id)?;
        check_fingerprint(opening.vocabulary_fingerprint.as_deref(), limits)?;
        let logprobs = opening.logprobs.unwrap_or_default();
        Ok(Self {
            id,
            sampling: sampling(opening.sampling.unwrap_or_default(), limits)?,
            stopping: stopping(opening.stopping.unwrap_or_default(), limits)?,
            num_logprobs: num_logprobs("num_output", logprobs.num_output, limits)?,
            num_prompt_logprobs: num_logprobs("num_prompt", logprobs.num_prompt, limits)?,
            num_sequences: num_sequences(opening.num_sequences)?,
            timeout: timeout(opening.timeout_us)?,
            cache_salt: name("cache_salt", opening.cache_salt, MAX_CACHE_SALT_BYTES)?,
            group_id: name("group_id", opening.group_id, MAX_GROUP_ID_BYTES)?,
            priority: opening.priority.unwrap_or(0),
            _validated: (),
        })
    }
}

fn request_id(id: Option<String>) -> Result<RequestId> {
    match id {
        Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES => Ok(RequestId(id.into())),
        _ => {
            let message = format!("request_id must be given, with 1 to {MAX_REQUEST_ID_BYTES} bytes");
            Err(Error::invalid("request_id", message))
        }
    }
}

fn check_fingerprint(given: Option<&str>, limits: Limits<'_>) -> Result<()> {
    let own = &limits.model.vocabulary_fingerprint;
    match given {
        Some(given) if given == own => Ok(()),
        Some(given) => {
            let message = format!(
                "the token ids were made with vocabulary {given:.64}, and this engine's model is adapted to {own}"
            );
            Err(Error::new(Code::VocabularyMismatch, message).with_param("vocabulary_fingerprint"))
        }
        None => {
            let message = "vocabulary_fingerprint must be given: token ids mean nothing without it";
            Err(Error::invalid("vocabulary_fingerprint", message))
        }
    }
}

fn sampling(params: SamplingParams, limits: Limits<'_>) -> Result<Sampling> {
    let SamplingParams {
        temperature,
        top_p,
        top_k,
        min_p,
        seed,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias,
    } = params;
    Ok(Sampling {
        temperature: in_range("temperature", temperature, 1.0, 0.0..=2.0)?,
        top_p: above_zero("top_p", top_p, 1.0)?,
        top_k: top_k.unwrap_or(0),
        min_p: in_range("min_p", min_p, 0.0, 0.0..=1.0)?,
        // The bits as they are: a negative seed is as good as any other.
        seed: seed.map_or_else(random_seed, i64::cast_unsigned),
        repetition_penalty: above_zero("repetition_penalty", repetition_penalty, f32::MAX)?,
        presence_penalty: in_range("presence_penalty", presence_penalty, 0.0, -2.0..=2.0)?,
        frequency_penalty: in_range("frequency_penalty", frequency_penalty, 0.0, -2.0..=2.0)?,
        logit_bias: biases(logit_bias, limits)?,
    })
}

/// The keys of the standard library's hash maps are drawn from the system's randomness.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn biases(given: std::collections::HashMap<u32, f32>, limits: Limits<'_>) -> Result<Vec<(TokenId, f32)>> {
    at_most("logit_bias", given.len(), MAX_LOGIT_BIAS)?;
    let mut biases: Vec<_> = given.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect();
    // The map's order is random, and which entry a message names should not be.
    biases.sort_unstable_by_key(|(id, _)| *id);
    for (id, bias) in &biases {
        known_token("logit_bias", *id, limits)?;
        in_range("logit_bias", Some(*bias), 0.0, -100.0..=100.0)?;
    }
    Ok(biases)
}

fn stopping(params: StoppingParams, limits: Limits<'_>) -> Result<Stopping> {
    let StoppingParams { max_tokens, min_tokens, stop_token_ids, ignore_eos, default_max_tokens } = params;
    let min_tokens = min_tokens.unwrap_or(0);
    if let Some(max_tokens) = max_tokens.filter(|max_tokens| min_tokens > *max_tokens) {
        let message = format!("min_tokens is {min_tokens}, over max_tokens, which is {max_tokens}");
        return Err(Error::invalid("min_tokens", message));
    }
    at_most("stop_token_ids", stop_token_ids.len(), MAX_STOP_TOKEN_IDS)?;
    let stop_token_ids: Vec<_> = stop_token_ids.into_iter().map(TokenId).collect();
    for id in &stop_token_ids {
        known_token("stop_token_ids", *id, limits)?;
    }
    let ignore_eos = ignore_eos.unwrap_or(false);
    Ok(Stopping {
        max_tokens: max_tokens.map(|max_tokens| max_tokens as usize),
        default_max_tokens: default_max_tokens.map_or(usize::MAX, |default| default.max(min_tokens) as usize),
        min_tokens: min_tokens as usize,
        eos_token_ids: if ignore_eos { Vec::new() } else { limits.model.eos_token_ids.clone() },
        stop_token_ids,
    })
}

fn num_logprobs(name: &str, num: Option<u32>, limits: Limits<'_>) -> Result<Option<u32>> {
    at_most(name, num.unwrap_or(0) as usize, limits.model.max_logprobs as usize)?;
    Ok(num)
}

fn num_sequences(num: Option<u32>) -> Result<u32> {
    let num = num.unwrap_or(1);
    if num == 0 || num as usize > MAX_NUM_SEQUENCES {
        let message = format!("num_sequences must be between 1 and {MAX_NUM_SEQUENCES}, got {num}");
        return Err(Error::invalid("num_sequences", message));
    }
    Ok(num)
}

fn timeout(timeout_us: Option<u64>) -> Result<Option<Duration>> {
    match timeout_us {
        Some(0) => Err(Error::invalid("timeout_us", "timeout_us must be over 0")),
        timeout_us => Ok(timeout_us.map(Duration::from_micros)),
    }
}

fn name(field: &str, value: Option<String>, max_bytes: usize) -> Result<Option<Arc<str>>> {
    match value {
        Some(value) if value.is_empty() || value.len() > max_bytes => {
            let message =
                format!("{field} must have 1 to {max_bytes} bytes, or be left out, got {}", value.len());
            Err(Error::invalid(field, message))
        }
        value => Ok(value.map(Arc::from)),
    }
}

/// NaN is in no range.
fn in_range(name: &str, value: Option<f32>, absent: f32, range: RangeInclusive<f32>) -> Result<f32> {
    let value = value.unwrap_or(absent);
    if range.contains(&value) {
        return Ok(value);
    }
    let message = format!("{name} must be between {} and {}, got {value}", range.start(), range.end());
    Err(Error::invalid(name, message))
}

/// Absent: 1.
fn above_zero(name: &str, value: Option<f32>, most: f32) -> Result<f32> {
    let value = value.unwrap_or(1.0);
    if value > 0.0 && value <= most {
        return Ok(value);
    }
    let most = if most == f32::MAX { "finite".to_owned() } else { format!("at most {most}") };
    Err(Error::invalid(name, format!("{name} must be over 0 and {most}, got {value}")))
}

fn at_most(name: &str, num: usize, most: usize) -> Result<()> {
    if num <= most {
        return Ok(());
    }
    Err(Error::invalid(name, format!("{name} may be at most {most} here, got {num}")))
}

fn known_token(name: &str, id: TokenId, limits: Limits<'_>) -> Result<()> {
    let vocab_size = limits.model.vocab_size;
    if id.row() < vocab_size {
        return Ok(());
    }
    let message = format!("{name} names token {id}, and the vocabulary has {vocab_size}");
    Err(Error::invalid(name, message))
}

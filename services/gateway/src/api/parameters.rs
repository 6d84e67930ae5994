//! The fields that completions and chat completions share: sampling, stopping, streaming.

use std::collections::HashMap;
use std::ops::Bound;
use std::time::Duration;

use fused_proto::common::v1::{LogprobParams, SamplingParams, StoppingParams};
use fused_proto::text::v1::{GenerateRequest, Prompt, StopStrings};
use fused_status::Error;
use serde_json::value::RawValue;

use super::logprobs::TokenLabels;
use super::refused::REFUSED;
use super::usage::StreamUsage;
use crate::auth::Caller;
use crate::events;
use crate::fields::{Fields, NumberRange, parse, parse_array, unsupported, wrong};

/// The most log-probabilities of one position.
pub(super) const MAX_LOGPROBS: i64 = 20;
/// Where only the type bounds an integer.
pub(super) const MAX_U32: i64 = u32::MAX as i64;
const MAX_SEQUENCES_PER_PROMPT: i64 = 128;
const MAX_STOP_STRINGS: usize = 64;
/// Of all stop strings together.
const MAX_STOP_BYTES: usize = 4096;
// These two go with every prompt's call, and are checked for every token.
const MAX_STOP_TOKEN_IDS: usize = 256;
const MAX_BIASES: usize = 1024;
const MAX_BIAS: f64 = 100.0;
const MAX_CACHE_SALT_BYTES: usize = 256;

/// Output tokens that a tenant's limit counts with at first where the request does not say how many there may be.
const ASSUMED_OUTPUT_TOKENS: u32 = 256;

/// Fields that change nothing here: labels, hints, and what is about who pays.
const HARMLESS: [&str; 16] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "verbosity",
    "request_id",
    "session_id",
    "include_reasoning",
    "parallel_tool_calls",
    "length_penalty",
    "spaces_between_special_tokens",
    "stream_interval",
];

/// The shared fields of one request.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) num_sequences: u32,
    /// `None`: the answer comes whole.
    pub(super) stream: Option<StreamUsage>,
    pub(super) returns_token_ids: bool,
    pub(super) token_labels: TokenLabels,
    model: Option<String>,
    sampling: SamplingParams,
    stopping: StoppingParams,
    stop: StopStrings,
    skip_special_tokens: Option<bool>,
    truncate_prompt_tokens: Option<u32>,
    cache_salt: Option<String>,
    priority: Option<i32>,
}

impl Parameters {
    /// Reads them. The bound on output tokens stays with the route, which knows its names and its default.
    pub(super) fn from_fields(fields: &mut Fields<'_>) -> Result<Self, Error> {
        fields.refuse_unless_neutral(&REFUSED)?;
        let num_sequences = fields.integer("n", 1..=MAX_SEQUENCES_PER_PROMPT)?.unwrap_or(1);
        check_best_of(fields, num_sequences)?;
        Ok(Self {
            num_sequences,
            stream: stream(fields)?,
            returns_token_ids: fields.take("return_token_ids")?.unwrap_or(false),
            token_labels: match fields.take("return_tokens_as_token_ids")? {
                Some(true) => TokenLabels::Ids,
                Some(false) | None => TokenLabels::Texts,
            },
            model: fields.take("model")?,
            sampling: sampling(fields)?,
            stopping: StoppingParams {
                max_tokens: None,
                default_max_tokens: None,
                min_tokens: fields.integer("min_tokens", 0..=MAX_U32)?,
                stop_token_ids: stop_token_ids(fields)?,
                ignore_eos: fields.take("ignore_eos")?,
            },
            stop: StopStrings {
                strings: stop_strings(fields)?,
                include_in_output: fields.take("include_stop_str_in_output")?,
            },
            skip_special_tokens: fields.take("skip_special_tokens")?,
            truncate_prompt_tokens: fields.integer("truncate_prompt_tokens", 1..=MAX_U32)?,
            cache_salt: cache_salt(fields)?,
            priority: fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?,
        })
    }

    /// Sets the bound on output tokens and checks what must stay below it.
    pub(super) fn limit_output(&mut self, max_tokens: Option<u32>) -> Result<(), Error> {
        if let (Some(min), Some(max)) = (self.stopping.min_tokens, max_tokens)
            && min > max
        {
            let message = format!("min_tokens must be at most the {max} tokens of the output, got {min}");
            return Err(Error::invalid("min_tokens", message));
        }
        self.stopping.max_tokens = max_tokens;
        Ok(())
    }

    /// The same with the salt that its caller's prompts have.
    pub(super) fn salted_for(self, caller: &Caller) -> Self {
        Self { cache_salt: caller.cache_salt(self.cache_salt), ..self }
    }

    /// At most how many tokens will be generated for so many prompts, as far as the request says.
    pub(super) fn output_estimate(&self, num_prompts: usize) -> u64 {
        let max_tokens = self.stopping.max_tokens.unwrap_or(ASSUMED_OUTPUT_TOKENS);
        u64::from(max_tokens) * u64::from(self.num_sequences) * num_prompts as u64
    }

    /// The call for one prompt.
    pub(super) fn request(&self, call: Call) -> GenerateRequest {
        GenerateRequest {
            request_id: Some(call.id),
            model: self.model.clone(),
            prompt: Some(call.prompt),
            sampling: Some(self.sampling.clone()),
            stopping: Some(self.stopping.clone()),
            stop: Some(self.stop.clone()),
            logprobs: call.logprobs,
            num_sequences: Some(self.num_sequences),
            skip_special_tokens: self.skip_special_tokens,
            echo: Some(call.echo),
            timeout_us: Some(u64::try_from(call.timeout.as_micros()).unwrap_or(u64::MAX)),
            truncate_prompt_tokens: self.truncate_prompt_tokens,
            cache_salt: self.cache_salt.clone(),
            priority: self.priority,
            group_id: call.group_id,
        }
    }
}

/// What differs from call to call, and from route to route.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) prompt: Prompt,
    pub(super) logprobs: Option<LogprobParams>,
    pub(super) echo: bool,
    pub(super) timeout: Duration,
    /// Where a request has several prompts, what its calls have in common.
    pub(super) group_id: Option<String>,
}

/// Notes the fields that nobody asked for. They are ignored, because clients send what other servers know.
pub(super) fn ignore_rest(fields: &mut Fields<'_>) {
    let unknown = fields.unknown(&HARMLESS);
    if !unknown.is_empty() {
        events::unknown_fields(&unknown);
    }
}

fn stream(fields: &mut Fields<'_>) -> Result<Option<StreamUsage>, Error> {
    let is_stream = fields.take("stream")?.unwrap_or(false);
    match fields.object("stream_options")? {
        Some(_) if !is_stream => {
            Err(Error::invalid("stream_options", "stream_options is only for requests with \"stream\": true"))
        }
        Some(options) => StreamUsage::from_fields(options).map(Some),
        None => Ok(is_stream.then_some(StreamUsage::Never)),
    }
}

fn sampling(fields: &mut Fields<'_>) -> Result<SamplingParams, Error> {
    let unit = NumberRange { low: Bound::Excluded(0.0), high: Bound::Included(1.0) };
    let positive = NumberRange { low: Bound::Excluded(0.0), high: Bound::Unbounded };
    let penalty = NumberRange::between(-2.0, 2.0);
    Ok(SamplingParams {
        temperature: fields.number("temperature", NumberRange::between(0.0, 2.0))?,
        top_p: fields.number("top_p", unit)?,
        top_k: top_k(fields)?,
        min_p: fields.number("min_p", NumberRange::between(0.0, 1.0))?,
        seed: fields.take("seed")?,
        repetition_penalty: fields.number("repetition_penalty", positive)?,
        presence_penalty: fields.number("presence_penalty", penalty)?,
        frequency_penalty: fields.number("frequency_penalty", penalty)?,
        logit_bias: logit_bias(fields)?,
    })
}

/// -1 and 0 both mean off to clients, also where the model's own default is another.
fn top_k(fields: &mut Fields<'_>) -> Result<Option<u32>, Error> {
    let top_k = fields.integer::<i64>("top_k", -1..=MAX_U32)?;
    Ok(top_k.and_then(|top_k| u32::try_from(top_k.max(0)).ok()))
}

/// An object of token ids, as strings, to biases. Biases over the bounds are cut to them.
fn logit_bias(fields: &mut Fields<'_>) -> Result<HashMap<u32, f32>, Error> {
    const NAME: &str = "logit_bias";
    let Some(value) = fields.raw(NAME) else { return Ok(HashMap::new()) };
    let by_key: HashMap<String, &RawValue> =
        serde_json::from_str(value.get()).map_err(|_| wrong(NAME, "an object", value))?;
    at_most(NAME, by_key.len(), MAX_BIASES, "entries")?;
    let mut biases = HashMap::with_capacity(by_key.len());
    for (key, value) in by_key {
        let id: u32 = key.parse().map_err(|_| {
            let shown: String = key.chars().take(32).collect();
            Error::invalid(NAME, format!("the keys of {NAME} must be token ids, got {shown:?}"))
        })?;
        let bias: f64 = parse(&format!("{NAME}.{id}"), value)?;
        #[expect(clippy::cast_possible_truncation, reason = "within the bounds")]
        biases.insert(id, bias.clamp(-MAX_BIAS, MAX_BIAS) as f32);
    }
    Ok(biases)
}

/// More candidates than answers would have to be ranked here.
fn check_best_of(fields: &mut Fields<'_>, num_sequences: u32) -> Result<(), Error> {
    match fields.take::<i64>("best_of")? {
        None | Some(1) => Ok(()),
        Some(best_of) if best_of == i64::from(num_sequences) => Ok(()),
        Some(_) => Err(unsupported("best_of")),
    }
}

fn stop_token_ids(fields: &mut Fields<'_>) -> Result<Vec<u32>, Error> {
    const NAME: &str = "stop_token_ids";
    let ids = fields.array(NAME)?.unwrap_or_default();
    at_most(NAME, ids.len(), MAX_STOP_TOKEN_IDS, "token ids")?;
    Ok(ids)
}

/// A string or an array of strings.
fn stop_strings(fields: &mut Fields<'_>) -> Result<Vec<String>, Error> {
    const NAME: &str = "stop";
    let Some(value) = fields.raw(NAME) else { return Ok(Vec::new()) };
    let strings = match value.get().as_bytes().first() {
        Some(b'"') => vec![parse(NAME, value)?],
        Some(b'[') => parse_array(NAME, value)?,
        _ => return Err(wrong(NAME, "a string or an array of strings", value)),
    };
    at_most(NAME, strings.len(), MAX_STOP_STRINGS, "strings")?;
    at_most(NAME, strings.iter().map(String::len).sum(), MAX_STOP_BYTES, "bytes")?;
    if strings.iter().any(String::is_empty) {
        return Err(Error::invalid(NAME, format!("{NAME} must not contain an empty string")));
    }
    Ok(strings)
}

/// An empty one is refused: a salt that was meant to be set and was not would share what must stay apart.
fn cache_salt(fields: &mut Fields<'_>) -> Result<Option<String>, Error> {
    const NAME: &str = "cache_salt";
    let Some(salt) = fields.take::<String>(NAME)? else { return Ok(None) };
    if salt.is_empty() {
        return Err(Error::invalid(NAME, format!("{NAME} must not be empty; leave it out to have none")));
    }
    at_most(NAME, salt.len(), MAX_CACHE_SALT_BYTES, "bytes")?;
    Ok(Some(salt))
}

fn at_most(name: &str, num: usize, most: usize, what: &str) -> Result<(), Error> {
    if num <= most {
        return Ok(());
    }
    Err(Error::invalid(name, format!("{name} must have at most {most} {what}, got {num}")))
}

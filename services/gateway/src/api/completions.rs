use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use fused_proto::common::v1::LogprobParams;
use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::prompt::Prompt as PromptKind;
use fused_proto::text::v1::{Prompt, PromptInfo, TextIncrement, TextLogprobs};
use fused_status::Error;
use serde::Serialize;

use super::envelope::{Envelope, Names, hold_until_sent};
use super::finish::{Finish, StopReason};
use super::logprobs::{CompletionLogprobs, TokenLabels};
use super::parameters::{Call, MAX_LOGPROBS, MAX_U32, Parameters, ignore_rest};
use super::prompts::{most_tokens, prompts, tokens_estimate};
use super::usage::{RunningUsage, Usage};
use crate::admission::JsonBody;
use crate::auth::Caller;
use crate::error;
use crate::field_names::FieldNames;
use crate::fields::Fields;
use crate::gateway::Shared;
use crate::generation::{Answer, Collected, Generation, Holdings, check_output_logprobs, choice_idx};
use crate::identity::RequestContext;
use crate::sse::{self, Chunks, Events};

const NAMES: Names = Names { id_prefix: "cmpl", object: "text_completion" };
const DEFAULT_MAX_TOKENS: u32 = 16;
/// Of all prompts together: what one request may put into the engine's queue.
const MAX_SEQUENCES: usize = 1024;
/// Of all echoed prompts together, once a choice: each takes about a hundred bytes here and in the answer, so that a
/// small body could ask for gigabytes.
const MAX_ECHOED_LOGPROBS: usize = 1 << 22;

/// `POST /v1/completions`.
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(context): Extension<RequestContext>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> error::Result<Response> {
    let max_prompts = shared.config.max_prompts;
    let (request, share) = body.read(move |fields| Request::from_fields(fields, max_prompts)).await?;
    let Request { parameters, prompts, add_special_tokens, num_logprobs, form } = request.salted_for(&caller);
    let prompt_tokens = prompts.iter().map(tokens_estimate).sum();
    let meter = caller.meter(
        &context.served,
        prompts.len(),
        prompt_tokens,
        parameters.output_estimate(prompts.len()),
    )?;
    let envelope = Envelope::new(&NAMES, &context, shared.backend.model().await?);
    let num_prompts = prompts.len();
    let calls = prompts.into_iter().enumerate().map(|(prompt_idx, prompt)| {
        parameters.request(Call {
            id: context.call_id(prompt_idx),
            prompt: Prompt { prompt: Some(prompt), add_special_tokens },
            logprobs: num_logprobs
                .map(|num| LogprobParams { num_output: Some(num), num_prompt: form.has_echo.then_some(num) }),
            echo: form.has_echo,
            timeout: shared.config.request_timeout,
            group_id: (num_prompts > 1).then(|| context.unique_id.to_string()),
        })
    });
    let calls = calls.collect();
    let holdings = Holdings { share, meter };
    let generation = Generation::start(&shared.backend, calls, FieldNames::COMPLETIONS, holdings);
    match parameters.stream {
        Some(usage) => {
            let keep_alive = shared.config.keep_alive_interval;
            let generation = generation.first_answer(keep_alive).await?;
            let chunks = CompletionChunks { envelope, form, usage: RunningUsage::new(usage) };
            Ok(sse::respond(generation, chunks, keep_alive, context))
        }
        None => {
            let (collected, share) = generation.collect(num_prompts).await?;
            Ok(hold_until_sent(whole(&envelope, form, collected)?, share))
        }
    }
}

struct Request {
    parameters: Parameters,
    prompts: Vec<PromptKind>,
    add_special_tokens: Option<bool>,
    num_logprobs: Option<u32>,
    form: Form,
}

/// What the answer looks like.
#[derive(Clone, Copy)]
struct Form {
    num_sequences: u32,
    has_echo: bool,
    has_logprobs: bool,
    has_token_ids: bool,
    token_labels: TokenLabels,
}

impl Form {
    fn logprobs<'a>(self, positions: impl IntoIterator<Item = &'a TextLogprobs>) -> CompletionLogprobs {
        CompletionLogprobs::new(positions, self.token_labels)
    }
}

impl Request {
    fn from_fields(fields: &mut Fields<'_>, max_prompts: usize) -> Result<Self, Error> {
        fields.refuse_unless_neutral(&[("documents", &[])])?;
        let mut parameters = Parameters::from_fields(fields)?;
        let has_echo = fields.take("echo")?.unwrap_or(false);
        let max_tokens = fields.integer("max_tokens", 0..=MAX_U32)?.unwrap_or(DEFAULT_MAX_TOKENS);
        parameters.limit_output(Some(max_tokens))?;
        let num_logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?;
        let prompts = prompts(fields)?;
        check_count(prompts.len(), max_prompts, parameters.num_sequences)?;
        if let Some(num_logprobs) = num_logprobs {
            if has_echo {
                check_echoed_logprobs(&prompts, parameters.num_sequences, num_logprobs)?;
            }
            if parameters.stream.is_none() {
                let num_sequences = prompts.len() * parameters.num_sequences as usize;
                check_output_logprobs(num_sequences, max_tokens, num_logprobs)
                    .map_err(|error| error.with_param("logprobs"))?;
            }
        }
        let add_special_tokens = fields.take("add_special_tokens")?;
        ignore_rest(fields);
        let form = Form {
            num_sequences: parameters.num_sequences,
            has_echo,
            has_logprobs: num_logprobs.is_some(),
            has_token_ids: parameters.returns_token_ids,
            token_labels: parameters.token_labels,
        };
        Ok(Self { parameters, prompts, add_special_tokens, num_logprobs, form })
    }

    fn salted_for(self, caller: &Caller) -> Self {
        Self { parameters: self.parameters.salted_for(caller), ..self }
    }
}

fn check_count(num_prompts: usize, max_prompts: usize, num_sequences: u32) -> Result<(), Error> {
    if num_prompts > max_prompts {
        let message = format!("prompt must have at most {max_prompts} prompts, got {num_prompts}");
        return Err(Error::invalid("prompt", message));
    }
    if num_prompts * num_sequences as usize > MAX_SEQUENCES {
        let message = format!(
            "n must be at most {} for {num_prompts} prompts, got {num_sequences}",
            MAX_SEQUENCES / num_prompts
        );
        return Err(Error::invalid("n", message));
    }
    Ok(())
}

fn check_echoed_logprobs(prompts: &[PromptKind], num_sequences: u32, num_logprobs: u32) -> Result<(), Error> {
    let num_positions = prompts.iter().map(most_tokens).sum::<usize>().saturating_mul(num_sequences as usize);
    let num_echoed = num_positions.saturating_mul(num_logprobs as usize + 1);
    if num_echoed > MAX_ECHOED_LOGPROBS {
        let message = format!(
            "logprobs asks for up to {num_echoed} log-probabilities of echoed prompts, over {MAX_ECHOED_LOGPROBS}; lower \
             logprobs or n, or send fewer or shorter prompts"
        );
        return Err(Error::invalid("logprobs", message));
    }
    Ok(())
}

/// A choice, or what one chunk adds to it.
#[derive(Default, Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

fn whole(envelope: &Envelope, form: Form, collected: Collected) -> Result<Response, Error> {
    let Collected { prompts, sequences, usages, .. } = collected;
    let prompt_of_choice =
        prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, form.num_sequences as usize));
    let mut choices = Vec::with_capacity(sequences.len());
    for ((index, sequence), prompt) in sequences.into_iter().enumerate().zip(prompt_of_choice) {
        let Finish { reason, stop_reason } = Finish::try_from(sequence.finish)?;
        let echo = if form.has_echo { prompt.text() } else { "" };
        let logprobs =
            form.has_logprobs.then(|| form.logprobs(prompt.logprobs.iter().chain(&sequence.logprobs)));
        choices.push(Choice {
            index,
            text: format!("{echo}{}", sequence.text),
            logprobs,
            finish_reason: Some(reason),
            stop_reason,
            token_ids: form.has_token_ids.then_some(sequence.token_ids),
            prompt_token_ids: form.has_token_ids.then(|| prompt.token_ids.clone()),
        });
    }
    Ok(Json(envelope.hold(&choices, Some(Some(Usage::total(&usages))))).into_response())
}

/// The chunks of a streamed answer: the same object as the whole one, piece by piece.
struct CompletionChunks {
    envelope: Envelope,
    form: Form,
    usage: RunningUsage,
}

impl CompletionChunks {
    fn push(&self, choice: Choice, events: &mut Events) -> Result<(), Error> {
        events.push(&self.envelope.hold(&[choice], self.usage.of_chunk()))
    }

    /// The prompt, for each of its choices, where it is asked for.
    fn prompt(&self, prompt_idx: usize, info: &PromptInfo, events: &mut Events) -> Result<(), Error> {
        if !self.form.has_echo && !self.form.has_token_ids {
            return Ok(());
        }
        let echo = if self.form.has_echo { info.text() } else { "" };
        for sequence_idx in 0..self.form.num_sequences {
            let choice = Choice {
                index: choice_idx(prompt_idx, Some(sequence_idx), self.form.num_sequences)?,
                text: echo.to_owned(),
                logprobs: self.logprobs(&info.logprobs),
                prompt_token_ids: self.form.has_token_ids.then(|| info.token_ids.clone()),
                ..Choice::default()
            };
            self.push(choice, events)?;
        }
        Ok(())
    }

    fn text(&self, prompt_idx: usize, increment: TextIncrement, events: &mut Events) -> Result<(), Error> {
        let says_nothing = increment.text().is_empty() && increment.logprobs.is_empty();
        if says_nothing && !self.form.has_token_ids {
            return Ok(());
        }
        let choice = Choice {
            index: choice_idx(prompt_idx, increment.sequence_idx, self.form.num_sequences)?,
            logprobs: self.logprobs(&increment.logprobs),
            text: increment.text.unwrap_or_default(),
            token_ids: self.form.has_token_ids.then_some(increment.token_ids),
            ..Choice::default()
        };
        self.push(choice, events)
    }

    fn logprobs(&self, positions: &[TextLogprobs]) -> Option<CompletionLogprobs> {
        (self.form.has_logprobs && !positions.is_empty()).then(|| self.form.logprobs(positions))
    }
}

impl Chunks for CompletionChunks {
    fn answer(&mut self, answer: Answer, events: &mut Events) -> Result<(), Error> {
        self.usage.count(&answer.message);
        match answer.message {
            Message::PromptInfo(info) => self.prompt(answer.prompt_idx, &info, events),
            Message::Text(increment) => self.text(answer.prompt_idx, increment, events),
            Message::Finish(info) => {
                let index = choice_idx(answer.prompt_idx, info.sequence_idx, self.form.num_sequences)?;
                let Finish { reason, stop_reason } = Finish::try_from(info)?;
                let choice = Choice { index, finish_reason: Some(reason), stop_reason, ..Choice::default() };
                self.push(choice, events)
            }
            Message::Usage(_) => Ok(()),
        }
    }

    fn end(&mut self, events: &mut Events) -> Result<(), Error> {
        match self.usage.at_end() {
            Some(usage) => events.push(&self.envelope.hold::<Choice>(&[], Some(Some(usage)))),
            None => Ok(()),
        }
    }
}

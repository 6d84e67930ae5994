use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use fused_proto::common::v1::LogprobParams;
use fused_proto::text::v1::generate_response::Message;
use fused_proto::text::v1::prompt::Prompt as PromptKind;
use fused_proto::text::v1::{Prompt, PromptInfo, TextIncrement};
use fused_status::Error;
use serde::Serialize;

use super::conversation::{chat, check_tool_choice};
use super::envelope::{Envelope, Names, hold_until_sent};
use super::finish::{Finish, StopReason};
use super::logprobs::{ChatLogprobs, TokenLabels};
use super::parameters::{Call, MAX_LOGPROBS, MAX_U32, Parameters, ignore_rest};
use super::prompts::tokens_estimate;
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

const NAMES: Names = Names { id_prefix: "chatcmpl", object: "chat.completion" };
const CHUNK_NAMES: Names = Names { id_prefix: "chatcmpl", object: "chat.completion.chunk" };

/// `POST /v1/chat/completions`. What the model writes is the message's content.
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Extension(context): Extension<RequestContext>,
    Extension(caller): Extension<Caller>,
    body: JsonBody,
) -> error::Result<Response> {
    let (request, share) = body.read(Request::from_fields).await?;
    let Request { parameters, prompt, num_logprobs, form, names } = request;
    let parameters = parameters.salted_for(&caller);
    let prompt_tokens = prompt.prompt.as_ref().map_or(0, tokens_estimate);
    let meter = caller.meter(&context.served, 1, prompt_tokens, parameters.output_estimate(1))?;
    let model = shared.backend.model().await?;
    let call = parameters.request(Call {
        id: context.call_id(0),
        prompt,
        logprobs: num_logprobs.map(|num| LogprobParams { num_output: Some(num), num_prompt: None }),
        echo: false,
        timeout: shared.config.request_timeout,
        group_id: None,
    });
    let holdings = Holdings { share, meter };
    let generation = Generation::start(&shared.backend, vec![call], names, holdings);
    match parameters.stream {
        Some(usage) => {
            let keep_alive = shared.config.keep_alive_interval;
            let generation = generation.first_answer(keep_alive).await?;
            let envelope = Envelope::new(&CHUNK_NAMES, &context, model);
            let chunks = ChatChunks { envelope, form, usage: RunningUsage::new(usage) };
            Ok(sse::respond(generation, chunks, keep_alive, context))
        }
        None => {
            let envelope = Envelope::new(&NAMES, &context, model);
            let (collected, share) = generation.collect(1).await?;
            Ok(hold_until_sent(whole(&envelope, form, collected)?, share))
        }
    }
}

struct Request {
    parameters: Parameters,
    prompt: Prompt,
    num_logprobs: Option<u32>,
    form: Form,
    names: FieldNames,
}

/// What the answer looks like.
#[derive(Clone, Copy)]
struct Form {
    num_sequences: u32,
    has_logprobs: bool,
    has_token_ids: bool,
    token_labels: TokenLabels,
}

impl Request {
    fn from_fields(fields: &mut Fields<'_>) -> Result<Self, Error> {
        fields.refuse_unless_neutral(&[("echo", &[])])?;
        let mut parameters = Parameters::from_fields(fields)?;
        // Both are read, so that a wrong one is refused even where the other counts.
        let deprecated = fields.integer("max_tokens", 0..=MAX_U32)?;
        let max_tokens = fields.integer("max_completion_tokens", 0..=MAX_U32)?;
        let names = FieldNames {
            max_tokens: if max_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" },
            ..FieldNames::CHAT
        };
        let max_tokens = max_tokens.or(deprecated);
        parameters.limit_output(max_tokens)?;
        let num_logprobs = num_logprobs(fields)?;
        if let (Some(num_logprobs), Some(max_tokens), None) = (num_logprobs, max_tokens, parameters.stream) {
            check_output_logprobs(parameters.num_sequences as usize, max_tokens, num_logprobs)
                .map_err(|error| error.with_param(names.logprobs))?;
        }
        let tool_choice = fields.raw("tool_choice");
        let chat = chat(fields)?;
        check_tool_choice(tool_choice, chat.tools_json.is_some())?;
        let add_special_tokens = fields.take("add_special_tokens")?;
        ignore_rest(fields);
        let form = Form {
            num_sequences: parameters.num_sequences,
            has_logprobs: num_logprobs.is_some(),
            has_token_ids: parameters.returns_token_ids,
            token_labels: parameters.token_labels,
        };
        let prompt = Prompt { prompt: Some(PromptKind::Chat(chat)), add_special_tokens };
        Ok(Self { parameters, prompt, num_logprobs, form, names })
    }
}

fn num_logprobs(fields: &mut Fields<'_>) -> Result<Option<u32>, Error> {
    let has_logprobs = fields.take("logprobs")?.unwrap_or(false);
    let num_top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS)?;
    if !has_logprobs && num_top.is_some_and(|num| num > 0) {
        let message = "top_logprobs is only for requests with \"logprobs\": true";
        return Err(Error::invalid("top_logprobs", message));
    }
    Ok(has_logprobs.then(|| num_top.unwrap_or(0)))
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct AssistantMessage {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

fn whole(envelope: &Envelope, form: Form, collected: Collected) -> Result<Response, Error> {
    let Collected { prompts, sequences, usages, .. } = collected;
    let mut choices = Vec::with_capacity(sequences.len());
    for (index, sequence) in sequences.into_iter().enumerate() {
        let Finish { reason, stop_reason } = Finish::try_from(sequence.finish)?;
        choices.push(Choice {
            index,
            message: AssistantMessage { role: "assistant", content: sequence.text, refusal: None },
            logprobs: form.has_logprobs.then(|| ChatLogprobs::new(sequence.logprobs, form.token_labels)),
            finish_reason: reason,
            stop_reason,
            token_ids: form.has_token_ids.then_some(sequence.token_ids),
        });
    }
    let prompt_token_ids = prompts.first().map(|prompt| &*prompt.token_ids);
    let answer = envelope
        .hold(&choices, Some(Some(Usage::total(&usages))))
        .with_prompt_token_ids(prompt_token_ids.filter(|_| form.has_token_ids));
    Ok(Json(answer).into_response())
}

/// What one chunk adds to a choice.
#[derive(Default, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// The chunks of a streamed answer: for each choice its role, then its text in pieces, then why it ended.
struct ChatChunks {
    envelope: Envelope,
    form: Form,
    usage: RunningUsage,
}

impl ChatChunks {
    fn roles(&self, info: &PromptInfo, events: &mut Events) -> Result<(), Error> {
        for index in 0..self.form.num_sequences as usize {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            let choices = [ChunkChoice { index, delta, ..ChunkChoice::default() }];
            let chunk = self.envelope.hold(&choices, self.usage.of_chunk());
            events.push(&chunk.with_prompt_token_ids(self.form.has_token_ids.then_some(&info.token_ids)))?;
        }
        Ok(())
    }

    fn text(&self, increment: TextIncrement, events: &mut Events) -> Result<(), Error> {
        let says_nothing = increment.text().is_empty() && increment.logprobs.is_empty();
        if says_nothing && !self.form.has_token_ids {
            return Ok(());
        }
        let has_logprobs = self.form.has_logprobs && !increment.logprobs.is_empty();
        let choice = ChunkChoice {
            index: choice_idx(0, increment.sequence_idx, self.form.num_sequences)?,
            delta: Delta { role: None, content: Some(increment.text.unwrap_or_default()) },
            logprobs: has_logprobs.then(|| ChatLogprobs::new(increment.logprobs, self.form.token_labels)),
            token_ids: self.form.has_token_ids.then_some(increment.token_ids),
            ..ChunkChoice::default()
        };
        self.push(choice, events)
    }

    fn push(&self, choice: ChunkChoice, events: &mut Events) -> Result<(), Error> {
        events.push(&self.envelope.hold(&[choice], self.usage.of_chunk()))
    }
}

impl Chunks for ChatChunks {
    fn answer(&mut self, answer: Answer, events: &mut Events) -> Result<(), Error> {
        self.usage.count(&answer.message);
        match answer.message {
            Message::PromptInfo(info) => self.roles(&info, events),
            Message::Text(increment) => self.text(increment, events),
            Message::Finish(info) => {
                let index = choice_idx(0, info.sequence_idx, self.form.num_sequences)?;
                let Finish { reason, stop_reason } = Finish::try_from(info)?;
                let choice =
                    ChunkChoice { index, finish_reason: Some(reason), stop_reason, ..ChunkChoice::default() };
                self.push(choice, events)
            }
            Message::Usage(_) => Ok(()),
        }
    }

    fn end(&mut self, events: &mut Events) -> Result<(), Error> {
        match self.usage.at_end() {
            Some(usage) => events.push(&self.envelope.hold::<ChunkChoice>(&[], Some(Some(usage)))),
            None => Ok(()),
        }
    }
}

//! The wire's requests, checked and turned into ours.

use std::time::Duration;

use fused_proto::text::v1 as wire;
use fused_proto::text::v1::prompt::Prompt as WirePrompt;
use fused_status::{Error, Result};
use fused_vocabulary::{SpecialText, SpecialTokens, TokenId};
use tokio::time::Instant;

use crate::chat_template::ChatRequest;
use crate::engines::Parameters;
use crate::generate::GenerateRequest;
use crate::prompt::{Prompt, TextPrompt, TextSource};
use crate::stop::{StopStrings, StopText};
use crate::tokenizer::Core;

/// The most sequences of one prompt.
const MAX_SEQUENCES: u32 = 128;
/// The longest request id.
const MAX_ID_BYTES: usize = 128;

pub(super) fn generate(request: wire::GenerateRequest, core: &Core) -> Result<GenerateRequest> {
    let num_sequences = request.num_sequences.unwrap_or(1);
    if !(1..=MAX_SEQUENCES).contains(&num_sequences) {
        return Err(Error::invalid("n", format!("n must be 1 to {MAX_SEQUENCES}, got {num_sequences}")));
    }
    if request.truncate_prompt_tokens == Some(0) {
        return Err(Error::invalid("truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1"));
    }
    let mut sampling = request.sampling.unwrap_or_default();
    let mut stopping = request.stopping.unwrap_or_default();
    core.generation_defaults.fill(&mut sampling, &mut stopping);
    let special = special_text(request.skip_special_tokens.unwrap_or(true));
    let deadline = request.timeout_us.and_then(|us| Instant::now().checked_add(Duration::from_micros(us)));
    Ok(GenerateRequest {
        id: request_id(request.request_id, core)?,
        prompt: prompt(request.prompt)?,
        truncate_prompt_tokens: request.truncate_prompt_tokens.map(|num| num as usize),
        stop: stop_strings(request.stop)?,
        min_tokens: stopping.min_tokens() as usize,
        num_sequences: num_sequences as usize,
        special,
        echo: request.echo.unwrap_or(false),
        deadline,
        parameters: Parameters {
            sampling: Some(sampling),
            stopping: Some(stopping),
            logprobs: request.logprobs,
            cache_salt: request.cache_salt,
            priority: request.priority,
            group_id: request.group_id,
        },
    })
}

pub(super) fn prompt(prompt: Option<wire::Prompt>) -> Result<Prompt> {
    let prompt = prompt.unwrap_or_default();
    let add = prompt.add_special_tokens;
    match prompt.prompt {
        None => Err(Error::invalid("prompt", "the prompt is missing")),
        Some(WirePrompt::Text(text)) => Ok(Prompt::Text(TextPrompt {
            source: TextSource::Plain(text),
            special_tokens: special_tokens(add.unwrap_or(true)),
        })),
        Some(WirePrompt::TokenIds(tokens)) => {
            Ok(Prompt::Tokens(tokens.ids.into_iter().map(TokenId).collect()))
        }
        Some(WirePrompt::Chat(conversation)) => Ok(Prompt::Text(chat(conversation, add))),
    }
}

/// The template writes the special tokens itself, so none are added unless asked for. The conversation is still JSON:
/// parsing it is work for the encoding threads.
pub(super) fn chat(chat: wire::Chat, add_special_tokens: Option<bool>) -> TextPrompt {
    let request = ChatRequest {
        continue_final_message: chat.continue_final_message(),
        add_generation_prompt: chat.add_generation_prompt,
        messages: chat.messages_json,
        tools: chat.tools_json,
        variables: chat.template_variables_json,
        template: chat.template,
    };
    TextPrompt {
        source: TextSource::Chat(Box::new(request)),
        special_tokens: special_tokens(add_special_tokens.unwrap_or(false)),
    }
}

pub(super) fn special_text(skip: bool) -> SpecialText {
    if skip { SpecialText::Skip } else { SpecialText::Keep }
}

fn special_tokens(add: bool) -> SpecialTokens {
    if add { SpecialTokens::Add } else { SpecialTokens::Omit }
}

fn stop_strings(stop: Option<wire::StopStrings>) -> Result<StopStrings> {
    let stop = stop.unwrap_or_default();
    let text = if stop.include_in_output() { StopText::Include } else { StopText::Cut };
    StopStrings::new(stop.strings, text)
}

fn request_id(id: Option<String>, core: &Core) -> Result<String> {
    match id {
        None => Ok(core.new_request_id()),
        Some(id) if id.is_empty() || id.len() > MAX_ID_BYTES => {
            Err(Error::invalid("request_id", format!("request_id must have 1 to {MAX_ID_BYTES} bytes")))
        }
        Some(id) => Ok(id),
    }
}

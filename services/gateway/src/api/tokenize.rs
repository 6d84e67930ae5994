use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fused_proto::text::v1::prompt::Prompt as PromptKind;
use fused_proto::text::v1::{Prompt, TokenizeRequest};
use serde::Serialize;

use super::conversation::chat;
use super::parameters::ignore_rest;
use crate::admission::JsonBody;
use crate::error::{Failure, Result};
use crate::field_names::FieldNames;
use crate::fields::missing;
use crate::gateway::Shared;

/// A text's token ids.
#[derive(Serialize)]
pub(super) struct Tokenized {
    count: usize,
    max_model_len: Option<u32>,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
    /// How many tokens the base vocabulary takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_count: Option<u32>,
}

/// `POST /tokenize`: of `prompt`, or of `messages` as the chat template renders them.
pub(super) async fn tokenize(State(shared): State<Arc<Shared>>, body: JsonBody) -> Result<Json<Tokenized>> {
    let mut fields = body.fields()?;
    let model = fields.take("model")?;
    let (prompt, names) = match fields.take("prompt")? {
        Some(text) => (PromptKind::Text(text), FieldNames::COMPLETIONS),
        None if fields.has("messages") => (PromptKind::Chat(chat(&mut fields)?), FieldNames::CHAT),
        None => return Err(missing("prompt").into()),
    };
    let add_special_tokens = fields.take("add_special_tokens")?;
    let has_strings = fields.take("return_token_strs")?.unwrap_or(false);
    ignore_rest(&mut fields);
    let request = TokenizeRequest {
        model,
        prompt: Some(Prompt { prompt: Some(prompt), add_special_tokens }),
        return_token_texts: Some(has_strings),
    };
    let answered = shared.backend.call(request, async |mut client, request| client.tokenize(request).await);
    let tokenized = answered.await.map_err(|error| Failure(names.rename(error)))?;
    Ok(Json(Tokenized {
        count: tokenized.token_ids.len(),
        max_model_len: tokenized.max_model_len,
        tokens: tokenized.token_ids,
        token_strs: has_strings.then_some(tokenized.token_texts),
        base_count: tokenized.base_tokens,
    }))
}

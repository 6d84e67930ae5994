use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fused_proto::text::v1::DetokenizeRequest;
use serde::Serialize;

use super::parameters::ignore_rest;
use crate::admission::JsonBody;
use crate::backend::traced;
use crate::error::Result;
use crate::fields::missing;
use crate::gateway::Shared;

/// The text of token ids.
#[derive(Serialize)]
pub(super) struct Detokenized {
    prompt: String,
}

/// `POST /detokenize`.
pub(super) async fn detokenize(
    State(shared): State<Arc<Shared>>,
    body: JsonBody,
) -> Result<Json<Detokenized>> {
    let mut fields = body.fields()?;
    let request = traced(DetokenizeRequest {
        model: fields.take("model")?,
        token_ids: fields.array("tokens")?.ok_or_else(|| missing("tokens"))?,
        skip_special_tokens: fields.take("skip_special_tokens")?,
    });
    ignore_rest(&mut fields);
    let detokenized = shared.backend.client().detokenize(request).await?.into_inner();
    Ok(Json(Detokenized { prompt: detokenized.text.unwrap_or_default() }))
}

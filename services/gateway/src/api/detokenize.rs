use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fused_proto::text::v1::DetokenizeRequest;
use fused_status::Error;
use serde::Serialize;

use super::parameters::ignore_rest;
use crate::admission::JsonBody;
use crate::error::{Failure, Result};
use crate::field_names::FieldNames;
use crate::fields::{Fields, missing};
use crate::gateway::Shared;

const NAMES: FieldNames = FieldNames { prompt: "tokens", ..FieldNames::COMPLETIONS };

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
    let (request, _share) = body.read(read).await?;
    let answered = shared.backend.call(request, async |mut client, request| client.detokenize(request).await);
    let detokenized = answered.await.map_err(|error| Failure(NAMES.rename(error)))?;
    Ok(Json(Detokenized { prompt: detokenized.text.unwrap_or_default() }))
}

fn read(fields: &mut Fields<'_>) -> std::result::Result<DetokenizeRequest, Error> {
    let request = DetokenizeRequest {
        model: fields.take("model")?,
        token_ids: fields.array("tokens")?.ok_or_else(|| missing("tokens"))?,
        skip_special_tokens: fields.take("skip_special_tokens")?,
    };
    ignore_rest(fields);
    Ok(request)
}

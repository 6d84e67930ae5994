use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use fused_proto::text::v1::GetTokenizerInfoRequest;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

use crate::error::{Fault, Result};
use crate::gateway::Shared;

/// `GET /tokenizer_info`: what clients that tokenize over `/tokenize` need to know beside it, as vLLM has it.
pub(super) async fn tokenizer_info(State(shared): State<Arc<Shared>>) -> Result<Response> {
    let request = GetTokenizerInfoRequest::default();
    let info =
        shared.backend.call(request, async |mut client, request| client.get_tokenizer_info(request).await);
    let json = info.await?.json.ok_or(Fault::Incomplete("what it is asked for"))?;
    let mut response = Response::new(json.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

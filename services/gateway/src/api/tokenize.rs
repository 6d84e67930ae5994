use std::io::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use fused_proto::text::v1::prompt::Prompt as PromptKind;
use fused_proto::text::v1::{Prompt, TokenizeRequest, TokenizeResponse};
use fused_status::Error;
use futures_util::{Stream, stream};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use tonic::Streaming;

use super::conversation::chat;
use super::parameters::ignore_rest;
use crate::admission::{JsonBody, Share};
use crate::backend::Client;
use crate::error::{Failure, Fault, Result};
use crate::field_names::FieldNames;
use crate::fields::{Fields, missing};
use crate::gateway::Shared;

/// What a running answer takes: a piece of it, as it came and as JSON.
const RUNNING_BYTES: usize = 512 << 10;

/// `POST /tokenize`: of `prompt`, or of `messages` as the chat template renders them. The answer to a long text is written
/// as it comes, and takes no more memory than a short one.
pub(super) async fn tokenize(State(shared): State<Arc<Shared>>, body: JsonBody) -> Result<Response> {
    let ((request, names), mut share) = body.read(read).await?;
    let has_strings = request.return_token_pieces();
    let call = async |mut client: Client, request| client.tokenize_stream(request).await;
    let renamed = |error: Error| Failure(names.rename(error));
    let mut pieces = shared.backend.call(request, call).await.map_err(renamed)?;
    let first = pieces.message().await.map_err(|status| renamed(status.into()))?.ok_or(Fault::EndedEarly)?;
    // The text has gone on.
    share.shrink_to(RUNNING_BYTES);
    let mut answer = Answer::new(&first, has_strings);
    let begun = answer.write(first)?;
    let body = if answer.is_whole() {
        Body::from(begun)
    } else {
        Body::from_stream(written(Running { answer, begun: Some(begun), pieces, _share: share }))
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn read(fields: &mut Fields<'_>) -> std::result::Result<(TokenizeRequest, FieldNames), Error> {
    let model = fields.take("model")?;
    let (prompt, names) = match fields.take("prompt")? {
        Some(text) => (PromptKind::Text(text), FieldNames::COMPLETIONS),
        None if fields.has("messages") => (PromptKind::Chat(chat(fields)?), FieldNames::CHAT),
        None => return Err(missing("prompt")),
    };
    let add_special_tokens = fields.take("add_special_tokens")?;
    let has_strings = fields.take("return_token_strs")?.unwrap_or(false);
    ignore_rest(fields);
    let prompt = Some(Prompt { prompt: Some(prompt), add_special_tokens });
    let request = TokenizeRequest {
        model,
        prompt,
        return_token_pieces: Some(has_strings),
        ..TokenizeRequest::default()
    };
    Ok((request, names))
}

/// An answer on its way.
struct Running {
    answer: Answer,
    begun: Option<Bytes>,
    pieces: Streaming<TokenizeResponse>,
    _share: Share,
}

/// The rest of an answer. Where it cannot be had the body breaks off, which the client sees.
fn written(running: Running) -> impl Stream<Item = std::result::Result<Bytes, Error>> {
    stream::try_unfold(running, async |mut running| {
        if let Some(begun) = running.begun.take() {
            return Ok(Some((begun, running)));
        }
        if running.answer.is_whole() {
            return Ok(None);
        }
        let piece = running.pieces.message().await?.ok_or(Fault::EndedEarly)?;
        let written = running.answer.write(piece)?;
        Ok(Some((written, running)))
    })
}

/// The JSON of an answer, `{"count":…,"max_model_len":…,"base_count":…,"tokens":[…],"token_strs":[…]}`, piece by piece.
struct Answer {
    num_tokens: usize,
    has_strings: bool,
    /// What was not written yet stands before the first id.
    head: Option<String>,
    num_ids: usize,
    num_strings: usize,
    is_closed: bool,
}

impl Answer {
    fn new(first: &TokenizeResponse, has_strings: bool) -> Self {
        let count = first.num_tokens();
        let max_model_len = first.max_model_len.map_or("null".to_owned(), |len| len.to_string());
        let base_count = first.base_tokens.map_or(String::new(), |count| format!("\"base_count\":{count},"));
        let head = format!("{{\"count\":{count},\"max_model_len\":{max_model_len},{base_count}\"tokens\":[");
        let num_tokens = count as usize;
        Self { num_tokens, has_strings, head: Some(head), num_ids: 0, num_strings: 0, is_closed: false }
    }

    fn is_whole(&self) -> bool {
        self.is_closed
    }

    fn write(&mut self, piece: TokenizeResponse) -> std::result::Result<Bytes, Fault> {
        let mut json = BytesMut::new().writer();
        if let Some(head) = self.head.take() {
            json.get_mut().put_slice(head.as_bytes());
        }
        for id in piece.token_ids {
            let comma = if self.num_ids == 0 { "" } else { "," };
            // Writing to a buffer in memory does not fail.
            let _ = write!(json, "{comma}{id}");
            self.num_ids += 1;
        }
        if self.num_ids < self.num_tokens {
            return Ok(json.into_inner().freeze());
        }
        for text in piece.token_pieces {
            json.get_mut().put_slice(if self.num_strings == 0 { b"],\"token_strs\":[" } else { b"," });
            serde_json::to_writer(&mut json, &text)?;
            self.num_strings += 1;
        }
        if !self.has_strings || self.num_strings >= self.num_tokens {
            if self.has_strings && self.num_tokens == 0 {
                json.get_mut().put_slice(b"],\"token_strs\":[");
            }
            json.get_mut().put_slice(b"]}");
            self.is_closed = true;
        }
        Ok(json.into_inner().freeze())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn piece(num_tokens: Option<u32>, token_ids: &[u32], texts: &[&str]) -> TokenizeResponse {
        TokenizeResponse {
            token_ids: token_ids.to_vec(),
            token_pieces: texts.iter().map(|text| (*text).to_owned()).collect(),
            num_tokens,
            ..TokenizeResponse::default()
        }
    }

    fn written(has_strings: bool, pieces: &[TokenizeResponse]) -> Value {
        let mut answer = Answer::new(&pieces[0], has_strings);
        let mut json = Vec::new();
        for piece in pieces {
            assert!(!answer.is_whole());
            json.extend_from_slice(&answer.write(piece.clone()).unwrap());
        }
        assert!(answer.is_whole());
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn pieces_make_one_object_wherever_they_are_cut() {
        let ids = json!({"count": 3, "max_model_len": null, "tokens": [7, 8, 9]});
        assert_eq!(written(false, &[piece(Some(3), &[7, 8, 9], &[])]), ids);
        assert_eq!(written(false, &[piece(Some(3), &[7], &[]), piece(None, &[8, 9], &[])]), ids);
        let mut both = ids.clone();
        both["token_strs"] = json!(["a", "\"", "ü"]);
        assert_eq!(written(true, &[piece(Some(3), &[7, 8, 9], &["a", "\"", "ü"])]), both);
        let cut = [
            piece(Some(3), &[7, 8], &[]),
            piece(None, &[9], &["a"]),
            piece(None, &[], &["\""]),
            piece(None, &[], &["ü"]),
        ];
        assert_eq!(written(true, &cut), both);
        let apart = [piece(Some(1), &[7], &[]), piece(None, &[], &["a"])];
        assert_eq!(written(true, &apart)["token_strs"], json!(["a"]));
        let none = json!({"count": 0, "max_model_len": null, "tokens": []});
        assert_eq!(written(false, &[piece(Some(0), &[], &[])]), none);
        assert_eq!(written(true, &[piece(Some(0), &[], &[])])["token_strs"], json!([]));
    }
}

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use fused_status::{Code, Error};
use futures_util::StreamExt;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, EXPECT};

use crate::error::Failure;
use crate::fields::Fields;
use crate::gateway::Shared;

/// How much of a body that is too large is read and thrown away before it is refused. A client that is still sending
/// when the connection closes sees a broken pipe instead of the answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// A JSON body, read whole within the limits of size and time.
#[derive(Debug)]
pub(crate) struct JsonBody(Bytes);

impl JsonBody {
    /// The fields of the JSON object in it.
    pub(crate) fn fields(&self) -> Result<Fields<'_>, Error> {
        Fields::parse(&self.0)
    }
}

impl FromRequest<Arc<Shared>> for JsonBody {
    type Rejection = Failure;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let (head, body) = request.into_parts();
        let config = &shared.config;
        let is_json = has_json_type(&head.headers);
        // A client that waits for `100 Continue` sends nothing that would have to be thrown away.
        let limits = Limits {
            max_body_bytes: config.max_body_bytes,
            max_discarded_bytes: if head.headers.contains_key(EXPECT) { 0 } else { MAX_DISCARDED_BYTES },
        };
        let body = tokio::time::timeout(config.body_read_timeout, read(body, &limits))
            .await
            .map_err(|_| too_slow(config.body_read_timeout))??;
        if !is_json {
            let message =
                "the body must be sent as application/json (with curl: -H 'Content-Type: application/json')";
            return Err(Error::new(Code::UnsupportedMediaType, message).into());
        }
        Ok(Self(body))
    }
}

struct Limits {
    max_body_bytes: usize,
    max_discarded_bytes: usize,
}

async fn read(body: Body, limits: &Limits) -> Result<Bytes, Error> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let is_too_large = announced > limits.max_body_bytes;
    let mut chunks = body.into_data_stream();
    let mut kept = BytesMut::with_capacity(if is_too_large { 0 } else { announced });
    if !is_too_large {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| broken_off(&error))?;
            if kept.len() + chunk.len() > limits.max_body_bytes {
                drop(chunk);
                return Err(discard(chunks, limits).await);
            }
            kept.extend_from_slice(&chunk);
        }
        return Ok(kept.freeze());
    }
    Err(discard(chunks, limits).await)
}

/// Reads on without keeping anything, as far as that helps the client to hear the answer.
async fn discard(mut chunks: axum::body::BodyDataStream, limits: &Limits) -> Error {
    let mut discarded = 0;
    while discarded < limits.max_discarded_bytes
        && let Some(Ok(chunk)) = chunks.next().await
    {
        discarded += chunk.len();
    }
    let message = format!("the body is larger than the limit of {} bytes", limits.max_body_bytes);
    Error::new(Code::PayloadTooLarge, message)
}

fn broken_off(error: &axum::Error) -> Error {
    Error::new(Code::InvalidArgument, "the body could not be read to its end").with_cause(error)
}

fn too_slow(limit: Duration) -> Error {
    Error::new(Code::DeadlineExceeded, format!("the body was not sent within {} s", limit.as_secs_f32()))
}

fn has_json_type(headers: &HeaderMap) -> bool {
    let Some(Ok(value)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn json_is_told_by_its_type() {
        let is_json = |value: &'static str| {
            has_json_type(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        assert!(is_json("application/json"));
        assert!(is_json("Application/JSON; charset=utf-8"));
        assert!(is_json("application/vnd.api+json"));
        assert!(!is_json("text/plain"));
        assert!(!is_json("application/x-www-form-urlencoded"));
        assert!(!has_json_type(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_body_without_a_length_is_cut_off_at_the_limit() {
        let limits = Limits { max_body_bytes: 10, max_discarded_bytes: 100 };
        let chunked = |num_chunks| {
            let chunks = std::iter::repeat_n(
                Ok::<_, std::convert::Infallible>(Bytes::from_static(b"12345")),
                num_chunks,
            );
            Body::from_stream(futures_util::stream::iter(chunks))
        };
        assert_eq!(read(chunked(2), &limits).await.unwrap(), "1234512345");
        assert_eq!(read(chunked(3), &limits).await.unwrap_err().code(), Code::PayloadTooLarge);
        // Endless: refused all the same.
        assert_eq!(read(chunked(usize::MAX), &limits).await.unwrap_err().code(), Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused() {
        let limits = Limits { max_body_bytes: 10, max_discarded_bytes: 0 };
        assert_eq!(read(Body::from("12345678901"), &limits).await.unwrap_err().code(), Code::PayloadTooLarge);
    }
}

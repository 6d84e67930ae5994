use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use fused_status::{Code, Error};
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, EXPECT};

use super::memory::{BodyMemory, Share};
use crate::error::Failure;
use crate::fields::Fields;
use crate::gateway::Shared;

/// How much of a body that is refused is read and thrown away before that. A client that is still sending when
/// the connection closes sees a broken pipe instead of the answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// A JSON body, read whole within the limits of size, memory and time.
#[derive(Debug)]
pub(crate) struct JsonBody {
    bytes: Bytes,
    share: Share,
}

impl JsonBody {
    /// The fields of the JSON object in it.
    pub(crate) fn fields(&self) -> Result<Fields<'_>, Error> {
        Fields::parse(&self.bytes)
    }

    /// Lets go of the bytes. What was made of them takes their place for as long as the share is held.
    pub(crate) fn into_share(self) -> Share {
        self.share
    }
}

impl FromRequest<Arc<Shared>> for JsonBody {
    type Rejection = Failure;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let (head, body) = request.into_parts();
        let config = &shared.config;
        let is_json = has_json_type(&head.headers);
        let limits = Limits {
            // A body that can never be held is too large, not too early.
            max_body_bytes: config.max_body_bytes.min(config.max_buffered_bytes),
            // A client that waits for `100 Continue` sends nothing that would have to be thrown away.
            max_discarded_bytes: if head.headers.contains_key(EXPECT) { 0 } else { MAX_DISCARDED_BYTES },
        };
        let reading = read(body, &limits, &shared.admission.body_memory);
        let body = tokio::time::timeout(config.body_read_timeout, reading)
            .await
            .map_err(|_| too_slow(config.body_read_timeout))??;
        if !is_json {
            let message =
                "the body must be sent as application/json (with curl: -H 'Content-Type: application/json')";
            return Err(Error::new(Code::UnsupportedMediaType, message).into());
        }
        Ok(body)
    }
}

struct Limits {
    max_body_bytes: usize,
    max_discarded_bytes: usize,
}

impl Limits {
    fn check(&self, num_bytes: usize) -> Result<(), Error> {
        if num_bytes <= self.max_body_bytes {
            return Ok(());
        }
        let message = format!("the body is larger than the limit of {} bytes", self.max_body_bytes);
        Err(Error::new(Code::PayloadTooLarge, message))
    }
}

async fn read(body: Body, limits: &Limits, memory: &BodyMemory) -> Result<JsonBody, Error> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut chunks = body.into_data_stream();
    let kept = keep(&mut chunks, announced, limits, memory).await;
    if kept.is_err() {
        discard(chunks, limits).await;
    }
    kept
}

/// Keeps a body of which `announced` bytes are known to come, as far as it stays within its limit and the memory.
async fn keep(
    chunks: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin),
    announced: usize,
    limits: &Limits,
    memory: &BodyMemory,
) -> Result<JsonBody, Error> {
    limits.check(announced)?;
    let mut share = memory.share(announced)?;
    let mut kept = BytesMut::with_capacity(announced);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| broken_off(&error))?;
        let num_bytes = kept.len() + chunk.len();
        limits.check(num_bytes)?;
        share.grow_to(num_bytes)?;
        kept.extend_from_slice(&chunk);
    }
    Ok(JsonBody { bytes: kept.freeze(), share })
}

/// Reads on without keeping anything, as far as that helps the client to hear the answer.
async fn discard(mut chunks: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin, limits: &Limits) {
    let mut discarded = 0;
    while discarded < limits.max_discarded_bytes
        && let Some(Ok(chunk)) = chunks.next().await
    {
        discarded += chunk.len();
    }
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

    /// A body that does not say its length.
    fn chunked(chunk: &'static [u8], num_chunks: usize) -> Body {
        let chunk = Ok::<_, std::convert::Infallible>(Bytes::from_static(chunk));
        Body::from_stream(futures_util::stream::iter(std::iter::repeat_n(chunk, num_chunks)))
    }

    #[tokio::test]
    async fn a_body_without_a_length_is_cut_off_at_the_limit() {
        let limits = Limits { max_body_bytes: 10, max_discarded_bytes: 100 };
        let memory = BodyMemory::new(1024);
        let read = |num_chunks| read(chunked(b"12345", num_chunks), &limits, &memory);
        assert_eq!(read(2).await.unwrap().bytes, "1234512345");
        assert_eq!(read(3).await.unwrap_err().code(), Code::PayloadTooLarge);
        // Endless: refused all the same.
        assert_eq!(read(usize::MAX).await.unwrap_err().code(), Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused() {
        let limits = Limits { max_body_bytes: 10, max_discarded_bytes: 0 };
        let memory = BodyMemory::new(1024);
        let refused = read(Body::from("12345678901"), &limits, &memory).await;
        assert_eq!(refused.unwrap_err().code(), Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn bodies_share_the_memory_whether_they_say_their_length_or_not() {
        const KIB: &[u8] = &[b' '; 1024];
        let limits = Limits { max_body_bytes: 4096, max_discarded_bytes: 4096 };
        let memory = BodyMemory::new(4096);
        let announced = |num_kib: usize| read(Body::from(vec![b' '; 1024 * num_kib]), &limits, &memory);
        let unannounced = |num_kib| read(chunked(KIB, num_kib), &limits, &memory);
        let first = unannounced(2).await.unwrap();
        assert_eq!(announced(3).await.unwrap_err().code(), Code::QueueFull);
        assert_eq!(unannounced(3).await.unwrap_err().code(), Code::QueueFull);
        // Nothing stays taken by those that were refused, half read or not.
        let second = announced(2).await.unwrap();
        assert_eq!(announced(1).await.unwrap_err().code(), Code::QueueFull);
        // What was made of a body takes as much as it did.
        let share = first.into_share();
        assert_eq!(announced(1).await.unwrap_err().code(), Code::QueueFull);
        drop((share, second));
        announced(4).await.unwrap();
    }
}

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::FromRequestParts;
use bytes::{Bytes, BytesMut};
use fused_status::{Code, Error};
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, EXPECT};
use http::request::Parts;
use tokio::sync::Semaphore;
use tracing::Span;

use super::memory::{RequestMemory, Share};
use crate::Config;
use crate::error::{Failure, Fault};
use crate::fields::Fields;
use crate::gateway::Shared;

/// How much of a body that is refused is read and thrown away before that. A client that is still sending when
/// the connection closes sees a broken pipe instead of the answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// What is taken at once for a body that announces more.
const FIRST_BYTES: usize = 64 << 10;

/// From this size on a body is long: parsing a shorter one takes a fraction of a millisecond.
const LONG_BYTES: usize = 64 << 10;

/// Memory that a body's byte comes to at the most: the body itself, its texts, and the message that they go on in.
pub(super) const COST_PER_BYTE: usize = 3;
/// What an item of an array takes beside its text: a number among a prompt's ids, a value.
const COST_PER_COMMA: usize = 16;
/// What a field of an object takes beside its text: its name, and its place in a map.
const COST_PER_COLON: usize = 96;

/// A JSON body, read whole within the limits of size, memory and time.
#[derive(Debug)]
pub(crate) struct JsonBody {
    bytes: Bytes,
    share: Share,
    parsers: Arc<Semaphore>,
}

impl JsonBody {
    /// Makes something of the fields of the JSON object in it, and lets go of the bytes: what was made takes their place
    /// for as long as the share is held. Parsing a long body takes milliseconds, in which its thread serves nobody else:
    /// few are parsed at once, on threads of their own.
    pub(crate) async fn read<T: Send + 'static>(
        self,
        read: impl FnOnce(&mut Fields<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Share), Error> {
        let parse = move |bytes: &[u8]| read(&mut Fields::parse(bytes)?);
        let Self { bytes, share, parsers } = self;
        if bytes.len() < LONG_BYTES {
            return Ok((parse(&bytes)?, share));
        }
        // The semaphore is never closed.
        let permit = parsers.acquire_owned().await.map_err(|closed| Error::internal(&closed))?;
        let span = Span::current();
        let parsing = tokio::task::spawn_blocking(move || {
            let parsed = span.in_scope(|| parse(&bytes));
            drop(permit);
            parsed.map(|parsed| (parsed, share))
        });
        parsing.await.map_err(|panic| Error::internal(&panic))?
    }
}

/// A body on its way from the door to its handler.
#[derive(Clone, Debug)]
pub(super) struct ReadBody(Arc<Mutex<Option<JsonBody>>>);

impl ReadBody {
    pub(super) fn new(body: JsonBody) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }
}

impl FromRequestParts<Arc<Shared>> for JsonBody {
    type Rejection = Failure;

    async fn from_request_parts(head: &mut Parts, _: &Arc<Shared>) -> Result<Self, Failure> {
        let body = head.extensions.remove::<ReadBody>();
        let body = body.and_then(|body| body.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        body.ok_or_else(|| Fault::NoBody.into())
    }
}

/// Reads the body of a request with these headers.
pub(super) async fn read_json(
    headers: &HeaderMap,
    body: Body,
    config: &Config,
    memory: &RequestMemory,
) -> Result<JsonBody, Error> {
    let limits = Limits {
        // A body that can never be held is too large, not too early.
        max_body_bytes: config.max_body_bytes.min(memory.max_bytes() / COST_PER_BYTE),
        // A client that waits for `100 Continue` sends nothing that would have to be thrown away.
        max_discarded_bytes: if headers.contains_key(EXPECT) { 0 } else { MAX_DISCARDED_BYTES },
        idle_timeout: config.body_idle_timeout,
    };
    let reading = read(body, &limits, memory);
    let body = tokio::time::timeout(config.body_read_timeout, reading)
        .await
        .map_err(|_| too_slow(config.body_read_timeout))??;
    if !has_json_type(headers) {
        let message =
            "the body must be sent as application/json (with curl: -H 'Content-Type: application/json')";
        return Err(Error::new(Code::UnsupportedMediaType, message));
    }
    Ok(body)
}

struct Limits {
    max_body_bytes: usize,
    max_discarded_bytes: usize,
    /// How long nothing may come.
    idle_timeout: Duration,
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

async fn read(body: Body, limits: &Limits, memory: &RequestMemory) -> Result<JsonBody, Error> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut chunks = body.into_data_stream();
    let kept = keep(&mut chunks, announced, limits, memory).await;
    if kept.is_err() {
        discard(chunks, limits).await;
    }
    kept
}

/// Keeps a body of which `announced` bytes are known to come, as far as it stays within its limit and the memory.
/// Memory is taken for what has come: bytes that are only announced keep nobody out.
async fn keep(
    chunks: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin),
    announced: usize,
    limits: &Limits,
    memory: &RequestMemory,
) -> Result<JsonBody, Error> {
    limits.check(announced)?;
    memory.check_room(announced.saturating_mul(COST_PER_BYTE))?;
    let mut share = memory.share()?;
    let mut kept = BytesMut::with_capacity(announced.min(FIRST_BYTES));
    loop {
        let chunk = tokio::time::timeout(limits.idle_timeout, chunks.next()).await;
        let Some(chunk) = chunk.map_err(|_| stalled(limits.idle_timeout))? else { break };
        let chunk = chunk.map_err(|error| broken_off(&error))?;
        limits.check(kept.len() + chunk.len())?;
        share.grow_by(cost(&chunk))?;
        kept.extend_from_slice(&chunk);
    }
    Ok(JsonBody { bytes: kept.freeze(), share, parsers: memory.parsers() })
}

/// The memory that a piece of a body comes to. Punctuation inside of texts counts as well: there is little of it, and
/// telling it apart would take a parser.
fn cost(chunk: &[u8]) -> usize {
    let count = |wanted: u8| chunk.iter().filter(|byte| **byte == wanted).count();
    COST_PER_BYTE * chunk.len() + COST_PER_COMMA * count(b',') + COST_PER_COLON * count(b':')
}

/// Reads on without keeping anything, as far as that helps the client to hear the answer.
async fn discard(mut chunks: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin, limits: &Limits) {
    let mut discarded = 0;
    while discarded < limits.max_discarded_bytes
        && let Ok(Some(Ok(chunk))) = tokio::time::timeout(limits.idle_timeout, chunks.next()).await
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

fn stalled(limit: Duration) -> Error {
    let message = format!("nothing of the body was sent for {} s", limit.as_secs_f32());
    Error::new(Code::DeadlineExceeded, message)
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

    fn limits(max_body_bytes: usize) -> Limits {
        Limits { max_body_bytes, max_discarded_bytes: 4096, idle_timeout: Duration::from_secs(10) }
    }

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
        let limits = limits(10);
        let memory = RequestMemory::new(64 << 10);
        let read = |num_chunks| read(chunked(b"12345", num_chunks), &limits, &memory);
        assert_eq!(read(2).await.unwrap().bytes, "1234512345");
        assert_eq!(read(3).await.unwrap_err().code(), Code::PayloadTooLarge);
        // Endless: refused all the same.
        assert_eq!(read(usize::MAX).await.unwrap_err().code(), Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused() {
        let limits = Limits { max_discarded_bytes: 0, ..limits(10) };
        let memory = RequestMemory::new(64 << 10);
        let refused = read(Body::from("12345678901"), &limits, &memory).await;
        assert_eq!(refused.unwrap_err().code(), Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn bodies_share_the_memory_whether_they_say_their_length_or_not() {
        const KIB: &[u8] = &[b' '; 1024];
        let limits = limits(4096);
        // Three quarters of it are for long ones, such as these.
        let memory = RequestMemory::new(4 * 4096);
        assert_eq!(memory.max_bytes(), 4096 * COST_PER_BYTE);
        let announced = |num_kib: usize| read(Body::from(vec![b' '; 1024 * num_kib]), &limits, &memory);
        let unannounced = |num_kib| read(chunked(KIB, num_kib), &limits, &memory);
        let first = unannounced(2).await.unwrap();
        assert_eq!(announced(3).await.unwrap_err().code(), Code::QueueFull);
        assert_eq!(unannounced(3).await.unwrap_err().code(), Code::QueueFull);
        // Nothing stays taken by those that were refused, half read or not.
        let second = announced(2).await.unwrap();
        assert_eq!(announced(1).await.unwrap_err().code(), Code::QueueFull);
        // What was made of a body takes as much as it did.
        let JsonBody { share, .. } = first;
        assert_eq!(announced(1).await.unwrap_err().code(), Code::QueueFull);
        drop((share, second));
        announced(4).await.unwrap();
    }

    /// A body that announces `announced` bytes, sends one, and then nothing.
    struct Silent {
        sent: bool,
        announced: u64,
    }

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            if std::mem::replace(&mut self.sent, true) {
                return std::task::Poll::Pending;
            }
            std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"{")))))
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(self.announced)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_only_announced_keeps_nobody_out_and_silence_ends_it() {
        let limits = limits(4096);
        let memory = RequestMemory::new(512 << 10);
        let slow =
            (0..64).map(|_| read(Body::new(Silent { sent: false, announced: 4096 }), &limits, &memory));
        let mut slow = Box::pin(futures_util::future::join_all(slow));
        assert!(futures_util::poll!(&mut slow).is_pending());
        read(Body::from(vec![b' '; 4096]), &limits, &memory).await.unwrap();
        let started = tokio::time::Instant::now();
        for refused in slow.await {
            assert_eq!(refused.unwrap_err().code(), Code::DeadlineExceeded);
        }
        // Once for the body, once while the rest would be thrown away.
        assert_eq!(started.elapsed(), 2 * limits.idle_timeout);
    }

    #[tokio::test]
    async fn a_body_of_many_fields_costs_what_they_take() {
        let limits = limits(4096);
        let memory = RequestMemory::new(64 << 10);
        let fields = format!("{{{}}}", vec!["\"a\":1"; 600].join(","));
        // Seven bytes a field, and over a hundred in a map.
        let held = read(Body::from(fields.clone()), &limits, &memory).await;
        assert_eq!(held.unwrap_err().code(), Code::PayloadTooLarge);
        read(Body::from(fields.replace([':', ','], " ")), &limits, &memory).await.unwrap();
    }
}

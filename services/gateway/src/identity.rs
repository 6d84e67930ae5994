//! Which request this is: the id the client knows it by, and the one nobody else has.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The engine takes 128 bytes; what is added to the client's id for each prompt fits into the rest.
const MAX_CLIENT_ID_BYTES: usize = 64;

/// The identity of one request.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// What X-Request-Id says on the answer: the client's own, where it sent a fit one.
    pub(crate) request_id: Arc<str>,
    /// Ours alone. Clients and proxies send the same X-Request-Id again when they retry.
    pub(crate) unique_id: Arc<str>,
    /// The matched route, for metrics.
    pub(crate) endpoint: Arc<str>,
    pub(crate) started: Instant,
    /// What became of it, for its log line.
    pub(crate) served: Arc<Served>,
}

/// What a generation took. It is told by those who know, and read when the answer has ended.
#[derive(Debug, Default)]
pub(crate) struct Served {
    tokens: OnceLock<Tokens>,
    first_text: OnceLock<Duration>,
}

/// Whose tokens, and how many.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) tenant: Option<Arc<str>>,
    pub(crate) prompt: u64,
    pub(crate) completion: u64,
}

impl Served {
    pub(crate) fn tell_tokens(&self, tokens: Tokens) {
        // Told once: a request has one meter.
        let _ = self.tokens.set(tokens);
    }

    pub(crate) fn tell_first_text(&self, after: Duration) {
        let _ = self.first_text.set(after);
    }

    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        self.tokens.get()
    }

    pub(crate) fn first_text(&self) -> Option<Duration> {
        self.first_text.get().copied()
    }
}

impl RequestContext {
    /// The id of one of its calls to the text service: at most 128 bytes, unique, and telling the client's id.
    pub(crate) fn call_id(&self, prompt_idx: usize) -> String {
        if self.request_id == self.unique_id {
            format!("{}-{prompt_idx}", self.unique_id)
        } else {
            format!("{}-{}-{prompt_idx}", self.request_id, self.unique_id)
        }
    }
}

/// Makes unique ids: a keyed hash of a counter, the key drawn from the operating system's randomness.
#[derive(Debug, Default)]
pub(crate) struct RequestIds {
    key: RandomState,
    next: AtomicU64,
}

impl RequestIds {
    /// The identity of the request with these headers.
    pub(crate) fn context(&self, headers: &HeaderMap, endpoint: &str) -> RequestContext {
        let unique_id: Arc<str> = self.unique_id().into();
        let request_id = headers
            .get(X_REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|id| is_fit(id))
            .map_or_else(|| Arc::clone(&unique_id), Arc::from);
        RequestContext {
            request_id,
            unique_id,
            endpoint: endpoint.into(),
            started: Instant::now(),
            served: Arc::default(),
        }
    }

    fn unique_id(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.key.hash_one((count, 0_u8)), self.key.hash_one((count, 1_u8)))
    }
}

/// Short, and nothing in it that a log, a header or a shell reads as anything else.
fn is_fit(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_CLIENT_ID_BYTES
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn context(ids: &RequestIds, sent: &str) -> RequestContext {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(sent.as_bytes()).unwrap());
        ids.context(&headers, "/")
    }

    #[test]
    fn a_fit_id_is_kept_and_its_calls_are_unique() {
        let ids = RequestIds::default();
        let (first, second) = (context(&ids, "trace-1.a:b_C"), context(&ids, "trace-1.a:b_C"));
        assert_eq!(&*first.request_id, "trace-1.a:b_C");
        assert!(first.call_id(0).starts_with("trace-1.a:b_C-"));
        assert_ne!(first.call_id(0), first.call_id(1));
        assert_ne!(first.call_id(0), second.call_id(0));
    }

    #[test]
    fn an_unfit_id_is_replaced() {
        let ids = RequestIds::default();
        for sent in ["", "two words", "new\tline", "ä", &"x".repeat(65), "a\"b"] {
            let context = context(&ids, sent);
            assert_eq!(context.request_id, context.unique_id, "{sent}");
            assert_eq!(context.unique_id.len(), 32);
        }
    }

    #[test]
    fn the_longest_call_id_fits_the_engine() {
        let ids = RequestIds::default();
        assert!(context(&ids, &"x".repeat(64)).call_id(usize::from(u16::MAX)).len() <= 128);
    }
}

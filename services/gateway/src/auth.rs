//! API keys: once one is set, everything but /health and /ready asks for it.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use fused_status::{Code, Error};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::Result;
use crate::gateway::Shared;

/// The keys that are let in, as SHA-256: comparing hashes takes the same time whatever is sent, and a key's length does
/// not show.
#[derive(Clone, Default)]
pub struct ApiKeys {
    hashes: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// These keys. An empty one is kept too and matches nobody: a key that was meant to be set must not open the door.
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self { hashes: keys.into_iter().map(|key| Sha256::digest(key.as_ref()).into()).collect() }
    }

    /// Whether no key was given: everybody is let in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    fn admit(&self, token: &str) -> bool {
        let hash = Sha256::digest(token);
        let matched = self.hashes.iter().fold(Choice::from(0), |matched, key| matched | key.ct_eq(&hash));
        bool::from(matched) && !token.is_empty()
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.hashes.len())
    }
}

/// Refuses a request without a key.
pub(crate) async fn require_key(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Result<Response> {
    let keys = &shared.config.api_keys;
    if !keys.is_empty() {
        let token = bearer_token(request.headers())
            .ok_or_else(|| refusal("an API key is needed: send `Authorization: Bearer KEY`"))?;
        if !keys.admit(token) {
            return Err(refusal("the API key is not known here").into());
        }
    }
    Ok(next.run(request).await)
}

fn refusal(message: &str) -> Error {
    Error::new(Code::InvalidApiKey, message)
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_is_admitted() {
        let keys = ApiKeys::new(["sk-One", "sk-two"]);
        assert!(keys.admit("sk-One") && keys.admit("sk-two"));
        for token in ["", "sk-one", "sk-", "sk-One ", "sk-two1", "sk-Onesk-two"] {
            assert!(!keys.admit(token), "{token}");
        }
    }

    #[test]
    fn an_empty_key_opens_nothing() {
        let keys = ApiKeys::new([""]);
        assert!(!keys.is_empty());
        assert!(!keys.admit(""));
    }

    #[test]
    fn keys_do_not_show() {
        assert_eq!(format!("{:?}", ApiKeys::new(["sk-secret"])), "1 keys");
    }

    #[test]
    fn the_scheme_is_read_in_any_case() {
        let token = |value: &'static str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, http::HeaderValue::from_static(value))]);
            bearer_token(&headers).map(str::to_owned)
        };
        assert_eq!(token("bearer a"), Some("a".to_owned()));
        assert_eq!(token("Bearer  b "), Some("b".to_owned()));
        assert_eq!(token("Basic a"), None);
        assert_eq!(token("Bearer"), None);
    }
}

//! Who calls: once a key is set, everything but /health and /ready asks for one. A key belongs to a tenant, whose limits
//! the door keeps.

mod caller;
mod files;
mod keys;
mod limits;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use fused_status::{Code, Error};
use http::HeaderMap;
use http::header::AUTHORIZATION;

pub(crate) use caller::{Caller, RATE_LIMIT_HEADERS, TokenMeter, Turn};
pub use files::{KeyFileError, KeySources};
pub use keys::ApiKeys;
pub(crate) use keys::KeyRing;

use crate::error::Result;
use crate::gateway::Shared;

/// Refuses a request without a key, and says to whoever comes next who the caller is.
pub(crate) async fn require_key(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Result<Response> {
    let keys = shared.keys.current();
    let caller = if keys.is_empty() {
        Caller::anybody()
    } else {
        let token = bearer_token(request.headers())
            .ok_or_else(|| refusal("an API key is needed: send `Authorization: Bearer KEY`"))?;
        let tenant = keys.tenant_of(token).ok_or_else(|| refusal("the API key is not known here"))?;
        let isolates = shared.config.isolate_prefix_cache.unwrap_or(keys.num_tenants() > 1);
        Caller::of(tenant, isolates)
    };
    request.extensions_mut().insert(caller);
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

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use fused_lifecycle::Lifecycle;
use fused_transport::Replica;
use http::HeaderValue;
use http::header::RETRY_AFTER;
use tokio::sync::watch;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::admission::Admission;
use crate::auth::{KeyRing, RATE_LIMIT_HEADERS};
use crate::backend::Backend;
use crate::error::RETRY_AFTER_MS;
use crate::identity::{RequestIds, X_REQUEST_ID};
use crate::{Config, api, edge, events};

/// The REST API in front of text services.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

/// What every request needs.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) backend: Backend,
    pub(crate) admission: Admission,
    pub(crate) lifecycle: Lifecycle,
}

impl Gateway {
    /// A gateway to text services, of which the list may change at any time. Needs a tokio runtime.
    #[must_use]
    pub fn new(config: Config, text: watch::Receiver<Vec<Replica>>, lifecycle: &Lifecycle) -> Self {
        events::describe();
        let backend = Backend::start(text, lifecycle);
        let admission = Admission::new(&config, lifecycle.clone());
        let keys = Arc::new(KeyRing::new(config.api_keys.clone()));
        config.key_sources.clone().follow(Arc::clone(&keys), lifecycle);
        let lifecycle = lifecycle.clone();
        Self { shared: Arc::new(Shared { config, keys, backend, admission, lifecycle }) }
    }

    /// Waits until a text service behind is ready.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping it.
    pub async fn wait_ready(&self) {
        self.shared.backend.wait_ready().await;
    }

    /// The routes, ready to be served. Time limits for a request's *headers* and the number of connections are the
    /// server's to keep.
    pub fn router(&self) -> Router {
        let mut router = api::router(&self.shared);
        if !self.shared.config.allowed_origins.is_empty() {
            router = router.layer(cors(&self.shared.config.allowed_origins));
        }
        router
            .layer(from_fn(edge::catch_panic))
            .layer(from_fn_with_state(Arc::new(RequestIds::default()), edge::observe))
    }
}

/// How long a browser need not ask again.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

/// Stands outside `auth`: a browser's preflight request carries no key. What headers it asks for is allowed: SDKs send
/// many of their own, and the key alone decides what a page may do.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(
            [RETRY_AFTER, RETRY_AFTER_MS, X_REQUEST_ID]
                .into_iter()
                .chain(RATE_LIMIT_HEADERS)
                .collect::<Vec<_>>(),
        )
        .max_age(PREFLIGHT_MAX_AGE)
}

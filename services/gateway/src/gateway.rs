use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use fused_lifecycle::Lifecycle;
use fused_transport::Replica;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method};
use tokio::sync::watch;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::admission::Admission;
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
        let lifecycle = lifecycle.clone();
        Self { shared: Arc::new(Shared { config, backend, admission, lifecycle }) }
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

/// Stands outside `auth`: a browser's preflight request carries no key.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, X_REQUEST_ID])
        .expose_headers([RETRY_AFTER, RETRY_AFTER_MS, X_REQUEST_ID])
}

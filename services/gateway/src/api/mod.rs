//! The routes: one file each, and one for each thing that several of them say.

mod chat_completions;
mod completions;
mod conversation;
mod detokenize;
mod envelope;
mod finish;
mod health;
mod logprobs;
mod metrics;
mod models;
mod parameters;
mod prompts;
mod ready;
mod refused;
mod tokenize;
mod tokenizer_info;
mod usage;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::error::{method_not_allowed, not_found};
use crate::gateway::Shared;
use crate::{admission, auth};

/// All routes. Whatever stands inside the layer `require_key` asks for a key, a path that is no route included.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let work = Router::new()
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat_completions::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(detokenize::detokenize))
        .route_layer(from_fn_with_state(Arc::clone(shared), admission::admit));
    let behind_key = work
        .route("/v1/models", get(models::list))
        // Hub ids contain a slash.
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/tokenizer_info", get(tokenizer_info::tokenizer_info))
        .route("/metrics", get(metrics::render))
        .route("/version", get(version::version))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(shared), auth::require_key));
    let open = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(ready::ready))
        .method_not_allowed_fallback(method_not_allowed);
    behind_key.merge(open).with_state(Arc::clone(shared))
}

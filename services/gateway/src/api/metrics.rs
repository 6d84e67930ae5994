use std::sync::Arc;

use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;

use crate::gateway::Shared;

/// `GET /metrics`: the process's metrics as Prometheus text.
pub(super) async fn render(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], (shared.config.metrics)())
}

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{Method, Uri};

use crate::error::not_found;
use crate::gateway::Shared;

/// `GET /metrics`: the process's metrics as Prometheus text, where they are shown here.
pub(super) async fn render(State(shared): State<Arc<Shared>>, method: Method, uri: Uri) -> Response {
    match &shared.config.metrics {
        Some(render) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], render()).into_response(),
        None => not_found(method, uri).await.into_response(),
    }
}

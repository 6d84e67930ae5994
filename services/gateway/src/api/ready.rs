use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use crate::gateway::Shared;

/// `GET /ready`: whether new requests can be answered here, and if not, why. Never waits.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let reason = if shared.lifecycle.is_draining() {
        Some("the server is shutting down")
    } else {
        shared.backend.not_ready()
    };
    match reason {
        None => Json(json!({"ready": true})).into_response(),
        Some(reason) => {
            let body = Json(json!({"ready": false, "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

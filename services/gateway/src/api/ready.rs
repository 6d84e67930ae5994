use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use crate::backend::Readiness;
use crate::gateway::Shared;

/// `GET /ready`: whether new requests can be answered here, and if not, why. Tells what the last check found and never
/// waits.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let readiness = if shared.lifecycle.is_draining() {
        Readiness::NotReady("the server is shutting down")
    } else {
        shared.backend.readiness()
    };
    match readiness {
        Readiness::Ready => Json(json!({"ready": true})).into_response(),
        Readiness::NotReady(reason) => {
            let body = Json(json!({"ready": false, "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

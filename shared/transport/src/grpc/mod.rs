//! What every gRPC call meets before a service of ours: limits on its messages, its own deadline, and our words in place
//! of tonic's.

mod messages;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use fused_status::{Code, Error};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use tonic::Status;
use tonic::service::Routes;

use crate::serve::ConnectionBytes;
use messages::{AllBytes, Messages};

/// The largest gRPC message: a prompt of the text API travels whole.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

const GRPC: &str = "application/grpc";

/// gRPC services, ready to be served.
pub fn grpc(routes: Routes) -> Router {
    let all = Arc::new(AllBytes::default());
    routes.prepare().into_axum_router().layer(from_fn_with_state(all, answer))
}

/// What ends a stream whose client takes nothing of it.
pub(crate) fn stalled() -> HeaderMap {
    let error =
        Error::new(Code::SlowReader, "the client has taken nothing of its answer for 60 s; read it faster");
    headers(error)
}

async fn answer(State(all): State<Arc<AllBytes>>, request: Request, next: Next) -> Response {
    let content_type = request.headers().get(CONTENT_TYPE);
    if !content_type.is_some_and(|content_type| content_type.as_bytes().starts_with(GRPC.as_bytes())) {
        let message = "this port speaks gRPC: send `Content-Type: application/grpc`";
        let mut response = Status::from(Error::new(Code::UnsupportedMediaType, message)).into_http();
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    let timeout = request.headers().get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
    let connection = request.extensions().get::<ConnectionBytes>().cloned().unwrap_or_default();
    let request = request.map(|body| Body::new(Messages::new(body, connection, all)));
    let answered = next.run(request);
    let response = match timeout {
        None => answered.await,
        Some(timeout) => match tokio::time::timeout(timeout, answered).await {
            Ok(response) => response,
            Err(elapsed) => {
                let message =
                    "the call's own deadline (grpc-timeout) passed; allow more time or ask for less";
                let error = Error::new(Code::DeadlineExceeded, message).with_cause(&elapsed);
                return Status::from(error).into_http();
            }
        },
    };
    words::ours(response)
}

/// The value of `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// An error as headers or trailers have it.
fn headers(error: Error) -> HeaderMap {
    Status::from(error).into_http::<()>().into_parts().0.headers
}

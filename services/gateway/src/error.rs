//! The one way out for whatever fails: OpenAI's error object, with the status, `Retry-After` and log line that belong
//! to it.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use fused_status::{Code, Error};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, Uri};

use crate::events;

/// `Retry-After` to the millisecond: OpenAI's clients read it first.
pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// What a handler returns.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A failure on its way to the client.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Error);

/// Faults of ours and of the text service: causes for the operator's log, never shown to a client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the text service ended a stream before it was finished")]
    EndedEarly,
    #[error("the text service sent an answer without {0}")]
    Incomplete(&'static str),
    #[error("the text service named sequence {sequence_idx} of {num_sequences}")]
    NoSuchSequence { sequence_idx: u32, num_sequences: u32 },
    #[error("an answer could not be written as JSON")]
    Unwritable(#[from] serde_json::Error),
    #[error("a request reached its handler without its body")]
    NoBody,
    #[error("a handler panicked: {0}")]
    Panicked(String),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::internal(&fault)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self(fault.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self(status.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        events::failed(&error);
        let mut response = Response::new(Body::from(error.openai_body().to_string()));
        *response.status_mut() = error.code().http();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = error.retry_after_s() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(ms) = error.retry_after_ms() {
            headers.insert(RETRY_AFTER_MS, ms.into());
        }
        if error.code() == Code::InvalidApiKey {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Answers for a path that is no route.
pub(crate) async fn not_found(method: Method, uri: Uri) -> Failure {
    Failure(Error::new(Code::NotFound, format!("there is no route {method} {}", uri.path())))
}

/// Answers for a route that does not take this method.
pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> Failure {
    Failure(Error::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path())))
}

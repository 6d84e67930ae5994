//! What every request meets first and last: an id, a span, a count, and a net under panics.
//!
//! What a request holds lives in its response body, because a streamed answer goes on long after the handler has
//! returned, and ends when the body does: with the last byte, or with the client.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};
use http_body::{Frame, SizeHint};
use tracing::{Instrument, Span, field, info_span};

use crate::error::{Failure, Fault};
use crate::events;
use crate::identity::{RequestContext, RequestIds, X_REQUEST_ID};

/// The label of requests that match no route: a label must not be the client's to choose.
const NO_ENDPOINT: &str = "none";

/// Gives a request its id and span, counts it when its answer has ended, and returns the id as X-Request-Id.
pub(crate) async fn observe(
    State(ids): State<Arc<RequestIds>>,
    mut request: Request,
    next: Next,
) -> Response {
    let endpoint = request.extensions().get::<MatchedPath>().map_or(NO_ENDPOINT, MatchedPath::as_str);
    let context = ids.context(request.headers(), endpoint);
    let span = info_span!(
        events::REQUEST_SPAN,
        otel.kind = "server",
        http.request.method = %request.method(),
        http.route = &*context.endpoint,
        http.response.status_code = field::Empty,
        request_id = &*context.request_id,
        id = &*context.unique_id,
    );
    fused_telemetry::http::set_parent(&span, request.headers());
    request.extensions_mut().insert(context.clone());
    let mut observation = Observation { context, span, status: None, has_ended: false };

    let mut response = next.run(request).instrument(observation.span.clone()).await;

    observation.span.record("http.response.status_code", response.status().as_u16());
    observation.status = Some(response.status());
    if let Ok(id) = HeaderValue::from_str(&observation.context.request_id) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    response.map(|body| Body::new(Held::new(body, observation)))
}

/// Turns a handler's panic into a 500: one request's fault never ends another's.
pub(crate) async fn catch_panic(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => Failure::from(Fault::Panicked(panic_message(&*panic))).into_response(),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// What a response body holds until it ends.
pub(crate) trait Guard: Send + Unpin + 'static {
    /// The last byte is out. Not called where the client went away before.
    fn body_ended(&mut self) {}
}

/// A response body that holds a guard.
#[derive(Debug)]
pub(crate) struct Held<G: Guard> {
    body: Body,
    guard: G,
}

impl<G: Guard> Held<G> {
    pub(crate) fn new(body: Body, guard: G) -> Self {
        Self { body, guard }
    }
}

impl<G: Guard> http_body::Body for Held<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.guard.body_ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<G: Guard> Drop for Held<G> {
    fn drop(&mut self) {
        // A body of known length is not polled again after its last frame.
        if http_body::Body::is_end_stream(&self.body) {
            self.guard.body_ended();
        }
    }
}

/// Counts its request when dropped, whatever ended it.
#[derive(Debug)]
struct Observation {
    context: RequestContext,
    span: Span,
    status: Option<StatusCode>,
    has_ended: bool,
}

impl Guard for Observation {
    fn body_ended(&mut self) {
        self.has_ended = true;
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        events::ended(&self.context, self.status.filter(|_| self.has_ended));
    }
}

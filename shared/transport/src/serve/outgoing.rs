//! A response body over HTTP/2 that knows whether its client takes it. A client's window may be empty for ever while its
//! connection is alive, so that the socket tells nothing of one stream.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::tracker::Open;

/// The transport is given so much at a time: who takes that much has not stalled.
const PIECE_BYTES: usize = 16 << 10;

/// What the connection's task and the body share.
#[derive(Debug)]
pub(super) struct Outgoing {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None once it was ended. What a request holds lives in its body.
    body: Option<(Body, Open)>,
    /// Left of a frame that was larger than a piece.
    rest: Bytes,
    /// Since when the transport has not asked for more. None: it has, and there is nothing as yet.
    given_since: Option<Instant>,
    /// What ends the body where it was ended from outside.
    trailers: Option<HeaderMap>,
}

/// The body that is given to the transport.
#[derive(Debug)]
pub(super) struct OutgoingBody(Arc<Outgoing>);

/// The client has taken nothing for too long.
#[derive(Debug, thiserror::Error)]
#[error("the client has taken nothing of its answer")]
pub(super) struct Stalled;

impl Outgoing {
    /// `stalled`: what ends the body where its client takes nothing; none: it is cut off.
    pub(super) fn new(body: Body, open: Open, stalled: Option<HeaderMap>) -> Arc<Self> {
        let given_since = Some(Instant::now());
        let state = State { body: Some((body, open)), rest: Bytes::new(), given_since, trailers: stalled };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub(super) fn body(self: &Arc<Self>) -> OutgoingBody {
        OutgoingBody(Arc::clone(self))
    }

    /// Gives up what the request holds where the client has taken nothing for `patience`.
    pub(super) fn end_if_stalled(&self, now: Instant, patience: Duration) {
        let ended = {
            let mut state = self.state();
            let is_stalled =
                state.given_since.is_some_and(|since| now.saturating_duration_since(since) > patience);
            if is_stalled { state.body.take() } else { None }
        };
        // Outside of the lock: what ends here may be much.
        drop(ended);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some((body, _)) = &mut self.body else {
            self.rest.clear();
            // Once: after trailers the transport asks no more.
            let end = self.trailers.take().map(Frame::trailers).ok_or_else(|| axum::Error::new(Stalled));
            return Poll::Ready(Some(end));
        };
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl http_body::Body for OutgoingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = self.0.state();
        let polled = state.poll(cx);
        state.given_since = polled.is_ready().then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.state();
        state.rest.is_empty() && state.body.as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.state();
        let Some((body, _)) = &state.body else { return SizeHint::default() };
        let (inner, rest) = (body.size_hint(), state.rest.len() as u64);
        let mut hint = SizeHint::default();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(inner.lower().saturating_add(rest));
        hint
    }
}

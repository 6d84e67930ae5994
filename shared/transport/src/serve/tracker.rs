//! What one connection is doing, and for how long: whether it is idle, sends a head, or takes what it is sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::outgoing::Outgoing;
use super::{HEAD_TIMEOUT, TAKE_TIMEOUT};

/// Shared by a connection's task, its socket and its requests.
#[derive(Debug)]
pub(super) struct Tracker {
    state: Mutex<State>,
    idle: Duration,
}

#[derive(Debug)]
struct State {
    num_requests: usize,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    is_http2: bool,
    /// Since when the socket has taken nothing of what is to be written.
    blocked_since: Option<Instant>,
    /// Answers of HTTP/2 streams.
    outgoing: Vec<Weak<Outgoing>>,
}

/// What a connection does while it has no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has had none yet.
    Fresh,
    /// It has had one.
    Idle,
    /// Part of a head is there.
    Head,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stay,
    /// It has no request: it may be told to go.
    Idle,
    /// It is in the way.
    Close,
}

/// One request of a connection, until the last byte of its answer is out.
#[derive(Debug)]
pub(super) struct Open(Arc<Tracker>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.num_requests -= 1;
        if state.num_requests == 0 {
            (state.phase, state.since) = (Phase::Idle, Instant::now());
        }
    }
}

impl Tracker {
    /// A connection that was just accepted; without a request it may stay open for `idle`.
    pub(super) fn new(idle: Duration) -> Arc<Self> {
        let state = State {
            num_requests: 0,
            phase: Phase::Fresh,
            since: Instant::now(),
            is_http2: false,
            blocked_since: None,
            outgoing: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state), idle })
    }

    /// A request's head is there.
    pub(super) fn begin(self: &Arc<Self>, version: http::Version) -> Open {
        let mut state = self.state();
        state.num_requests += 1;
        state.is_http2 = version == http::Version::HTTP_2;
        Open(Arc::clone(self))
    }

    /// Watches over an answer.
    pub(super) fn watch(&self, answer: &Arc<Outgoing>) {
        self.state().outgoing.push(Arc::downgrade(answer));
    }

    pub(super) fn is_http2(&self) -> bool {
        self.state().is_http2
    }

    /// Bytes have come. Over HTTP/2 they may be anything; over HTTP/1, between two requests, they begin a head.
    pub(super) fn read(&self) {
        let mut state = self.state();
        if state.num_requests == 0 && state.phase == Phase::Idle && !state.is_http2 {
            (state.phase, state.since) = (Phase::Head, Instant::now());
        }
    }

    /// The socket takes nothing, or takes something again.
    pub(super) fn write_blocked(&self, is_blocked: bool) {
        let mut state = self.state();
        state.blocked_since = is_blocked.then(|| state.blocked_since.unwrap_or_else(Instant::now));
    }

    /// Ends answers whose client takes nothing, and says what is to become of the connection.
    pub(super) fn check(&self, now: Instant) -> Verdict {
        let (stalled, verdict) = {
            let mut state = self.state();
            state.outgoing.retain(|answer| answer.strong_count() > 0);
            let stalled: Vec<_> = state.outgoing.iter().filter_map(Weak::upgrade).collect();
            let since = |since: Instant| now.saturating_duration_since(since);
            let patience = if state.phase == Phase::Idle { self.idle } else { HEAD_TIMEOUT };
            let verdict = if state.blocked_since.is_some_and(|blocked| since(blocked) > TAKE_TIMEOUT) {
                Verdict::Close
            } else if state.num_requests > 0 || since(state.since) <= patience {
                Verdict::Stay
            } else if state.is_http2 {
                Verdict::Idle
            } else {
                Verdict::Close
            };
            (stalled, verdict)
        };
        // Outside of the lock: an answer that ends is a request less.
        stalled.iter().for_each(|answer| answer.end_if_stalled(now, TAKE_TIMEOUT));
        verdict
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

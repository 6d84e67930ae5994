//! Serves HTTP and gRPC connections: their number, clients that are slow to ask or take nothing of their answers, idle
//! ones, an end that waits for none of them.

mod connection;
mod outgoing;
mod socket;
#[cfg(test)]
mod tests;
mod tracker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use fused_lifecycle::Lifecycle;
use http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub(crate) use connection::ConnectionBytes;
use connection::Settings;

/// Open connections of one port; one more waits in the listener's backlog.
const MAX_CONNECTIONS: usize = 8192;
/// How long a client may take for its first request, and over HTTP/1 for the head of each.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take none of what it is sent: its connection closes where it takes nothing at all, the stream
/// ends where it is one of several.
const TAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to answer.
const PING: Duration = Duration::from_secs(20);
/// How long open connections get to finish once the server stops.
const CLOSE_GRACE: Duration = Duration::from_secs(3);
/// After a failed accept (no file descriptors left, say): a pause instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts come by the hundred: they are told so often.
const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// Streams that one gRPC connection may hold open at once. A gateway multiplexes all its requests over one.
pub(crate) const MAX_STREAMS: u32 = 4096;
/// What one gRPC stream may have on its way unread: a reader that stops holds up its own stream and no more.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// How the connections of one port are limited.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A connection without a request is closed after so long.
    pub(crate) idle: Duration,
    /// Whether HTTP/1 is spoken too.
    pub(crate) speaks_http1: bool,
    pub(crate) max_streams: u32,
    pub(crate) stream_window_bytes: u32,
    pub(crate) connection_window_bytes: u32,
    /// Streams that a client may have reset before they are looked at. One more closes its connection: that is how a
    /// flood of resets is stopped.
    pub(crate) max_pending_resets: usize,
    /// Streams that may be reset because of a client's errors, in the life of a connection.
    pub(crate) max_error_resets: Option<usize>,
    /// What ends a stream whose client takes nothing; none: it is cut off.
    pub(crate) stalled: Option<HeaderMap>,
}

impl Limits {
    /// Those of HTTP clients. `keep_alive`: how long a connection without a request stays open.
    #[must_use]
    pub fn http(keep_alive: Duration) -> Self {
        Self {
            idle: keep_alive,
            speaks_http1: true,
            // Of one client or proxy; nginx's default.
            max_streams: 128,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 1 << 20,
            // A proxy whose users hang up all at once resets what it has open, more than once while we are busy.
            max_pending_resets: 1024,
            max_error_resets: Some(1024),
            stalled: None,
        }
    }

    /// Those of gRPC clients, which are the service in front, with everybody's requests on one connection, and strangers.
    /// h2's limits on resets would end everybody's streams where many users hang up: what remains bounds memory.
    #[must_use]
    pub fn grpc() -> Self {
        Self {
            idle: Duration::from_secs(75),
            speaks_http1: false,
            max_streams: MAX_STREAMS,
            stream_window_bytes: STREAM_WINDOW_BYTES,
            // Requests are read as they come, so that they need less than one window each.
            connection_window_bytes: 16 << 20,
            max_pending_resets: 4 * MAX_STREAMS as usize,
            max_error_resets: None,
            stalled: Some(crate::grpc::stalled()),
        }
    }
}

/// Accepts connections until the process stops.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, lifecycle: Lifecycle) {
    let settings = Arc::new(Settings::new(router, limits, lifecycle.clone()));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut failures = Failures::default();
    let stopped = lifecycle.stopped();
    tokio::pin!(stopped);
    loop {
        // A closed semaphore is impossible: it is ours.
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit.ok(),
            () = &mut stopped => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => return,
        };
        let stream: TcpStream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                failures.tell(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it every token of a stream may wait for an acknowledgement. Where it fails the client has gone.
        let _ = stream.set_nodelay(true);
        let settings = Arc::clone(&settings);
        lifecycle.spawn("connection", async move {
            connection::run(stream, &settings).await;
            drop(permit);
        });
    }
}

/// Accepts that have failed since that was last told.
#[derive(Default)]
struct Failures {
    num: u64,
    told: Option<Instant>,
}

impl Failures {
    fn tell(&mut self, error: &io::Error) {
        self.num += 1;
        if self.told.is_none_or(|told| told.elapsed() > ACCEPT_WARNING_INTERVAL) {
            tracing::warn!(%error, times = self.num, "connections could not be accepted");
            *self = Self { num: 0, told: Some(Instant::now()) };
        }
    }
}

/// Binds a listening socket.
///
/// # Errors
/// The message names the address and, where the port is taken, the flag to change.
pub async fn bind(address: SocketAddr, flag: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("the port is in use: choose another with {flag}, or 0 for any free one")
            }
            io::ErrorKind::PermissionDenied => {
                format!("ports under 1024 need privileges: choose another with {flag}")
            }
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {hint}"))
    })
}

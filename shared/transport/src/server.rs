use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::Server;

/// The largest gRPC message: a prompt of the text API travels whole.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Streams one connection may hold open at once. A gateway multiplexes all its requests over few connections.
const MAX_STREAMS_PER_CONNECTION: u32 = 4096;

/// What one stream may have on its way unread: a reader that stops holds up its own stream and no more.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// The same of one connection: enough for all its streams at once, so that those that are not read cannot use up what
/// the others need.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * MAX_STREAMS_PER_CONNECTION;

/// A server that accepts clients' keep-alive pings at any rate: engines of the peers ended long prefills with
/// `too_many_pings`. Ours pings idle connections, so that a vanished client's requests are cancelled.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(Some(MAX_STREAMS_PER_CONNECTION))
        .initial_stream_window_size(Some(STREAM_WINDOW_BYTES))
        .initial_connection_window_size(Some(CONNECTION_WINDOW_BYTES))
        .tcp_nodelay(true)
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

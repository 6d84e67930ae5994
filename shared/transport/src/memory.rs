use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::channel::with_windows;

/// Bytes in flight in each direction of one in-memory connection.
const PIPE_BYTES: usize = 256 << 10;
/// Connections waiting to be accepted.
const BACKLOG: usize = 16;

/// The server's end: a stream of connections for `serve_with_incoming`.
#[derive(Debug)]
pub struct InMemoryListener {
    connections: mpsc::Receiver<DuplexStream>,
}

impl Stream for InMemoryListener {
    type Item = io::Result<DuplexStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

/// A channel and the listener it connects to, without a socket.
#[must_use]
pub fn in_memory() -> (Channel, InMemoryListener) {
    let (sender, connections) = mpsc::channel(BACKLOG);
    let connector = tower::service_fn(move |_: Uri| {
        let sender = sender.clone();
        async move {
            let (client, server) = tokio::io::duplex(PIPE_BYTES);
            sender
                .send(server)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::ConnectionRefused, "the service has stopped"))?;
            Ok::<_, io::Error>(TokioIo::new(client))
        }
    });
    let endpoint = with_windows(Endpoint::from_static("http://in-memory"));
    let channel = endpoint.connect_with_connector_lazy(connector);
    (channel, InMemoryListener { connections })
}

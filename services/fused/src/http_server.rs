//! Serves HTTP on a socket: bounded connections, limits on clients that are slow to ask or to read, graceful end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use fused_lifecycle::Lifecycle;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

/// Open connections; one more waits in the listener's backlog.
const MAX_CONNECTIONS: usize = 8192;
/// How long a client may take for its first bytes, and then for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take none of what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a silent HTTP/2 client is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long open connections get to finish once the server stops.
const CLOSE_GRACE: Duration = Duration::from_secs(3);
/// After a failed accept (no file descriptors left, say): a pause instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a client that has sent part of the HTTP/2 preface is looked at again.
const PEEK_PAUSE: Duration = Duration::from_millis(20);
/// What an HTTP/2 client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Accepts connections until the process stops.
pub(crate) async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stopped = lifecycle.stopped();
    tokio::pin!(stopped);
    loop {
        // A closed semaphore is impossible: it is ours.
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit.ok(),
            () = &mut stopped => break,
        };
        let stream: TcpStream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = &mut stopped => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let (builder, watcher) = (builder.clone(), graceful.watcher());
        let closed = closed(lifecycle.clone());
        lifecycle.spawn("http connection", async move {
            let served = async {
                tokio::time::timeout(HEAD_TIMEOUT, first_bytes(&stream)).await??;
                // Without it every token of a stream may wait for an acknowledgement.
                stream.set_nodelay(true)?;
                let mut stream = TimeoutStream::new(stream);
                stream.set_write_timeout(Some(WRITE_TIMEOUT));
                let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
                // An error here is the client's: it went away or spoke no HTTP.
                let _ = watcher.watch(connection.into_owned()).await;
                Ok::<_, io::Error>(())
            };
            tokio::select! {
                // A client that sent nothing, or left at once.
                _ = served => {}
                () = closed => {}
            }
            drop(permit);
        });
    }
    // What is still open after it is closed by `closed`.
    let _ = tokio::time::timeout(CLOSE_GRACE, graceful.shutdown()).await;
}

/// Completes when connections have had their time to finish.
pub(crate) async fn closed(lifecycle: Lifecycle) {
    lifecycle.stopped().await;
    tokio::time::sleep(CLOSE_GRACE).await;
}

/// Waits until it shows whether the client speaks HTTP/1 or HTTP/2: finding that out has no time limit of its own.
async fn first_bytes(stream: &TcpStream) -> io::Result<()> {
    let mut bytes = [0; PREFACE.len()];
    loop {
        let num_bytes = stream.peek(&mut bytes).await?;
        let is_undecided = num_bytes < PREFACE.len() && PREFACE.starts_with(&bytes[..num_bytes]);
        if num_bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !is_undecided {
            return Ok(());
        }
        tokio::time::sleep(PEEK_PAUSE).await;
    }
}

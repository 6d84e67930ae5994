//! Serves HTTP on a socket: bounded connections, a limit on how long a request's head may take, graceful end.

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

/// Open connections; one more waits in the listener's backlog.
const MAX_CONNECTIONS: usize = 8192;
/// How long a client may take for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long open connections get to finish once the server stops.
const CLOSE_GRACE: Duration = Duration::from_secs(3);
/// After a failed accept (no file descriptors left, say): a pause instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the process stops.
pub(crate) async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
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
        // Without it every token of a stream may wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let watched = graceful.watch(connection);
        lifecycle.spawn("http connection", async move {
            // An error here is the client's: it went away or spoke no HTTP.
            let _ = watched.await;
            drop(permit);
        });
    }
    let _ = tokio::time::timeout(CLOSE_GRACE, graceful.shutdown()).await;
}

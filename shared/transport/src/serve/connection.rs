use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use fused_lifecycle::Lifecycle;
use futures_util::future::BoxFuture;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior};
use tower::{BoxError, Service, ServiceExt};

use super::outgoing::Outgoing;
use super::socket::Watched;
use super::tracker::{Open, Tracker, Verdict};
use super::{CLOSE_GRACE, Limits, PING};

/// How often a connection is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What all connections of a port share.
pub(super) struct Settings {
    router: Router,
    limits: Limits,
    lifecycle: Lifecycle,
    builder: Builder<TokioExecutor>,
}

/// Bytes of unfinished messages of one connection, in every request's extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionBytes(pub(crate) Arc<AtomicUsize>);

impl Settings {
    pub(super) fn new(router: Router, limits: Limits, lifecycle: Lifecycle) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        if !limits.speaks_http1 {
            builder = builder.http2_only();
        }
        // The tracker keeps the time of heads: hyper's would count idle time to it.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(limits.max_streams)
            .initial_stream_window_size(limits.stream_window_bytes)
            .initial_connection_window_size(limits.connection_window_bytes)
            .max_pending_accept_reset_streams(limits.max_pending_resets)
            .max_local_error_reset_streams(limits.max_error_resets);
        Self { router, limits, lifecycle, builder }
    }
}

/// Serves one connection to its end.
pub(super) async fn run<S>(stream: S, settings: &Settings)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tracker = Tracker::new(settings.limits.idle);
    let service = Requests {
        router: settings.router.clone(),
        tracker: Arc::clone(&tracker),
        bytes: ConnectionBytes::default(),
        stalled: settings.limits.stalled.clone(),
        lifecycle: settings.lifecycle.clone(),
    };
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&tracker)));
    let mut connection = pin!(settings.builder.serve_connection(io, TowerToHyperService::new(service)));
    let mut checks = tokio::time::interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut draining, mut stopped) =
        (pin!(settings.lifecycle.draining()), pin!(settings.lifecycle.stopped()));
    let mut is_draining = false;
    // When a connection that was told to go is closed: if it has no request then, or, once the server stops, at all.
    let (mut close_at, mut end_at): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        tokio::select! {
            // An error here is the client's: it went away or spoke no HTTP.
            _ = connection.as_mut() => return,
            _ = checks.tick() => {
                let now = Instant::now();
                // A client that does not read cannot hold up the end.
                if end_at.is_some_and(|at| now >= at) {
                    return;
                }
                match tracker.check(now) {
                    Verdict::Stay => {}
                    Verdict::Close => return,
                    Verdict::Idle if close_at.is_none() => {
                        connection.as_mut().graceful_shutdown();
                        close_at = now.checked_add(CLOSE_GRACE);
                    }
                    // Told to go, idle, and still there.
                    Verdict::Idle => if close_at.is_some_and(|at| now >= at) { return },
                }
            }
            () = &mut draining, if !is_draining => {
                is_draining = true;
                // HTTP/1 clients are told with their next answer. A service in front sees by our health where to go, and
                // one connection is all that it has.
                if settings.limits.speaks_http1 && tracker.is_http2() {
                    connection.as_mut().graceful_shutdown();
                }
            }
            () = &mut stopped, if end_at.is_none() => {
                end_at = Instant::now().checked_add(CLOSE_GRACE);
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Counts a connection's requests and watches over their answers.
#[derive(Clone)]
struct Requests {
    router: Router,
    tracker: Arc<Tracker>,
    bytes: ConnectionBytes,
    stalled: Option<http::HeaderMap>,
    lifecycle: Lifecycle,
}

impl<B> Service<Request<B>> for Requests
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let version = request.version();
        let open = self.tracker.begin(version);
        request.extensions_mut().insert(self.bytes.clone());
        let Self { router, tracker, stalled, lifecycle, .. } = self.clone();
        Box::pin(async move {
            let mut response = router.oneshot(request).await?;
            if version == Version::HTTP_2 {
                return Ok(response.map(|body| {
                    let answer = Outgoing::new(body, open, stalled);
                    tracker.watch(&answer);
                    Body::new(answer.body())
                }));
            }
            // So that a proxy's next request goes to another replica.
            if lifecycle.is_draining() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| Body::new(Counted { body, _open: open })))
        })
    }
}

/// An HTTP/1 answer: whether its client takes it, the socket tells.
struct Counted {
    body: Body,
    _open: Open,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use fused_lifecycle::Lifecycle;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tower::{BoxError, Service};

use crate::in_process;
use crate::serve::{MAX_STREAMS, STREAM_WINDOW_BYTES};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After so much silence of a service it is asked whether it is there.
const PING_AFTER: Duration = Duration::from_secs(2);
/// How long it may take to answer: then its connection is lost, and with it every stream on it. Its runtime answers, so
/// that a busy service answers at once, and one that is stopped or cut off does not.
const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// Streams that were cancelled here, and of which more data may be on its way: so many are remembered.
const MAX_CANCELLED_STREAMS: usize = MAX_STREAMS as usize;

/// The address of a service cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{url}` is not the address of a service: give http://HOST:PORT")]
pub struct ChannelError {
    url: String,
    source: Option<tonic::transport::Error>,
}

impl ChannelError {
    pub(crate) fn no_port(url: &str) -> Self {
        Self { url: url.to_owned(), source: None }
    }
}

/// The way to a service: over a socket, or to one in this process. Cheap to clone. Over a socket it connects when it is
/// first used and again when the connection is lost; a service that has stopped answering is noticed within 6 s, and
/// then every call on the way to it fails.
#[derive(Clone, Debug)]
pub struct Channel(Way);

#[derive(Clone, Debug)]
enum Way {
    Network(tonic::transport::Channel),
    InProcess(Routes, Lifecycle),
}

/// A channel to `http://HOST:PORT`.
///
/// # Errors
/// `url` does not parse.
pub fn connect(url: &str) -> Result<Channel, ChannelError> {
    Ok(Channel::network(&endpoint(url)?))
}

impl Channel {
    pub(crate) fn network(endpoint: &Endpoint) -> Self {
        Self(Way::Network(endpoint.connect_lazy()))
    }

    pub(crate) fn in_process(routes: Routes, lifecycle: Lifecycle) -> Self {
        Self(Way::InProcess(routes, lifecycle))
    }

    pub(crate) fn is_in_process(&self) -> bool {
        matches!(self.0, Way::InProcess(..))
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.0 {
            Way::Network(channel) => channel.poll_ready(cx).map_err(Into::into),
            Way::InProcess(..) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match &mut self.0 {
            Way::Network(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { answer.await.map_err(Into::into) })
            }
            Way::InProcess(routes, lifecycle) => {
                Box::pin(in_process::call(routes.clone(), lifecycle, request))
            }
        }
    }
}

/// All requests to a service share one connection. Whoever hangs up resets a stream on it, and h2's limits against peers
/// that reset too many would end everybody's: they are for strangers, not for this hop.
pub(crate) fn endpoint(url: &str) -> Result<Endpoint, ChannelError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|source| ChannelError { url: url.to_owned(), source: Some(source) })?;
    if endpoint.uri().scheme_str() != Some("http") {
        return Err(ChannelError { url: url.to_owned(), source: None });
    }
    Ok(endpoint
        .initial_stream_window_size(Some(STREAM_WINDOW_BYTES))
        // Enough for all streams at once: those that are not read cannot use up what the others need.
        .initial_connection_window_size(Some(STREAM_WINDOW_BYTES * MAX_STREAMS))
        .http2_max_concurrent_reset_streams(MAX_CANCELLED_STREAMS)
        .http2_max_local_error_reset_streams(Some(usize::MAX))
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

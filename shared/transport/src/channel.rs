use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::server::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(20);

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

/// A channel that connects when it is first used and reconnects when the connection is lost.
///
/// # Errors
/// `url` does not parse.
pub fn connect(url: &str) -> Result<Channel, ChannelError> {
    Ok(endpoint(url)?.connect_lazy())
}

/// Flow control that one slow reader cannot use up; see `server`.
pub(crate) fn with_windows(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(Some(STREAM_WINDOW_BYTES))
        .initial_connection_window_size(Some(CONNECTION_WINDOW_BYTES))
}

pub(crate) fn endpoint(url: &str) -> Result<Endpoint, ChannelError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|source| ChannelError { url: url.to_owned(), source: Some(source) })?;
    if endpoint.uri().scheme_str() != Some("http") {
        return Err(ChannelError { url: url.to_owned(), source: None });
    }
    Ok(with_windows(endpoint)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

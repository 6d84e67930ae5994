use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The address of a service cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{url}` is not the address of a service: give http://HOST:PORT")]
pub struct ChannelError {
    url: String,
    source: tonic::transport::Error,
}

/// A channel that connects when it is first used and reconnects when the connection is lost.
///
/// # Errors
/// `url` does not parse.
pub fn connect(url: &str) -> Result<Channel, ChannelError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|source| ChannelError { url: url.to_owned(), source })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

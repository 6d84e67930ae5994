use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::ApiKeys;

/// Renders the process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Settings of the gateway.
#[derive(Clone)]
pub struct Config {
    /// The keys that are let in; none at all: everybody is.
    pub api_keys: ApiKeys,
    /// Origins whose pages may call the API from a browser; `*` among them: all. None: no CORS headers.
    pub allowed_origins: Vec<HeaderValue>,
    /// Requests with work behind them; one more is refused with 429. A request counts until the last byte of its answer
    /// is out.
    pub max_requests_in_flight: usize,
    /// The largest request body.
    pub max_body_bytes: usize,
    /// What the bodies of all requests may take together; one more is refused with 429. A body counts until its request
    /// has been answered, because what is made of it lives as long.
    pub max_buffered_bytes: usize,
    /// How long a client may take to send its body.
    pub body_read_timeout: Duration,
    /// How long a request may take in all; travels with it to the engine.
    pub request_timeout: Duration,
    /// The longest silence of an event stream: then a comment goes out, so that proxies keep the connection.
    pub keep_alive_interval: Duration,
    /// Prompts of one completions request.
    pub max_prompts: usize,
    /// What /metrics answers.
    pub metrics: RenderMetrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_keys: ApiKeys::default(),
            allowed_origins: Vec::new(),
            max_requests_in_flight: 1024,
            max_body_bytes: 4 << 20,
            max_buffered_bytes: 256 << 20,
            body_read_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30 * 60),
            keep_alive_interval: Duration::from_secs(15),
            max_prompts: 128,
            metrics: Arc::new(String::new),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("api_keys", &self.api_keys)
            .field("allowed_origins", &self.allowed_origins)
            .field("max_requests_in_flight", &self.max_requests_in_flight)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("max_buffered_bytes", &self.max_buffered_bytes)
            .field("body_read_timeout", &self.body_read_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("keep_alive_interval", &self.keep_alive_interval)
            .field("max_prompts", &self.max_prompts)
            .finish_non_exhaustive()
    }
}

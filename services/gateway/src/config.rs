use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::{ApiKeys, KeySources};

/// Renders the process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Settings of the gateway.
#[derive(Clone)]
pub struct Config {
    /// The keys that are let in; none at all: everybody is.
    pub api_keys: ApiKeys,
    /// Where they come from: read again when a file changes.
    pub key_sources: KeySources,
    /// Whether callers with different keys share nothing of the prefix cache; none: where there are several.
    pub isolate_prefix_cache: Option<bool>,
    /// Origins whose pages may call the API from a browser; `*` among them: all. None: no CORS headers.
    pub allowed_origins: Vec<HeaderValue>,
    /// Requests with work behind them; one more is refused with 429. A request counts until the last byte of its answer
    /// is out.
    pub max_requests_in_flight: usize,
    /// The largest request body.
    pub max_body_bytes: usize,
    /// What the bodies of all requests, what is made of them, and answers that are collected may take together, a quarter of it
    /// only short ones; one more is refused with 429. It counts until its request has been answered.
    pub max_buffered_bytes: usize,
    /// How long a client may take to send its body.
    pub body_read_timeout: Duration,
    /// How long nothing of it may come.
    pub body_idle_timeout: Duration,
    /// How long a request may take in all; travels with it to the engine.
    pub request_timeout: Duration,
    /// The longest silence of an event stream: then a comment goes out, so that proxies keep the connection.
    pub keep_alive_interval: Duration,
    /// Prompts of one completions request.
    pub max_prompts: usize,
    /// What /metrics answers; none: no such route, because tenants must not read of each other.
    pub metrics: Option<RenderMetrics>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_keys: ApiKeys::default(),
            key_sources: KeySources::default(),
            isolate_prefix_cache: None,
            allowed_origins: Vec::new(),
            max_requests_in_flight: 1024,
            max_body_bytes: 4 << 20,
            max_buffered_bytes: 256 << 20,
            body_read_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30 * 60),
            keep_alive_interval: Duration::from_secs(15),
            max_prompts: 128,
            metrics: Some(Arc::new(String::new)),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("api_keys", &self.api_keys)
            .field("key_sources", &"not shown")
            .field("isolate_prefix_cache", &self.isolate_prefix_cache)
            .field("allowed_origins", &self.allowed_origins)
            .field("max_requests_in_flight", &self.max_requests_in_flight)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("max_buffered_bytes", &self.max_buffered_bytes)
            .field("body_read_timeout", &self.body_read_timeout)
            .field("body_idle_timeout", &self.body_idle_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("keep_alive_interval", &self.keep_alive_interval)
            .field("max_prompts", &self.max_prompts)
            .finish_non_exhaustive()
    }
}

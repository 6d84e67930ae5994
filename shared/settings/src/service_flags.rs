use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::EngineFlags;

/// The flags of every subcommand that runs a service, as typed; what they mean is [`Settings`](crate::Settings), where
/// each is described.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub struct Flags {
    /// Those of the engine.
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) engine_flags: EngineFlags,

    /// Engine to send to; may be repeated
    #[arg(long, value_name = "URL", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    engine: Vec<String>,
    /// Threads that encode [default: 2]
    #[arg(long, value_name = "N", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer_threads: Option<usize>,
    /// Texts that may wait to be encoded [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_waiting_texts: Option<usize>,

    /// Chat template in place of the model's: a Jinja file, or the template itself
    #[arg(long, value_name = "FILE", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template: Option<String>,
    /// Let requests bring their own chat template [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Tokenizer")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_request_chat_template: Option<bool>,

    /// Tokenizer to send to; may be repeated
    #[arg(long, value_name = "URL", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokenizer: Vec<String>,
    /// API key to let in; may be repeated. Visible in the process list: prefer --api-key-file
    #[arg(long, value_name = "KEY", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    api_key: Vec<String>,
    /// File with one API key a line, read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_file: Option<PathBuf>,
    /// TOML file of tenants with their names, API keys and limits, read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants_file: Option<PathBuf>,
    /// Let tenants share nothing of the prefix cache [default: true where there are several API keys]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    isolate_prefix_cache: Option<bool>,
    /// Requests in flight [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_requests_in_flight: Option<usize>,
    /// Largest request body, bytes [default: 4194304]
    #[arg(long, value_name = "BYTES", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_body_bytes: Option<usize>,
    /// How long an HTTP connection without a request stays open [default: 75]
    #[arg(long, value_name = "SECONDS", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    http_keep_alive_s: Option<u64>,
    /// Memory of requests and collected answers, bytes [default: 256 MiB, at most a quarter of the container's]
    #[arg(long, value_name = "BYTES", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_buffered_bytes: Option<usize>,
    /// Origin whose pages may call the API from a browser; may be repeated
    #[arg(long, alias = "allowed-origin", value_name = "ORIGIN", help_heading = "Gateway")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_origins: Vec<String>,

    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// HTTP port, 0 for any free one [default: 8000]
    #[arg(long, help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// gRPC port, 0 for any free one [default: tokenizer 50051, engine 50052, serve none]
    #[arg(long, value_name = "PORT", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_port: Option<u16>,
    /// HTTP port for /metrics, without a key [default: none]
    #[arg(long, value_name = "PORT", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_port: Option<u16>,
    /// How long running requests may go on after SIGTERM [default: 30]
    #[arg(long, alias = "drain-timeout", value_name = "SECONDS", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_timeout_s: Option<u64>,
    /// Which log lines are written, such as info or warn,fused_engine=debug [default: info]
    #[arg(long, value_name = "DIRECTIVES", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_filter: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<String>,
    /// Where spans go, OTLP over gRPC [default: nowhere]
    #[arg(long, value_name = "URL", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_endpoint: Option<String>,
    /// Share of traces recorded where the caller has not decided it [default: 1]
    #[arg(long, value_name = "RATIO", help_heading = "Process")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_sample_ratio: Option<f64>,
}

impl Flags {
    /// These flags, with the model that was named without one.
    #[must_use]
    pub fn with_model(self, model: Option<String>) -> Self {
        Self { engine_flags: self.engine_flags.with_model(model), ..self }
    }
}

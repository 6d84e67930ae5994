//! Seeing inside: logs, one trace a request across the three services, Prometheus text.
//!
//! [`Telemetry::start`] is called once by the binary. Services open spans with `tracing`, join them to the caller's
//! trace with [`grpc::set_parent`] or [`http::set_parent`], and hand the trace on with [`grpc::inject`]. Metrics are
//! recorded with the `metrics` macros; [`Metrics`] renders them.

pub mod grpc;
pub mod http;
mod logs;
mod metrics;
mod traces;

pub use logs::LogFormat;
use logs::LogWriter;
pub use metrics::Metrics;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How a process shows what it does.
#[derive(Clone, Debug)]
pub struct Config {
    /// `service.name` of its spans.
    pub service_name: String,
    /// Which log lines are written: `tracing_subscriber::EnvFilter` directives.
    pub log_filter: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where spans go (OTLP over gRPC); `None`: nowhere, and no trace is recorded.
    pub otlp_endpoint: Option<String>,
    /// The share of traces that are recorded, of those whose caller has not decided it; [0, 1].
    pub trace_sample_ratio: f64,
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("log_filter `{filter}` is not a list of directives such as `info,fused_engine=debug`")]
    LogFilter {
        /// As given.
        filter: String,
        /// Where it fails.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The endpoint is not a URL that spans can be sent to.
    #[error("otlp_endpoint `{endpoint}` cannot be used, give one such as http://localhost:4317")]
    OtlpEndpoint {
        /// As given.
        endpoint: String,
        /// Why.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Standard error, where log lines go, is closed.
    #[error("standard error cannot be written to")]
    StandardError(#[source] std::io::Error),
    /// Something else in this process has installed a log subscriber or a metrics recorder.
    #[error("telemetry is set up already in this process")]
    AlreadySetUp,
}

/// Telemetry of this process; to be shut down when the process ends.
pub struct Telemetry {
    tracer: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
    log_writer: LogWriter,
    /// Of those already told of.
    num_lines_dropped: u64,
}

impl Telemetry {
    /// Installs the process's log subscriber and, where an endpoint is given, its span exporter. Needs a tokio runtime
    /// for the latter.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(config: &Config) -> Result<Self, Error> {
        let directives = EnvFilter::try_new(&config.log_filter)
            .map_err(|source| Error::LogFilter { filter: config.log_filter.clone(), source })?;
        let log_writer = LogWriter::stderr().map_err(Error::StandardError)?;
        let tracer = traces::provider(config)?;
        let spans = tracer.as_ref().map(traces::layer);
        tracing_subscriber::registry()
            .with(logs::layer(config.log_format, directives, log_writer.queue()))
            .with(spans)
            .try_init()
            .map_err(|_| Error::AlreadySetUp)?;
        Ok(Self { tracer, log_writer, num_lines_dropped: 0 })
    }

    /// Tells of log lines that were lost since the last call, in a metric and in the log itself; to be called every few
    /// seconds.
    pub fn report_losses(&mut self) {
        let num_dropped = self.log_writer.num_dropped();
        ::metrics::counter!("fused_log_lines_dropped_total").absolute(num_dropped);
        if num_dropped > self.num_lines_dropped {
            let num_lines = num_dropped - self.num_lines_dropped;
            tracing::warn!(num_lines, "log lines were lost: standard error is read too slowly");
            self.num_lines_dropped = num_dropped;
        }
    }

    /// Sends the spans that are still buffered, and writes the last lines.
    pub fn shut_down(self) {
        if let Some(tracer) = self.tracer
            && let Err(error) = tracer.shutdown()
        {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

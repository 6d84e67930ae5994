//! Log lines: which are written, how they look, and what keeps them from holding anybody up.

mod filter;
mod flood;
mod writer;

use std::io::IsTerminal;
use std::str::FromStr;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Format;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

use self::filter::LogFilter;
pub(crate) use self::filter::OURS;
use self::flood::Rationed;
pub(crate) use self::writer::LogWriter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{name}` is not a log format; there are `text` and `json`")),
        }
    }
}

/// Writes the lines that the directives let through. They concern lines only: spans are there for traces, and for the
/// request ids of the lines in them, whatever level lines are written from.
pub(crate) fn layer<S, W>(format: LogFormat, directives: EnvFilter, writer: W) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => {
            let is_terminal = std::io::stderr().is_terminal();
            let format = Format::default().with_ansi(is_terminal).compact();
            layer.with_ansi(is_terminal).event_format(Rationed::new(format, LogFormat::Text)).boxed()
        }
        LogFormat::Json => {
            let format = Format::default().json().flatten_event(true);
            layer.json().event_format(Rationed::new(format, LogFormat::Json)).boxed()
        }
    };
    layer.with_filter(LogFilter::new(directives))
}

#[cfg(test)]
mod tests;

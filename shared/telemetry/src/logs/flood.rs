use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;

/// Warnings and errors that one place in the code may write in a [`PERIOD`]: what goes wrong a thousand times a second
/// is seen by the first of them and their number.
const MAX_LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(1);

/// Writes lines by another format, and leaves out those of a flood. How many those were stands before the next line
/// that the same place writes.
pub(super) struct Rationed<F> {
    format: F,
    kind: LogFormat,
    places: Mutex<HashMap<Identifier, Ration>>,
}

/// What one place has written since a moment, and what it would have written.
pub(super) struct Ration {
    since: Instant,
    num_lines: u32,
    num_left_out: u64,
}

impl Ration {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, num_lines: 0, num_left_out: 0 }
    }

    /// Whether one more line may be written: if so, how many were left out before it.
    pub(super) fn take(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.since) >= PERIOD {
            (self.since, self.num_lines) = (now, 0);
        }
        if self.num_lines == MAX_LINES {
            self.num_left_out += 1;
            return None;
        }
        self.num_lines += 1;
        Some(std::mem::take(&mut self.num_left_out))
    }
}

impl<F> Rationed<F> {
    pub(super) fn new(format: F, kind: LogFormat) -> Self {
        Self { format, kind, places: Mutex::default() }
    }

    /// Lines of less weight are somebody's choice, made by `log_filter`.
    fn take(&self, metadata: &Metadata<'_>) -> Option<u64> {
        if *metadata.level() > Level::WARN {
            return Some(0);
        }
        let now = Instant::now();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(metadata.callsite()).or_insert_with(|| Ration::new(now)).take(now)
    }
}

impl<S, N, F> FormatEvent<S, N> for Rationed<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let Some(num_left_out) = self.take(metadata) else {
            metrics::counter!("fused_log_lines_left_out_total").increment(1);
            return Ok(());
        };
        if num_left_out > 0 {
            let (level, target) = (metadata.level(), metadata.target());
            let message = "lines like the next one were left out";
            match self.kind {
                LogFormat::Text => writeln!(writer, "{level} {target}: {num_left_out} {message}")?,
                LogFormat::Json => writeln!(
                    writer,
                    r#"{{"level":"{level}","message":"{message}","num_left_out":{num_left_out},"target":"{target}"}}"#
                )?,
            }
        }
        self.format.format_event(context, writer, event)
    }
}

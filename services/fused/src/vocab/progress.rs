use std::io::{IsTerminal, Write, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fused_vocabulary::build::{Observer, Stage, Unit};
use indicatif::{ProgressBar, ProgressStyle};

use crate::corpus::{BytesRead, Corpus};
use crate::interrupt::Interrupt;

const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Shows how far a tool is, on standard error: a bar with rate and expected end where that is a terminal, else a line a
/// stage.
pub(super) struct Progress<'a> {
    interrupt: &'a Interrupt,
    bytes_read: BytesRead,
    is_terminal: bool,
    current: Mutex<Current>,
}

struct Current {
    bar: ProgressBar,
    /// The corpus is being read: how much of its files, compressed or not, says better how far that is.
    reads: bool,
}

impl<'a> Progress<'a> {
    pub(super) fn new(corpus: &Corpus, interrupt: &'a Interrupt) -> Self {
        let progress = Self {
            interrupt,
            bytes_read: corpus.bytes_read(),
            is_terminal: stderr().is_terminal(),
            current: Mutex::new(Current { bar: ProgressBar::hidden(), reads: false }),
        };
        if let Some(skipped) = corpus.skipped() {
            say(&skipped);
        }
        progress
    }

    /// The work has ended, and the bar goes.
    pub(super) fn end(&self) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).bar.finish_and_clear();
    }
}

impl Observer for Progress<'_> {
    fn begin(&self, stage: &Stage) {
        if !self.is_terminal {
            return say(stage.name);
        }
        let reads = stage.unit == Unit::Bytes;
        let total = if reads { self.bytes_read.total } else { stage.total };
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        bar.set_style(style(stage.unit, total.is_some()));
        bar.set_message(stage.name);
        bar.enable_steady_tick(REDRAW_INTERVAL);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.bar.finish_and_clear();
        *current = Current { bar, reads };
    }

    fn advance(&self, amount: u64) {
        if !self.is_terminal {
            return;
        }
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.reads {
            current.bar.set_position(self.bytes_read.so_far());
        } else {
            current.bar.inc(amount);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.interrupt.is_told()
    }
}

fn style(unit: Unit, has_total: bool) -> ProgressStyle {
    let template = match (unit, has_total) {
        (Unit::Bytes, true) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
        (Unit::Bytes, false) => "{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}",
        (_, true) => "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} ETA {eta}",
        (_, false) => "{spinner} {msg} {human_pos} {per_sec} {elapsed}",
    };
    // These templates are known to be well-formed; the default would show the same numbers.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A line of its own on standard error.
fn say(text: &str) {
    // Nothing is left to do where standard error is gone.
    let _ = writeln!(stderr(), "fused: {text}");
}

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that wait to be written; one more is dropped and counted.
const MAX_WAITING_LINES: usize = 8192;

/// Standard error behind a bounded queue and a thread: where nobody reads it, a pipe that is full or a terminal that is
/// held, lines are lost and nothing waits. Standard output belongs to what a command prints.
pub(crate) struct LogWriter {
    queue: NonBlocking,
    dropped: ErrorCounter,
    /// Writes what waits when it is dropped, for a second at most.
    _worker: WorkerGuard,
}

impl LogWriter {
    pub(crate) fn stderr() -> io::Result<Self> {
        // A handle of its own: the thread holds no lock that a panic or a last message would wait for.
        Ok(Self::new(File::from(io::stderr().as_fd().try_clone_to_owned()?)))
    }

    pub(super) fn new(out: impl Write + Send + 'static) -> Self {
        let (queue, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(MAX_WAITING_LINES)
            .thread_name("log writer")
            .finish(out);
        Self { dropped: queue.error_counter(), queue, _worker: worker }
    }

    pub(crate) fn queue(&self) -> NonBlocking {
        self.queue.clone()
    }

    /// Lines lost since the start.
    pub(crate) fn num_dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }
}

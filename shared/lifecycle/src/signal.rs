use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT and SIGHUP from now on. Kept for the life of the process: a signal that comes while nobody waits is not lost.
#[derive(Debug)]
pub struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
    /// Taken over even where it means nothing: whoever means "read your files again" must not end a server without a
    /// drain. Files that may change are watched instead.
    hangup: Signal,
}

impl ShutdownSignals {
    /// Takes the signals over. Needs a tokio runtime.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next SIGTERM or SIGINT and returns its name.
    ///
    /// # Cancel safety
    /// A signal that comes after the future was dropped is returned by the next call.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The same for a tool at a terminal, which ends when that is closed.
    ///
    /// # Cancel safety
    /// As [`next`](Self::next).
    pub async fn next_or_hangup(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_signal_that_comes_while_nobody_waits_is_kept_and_a_hang_up_ends_nothing() {
        let mut signals = ShutdownSignals::install().unwrap();
        let pid = std::process::id().to_string();
        let kill = "kill -HUP $0; kill -TERM $0";
        assert!(Command::new("sh").args(["-c", kill, &pid]).status().unwrap().success());
        assert_eq!(signals.next().await, "SIGTERM");
        assert_eq!(signals.next_or_hangup().await, "SIGHUP");
    }
}

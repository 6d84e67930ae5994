use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use fused_lifecycle::ShutdownSignals;

use crate::process;

/// How long work may take to notice that it shall end. A read from a pipe that nobody writes to never does.
const GRACE: Duration = Duration::from_secs(5);

/// Ctrl-C, SIGTERM and a closed terminal, for a tool that must leave nothing half done.
///
/// The work is asked to end, and drops what it has begun. Where it does not within some seconds, or the signal comes
/// again, the process ends at once.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    told: Arc<AtomicBool>,
    unfinished: Arc<Mutex<Option<PathBuf>>>,
}

impl Interrupt {
    /// Takes the signals over, from now to the end of the process.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _context = runtime.enter();
            ShutdownSignals::install()?
        };
        let told = interrupt.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let signal = signals.next_or_hangup().await;
                    told.told.store(true, Ordering::Relaxed);
                    // Nothing is left to do where standard error is gone.
                    let _ = writeln!(
                        std::io::stderr(),
                        "fused: {signal}: ending, and leaving nothing half written"
                    );
                    // Too late or told twice is the same.
                    let _ = tokio::time::timeout(GRACE, signals.next_or_hangup()).await;
                });
                told.end_at_once()
            })
            .context("cannot start a thread")?;
        Ok(interrupt)
    }

    pub(crate) fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// What must go if the process ends at once.
    pub(crate) fn remove_at_exit(&self, path: Option<PathBuf>) {
        *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner) = path;
    }

    fn end_at_once(&self) -> ! {
        // Held, so that a file is not finished meanwhile.
        let unfinished = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &*unfinished {
            let removed = std::fs::remove_file(path);
            if removed.is_err() {
                let _ = std::fs::remove_dir_all(path);
            }
        }
        std::process::exit(process::INTERRUPTED.into())
    }
}

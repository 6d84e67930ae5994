use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time that passes only when it is told to. Clones are the same clock.
#[derive(Clone, Debug)]
pub(super) struct VirtualClock {
    /// `Instant` cannot be made from nothing; only what lies between two of them is ever looked at.
    start: Instant,
    elapsed_ns: Arc<AtomicU64>,
}

impl VirtualClock {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), elapsed_ns: Arc::default() }
    }

    /// Since the start.
    pub(super) fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_ns.load(Ordering::Relaxed))
    }

    /// The instant for those who need one.
    pub(super) fn at(&self, elapsed: Duration) -> Instant {
        self.start.checked_add(elapsed).unwrap_or(self.start)
    }

    pub(super) fn now(&self) -> Instant {
        self.at(self.elapsed())
    }

    /// At most 584 years in all.
    pub(super) fn pass(&self, time: Duration) {
        let elapsed = self.elapsed().saturating_add(time);
        self.elapsed_ns.store(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Never goes back.
    pub(super) fn pass_until(&self, elapsed: Duration) {
        self.pass(elapsed.saturating_sub(self.elapsed()));
    }
}

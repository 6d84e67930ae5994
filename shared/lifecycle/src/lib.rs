//! Named tasks, shutdown, drain: no task of ours is an orphan.
//!
//! A process lives in three stages: *serving*; *draining*, from SIGTERM on, when new requests are refused and running
//! ones may finish; *stopping*, when every task is told to end. [`Lifecycle`] is cheap to clone and goes wherever tasks
//! are started or requests are counted.

mod signal;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

pub use signal::ShutdownSignals;

/// The stages of a process, its tasks and the requests in flight.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    shared: Arc<Shared>,
    tier: usize,
}

/// Services that hand a request on to one another: gateway, tokenizer, engine.
const NUM_TIERS: usize = 3;

#[derive(Debug, Default)]
struct Shared {
    drain: CancellationToken,
    stop: CancellationToken,
    tracker: TaskTracker,
    next_task: AtomicU64,
    running: Mutex<BTreeMap<u64, &'static str>>,
    /// By tier.
    requests: [AtomicUsize; NUM_TIERS],
    request_ended: Notify,
}

/// The process drains and takes no new request.
#[derive(Debug, thiserror::Error)]
#[error("the server is shutting down")]
pub struct Draining;

/// Tasks that had not ended when the time for it was over.
#[derive(Debug, thiserror::Error)]
#[error("tasks still running after {grace:?}: {}", .names.join(", "))]
pub struct Late {
    /// How long they were given.
    pub grace: Duration,
    /// Their names.
    pub names: Vec<&'static str>,
}

/// One request in flight; lives in the response stream and ends with it.
#[derive(Debug)]
pub struct RequestGuard {
    shared: Arc<Shared>,
    tier: usize,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.shared.requests[self.tier].fetch_sub(1, Ordering::AcqRel);
        self.shared.request_ended.notify_waiters();
    }
}

struct TaskGuard {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Lifecycle {
    /// A process that serves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same process to a service that stands so many services behind the first: what the first has handed on to it
    /// is the same request, and is counted there.
    #[must_use]
    pub fn tier(&self, num_before: usize) -> Self {
        Self { shared: Arc::clone(&self.shared), tier: num_before.min(NUM_TIERS - 1) }
    }

    /// Starts a task. It runs to its end; one that waits for work must also wait for [`stopped`](Self::stopped).
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let id = self.shared.next_task.fetch_add(1, Ordering::Relaxed);
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id, name);
        let guard = TaskGuard { shared: Arc::clone(&self.shared), id };
        self.shared.tracker.spawn(async move {
            let _guard = guard;
            future.await
        })
    }

    /// Counts a request in, unless the process drains. A service behind others of this process still takes requests
    /// while one of those before it has any: it may be handed on.
    ///
    /// # Errors
    /// [`Draining`] from the moment [`begin_drain`](Self::begin_drain) was called.
    pub fn request(&self) -> Result<RequestGuard, Draining> {
        self.shared.requests[self.tier].fetch_add(1, Ordering::AcqRel);
        // Counted before the stage is read: a drain that begins now sees this request.
        let guard = RequestGuard { shared: Arc::clone(&self.shared), tier: self.tier };
        let mut before = self.shared.requests[..self.tier].iter();
        let may_be_handed_on = before.any(|count| count.load(Ordering::Acquire) > 0);
        if self.is_draining() && !may_be_handed_on { Err(Draining) } else { Ok(guard) }
    }

    /// Requests in flight, as the first service counts them that has any: those behind it have the same ones.
    #[must_use]
    pub fn num_requests(&self) -> usize {
        let mut counts = self.shared.requests.iter().map(|count| count.load(Ordering::Acquire));
        counts.find(|count| *count > 0).unwrap_or(0)
    }

    /// Whether new requests are refused.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.drain.is_cancelled()
    }

    /// Refuses new requests from now on.
    pub fn begin_drain(&self) {
        self.shared.drain.cancel();
    }

    /// Completes when the drain begins.
    pub fn draining(&self) -> WaitForCancellationFutureOwned {
        self.shared.drain.clone().cancelled_owned()
    }

    /// Completes when tasks must end.
    pub fn stopped(&self) -> WaitForCancellationFutureOwned {
        self.shared.stop.clone().cancelled_owned()
    }

    /// Drains for at most `grace`, then stops and waits at most `stop_grace` for the tasks. Returns how many requests
    /// were still running when the grace time was over.
    ///
    /// # Errors
    /// [`Late`] names the tasks that did not end.
    pub async fn shut_down(&self, grace: Duration, stop_grace: Duration) -> Result<usize, Late> {
        self.begin_drain();
        // The time-out is not an error: the count that is left says it.
        let _ = tokio::time::timeout(grace, self.requests_ended()).await;
        let num_cut = self.num_requests();
        self.shared.stop.cancel();
        self.shared.tracker.close();
        if tokio::time::timeout(stop_grace, self.shared.tracker.wait()).await.is_err() {
            let running = self.shared.running.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(Late { grace: stop_grace, names: running.values().copied().collect() });
        }
        Ok(num_cut)
    }

    async fn requests_ended(&self) {
        loop {
            // Registered before the count is read, so that an end in between is not missed.
            let ended = self.shared.request_ended.notified();
            if self.num_requests() == 0 {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_requests_and_refuses_new_ones() {
        let lifecycle = Lifecycle::new();
        let request = lifecycle.request().unwrap();
        let finishing = lifecycle.clone();
        lifecycle.spawn("request", async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(finishing.request().is_err());
            drop(request);
        });
        let cut = lifecycle.shut_down(Duration::from_secs(30), Duration::from_secs(1)).await.unwrap();
        assert_eq!(cut, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_over_the_grace_time_is_counted_as_cut() {
        let lifecycle = Lifecycle::new();
        let request = lifecycle.request().unwrap();
        let cut = lifecycle.shut_down(Duration::from_secs(3), Duration::from_secs(1)).await.unwrap();
        assert_eq!(cut, 1);
        drop(request);
        assert_eq!(lifecycle.num_requests(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_handed_on_is_one_and_each_part_of_it_is_waited_for() {
        let lifecycle = Lifecycle::new();
        let tiers = [lifecycle.tier(0), lifecycle.tier(1), lifecycle.tier(2)];
        let mut parts: Vec<_> = tiers.iter().map(|tier| tier.request().unwrap()).collect();
        // A second prompt of the same request.
        parts.push(tiers[1].request().unwrap());
        assert_eq!(lifecycle.num_requests(), 1);
        parts.remove(0);
        assert_eq!(lifecycle.num_requests(), 2);
        parts.pop();
        parts.remove(0);
        let cut = lifecycle.shut_down(Duration::from_secs(3), Duration::from_secs(1)).await.unwrap();
        assert_eq!(cut, 1);
        drop(parts);
        assert_eq!(lifecycle.num_requests(), 0);
    }

    #[test]
    fn a_request_that_a_drain_overtakes_is_handed_on() {
        let lifecycle = Lifecycle::new();
        let tiers = [lifecycle.tier(0), lifecycle.tier(1), lifecycle.tier(2)];
        let accepted = tiers[0].request().unwrap();
        lifecycle.begin_drain();
        assert!(tiers[0].request().is_err());
        let handed_on = tiers[1].request().unwrap();
        drop(accepted);
        assert!(tiers[1].request().is_err());
        assert!(tiers[2].request().is_ok());
        drop(handed_on);
        assert!(tiers[2].request().is_err());
        assert_eq!(lifecycle.num_requests(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_named() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("sleeper", std::future::pending::<()>());
        let late = lifecycle.shut_down(Duration::ZERO, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(late.names, ["sleeper"]);
    }
}

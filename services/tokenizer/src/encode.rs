use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use fused_status::{Code, Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::events;

/// The threads on which chat templates are rendered and texts encoded, so that a long text never holds up the threads
/// that move other requests' tokens. The queue before them is bounded.
pub(crate) struct EncodePool {
    threads: ThreadPool,
    /// Running or waiting texts.
    places: Arc<Semaphore>,
}

/// A piece of work's place in the queue.
pub(crate) struct Place(
    #[expect(dead_code, reason = "held, and given back when dropped")] OwnedSemaphorePermit,
);

impl EncodePool {
    pub(crate) fn new(num_threads: usize, max_waiting: usize) -> std::result::Result<Self, crate::Error> {
        let num_threads = num_threads.max(1);
        let threads = ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .thread_name(|idx| format!("encode-{idx}"))
            .build()
            .map_err(crate::Error::Threads)?;
        let num_places = num_threads.saturating_add(max_waiting).min(Semaphore::MAX_PERMITS);
        Ok(Self { threads, places: Arc::new(Semaphore::new(num_places)) })
    }

    /// Lets a piece of work run on a thread of the pool. A panic in it ends it and nothing else. It is given its place in
    /// the queue, to be given back before anybody is told that the work is done: who hears of it may come with more.
    ///
    /// # Errors
    /// `QueueFull` at once where no place is free.
    pub(crate) fn spawn(&self, work: impl FnOnce(Place) + Send + 'static) -> Result<()> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Error::new(Code::QueueFull, "too many texts are waiting to be encoded; try again"));
        };
        self.threads.spawn_fifo(move || {
            // A fault in a template engine or tokenizer must not take the process along, as rayon would have it. Whoever
            // waits for the work sees that it is gone.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| work(Place(place))));
        });
        Ok(())
    }

    /// Runs a piece of work on a thread of the pool and waits for its answer.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); what the work itself answers.
    ///
    /// # Cancel safety
    /// Work whose caller is gone before it begins is not done.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.spawn(move |place| {
            if !answer.is_closed() {
                let result = work();
                drop(place);
                // The caller may have gone meanwhile.
                let _ = answer.send(result);
            }
        })?;
        answered.await.unwrap_or_else(|gone| {
            events::encoder_panicked();
            Err(Error::internal(&gone))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_empties_again() {
        let pool = Arc::new(EncodePool::new(1, 1).unwrap());
        let (release, released) = std::sync::mpsc::sync_channel(0);
        let blocked = {
            let pool = Arc::clone(&pool);
            async move { pool.run(move || Ok(released.recv().unwrap())).await }
        };
        let mut blocked = Box::pin(blocked);
        let mut waiting = Box::pin(pool.run(|| Ok(2)));
        assert!(futures_util::poll!(&mut blocked).is_pending());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert_eq!(pool.run(|| Ok(3)).await.unwrap_err().code(), Code::QueueFull);
        release.send(1).unwrap();
        assert_eq!(blocked.await.unwrap(), 1);
        assert_eq!(waiting.await.unwrap(), 2);
        assert_eq!(pool.run(|| Ok(4)).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn a_panic_is_one_requests_fault() {
        let pool = EncodePool::new(1, 0).unwrap();
        let broken = pool.run(|| -> Result<()> { panic!("on purpose") }).await;
        assert_eq!(broken.unwrap_err().code(), Code::Internal);
        assert_eq!(pool.run(|| Ok(1)).await.unwrap(), 1);
    }
}

use std::sync::Arc;

use fused_status::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in KiB.
const BYTES_PER_PERMIT: usize = 1024;

/// The memory that texts of one purpose may take together: those that wait to be encoded, and the tokens of those that are.
#[derive(Debug)]
pub(crate) struct TextMemory {
    permits: Arc<Semaphore>,
    max_bytes: usize,
}

/// What one text takes of it. Given back when dropped.
#[derive(Debug)]
pub(crate) struct TextShare(OwnedSemaphorePermit);

impl TextMemory {
    pub(crate) fn new(max_bytes: usize) -> Self {
        let num_permits = max_bytes.div_ceil(BYTES_PER_PERMIT).min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(num_permits)), max_bytes }
    }

    /// Takes `num_bytes`.
    ///
    /// # Errors
    /// `QueueFull` where others hold them; `PayloadTooLarge` where there never are so many.
    pub(crate) fn share(&self, num_bytes: usize) -> Result<TextShare> {
        if num_bytes > self.max_bytes {
            let message = format!(
                "the text would take {num_bytes} bytes of memory here, and {} bytes are for all texts; send less",
                self.max_bytes
            );
            return Err(Error::new(Code::PayloadTooLarge, message));
        }
        let num_permits = u32::try_from(num_bytes.div_ceil(BYTES_PER_PERMIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(num_permits);
        permit.map(TextShare).map_err(|full| {
            let message = format!(
                "the texts that are being encoded would take over {} bytes of memory, which is the limit; try again",
                self.max_bytes
            );
            Error::new(Code::QueueFull, message).with_cause(&full)
        })
    }
}

impl TextShare {
    /// Gives back all but `num_bytes`.
    pub(crate) fn shrink_to(&mut self, num_bytes: usize) {
        let num_kept = num_bytes.div_ceil(BYTES_PER_PERMIT);
        drop(self.0.split(self.0.num_permits().saturating_sub(num_kept)));
    }
}

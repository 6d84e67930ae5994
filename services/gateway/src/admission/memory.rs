use std::sync::Arc;

use fused_status::{Code, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in KiB: what a small body takes beside its bytes is then counted too.
const BYTES_PER_PERMIT: usize = 1024;

/// The memory that the bodies of all requests inside may take together.
#[derive(Debug)]
pub(crate) struct BodyMemory {
    permits: Arc<Semaphore>,
    max_bytes: usize,
}

/// What one request's body takes of it, and what is made of the body after it. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    permit: OwnedSemaphorePermit,
    max_bytes: usize,
}

impl BodyMemory {
    pub(super) fn new(max_bytes: usize) -> Self {
        let num_permits = max_bytes.div_ceil(BYTES_PER_PERMIT).min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(num_permits)), max_bytes }
    }

    /// Room for a body of `num_bytes`, if it is there now.
    pub(super) fn share(&self, num_bytes: usize) -> Result<Share, Error> {
        let permit = acquire(&self.permits, num_permits(num_bytes), self.max_bytes)?;
        Ok(Share { permit, max_bytes: self.max_bytes })
    }
}

impl Share {
    /// Grows to `num_bytes`, where a body did not say its length before.
    pub(super) fn grow_to(&mut self, num_bytes: usize) -> Result<(), Error> {
        let num_missing = num_permits(num_bytes).saturating_sub(self.permit.num_permits());
        if num_missing > 0 {
            self.permit.merge(acquire(self.permit.semaphore(), num_missing, self.max_bytes)?);
        }
        Ok(())
    }
}

fn num_permits(num_bytes: usize) -> usize {
    num_bytes.div_ceil(BYTES_PER_PERMIT)
}

fn acquire(
    permits: &Arc<Semaphore>,
    num_permits: usize,
    max_bytes: usize,
) -> Result<OwnedSemaphorePermit, Error> {
    let num_permits = u32::try_from(num_permits).unwrap_or(u32::MAX);
    Arc::clone(permits).try_acquire_many_owned(num_permits).map_err(|full| {
        let message = format!(
            "the bodies of the requests in flight would take over {max_bytes} bytes, which is the limit; try again \
             later"
        );
        Error::new(Code::QueueFull, message).with_cause(&full)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_taken_grows_and_is_given_back() {
        let memory = BodyMemory::new(3 * 1024);
        let mut first = memory.share(0).unwrap();
        first.grow_to(1).unwrap();
        first.grow_to(1024).unwrap();
        let second = memory.share(2048).unwrap();
        assert_eq!(memory.share(1).unwrap_err().code(), Code::QueueFull);
        assert_eq!(first.grow_to(1025).unwrap_err().code(), Code::QueueFull);
        drop(second);
        first.grow_to(3072).unwrap();
        drop(first);
        drop(memory.share(3072).unwrap());
        assert_eq!(memory.share(usize::MAX).unwrap_err().code(), Code::QueueFull);
    }
}

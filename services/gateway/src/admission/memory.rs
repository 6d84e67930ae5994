use std::sync::Arc;

use fused_status::{Code, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::edge::Guard;

/// Permits are counted in KiB: what a small request takes beside its body's bytes is then counted too.
const BYTES_PER_PERMIT: usize = 1024;

/// The memory that all requests inside may take together: their bodies, what is made of those, and answers that are
/// collected.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    permits: Arc<Semaphore>,
    max_bytes: usize,
    /// What parsing takes meanwhile is not counted: few long bodies are parsed at once.
    parsers: Arc<Semaphore>,
}

/// Long bodies that are parsed at once.
const MAX_PARSERS: usize = 2;

/// What one request takes of it. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    permit: OwnedSemaphorePermit,
    num_bytes: usize,
    max_bytes: usize,
}

impl Guard for Share {}

impl RequestMemory {
    pub(super) fn new(max_bytes: usize) -> Self {
        let num_permits = num_permits(max_bytes).min(Semaphore::MAX_PERMITS);
        let parsers = Arc::new(Semaphore::new(MAX_PARSERS));
        Self { permits: Arc::new(Semaphore::new(num_permits)), max_bytes, parsers }
    }

    pub(super) fn parsers(&self) -> Arc<Semaphore> {
        Arc::clone(&self.parsers)
    }

    /// The least share: a request's own.
    pub(super) fn share(&self) -> Result<Share, Error> {
        let permit = acquire(&self.permits, 1, self.max_bytes)?;
        Ok(Share { permit, num_bytes: 0, max_bytes: self.max_bytes })
    }

    /// Refuses what has no room now. Takes nothing: who only announces that much must not keep others out.
    pub(super) fn check_room(&self, num_bytes: usize) -> Result<(), Error> {
        if num_permits(num_bytes) <= self.permits.available_permits() {
            return Ok(());
        }
        Err(full(num_bytes, self.max_bytes))
    }
}

impl Share {
    /// Takes `num_bytes` more, if they are there now.
    ///
    /// # Errors
    /// `QueueFull` where others hold them; `PayloadTooLarge` where the request alone takes more than there is.
    pub(crate) fn grow_by(&mut self, num_bytes: usize) -> Result<(), Error> {
        let num_bytes = self.num_bytes.saturating_add(num_bytes);
        let num_missing = num_permits(num_bytes).saturating_sub(self.permit.num_permits());
        if num_missing > 0 {
            if num_bytes > self.max_bytes {
                return Err(full(num_bytes, self.max_bytes));
            }
            self.permit.merge(acquire(self.permit.semaphore(), num_missing, self.max_bytes)?);
        }
        self.num_bytes = num_bytes;
        Ok(())
    }

    /// Gives back all but `num_bytes`.
    pub(crate) fn shrink_to(&mut self, num_bytes: usize) {
        self.num_bytes = self.num_bytes.min(num_bytes);
        let num_kept = num_permits(self.num_bytes).max(1);
        drop(self.permit.split(self.permit.num_permits().saturating_sub(num_kept)));
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
    let acquired = Arc::clone(permits).try_acquire_many_owned(num_permits);
    acquired.map_err(|cause| full(0, max_bytes).with_cause(&cause))
}

fn full(num_bytes: usize, max_bytes: usize) -> Error {
    if num_bytes > max_bytes {
        let message = format!(
            "the request and its answer would take over {num_bytes} bytes of memory here, and {max_bytes} bytes are for all \
             requests; send less, ask for less, or stream the answer"
        );
        return Error::new(Code::PayloadTooLarge, message);
    }
    let message = format!(
        "the requests in flight and their answers would take over {max_bytes} bytes of memory, which is the limit; try \
         again later"
    );
    Error::new(Code::QueueFull, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_taken_grows_shrinks_and_is_given_back() {
        let memory = RequestMemory::new(3 * 1024);
        let mut first = memory.share().unwrap();
        first.grow_by(1).unwrap();
        first.grow_by(1023).unwrap();
        let mut second = memory.share().unwrap();
        second.grow_by(2048).unwrap();
        assert_eq!(memory.share().unwrap_err().code(), Code::QueueFull);
        assert_eq!(first.grow_by(1).unwrap_err().code(), Code::QueueFull);
        second.shrink_to(1024);
        first.grow_by(1024).unwrap();
        drop(second);
        first.grow_by(1024).unwrap();
        assert_eq!(first.grow_by(1).unwrap_err().code(), Code::PayloadTooLarge);
        first.shrink_to(0);
        memory.check_room(2048).unwrap();
        assert_eq!(memory.check_room(2049).unwrap_err().code(), Code::QueueFull);
        assert_eq!(memory.check_room(usize::MAX).unwrap_err().code(), Code::PayloadTooLarge);
        drop(first);
        memory.check_room(3072).unwrap();
    }
}

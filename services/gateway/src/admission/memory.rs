use std::sync::Arc;

use fused_status::{Code, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::edge::Guard;

/// Permits are counted in KiB: what a small request takes beside its body's bytes is then counted too.
const BYTES_PER_PERMIT: usize = 1024;

/// Part of the memory that only short requests take: however many long texts there are, somebody who asks little gets in.
const SHORT_PART: usize = 4;
/// The largest request that counts as short, and the part of their memory that it takes at most.
const MAX_SHORT_BYTES: usize = 256 << 10;
const SHORT_REQUESTS: usize = 16;

/// Long bodies that are parsed at once: what parsing takes meanwhile is not counted.
const MAX_PARSERS: usize = 2;

/// The memory that all requests inside may take together: their bodies, what is made of those, and answers that are
/// collected.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    pools: Arc<Pools>,
    parsers: Arc<Semaphore>,
}

#[derive(Debug)]
struct Pools {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    max_short_bytes: usize,
    max_long_bytes: usize,
}

/// What one request takes of it. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    permit: OwnedSemaphorePermit,
    num_bytes: usize,
    is_long: bool,
    pools: Arc<Pools>,
}

impl Guard for Share {}

impl RequestMemory {
    pub(super) fn new(max_bytes: usize) -> Self {
        let short_bytes = max_bytes / SHORT_PART;
        let semaphore = |bytes| Arc::new(Semaphore::new(num_permits(bytes).min(Semaphore::MAX_PERMITS)));
        let pools = Pools {
            short: semaphore(short_bytes),
            long: semaphore(max_bytes - short_bytes),
            max_short_bytes: MAX_SHORT_BYTES.min(short_bytes / SHORT_REQUESTS),
            max_long_bytes: max_bytes - short_bytes,
        };
        Self { pools: Arc::new(pools), parsers: Arc::new(Semaphore::new(MAX_PARSERS)) }
    }

    /// Turns at parsing a long body.
    pub(super) fn parsers(&self) -> Arc<Semaphore> {
        Arc::clone(&self.parsers)
    }

    /// The most that one request may take.
    pub(super) fn max_bytes(&self) -> usize {
        self.pools.max_long_bytes
    }

    /// The least share: a request's own.
    pub(super) fn share(&self) -> Result<Share, Error> {
        let permit = self.pools.acquire(&self.pools.short, 1)?;
        Ok(Share { permit, num_bytes: 0, is_long: false, pools: Arc::clone(&self.pools) })
    }

    /// Refuses what has no room now. Takes nothing: who only announces that much must not keep others out.
    pub(super) fn check_room(&self, num_bytes: usize) -> Result<(), Error> {
        let pools = &self.pools;
        let pool = if num_bytes > pools.max_short_bytes { &pools.long } else { &pools.short };
        if num_permits(num_bytes) <= pool.available_permits() { Ok(()) } else { Err(pools.full(num_bytes)) }
    }
}

impl Share {
    /// Takes `num_bytes` more, if they are there now.
    ///
    /// # Errors
    /// `QueueFull` where others hold them; `PayloadTooLarge` where the request alone takes more than there is.
    pub(crate) fn grow_by(&mut self, num_bytes: usize) -> Result<(), Error> {
        let num_bytes = self.num_bytes.saturating_add(num_bytes);
        if num_bytes > self.pools.max_long_bytes {
            return Err(self.pools.full(num_bytes));
        }
        if !self.is_long && num_bytes > self.pools.max_short_bytes {
            self.permit = self.pools.acquire(&self.pools.long, num_permits(num_bytes))?;
            self.is_long = true;
        }
        let num_missing = num_permits(num_bytes).saturating_sub(self.permit.num_permits());
        if num_missing > 0 {
            self.permit.merge(self.pools.acquire(self.permit.semaphore(), num_missing)?);
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

impl Pools {
    fn acquire(&self, pool: &Arc<Semaphore>, num_permits: usize) -> Result<OwnedSemaphorePermit, Error> {
        let num_permits = u32::try_from(num_permits).unwrap_or(u32::MAX);
        let acquired = Arc::clone(pool).try_acquire_many_owned(num_permits);
        acquired.map_err(|cause| self.full(0).with_cause(&cause))
    }

    fn full(&self, num_bytes: usize) -> Error {
        let max_bytes = self.max_long_bytes;
        if num_bytes > max_bytes {
            let message = format!(
                "the request and its answer would take over {num_bytes} bytes of memory here, and one may take {max_bytes}; \
                 send less, ask for less, or stream the answer"
            );
            return Error::new(Code::PayloadTooLarge, message);
        }
        let message = format!(
            "the requests in flight and their answers would take over {max_bytes} bytes of memory, which is the limit; try \
             again later"
        );
        Error::new(Code::QueueFull, message)
    }
}

fn num_permits(num_bytes: usize) -> usize {
    num_bytes.div_ceil(BYTES_PER_PERMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_taken_grows_shrinks_and_is_given_back() {
        // Three KiB for long requests, one for short ones.
        let memory = RequestMemory::new(4 * 1024);
        let mut first = memory.share().unwrap();
        first.grow_by(65).unwrap();
        first.grow_by(1024 - 65).unwrap();
        let mut second = memory.share().unwrap();
        second.grow_by(2048).unwrap();
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

    #[test]
    fn long_requests_leave_room_to_short_ones() {
        let memory = RequestMemory::new(4 << 20);
        let mut long: Vec<Share> = (0..3).map(|_| memory.share().unwrap()).collect();
        for share in &mut long {
            share.grow_by(1 << 20).unwrap();
        }
        let mut next = memory.share().unwrap();
        assert_eq!(next.grow_by(100 << 10).unwrap_err().code(), Code::QueueFull);
        next.grow_by(64 << 10).unwrap();
        let short: Vec<Share> = (0..960).map(|_| memory.share().unwrap()).collect();
        assert_eq!(memory.share().unwrap_err().code(), Code::QueueFull);
        drop((short, long));
        next.grow_by(2 << 20).unwrap();
    }
}

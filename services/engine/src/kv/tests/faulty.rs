use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Simulated memory whose driver fails when it is told to.
pub(super) struct Faulty {
    memory: SimulatedMemory,
    fails: Mutex<Box<dyn FnMut(Call) -> bool + Send>>,
    /// The calls for which there is no memory.
    lacks: Mutex<fn(Call) -> bool>,
    num_faults: AtomicUsize,
}

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Create,
    Map,
    SetAccess,
    Unmap,
    Release,
}

impl Faulty {
    /// As yet it does not fail.
    pub(super) fn new(memory: SimulatedMemory) -> Self {
        Self {
            memory,
            fails: Mutex::new(Box::new(|_| false)),
            lacks: Mutex::new(|_| false),
            num_faults: AtomicUsize::new(0),
        }
    }

    /// From now on those calls fail of which this says so, and no others.
    pub(super) fn fail_when(&self, fails: impl FnMut(Call) -> bool + Send + 'static) {
        *self.fails.lock().unwrap() = Box::new(fails);
        *self.lacks.lock().unwrap() = |_| false;
    }

    /// From now on there is no memory for those calls of which this says so.
    pub(super) fn lack_when(&self, lacks: fn(Call) -> bool) {
        *self.lacks.lock().unwrap() = lacks;
    }

    /// Some calls fail, after so many others.
    pub(super) fn fail_after(&self, num_calls: usize, num_faults: usize) {
        let mut num_made = 0;
        self.fail_when(move |_| {
            num_made += 1;
            (num_calls + 1..=num_calls + num_faults).contains(&num_made)
        });
    }

    /// Calls that have failed.
    pub(super) fn num_faults(&self) -> usize {
        self.num_faults.load(Ordering::Relaxed)
    }

    /// The memory that does as it is told.
    pub(super) fn inner(&self) -> &SimulatedMemory {
        &self.memory
    }

    fn check(&self, call: Call) -> Result<(), MemoryError> {
        if (self.lacks.lock().unwrap())(call) {
            return Err(MemoryError::OutOfMemory { len: 0 });
        }
        if !(self.fails.lock().unwrap())(call) {
            return Ok(());
        }
        self.num_faults.fetch_add(1, Ordering::Relaxed);
        Err(MemoryError::System { call: "faulty", source: std::io::Error::other("told to fail") })
    }
}

impl VirtualMemory for Faulty {
    fn page_bytes(&self) -> usize {
        self.memory.page_bytes()
    }

    fn reserve(&self, len: usize) -> Result<RangeId, MemoryError> {
        self.memory.reserve(len)
    }

    fn create(&self, len: usize) -> Result<HandleId, MemoryError> {
        self.check(Call::Create)?;
        self.memory.create(len)
    }

    fn map(&self, range: RangeId, offset: usize, handle: HandleId) -> Result<(), MemoryError> {
        self.check(Call::Map)?;
        self.memory.map(range, offset, handle)
    }

    fn set_access(&self, range: RangeId, offset: usize, len: usize, to: Access) -> Result<(), MemoryError> {
        self.check(Call::SetAccess)?;
        self.memory.set_access(range, offset, len, to)
    }

    /// Where it fails, nobody may touch the span any more, as with every backend.
    fn unmap(&self, range: RangeId, offset: usize, len: usize) -> Result<(), MemoryError> {
        if let Err(error) = self.check(Call::Unmap) {
            self.memory.set_access(range, offset, len, Access::None)?;
            return Err(error);
        }
        self.memory.unmap(range, offset, len)
    }

    fn release(&self, handle: HandleId) -> Result<(), MemoryError> {
        self.check(Call::Release)?;
        self.memory.release(handle)
    }

    fn free(&self, range: RangeId) -> Result<(), MemoryError> {
        self.memory.free(range)
    }

    fn pin(&self, range: RangeId, len: usize, writable_from: usize) -> Result<PinToken, MemoryError> {
        self.memory.pin(range, len, writable_from)
    }

    fn unpin(&self, pin: PinToken) {
        self.memory.unpin(pin);
    }
}

//! Virtual memory without a device: every call is checked and counted, its cost charged to a clock that nobody waits for,
//! and physical memory runs out where it is told to.

mod costs;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use costs::{CostBySize, DriverCosts};

use crate::ledger::{Ledger, Sharing, lock};
use crate::{Access, Error, HandleId, PinToken, RangeId, Result, Span, VirtualMemory};

/// Virtual memory of an imagined machine.
#[derive(Debug)]
pub struct SimulatedMemory {
    page_bytes: usize,
    has_contents: bool,
    costs: DriverCosts,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What a handle holds: nothing where there are no contents.
    ledger: Ledger<(), Vec<u8>>,
    free_bytes: usize,
    calls: Calls,
    spent: Duration,
}

/// How often each call succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the call of its name")]
pub struct Calls {
    pub reserve: usize,
    pub create: usize,
    pub map: usize,
    pub set_access: usize,
    pub unmap: usize,
    pub release: usize,
    pub free: usize,
}

impl Calls {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> usize {
        let Self { reserve, create, map, set_access, unmap, release, free } = self;
        reserve + create + map + set_access + unmap + release + free
    }
}

impl SimulatedMemory {
    /// A machine with this much physical memory, in pages of any size but zero. Its calls take no time.
    ///
    /// # Errors
    /// A page size of zero.
    pub fn new(page_bytes: usize, physical_bytes: usize) -> Result<Self> {
        let ledger = Ledger::new(page_bytes, 1, Sharing::Exclusive)?;
        let state =
            State { ledger, free_bytes: physical_bytes, calls: Calls::default(), spent: Duration::ZERO };
        Ok(Self { page_bytes, has_contents: false, costs: DriverCosts::free(), state: Mutex::new(state) })
    }

    /// The same with bytes in it, for [`read`](Self::read) and [`write`](Self::write): whoever maps a page to the wrong
    /// place finds the wrong bytes there.
    ///
    /// # Errors
    /// A page size of zero.
    pub fn with_contents(page_bytes: usize, physical_bytes: usize) -> Result<Self> {
        Ok(Self { has_contents: true, ..Self::new(page_bytes, physical_bytes)? })
    }

    /// That of a device, which orders what steps do: several may hold the same range.
    #[must_use]
    pub fn of_device(mut self) -> Self {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.ledger.share(Sharing::Counted);
        self
    }

    /// Charges this for every call from now on.
    #[must_use]
    pub fn with_costs(self, costs: DriverCosts) -> Self {
        Self { costs, ..self }
    }

    /// What was called until now.
    #[must_use]
    pub fn calls(&self) -> Calls {
        lock(&self.state).calls
    }

    /// Reads through the mappings; zeros where the memory has no contents.
    ///
    /// # Errors
    /// A page of the span is not mapped or not readable.
    pub fn read(&self, range: RangeId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let mut state = lock(&self.state);
        let pieces = state.ledger.pieces(range, offset, bytes.len(), Access::Read)?;
        bytes.fill(0);
        let mut rest = bytes;
        for piece in pieces {
            let (target, behind) = rest.split_at_mut(piece.bytes.len());
            if let Some(source) = state.ledger.handle_mut(piece.handle).and_then(|h| h.get(piece.bytes)) {
                target.copy_from_slice(source);
            }
            rest = behind;
        }
        Ok(())
    }

    /// Writes through the mappings; in vain where the memory has no contents.
    ///
    /// # Errors
    /// A page of the span is not mapped or not writable; nothing is written then.
    pub fn write(&self, range: RangeId, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut state = lock(&self.state);
        let pieces = state.ledger.pieces(range, offset, bytes.len(), Access::ReadWrite)?;
        let mut rest = bytes;
        for piece in pieces {
            let (source, behind) = rest.split_at(piece.bytes.len());
            if let Some(target) = state.ledger.handle_mut(piece.handle).and_then(|h| h.get_mut(piece.bytes)) {
                target.copy_from_slice(source);
            }
            rest = behind;
        }
        Ok(())
    }
}

impl VirtualMemory for SimulatedMemory {
    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn spent(&self) -> Duration {
        lock(&self.state).spent
    }

    fn reserve(&self, len: usize) -> Result<RangeId> {
        let mut state = lock(&self.state);
        state.ledger.check_len(len)?;
        state.calls.reserve += 1;
        state.spent += self.costs.reserve;
        Ok(state.ledger.add_range(len, ()))
    }

    fn create(&self, len: usize) -> Result<HandleId> {
        let mut state = lock(&self.state);
        state.ledger.check_len(len)?;
        state.free_bytes = state.free_bytes.checked_sub(len).ok_or(Error::OutOfMemory { len })?;
        state.calls.create += 1;
        state.spent += self.costs.create.of(len);
        let contents = if self.has_contents { vec![0; len] } else { Vec::new() };
        Ok(state.ledger.add_handle(len, contents))
    }

    fn map(&self, range: RangeId, offset: usize, handle: HandleId) -> Result<()> {
        let mut state = lock(&self.state);
        state.ledger.map(range, offset, handle, |(), _, _| Ok(()))?;
        state.calls.map += 1;
        state.spent += self.costs.map;
        Ok(())
    }

    fn set_access(&self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()> {
        let mut state = lock(&self.state);
        let mut cost = Duration::ZERO;
        state.ledger.set_access(range, offset, len, access, |(), _, len| {
            cost += self.costs.set_access.of(len);
            Ok(())
        })?;
        state.calls.set_access += 1;
        state.spent += cost;
        Ok(())
    }

    fn unmap(&self, range: RangeId, offset: usize, len: usize) -> Result<()> {
        let mut state = lock(&self.state);
        let mut cost = Duration::ZERO;
        state.ledger.unmap(range, offset, len, |(), _, len| {
            cost += self.costs.unmap.of(len);
            Ok(())
        })?;
        state.calls.unmap += 1;
        state.spent += cost;
        Ok(())
    }

    fn release(&self, handle: HandleId) -> Result<()> {
        let mut state = lock(&self.state);
        let len = state.ledger.take_handle(handle)?.len;
        state.free_bytes += len;
        state.calls.release += 1;
        state.spent += self.costs.release.of(len);
        Ok(())
    }

    fn free(&self, range: RangeId) -> Result<()> {
        let mut state = lock(&self.state);
        state.ledger.take_range(range)?;
        state.calls.free += 1;
        state.spent += self.costs.free;
        Ok(())
    }

    fn pin(&self, range: RangeId, len: usize, writable_from: usize) -> Result<PinToken> {
        lock(&self.state).ledger.pin(Span { range, len, writable_from })
    }

    fn unpin(&self, pin: PinToken) {
        lock(&self.state).ledger.unpin(&pin);
    }
}

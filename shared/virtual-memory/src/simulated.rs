use crate::ledger::Ledger;
use crate::{Access, Error, HandleId, RangeId, Result, VirtualMemory};

/// Virtual memory without memory: every call is checked and counted, and physical memory runs out where it is told to.
#[derive(Debug)]
pub struct SimulatedMemory {
    ledger: Ledger<(), ()>,
    free_bytes: usize,
    calls: Calls,
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

impl SimulatedMemory {
    /// A machine with this much physical memory, in pages of any size but zero.
    ///
    /// # Errors
    /// A page size of zero.
    pub fn new(page_bytes: usize, physical_bytes: usize) -> Result<Self> {
        let ledger = Ledger::new(page_bytes, 1)?;
        Ok(Self { ledger, free_bytes: physical_bytes, calls: Calls::default() })
    }

    /// What was called until now.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls
    }
}

impl VirtualMemory for SimulatedMemory {
    fn page_bytes(&self) -> usize {
        self.ledger.page_bytes()
    }

    fn reserve(&mut self, len: usize) -> Result<RangeId> {
        let range = self.ledger.reserve(len, || Ok(()))?;
        self.calls.reserve += 1;
        Ok(range)
    }

    fn create(&mut self, len: usize) -> Result<HandleId> {
        let left = self.free_bytes.checked_sub(len);
        let handle = self.ledger.create(len, || left.map(|_| ()).ok_or(Error::OutOfMemory { len }))?;
        self.free_bytes -= len;
        self.calls.create += 1;
        Ok(handle)
    }

    fn map(&mut self, range: RangeId, offset: usize, handle: HandleId) -> Result<()> {
        self.ledger.map(range, offset, handle, |(), (), _| Ok(()))?;
        self.calls.map += 1;
        Ok(())
    }

    fn set_access(&mut self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()> {
        self.ledger.set_access(range, offset, len, access, |(), _, _| Ok(()))?;
        self.calls.set_access += 1;
        Ok(())
    }

    fn unmap(&mut self, range: RangeId, offset: usize, len: usize) -> Result<()> {
        self.ledger.unmap(range, offset, len, |(), _, _| Ok(()))?;
        self.calls.unmap += 1;
        Ok(())
    }

    fn release(&mut self, handle: HandleId) -> Result<()> {
        let free_bytes = &mut self.free_bytes;
        self.ledger.release(handle, |(), len| {
            *free_bytes += len;
            Ok(())
        })?;
        self.calls.release += 1;
        Ok(())
    }

    fn free(&mut self, range: RangeId) -> Result<()> {
        self.ledger.free(range, |()| Ok(()))?;
        self.calls.free += 1;
        Ok(())
    }
}

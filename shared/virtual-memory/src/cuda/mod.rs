//! Device memory: the virtual-memory calls of the CUDA driver, under the same rules as everywhere.

mod driver;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use driver::{Address, Driver, Extent};

use crate::error::IllegalUse;
use crate::ledger::{Ledger, Piece, Sharing, lock};
use crate::{Access, Error, HandleId, PinToken, Pinned, RangeId, Result, Span, VirtualMemory};

/// Virtual memory of one device. Dropping it unmaps and frees everything; by then no work on the device may use it, which
/// whoever launches work sees to by holding a [`Pinned`](crate::Pinned) until it is done.
///
/// The driver does not wait for running work when it unmaps: the pins are the only fence. A range may be pinned several
/// times at once. What [`create`](VirtualMemory::create) allocates is not zeroed.
#[derive(Debug)]
pub struct CudaMemory {
    page_bytes: usize,
    state: Mutex<State>,
    driver: Driver,
}

#[derive(Debug)]
struct State {
    ledger: Ledger<Address, Extent>,
    /// What may still be created.
    free_bytes: usize,
}

impl CudaMemory {
    /// Memory of a device, by number, in pages of `page_bytes`, a multiple of [what it can map](Self::granularity), of
    /// which `physical_bytes` may exist at the same time. Nothing is allocated as yet.
    ///
    /// # Errors
    /// [`Error::NoDriver`] and [`Error::NoDevice`] where there is no GPU to be had; another page size; whatever the
    /// driver refuses.
    pub fn new(device: i32, page_bytes: usize, physical_bytes: usize) -> Result<Self> {
        let driver = Driver::open(device)?;
        let ledger = Ledger::new(page_bytes, driver.granularity()?, Sharing::Counted)?;
        let state = State { ledger, free_bytes: physical_bytes };
        Ok(Self { page_bytes, state: Mutex::new(state), driver })
    }

    /// What a page size on a device must be a multiple of; 2 MiB on all of them so far.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn granularity(device: i32) -> Result<usize> {
        Driver::open(device)?.granularity()
    }

    /// Where a range begins, for kernels; the same until the range is freed. They may touch what is pinned of it.
    ///
    /// # Errors
    /// There is no such range.
    pub fn device_address(&self, range: RangeId) -> Result<u64> {
        let state = lock(&self.state);
        state.ledger.range(range).map(|address| address.0).ok_or(IllegalUse::UnknownRange(range).into())
    }

    /// Copies bytes to the host, which need not be whole pages. For tests and tools: whoever calls meanwhile waits, and it
    /// knows nothing of streams but the default one.
    ///
    /// # Errors
    /// A page of the span is not mapped or not readable; the driver refuses.
    pub fn read(&self, range: RangeId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let state = lock(&self.state);
        let mut at = state.address(range, offset)?;
        let mut rest = bytes;
        // Piece by piece: a copy across allocations is nowhere promised to work.
        for piece in state.ledger.pieces(range, offset, rest.len(), Access::Read)? {
            let (target, behind) = rest.split_at_mut(piece.bytes.len());
            self.driver.read(at, target)?;
            at = at.plus(target.len());
            rest = behind;
        }
        Ok(())
    }

    /// Copies bytes from the host and waits until they are there. For tests and tools, as [`read`](Self::read).
    ///
    /// # Errors
    /// A page of the span is not mapped or not writable, and nothing is written; the driver refuses.
    pub fn write(&self, range: RangeId, offset: usize, bytes: &[u8]) -> Result<()> {
        let state = lock(&self.state);
        let mut at = state.address(range, offset)?;
        let mut rest = bytes;
        for piece in state.ledger.pieces(range, offset, rest.len(), Access::ReadWrite)? {
            let (source, behind) = rest.split_at(piece.bytes.len());
            self.driver.write(at, source)?;
            at = at.plus(source.len());
            rest = behind;
        }
        Ok(())
    }
}

impl CudaMemory {
    /// Waits for the copies that have begun; whoever maps or pins meanwhile does not. It knows nothing of streams but the
    /// default one.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn wait(&self) -> Result<()> {
        self.driver.wait()
    }
}

/// A pinned span as the device has it: nothing of it is unmapped, and nothing loses the access it needs, as long as the pin
/// lives. No other code makes one.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSpan<'a> {
    address: u64,
    span: Span,
    _pinned: PhantomData<&'a Pinned<CudaMemory>>,
}

impl DeviceSpan<'_> {
    /// Where the range begins on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes from there on that may be read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.span.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.span.len == 0
    }

    /// From which byte on they may be written as well.
    #[must_use]
    pub fn writable_from(&self) -> usize {
        self.span.writable_from
    }
}

impl Pinned<CudaMemory> {
    /// The nth span, for kernels.
    ///
    /// # Errors
    /// There is no such span.
    pub fn device_span(&self, nth: usize) -> Result<DeviceSpan<'_>> {
        let span = self.span_of(nth)?;
        let address = self.memory().device_address(span.range)?;
        Ok(DeviceSpan { address, span, _pinned: PhantomData })
    }

    /// Begins to copy bytes of one span to the same place of another. Both stay pinned until [`CudaMemory::wait`] has
    /// returned; the caller sees to it, and to it that nobody is writing to the source as yet.
    ///
    /// # Errors
    /// There are no such spans; the bytes end behind one's `len`, or begin before the other's `writable_from`; the driver
    /// refuses.
    pub fn begin_copy(&mut self, from: usize, to: usize, bytes: Range<usize>) -> Result<()> {
        let (source, target) = (self.span_of(from)?, self.span_of(to)?);
        if bytes.start > bytes.end
            || bytes.end > source.len.min(target.len)
            || bytes.start < target.writable_from
        {
            return Err(IllegalUse::OutsideSpan { start: bytes.start, end: bytes.end }.into());
        }
        let memory = self.memory();
        let (from_base, to_base, cuts) = {
            let state = lock(&memory.state);
            let len = bytes.len();
            let sources = state.ledger.pieces(source.range, bytes.start, len, Access::Read)?;
            let targets = state.ledger.pieces(target.range, bytes.start, len, Access::ReadWrite)?;
            // Cut wherever either side goes from one allocation to the next.
            let ends = |pieces: Vec<Piece>| {
                let mut end = bytes.start;
                pieces.into_iter().map(move |piece| {
                    end += piece.bytes.len();
                    end
                })
            };
            let mut cuts: Vec<_> = ends(sources).chain(ends(targets)).collect();
            cuts.sort_unstable();
            (state.address(source.range, 0)?, state.address(target.range, 0)?, cuts)
        };
        // Without the lock: what is pinned stays as it is.
        let mut start = bytes.start;
        for end in cuts {
            if end > start {
                memory.driver.copy(from_base.plus(start), to_base.plus(start), end - start)?;
                start = end;
            }
        }
        Ok(())
    }
}

impl VirtualMemory for CudaMemory {
    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn reserve(&self, len: usize) -> Result<RangeId> {
        lock(&self.state).ledger.check_len(len)?;
        let address = self.driver.reserve(len)?;
        Ok(lock(&self.state).ledger.add_range(len, address))
    }

    fn create(&self, len: usize) -> Result<HandleId> {
        lock(&self.state).claim(len)?;
        let created = self.driver.create(len);
        let mut state = lock(&self.state);
        match created {
            Ok(extent) => Ok(state.ledger.add_handle(len, extent)),
            Err(error) => {
                state.free_bytes += len;
                Err(error)
            }
        }
    }

    fn map(&self, range: RangeId, offset: usize, handle: HandleId) -> Result<()> {
        lock(&self.state).ledger.map(range, offset, handle, |address, extent, len| {
            self.driver.map(address.plus(offset), len, extent)
        })
    }

    fn set_access(&self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()> {
        lock(&self.state).ledger.set_access(range, offset, len, access, |address, offset, len| {
            self.driver.set_access(address.plus(offset), len, access)
        })
    }

    fn unmap(&self, range: RangeId, offset: usize, len: usize) -> Result<()> {
        lock(&self.state)
            .ledger
            .unmap(range, offset, len, |address, offset, len| self.driver.unmap(address.plus(offset), len))
    }

    fn release(&self, id: HandleId) -> Result<()> {
        let handle = lock(&self.state).ledger.take_handle(id)?;
        let released = self.driver.release(&handle.system);
        let mut state = lock(&self.state);
        match &released {
            Ok(()) => state.free_bytes += handle.len,
            Err(_) => state.ledger.put_handle(id, handle),
        }
        released
    }

    fn free(&self, id: RangeId) -> Result<()> {
        let range = lock(&self.state).ledger.take_range(id)?;
        let freed = self.driver.free(&range.system, range.len);
        if freed.is_err() {
            lock(&self.state).ledger.put_range(id, range);
        }
        freed
    }

    fn pin(&self, range: RangeId, len: usize, writable_from: usize) -> Result<PinToken> {
        lock(&self.state).ledger.pin(Span { range, len, writable_from })
    }

    fn unpin(&self, pin: PinToken) {
        lock(&self.state).ledger.unpin(&pin);
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // In this order, because a mapping keeps its range and its handle. A failure leaves memory to the end of the
        // process: nothing to be done about it here.
        for (address, offset, len) in state.ledger.mappings() {
            let _ = self.driver.unmap(address.plus(offset), len);
        }
        for extent in state.ledger.handles() {
            let _ = self.driver.release(extent);
        }
        for (address, len) in state.ledger.ranges() {
            let _ = self.driver.free(address, len);
        }
    }
}

impl State {
    /// Sets so much physical memory aside.
    fn claim(&mut self, len: usize) -> Result<()> {
        self.ledger.check_len(len)?;
        self.free_bytes = self.free_bytes.checked_sub(len).ok_or(Error::OutOfMemory { len })?;
        Ok(())
    }

    fn address(&self, range: RangeId, offset: usize) -> Result<Address> {
        let address = self.ledger.range(range).ok_or(IllegalUse::UnknownRange(range))?;
        Ok(address.plus(offset))
    }
}

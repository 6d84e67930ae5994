//! Host memory: one memfd holds all physical pages, `mmap` puts them where they are needed.
#![allow(unsafe_code, reason = "mapping memory; every block says why it is sound")]

use std::ffi::c_void;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::ledger::{Ledger, Sharing, lock};
use crate::{Access, Error, HandleId, HostMemory, PinToken, RangeId, Result, Span, VirtualMemory};

/// Virtual memory of this process. Dropping it unmaps and frees everything.
#[derive(Debug)]
pub struct LinuxMemory {
    file: OwnedFd,
    page_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger<Reservation, FileSpan>,
    /// Where the next handle goes. Offsets are not used twice: a hole in the file costs nothing.
    file_len: u64,
    /// What may still be created. Linux itself would give too much and then kill the process for it.
    free_bytes: usize,
}

/// Addresses that belong to this process's `LinuxMemory` and to nobody else.
#[derive(Debug)]
struct Reservation {
    base: NonNull<u8>,
    len: usize,
    /// A replacing `mmap` failed, and the system does not say whether the old mapping is still there. Another part of
    /// the process may own these addresses by now, so that nothing is mapped, changed or unmapped here ever again.
    lost: bool,
}

// SAFETY: a `Reservation` is an address range that nobody else has a pointer into, and says nothing about the thread. What
// it points to is reached through `Pinned` only.
unsafe impl Send for Reservation {}

/// Where a handle's pages lie in the memfd.
#[derive(Debug)]
struct FileSpan {
    offset: u64,
}

impl LinuxMemory {
    /// What a page size must be a multiple of.
    #[must_use]
    pub fn granularity() -> usize {
        rustix::param::page_size()
    }

    /// Memory in pages of `page_bytes`, a multiple of the system's page size, of which `physical_bytes` may exist at the
    /// same time. Nothing is allocated as yet; whoever names the limit sees to it that the machine has as much.
    ///
    /// # Errors
    /// Another page size, or the system has no memfd to give.
    pub fn new(page_bytes: usize, physical_bytes: usize) -> Result<Self> {
        let ledger = Ledger::new(page_bytes, Self::granularity(), Sharing::Exclusive)?;
        let file = rustix::fs::memfd_create("fused-kv", MemfdFlags::CLOEXEC)
            .map_err(|errno| refused("memfd_create", errno))?;
        let state = State { ledger, file_len: 0, free_bytes: physical_bytes };
        Ok(Self { file, page_bytes, state: Mutex::new(state) })
    }
}

impl VirtualMemory for LinuxMemory {
    fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    fn reserve(&self, len: usize) -> Result<RangeId> {
        lock(&self.state).ledger.check_len(len)?;
        let reservation = Reservation::new(len)?;
        Ok(lock(&self.state).ledger.add_range(len, reservation))
    }

    /// The pages are allocated here, not at the first touch: a system without memory says so now instead of sending
    /// SIGBUS later. That takes milliseconds for a large handle, and nobody is kept from pinning meanwhile.
    fn create(&self, len: usize) -> Result<HandleId> {
        let offset = lock(&self.state).claim(len)?;
        let allocated =
            retry_on_intr(|| rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len as u64));
        let mut state = lock(&self.state);
        match allocated {
            Ok(()) => Ok(state.ledger.add_handle(len, FileSpan { offset })),
            Err(errno) => {
                state.free_bytes += len;
                Err(match errno {
                    Errno::NOMEM | Errno::NOSPC => Error::OutOfMemory { len },
                    other => refused("fallocate", other),
                })
            }
        }
    }

    fn map(&self, range: RangeId, offset: usize, handle: HandleId) -> Result<()> {
        lock(&self.state).ledger.map(range, offset, handle, |reservation, span, len| {
            let target = reservation.target(offset)?;
            // SAFETY: the ledger has checked that offset and length lie in the reservation and that nothing of ours is
            // mapped there, so that no reference points into it.
            let mapped = unsafe {
                rustix::mm::mmap(
                    target,
                    len,
                    ProtFlags::empty(),
                    MapFlags::SHARED | MapFlags::FIXED,
                    &self.file,
                    span.offset,
                )
            };
            reservation.replaced("mmap", mapped)
        })
    }

    fn set_access(&self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()> {
        let flags = match access {
            Access::None => MprotectFlags::empty(),
            Access::Read => MprotectFlags::READ,
            Access::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        // One call a mapping: with one access each, it is done as a whole or not at all.
        lock(&self.state).ledger.set_access(range, offset, len, access, |reservation, offset, len| {
            let target = reservation.target(offset)?;
            // SAFETY: the span is one of our mappings. References point into pinned bytes only, and the ledger has
            // checked that these keep the access their pin needs.
            unsafe { rustix::mm::mprotect(target, len, flags) }.map_err(|errno| refused("mprotect", errno))
        })
    }

    fn unmap(&self, range: RangeId, offset: usize, len: usize) -> Result<()> {
        lock(&self.state).ledger.unmap(range, offset, len, |reservation, offset, len| {
            let target = reservation.target(offset)?;
            // Mapped over, not unmapped: the addresses stay ours.
            // SAFETY: the span is one of our mappings. References point into pinned bytes only, and the ledger has
            // checked that nobody has pinned these.
            let mapped = unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
                rustix::mm::mmap_anonymous(target, len, ProtFlags::empty(), flags)
            };
            reservation.replaced("mmap", mapped)
        })
    }

    fn release(&self, id: HandleId) -> Result<()> {
        let handle = lock(&self.state).ledger.take_handle(id)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, flags, handle.system.offset, handle.len as u64)
        });
        let mut state = lock(&self.state);
        match punched {
            Ok(()) => state.free_bytes += handle.len,
            Err(_) => state.ledger.put_handle(id, handle),
        }
        punched.map_err(|errno| refused("fallocate", errno))
    }

    fn free(&self, id: RangeId) -> Result<()> {
        let range = lock(&self.state).ledger.take_range(id)?;
        let freed = range.system.free();
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

// SAFETY: a reservation stays where it is until it is freed, which a pin prevents. The ledger (`Sharing::Exclusive`) pins
// what is mapped with the needed access, keeps it so and refuses a second pin; it never lets pages be writable at one
// address and accessible at another. A memfd's pages are initialised (zero at first), and nobody else has its descriptor.
unsafe impl HostMemory for LinuxMemory {
    fn base(&self, range: RangeId) -> Option<NonNull<u8>> {
        lock(&self.state).ledger.range(range).map(|reservation| reservation.base)
    }
}

impl Drop for LinuxMemory {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (reservation, _) in state.ledger.ranges() {
            // A failure leaves addresses reserved: harmless, and nothing to be done about it here.
            let _ = reservation.free();
        }
    }
}

impl State {
    /// Sets so much physical memory aside, and says where in the file.
    fn claim(&mut self, len: usize) -> Result<u64> {
        self.ledger.check_len(len)?;
        self.free_bytes = self.free_bytes.checked_sub(len).ok_or(Error::OutOfMemory { len })?;
        let offset = self.file_len;
        self.file_len += len as u64;
        Ok(offset)
    }
}

impl Reservation {
    fn new(len: usize) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the system chooses unused addresses.
        let base =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }
                .map_err(|errno| refused("mmap", errno))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| refused("mmap", Errno::INVAL))?;
        Ok(Self { base, len, lost: false })
    }

    /// The address of an offset that the ledger has checked.
    fn target(&self, offset: usize) -> Result<*mut c_void> {
        if self.lost {
            return Err(refused("mmap", Errno::FAULT));
        }
        Ok(self.base.as_ptr().wrapping_add(offset).cast())
    }

    /// Gives the addresses back. Nothing of ours is mapped in them, or all of it goes; no reference points into them.
    fn free(&self) -> Result<()> {
        let base = self.target(0)?;
        // SAFETY: the addresses are ours. The ledger has let go of them, or `LinuxMemory` is being dropped, whom every
        // `Pinned` keeps alive.
        unsafe { rustix::mm::munmap(base, self.len) }.map_err(|errno| refused("munmap", errno))
    }

    /// What became of an `mmap` over addresses of this reservation.
    fn replaced(&mut self, call: &'static str, mapped: rustix::io::Result<*mut c_void>) -> Result<()> {
        mapped.map(drop).map_err(|errno| {
            let error = refused(call, errno);
            // The limit on mappings is looked at before the old one is taken away; this one failure is clean.
            self.lost = !matches!(error, Error::TooManyMappings { .. });
            error
        })
    }
}

/// Names the limit behind an `ENOMEM`, which is mostly not about memory.
fn refused(call: &'static str, errno: Errno) -> Error {
    if errno == Errno::NOMEM
        && let Some(limit) = mapping_limit_reached()
    {
        return Error::TooManyMappings { limit };
    }
    Error::System { call, source: errno.into() }
}

/// `vm.max_map_count`, if this process is about to exceed it. Read after a failure only.
fn mapping_limit_reached() -> Option<usize> {
    // Replacing a mapping in the middle of another one makes two more.
    const NEEDED: usize = 2;
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    (num_mappings()? + NEEDED >= limit).then_some(limit)
}

/// Read piece by piece: the list is megabytes long just when the allocator cannot get a new mapping either.
fn num_mappings() -> Option<usize> {
    let mut maps = std::fs::File::open("/proc/self/maps").ok()?;
    let mut buffer = [0; 4096];
    let mut num_lines = 0;
    loop {
        let len = maps.read(&mut buffer).ok()?;
        if len == 0 {
            return Some(num_lines);
        }
        num_lines += buffer[..len].iter().filter(|byte| **byte == b'\n').count();
    }
}

//! Host memory: one memfd holds all physical pages, `mmap` puts them where they are needed.
#![allow(unsafe_code, reason = "mapping memory; every block says why it is sound")]

use std::ffi::c_void;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::ledger::Ledger;
use crate::{Access, Error, HandleId, HostMemory, RangeId, Result, VirtualMemory};

/// Virtual memory of this process. Dropping it unmaps and frees everything.
#[derive(Debug)]
pub struct LinuxMemory {
    ledger: Ledger<Reservation, FileSpan>,
    file: OwnedFd,
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

// SAFETY: a `Reservation` is an address range that nobody else has a pointer into. What it points to is reached through
// `&LinuxMemory` (read) and `&mut LinuxMemory` (write) only.
unsafe impl Send for Reservation {}
// SAFETY: as above; a shared reference allows reading only.
unsafe impl Sync for Reservation {}

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
        let ledger = Ledger::new(page_bytes, Self::granularity())?;
        let file = rustix::fs::memfd_create("fused-kv", MemfdFlags::CLOEXEC)
            .map_err(|errno| refused("memfd_create", errno))?;
        Ok(Self { ledger, file, file_len: 0, free_bytes: physical_bytes })
    }
}

impl VirtualMemory for LinuxMemory {
    fn page_bytes(&self) -> usize {
        self.ledger.page_bytes()
    }

    fn reserve(&mut self, len: usize) -> Result<RangeId> {
        self.ledger.reserve(len, || Reservation::new(len))
    }

    /// The pages are allocated here, not at the first touch: a system without memory says so now instead of sending
    /// SIGBUS later.
    fn create(&mut self, len: usize) -> Result<HandleId> {
        let Self { ledger, file, file_len, free_bytes } = self;
        ledger.create(len, || {
            let left = free_bytes.checked_sub(len).ok_or(Error::OutOfMemory { len })?;
            let offset = *file_len;
            retry_on_intr(|| rustix::fs::fallocate(&*file, FallocateFlags::empty(), offset, len as u64))
                .map_err(|errno| match errno {
                    Errno::NOMEM | Errno::NOSPC => Error::OutOfMemory { len },
                    other => refused("fallocate", other),
                })?;
            *file_len += len as u64;
            *free_bytes = left;
            Ok(FileSpan { offset })
        })
    }

    fn map(&mut self, range: RangeId, offset: usize, handle: HandleId) -> Result<()> {
        let file = &self.file;
        self.ledger.map(range, offset, handle, |reservation, span, len| {
            let target = reservation.target(offset)?;
            // SAFETY: the ledger has checked that offset and length lie in the reservation and that nothing of ours is
            // mapped there, so that no reference points into it.
            let mapped = unsafe {
                rustix::mm::mmap(
                    target,
                    len,
                    ProtFlags::empty(),
                    MapFlags::SHARED | MapFlags::FIXED,
                    file,
                    span.offset,
                )
            };
            reservation.replaced("mmap", mapped)
        })
    }

    fn set_access(&mut self, range: RangeId, offset: usize, len: usize, access: Access) -> Result<()> {
        let flags = match access {
            Access::None => MprotectFlags::empty(),
            Access::Read => MprotectFlags::READ,
            Access::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        // One call a mapping: with one access each, it is done as a whole or not at all.
        self.ledger.set_access(range, offset, len, access, |reservation, offset, len| {
            let target = reservation.target(offset)?;
            // SAFETY: the span is one of our mappings. `&mut self` says that no reference points into it.
            unsafe { rustix::mm::mprotect(target, len, flags) }.map_err(|errno| refused("mprotect", errno))
        })
    }

    fn unmap(&mut self, range: RangeId, offset: usize, len: usize) -> Result<()> {
        self.ledger.unmap(range, offset, len, |reservation, offset, len| {
            let target = reservation.target(offset)?;
            // Mapped over, not unmapped: the addresses stay ours.
            // SAFETY: the span is one of our mappings. `&mut self` says that no reference points into it.
            let mapped = unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
                rustix::mm::mmap_anonymous(target, len, ProtFlags::empty(), flags)
            };
            reservation.replaced("mmap", mapped)
        })
    }

    fn release(&mut self, handle: HandleId) -> Result<()> {
        let Self { ledger, file, free_bytes, .. } = self;
        ledger.release(handle, |span, len| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            retry_on_intr(|| rustix::fs::fallocate(&*file, flags, span.offset, len as u64))
                .map_err(|errno| refused("fallocate", errno))?;
            *free_bytes += len;
            Ok(())
        })
    }

    fn free(&mut self, range: RangeId) -> Result<()> {
        self.ledger.free(range, |reservation| {
            reservation.target(0)?;
            // SAFETY: the ledger has checked that nothing is mapped in the reservation, which it forgets next.
            unsafe { rustix::mm::munmap(reservation.base.as_ptr().cast(), reservation.len) }
                .map_err(|errno| refused("munmap", errno))
        })
    }
}

impl HostMemory for LinuxMemory {
    fn bytes(&self, range: RangeId, offset: usize, len: usize) -> Result<&[u8]> {
        let reservation = self.ledger.accessible(range, offset, len, Access::Read)?;
        // SAFETY: every page of the span is mapped and readable. Whoever writes to any of them, at whatever address, does
        // so through `&mut self`, and nobody unmaps or shrinks the file without `&mut self` either. Every byte is
        // initialised (zero at first).
        Ok(unsafe { std::slice::from_raw_parts(reservation.base.as_ptr().add(offset), len) })
    }

    fn bytes_mut(&mut self, range: RangeId, offset: usize, len: usize) -> Result<&mut [u8]> {
        let reservation = self.ledger.accessible(range, offset, len, Access::ReadWrite)?;
        // SAFETY: as in `bytes`; and no page of the span occurs in it twice, because a writable page is accessible at no
        // other address.
        Ok(unsafe { std::slice::from_raw_parts_mut(reservation.base.as_ptr().add(offset), len) })
    }
}

impl Drop for LinuxMemory {
    fn drop(&mut self) {
        for reservation in self.ledger.ranges().filter(|reservation| !reservation.lost) {
            // A failure leaves addresses reserved: harmless, and nothing to be done about it here.
            // SAFETY: the addresses are ours, and no reference outlives `self`.
            let _ = unsafe { rustix::mm::munmap(reservation.base.as_ptr().cast(), reservation.len) };
        }
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

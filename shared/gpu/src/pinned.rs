//! Memory of the host that the device copies from and to while both go on.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys;

use crate::driver::{check, check_memory};
use crate::gpu::Context;
use crate::{Buffer, Error, Event, Gpu, Result};

/// Page-locked bytes of the host, at first 0. Copies from and to it do not wait, so it knows the last of them:
/// who wants to look at the bytes waits for a copy into them, who wants to change them for a copy out of them
/// too.
#[derive(Debug)]
pub struct Pinned {
    context: Arc<Context>,
    start: NonNull<u8>,
    len: usize,
    /// Behind the last copy.
    last_copy: Event,
    /// Whether a copy into the bytes may be on its way.
    is_written: AtomicBool,
}

// SAFETY: it owns its memory, like a Vec; what the device does with it is waited for.
unsafe impl Send for Pinned {}
// SAFETY: through `&self` the host only reads, and the device as well: a copy into the bytes takes `&mut`.
unsafe impl Sync for Pinned {}

impl Gpu {
    /// Page-locks bytes of the host. Expensive: for start-up, not for a step.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; whatever else the driver refuses.
    pub fn pinned(&self, len: usize) -> Result<Pinned> {
        let last_copy = Event::new(self)?;
        let _bound = self.context.bind()?;
        let mut start = std::ptr::null_mut();
        // Not write-combined: the host reads results from it. One byte, because the driver does not lock 0.
        // SAFETY: the pointer outlives the call.
        let allocated = unsafe { sys::cuMemHostAlloc(&raw mut start, len.max(1), 0) };
        check_memory("cuMemHostAlloc", allocated, len)?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| Error::Illegal("cuMemHostAlloc gave no memory".to_owned()))?;
        // SAFETY: just allocated, so long, and nobody else's. Rust may only see bytes that have been written.
        unsafe { start.write_bytes(0, len) };
        Ok(Pinned {
            context: Arc::clone(&self.context),
            start,
            len,
            last_copy,
            is_written: AtomicBool::new(false),
        })
    }

    /// Copies a part of pinned memory to the device, when the stream gets there. Does not wait.
    ///
    /// # Errors
    /// One of the two has no such bytes; a graph is being recorded; whatever the driver refuses.
    pub fn copy_to_device(
        &self,
        from: &Pinned,
        range: Range<usize>,
        to: &Buffer,
        offset: usize,
    ) -> Result<()> {
        self.context.is(&from.context)?;
        let len = from.check(&range)?;
        self.context.is(to.context())?;
        let target = to.slice(offset..offset.saturating_add(len))?;
        if len == 0 {
            return Ok(());
        }
        let _no_graph = self.context.outside_graph("a copy from pinned memory")?;
        let _bound = self.context.bind()?;
        // SAFETY: the target is allocated until the stream is done with it. The source is only read until the
        // event below has come by: who asks for `&mut` of it waits, and so does its drop.
        let copied = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                target.address(),
                from.start.as_ptr().add(range.start).cast(),
                len,
                self.context.stream,
            )
        };
        from.mark("cuMemcpyHtoDAsync", copied)
    }

    /// Copies a part of a buffer into pinned memory, when the stream gets there. Does not wait; the next look
    /// at the memory does.
    ///
    /// # Errors
    /// Those of [`copy_to_device`](Self::copy_to_device).
    pub fn copy_to_host(
        &self,
        from: &Buffer,
        offset: usize,
        to: &mut Pinned,
        range: Range<usize>,
    ) -> Result<()> {
        self.context.is(&to.context)?;
        let len = to.check(&range)?;
        self.context.is(from.context())?;
        let source = from.slice(offset..offset.saturating_add(len))?;
        if len == 0 {
            return Ok(());
        }
        let _no_graph = self.context.outside_graph("a copy to pinned memory")?;
        let _bound = self.context.bind()?;
        to.is_written.store(true, Ordering::Relaxed);
        // SAFETY: the source is allocated until the stream is done with it. The target is exclusively borrowed
        // now, and nobody gets a reference to it before the event below has come by, nor is it freed.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                to.start.as_ptr().add(range.start).cast(),
                source.address(),
                len,
                self.context.stream,
            )
        };
        to.mark("cuMemcpyDtoHAsync", copied)
    }
}

impl Pinned {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the copies are done, so that nobody would have to wait.
    ///
    /// # Errors
    /// What went wrong in anything launched before.
    pub fn is_ready(&self) -> Result<bool> {
        self.last_copy.is_done()
    }

    /// The bytes, when the last copy into them is done.
    ///
    /// # Errors
    /// What went wrong in anything launched before that copy.
    pub fn as_slice(&self) -> Result<&[u8]> {
        if self.is_written.load(Ordering::Relaxed) {
            self.last_copy.wait()?;
            self.is_written.store(false, Ordering::Relaxed);
        }
        // SAFETY: written from the start, and nobody writes as long as `self` is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) })
    }

    /// The bytes to change, when the last copy is done.
    ///
    /// # Errors
    /// What went wrong in anything launched before that copy.
    pub fn as_mut_slice(&mut self) -> Result<&mut [u8]> {
        self.last_copy.wait()?;
        // SAFETY: written from the start; neither host nor device uses them as long as `self` is exclusively
        // borrowed.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) })
    }

    /// How long the range is, if there is one.
    fn check(&self, range: &Range<usize>) -> Result<usize> {
        if range.start > range.end || range.end > self.len {
            let place = "of pinned memory";
            return Err(Error::Bounds { from: range.start, to: range.end, len: self.len, place });
        }
        Ok(range.end - range.start)
    }

    /// Puts the event behind a copy; where that fails, waits for everything instead.
    fn mark(&self, call: &'static str, copied: sys::CUresult) -> Result<()> {
        let marked = check(call, copied).and_then(|()| self.last_copy.mark());
        if marked.is_err() {
            // Where this fails as well the context is lost, and with it every copy.
            let _ = self.context.synchronize();
        }
        marked
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Where waiting fails the context is lost, and with it every copy.
        let _ = self.last_copy.wait();
        if let Ok(_bound) = self.context.bind() {
            // SAFETY: allocated by `pinned`; no copy is on its way any more.
            let _ = unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) };
        }
    }
}

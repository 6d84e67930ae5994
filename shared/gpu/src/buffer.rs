//! Memory of the device.
#![allow(unsafe_code, reason = "calls of a C library; every block says why it is sound")]

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys;

use crate::driver::{check, check_memory};
use crate::gpu::{Context, Remains};
use crate::{Error, Gpu, Result};

/// Some bytes of device memory, at a multiple of 256. Given back when it is dropped, after whatever the stream
/// still has to do with it.
///
/// What is in them changes through `&self`: the device writes whenever a launch says so, and the stream's order
/// is the only one there is.
#[derive(Debug)]
pub struct Buffer {
    context: Arc<Context>,
    address: u64,
    len: usize,
}

/// A part of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    buffer: &'a Buffer,
    offset: usize,
    len: usize,
}

impl Gpu {
    /// Allocates bytes, which hold whatever was there before.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; whatever else the driver refuses.
    pub fn alloc(&self, len: usize) -> Result<Buffer> {
        let _bound = self.context.bind()?;
        let mut address = 0;
        // SAFETY: `address` outlives the call. The driver does not allocate 0 bytes; one costs nothing.
        let allocated = unsafe { sys::cuMemAlloc_v2(&raw mut address, len.max(1)) };
        check_memory("cuMemAlloc", allocated, len)?;
        Ok(Buffer { context: Arc::clone(&self.context), address, len })
    }

    /// Allocates bytes that are 0.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    pub fn alloc_zeroed(&self, len: usize) -> Result<Buffer> {
        let buffer = self.alloc(len)?;
        self.fill(buffer.view(), 0)?;
        Ok(buffer)
    }

    /// Copies bytes to memory of their own, and waits until they are there.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    pub fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.alloc(bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Sets every byte to a value, when the stream gets there.
    ///
    /// # Errors
    /// Whatever the driver refuses.
    pub fn fill(&self, view: View<'_>, value: u8) -> Result<()> {
        self.context.is(&view.buffer.context)?;
        if view.is_empty() {
            return Ok(());
        }
        let _bound = self.context.bind()?;
        // SAFETY: the view's bytes are allocated, and stay so until the stream is done with them.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(view.address(), value, view.len, self.context.stream)
        })
    }

    /// Copies bytes from one place of the device to another of the same length, when the stream gets there.
    ///
    /// # Errors
    /// The lengths differ, or the places overlap; whatever the driver refuses.
    pub fn copy(&self, from: View<'_>, to: View<'_>) -> Result<()> {
        self.context.is(&from.buffer.context)?;
        self.context.is(&to.buffer.context)?;
        let apart = from.address().abs_diff(to.address());
        if from.len != to.len || (apart as usize) < from.len {
            return Err(Error::Illegal(format!(
                "{} bytes do not copy to {} overlapping ones",
                from.len, to.len
            )));
        }
        if from.is_empty() {
            return Ok(());
        }
        let _bound = self.context.bind()?;
        // SAFETY: both are allocated, and stay so until the stream is done with them; they do not overlap.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to.address(), from.address(), from.len, self.context.stream)
        })
    }
}

impl Buffer {
    /// Where it begins on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

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

    /// All of it.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { buffer: self, offset: 0, len: self.len }
    }

    /// A part of it.
    ///
    /// # Errors
    /// It has no such bytes.
    pub fn slice(&self, range: Range<usize>) -> Result<View<'_>> {
        self.view().slice(range)
    }

    /// Copies what is in its first bytes to the host, when the stream has done everything asked for so far. For
    /// loading and tests: it waits.
    ///
    /// # Errors
    /// It has not so many bytes; a graph is being recorded; whatever the driver refuses.
    pub fn read(&self, bytes: &mut [u8]) -> Result<()> {
        self.slice(0..bytes.len())?.read(bytes)
    }

    /// Copies bytes from the host, and waits until they are there. For loading and tests.
    ///
    /// # Errors
    /// It has no such bytes; a graph is being recorded; whatever the driver refuses.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let view = self.slice(offset..offset.saturating_add(bytes.len()))?;
        if view.is_empty() {
            return Ok(());
        }
        let _no_graph = self.context.outside_graph("a copy that waits")?;
        let _bound = self.context.bind()?;
        // SAFETY: the view's bytes are allocated; the host's are borrowed until the stream has read them, below.
        let copied = unsafe {
            sys::cuMemcpyHtoDAsync_v2(view.address(), bytes.as_ptr().cast(), bytes.len(), self.context.stream)
        };
        self.finish("cuMemcpyHtoDAsync", copied)
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Waits for a copy whose host side is borrowed, also after an error: it may be half on its way.
    fn finish(&self, call: &'static str, copied: sys::CUresult) -> Result<()> {
        // SAFETY: the stream lives as long as the context.
        let waited = unsafe { sys::cuStreamSynchronize(self.context.stream) };
        check(call, copied)?;
        check("cuStreamSynchronize", waited)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.context.bury(Remains::Device(self.address));
    }
}

impl<'a> View<'a> {
    /// Where it begins on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.buffer.address + self.offset as u64
    }

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

    /// The buffer it is a part of.
    #[must_use]
    pub fn buffer(&self) -> &'a Buffer {
        self.buffer
    }

    /// Where it begins in its buffer.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// A part of it.
    ///
    /// # Errors
    /// It has no such bytes.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::Bounds {
                from: range.start,
                to: range.end,
                len: self.len,
                place: "on the GPU",
            });
        }
        Ok(Self { buffer: self.buffer, offset: self.offset + range.start, len: range.end - range.start })
    }

    /// Copies what is in its first bytes to the host, as [`Buffer::read`].
    ///
    /// # Errors
    /// Those of [`Buffer::read`].
    pub fn read(&self, bytes: &mut [u8]) -> Result<()> {
        let view = self.slice(0..bytes.len())?;
        if view.is_empty() {
            return Ok(());
        }
        let context = &self.buffer.context;
        let _no_graph = context.outside_graph("a copy that waits")?;
        let _bound = context.bind()?;
        // SAFETY: the view's bytes are allocated; the host's are borrowed until the stream has written them, below.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), view.address(), bytes.len(), context.stream)
        };
        self.buffer.finish("cuMemcpyDtoHAsync", copied)
    }
}

impl<'a> From<&'a Buffer> for View<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        buffer.view()
    }
}

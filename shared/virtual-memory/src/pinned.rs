//! What a step works on: a guard over pinned spans, and the only way to their bytes.
#![allow(unsafe_code, reason = "slices of pinned memory; every block says why it is sound")]

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use crate::error::IllegalUse;
use crate::{HostMemory, PinToken, RangeId, Result, VirtualMemory};

/// The beginning of a range that a step works on, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which range.
    pub range: RangeId,
    /// How much of it; need not be whole pages.
    pub len: usize,
    /// What stands before this is only read. At or behind `len`, all of it is.
    pub writable_from: usize,
}

/// Spans that a step works on; dropping it unpins them all.
#[derive(Debug)]
pub struct Pinned<M: VirtualMemory> {
    memory: Arc<M>,
    spans: Vec<PinnedSpan>,
}

#[derive(Debug)]
struct PinnedSpan {
    span: Span,
    /// `None` once it has been given back.
    token: Option<PinToken>,
    /// Asked for once, because the backend answers under the lock that a mapping thread takes too.
    base: OnceLock<Base>,
}

#[derive(Clone, Copy, Debug)]
struct Base(NonNull<u8>);

// SAFETY: an address alone; what is behind it is reached through `&Pinned` (read) and `&mut Pinned` (write) only.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

impl<M: VirtualMemory> Pinned<M> {
    /// Pins all of the spans or none.
    ///
    /// # Errors
    /// Those of [`VirtualMemory::pin`], of the first span that cannot be pinned.
    pub fn new(memory: &Arc<M>, spans: impl IntoIterator<Item = Span>) -> Result<Self> {
        let mut pinned = Self { memory: Arc::clone(memory), spans: Vec::new() };
        for span in spans {
            let token = memory.pin(span.range, span.len, span.writable_from)?;
            pinned.spans.push(PinnedSpan { span, token: Some(token), base: OnceLock::new() });
        }
        Ok(pinned)
    }

    /// How many spans.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The memory below.
    #[cfg(feature = "cuda")]
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// The nth span.
    #[cfg(feature = "cuda")]
    pub(crate) fn span_of(&self, nth: usize) -> Result<Span> {
        Ok(self.spans.get(nth).ok_or(IllegalUse::NoSuchSpan(nth))?.span)
    }

    /// Whether there is no span.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}

impl<M: VirtualMemory> Drop for Pinned<M> {
    fn drop(&mut self) {
        for token in self.spans.iter_mut().filter_map(|span| span.token.take()) {
            self.memory.unpin(token);
        }
    }
}

impl<M: HostMemory> Pinned<M> {
    /// The bytes of the nth span; none where there is no such span.
    #[must_use]
    pub fn bytes(&self, nth: usize) -> &[u8] {
        let Some((base, span)) = self.span(nth) else { return &[] };
        // SAFETY: the span is pinned, so that all of it stays readable until `self` is dropped. Whoever writes to any of
        // it does so through a `&mut Pinned` that has it pinned for writing: this one, which is borrowed, and no other.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), span.len) }
    }

    /// Some bytes of the nth span, to write.
    ///
    /// # Errors
    /// There is no such span; or they begin before its `writable_from` or end behind its `len`.
    pub fn bytes_mut(&mut self, nth: usize, bytes: Range<usize>) -> Result<&mut [u8]> {
        let base = self.writable(nth, &bytes)?;
        // SAFETY: these bytes are pinned for writing, so that they stay writable until `self` is dropped and are reached
        // by no other pin; through this one only by way of `self`, which is borrowed exclusively.
        Ok(unsafe { std::slice::from_raw_parts_mut(base.as_ptr().add(bytes.start), bytes.len()) })
    }

    /// Copies bytes of one span to the same place of another: the copy of copy-on-write, where a page is shared in part.
    ///
    /// # Errors
    /// There are no such spans; the bytes end behind one's `len`, or begin before the other's `writable_from`.
    pub fn copy(&mut self, from: usize, to: usize, bytes: Range<usize>) -> Result<()> {
        let target = self.writable(to, &bytes)?;
        let (source, span) = self.span(from).ok_or(IllegalUse::NoSuchSpan(from))?;
        if bytes.end > span.len {
            return Err(IllegalUse::OutsideSpan { start: bytes.start, end: bytes.end }.into());
        }
        if from != to {
            // SAFETY: both are in bounds. What is pinned for writing is at no other address of this or another pin, and
            // two pins are never of the same range: the two do not overlap. `self` is borrowed exclusively.
            unsafe {
                let (source, target) = (source.as_ptr().add(bytes.start), target.as_ptr().add(bytes.start));
                std::ptr::copy_nonoverlapping(source, target, bytes.len());
            }
        }
        Ok(())
    }

    fn span(&self, nth: usize) -> Option<(NonNull<u8>, Span)> {
        let pinned = self.spans.get(nth)?;
        let base = match pinned.base.get() {
            Some(base) => *base,
            None => {
                let base = Base(self.memory.base(pinned.span.range)?);
                *pinned.base.get_or_init(|| base)
            }
        };
        Some((base.0, pinned.span))
    }

    /// The base of a span all these bytes of which are pinned for writing.
    fn writable(&self, nth: usize, bytes: &Range<usize>) -> Result<NonNull<u8>> {
        let (base, span) = self.span(nth).ok_or(IllegalUse::NoSuchSpan(nth))?;
        if bytes.start > bytes.end || bytes.start < span.writable_from || bytes.end > span.len {
            return Err(IllegalUse::OutsideSpan { start: bytes.start, end: bytes.end }.into());
        }
        Ok(base)
    }
}

//! Who is mapped where, with which access, and what a step holds: the rules of
//! [`VirtualMemory`](crate::VirtualMemory), for every backend.
//!
//! What changes mappings checks, then runs the backend's closure, then records; a closure that fails leaves the record as
//! it was. Ranges and handles are added after the system has made them and taken out before it destroys them, so that a
//! backend need not hold its lock during those calls, the slowest of all. `R` and `H` are what a backend keeps of a range
//! and of a handle.

mod pins;
mod reach;
mod spans;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use pins::Sharing;
use reach::Reach;
#[cfg(feature = "cuda")]
pub(crate) use spans::Piece;

use crate::error::IllegalUse;
use crate::{Access, HandleId, RangeId, Result};

#[derive(Debug)]
pub(crate) struct Ledger<R, H> {
    page_bytes: usize,
    sharing: Sharing,
    /// Ids are never used twice, so that a stale one is found out.
    next_id: u64,
    ranges: BTreeMap<RangeId, Range<R>>,
    handles: BTreeMap<HandleId, Handle<H>>,
}

#[derive(Debug)]
pub(crate) struct Range<R> {
    pub(crate) len: usize,
    pub(crate) system: R,
    /// By offset; they do not overlap.
    mappings: BTreeMap<usize, Mapping>,
    reach: Reach,
    pins: Vec<pins::Pin>,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    handle: HandleId,
    len: usize,
    access: Access,
}

#[derive(Debug)]
pub(crate) struct Handle<H> {
    pub(crate) len: usize,
    pub(crate) system: H,
    places: Vec<Place>,
}

/// Where a handle is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    range: RangeId,
    offset: usize,
}

/// Locks what a backend keeps. Whoever panicked with the lock held had no half-made record: the ledger records last.
pub(crate) fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R, H> Ledger<R, H> {
    /// A ledger for pages whose size is a multiple of `granularity`.
    pub(crate) fn new(page_bytes: usize, granularity: usize, sharing: Sharing) -> Result<Self> {
        if page_bytes == 0 || granularity == 0 || !page_bytes.is_multiple_of(granularity) {
            return Err(IllegalUse::PageSize { page_bytes, granularity }.into());
        }
        Ok(Self { page_bytes, sharing, next_id: 0, ranges: BTreeMap::new(), handles: BTreeMap::new() })
    }

    /// Whether a range or a handle may have this length.
    pub(crate) fn check_len(&self, len: usize) -> Result<()> {
        let fits = isize::try_from(len).is_ok();
        if len == 0 || !fits || !len.is_multiple_of(self.page_bytes) {
            return Err(IllegalUse::NotWholePages { bytes: len }.into());
        }
        Ok(())
    }

    /// Records a range whose length was checked.
    pub(crate) fn add_range(&mut self, len: usize, system: R) -> RangeId {
        let id = RangeId(self.take_id());
        let (mappings, pins) = (BTreeMap::new(), Vec::new());
        self.ranges.insert(id, Range { len, system, mappings, reach: Reach::default(), pins });
        id
    }

    /// Records a handle whose length was checked.
    pub(crate) fn add_handle(&mut self, len: usize, system: H) -> HandleId {
        let id = HandleId(self.take_id());
        self.handles.insert(id, Handle { len, system, places: Vec::new() });
        id
    }

    /// `call` is given the range, the handle and the handle's length.
    pub(crate) fn map(
        &mut self,
        range_id: RangeId,
        offset: usize,
        handle_id: HandleId,
        call: impl FnOnce(&mut R, &H, usize) -> Result<()>,
    ) -> Result<()> {
        let handle = self.handles.get_mut(&handle_id).ok_or(IllegalUse::UnknownHandle(handle_id))?;
        let range = self.ranges.get_mut(&range_id).ok_or(IllegalUse::UnknownRange(range_id))?;
        if !offset.is_multiple_of(self.page_bytes) {
            return Err(IllegalUse::NotWholePages { bytes: offset }.into());
        }
        let len = handle.len;
        let end = range.end_of(offset, len)?;
        // The last mapping that starts before the end reaches furthest, because mappings do not overlap.
        if let Some((&start, other)) = range.mappings.range(..end).next_back()
            && start + other.len > offset
        {
            return Err(IllegalUse::AlreadyMapped { offset }.into());
        }
        call(&mut range.system, &handle.system, len)?;
        range.mappings.insert(offset, Mapping { handle: handle_id, len, access: Access::None });
        handle.places.push(Place { range: range_id, offset });
        Ok(())
    }

    /// `call` is given the range and one mapping's offset and length, for every mapping of the span.
    pub(crate) fn set_access(
        &mut self,
        range_id: RangeId,
        offset: usize,
        len: usize,
        access: Access,
        mut call: impl FnMut(&mut R, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mappings = self.whole_mappings(range_id, offset, len)?;
        for (start, mapping) in &mappings {
            self.check_pins(range_id, *start, mapping.len, access)?;
            self.check_alias(range_id, *start, mapping.handle, access, offset..offset + len)?;
        }
        let range = self.ranges.get_mut(&range_id).ok_or(IllegalUse::UnknownRange(range_id))?;
        range.reach.cut(offset);
        let outcome = mappings.into_iter().try_for_each(|(start, mapping)| {
            call(&mut range.system, start, mapping.len)?;
            range.mappings.insert(start, Mapping { access, ..mapping });
            Ok(())
        });
        range.reach.extend(&range.mappings);
        outcome
    }

    /// `call` is given the range and one mapping's offset and length, for every mapping of the span.
    pub(crate) fn unmap(
        &mut self,
        range_id: RangeId,
        offset: usize,
        len: usize,
        mut call: impl FnMut(&mut R, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mappings = self.whole_mappings(range_id, offset, len)?;
        for (start, mapping) in &mappings {
            self.check_pins(range_id, *start, mapping.len, Access::None)?;
        }
        let range = self.ranges.get_mut(&range_id).ok_or(IllegalUse::UnknownRange(range_id))?;
        range.reach.cut(offset);
        for (start, mapping) in mappings {
            // Withdrawn first: were the system's call to fail half-way, nobody may touch the span any more.
            range.mappings.insert(start, Mapping { access: Access::None, ..mapping });
            call(&mut range.system, start, mapping.len)?;
            range.mappings.remove(&start);
            if let Some(handle) = self.handles.get_mut(&mapping.handle) {
                let place = Place { range: range_id, offset: start };
                handle.places.retain(|other| *other != place);
            }
        }
        Ok(())
    }

    /// Takes an unmapped handle out, for its memory to be given back.
    pub(crate) fn take_handle(&mut self, id: HandleId) -> Result<Handle<H>> {
        let handle = self.handles.get(&id).ok_or(IllegalUse::UnknownHandle(id))?;
        if !handle.places.is_empty() {
            return Err(IllegalUse::StillMapped.into());
        }
        self.handles.remove(&id).ok_or(IllegalUse::UnknownHandle(id).into())
    }

    /// Takes an empty range out, for its addresses to be given back.
    pub(crate) fn take_range(&mut self, id: RangeId) -> Result<Range<R>> {
        let range = self.ranges.get(&id).ok_or(IllegalUse::UnknownRange(id))?;
        if !range.pins.is_empty() {
            return Err(IllegalUse::Pinned { offset: 0 }.into());
        }
        if !range.mappings.is_empty() {
            return Err(IllegalUse::StillMapped.into());
        }
        self.ranges.remove(&id).ok_or(IllegalUse::UnknownRange(id).into())
    }

    /// Undoes [`take_handle`](Self::take_handle) where the system refused.
    pub(crate) fn put_handle(&mut self, id: HandleId, handle: Handle<H>) {
        self.handles.insert(id, handle);
    }

    /// Undoes [`take_range`](Self::take_range) where the system refused.
    pub(crate) fn put_range(&mut self, id: RangeId, range: Range<R>) {
        self.ranges.insert(id, range);
    }

    /// A range that there is.
    pub(crate) fn range(&self, id: RangeId) -> Option<&R> {
        self.ranges.get(&id).map(|range| &range.system)
    }

    /// Every range with its length, to give back at the end.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (&R, usize)> {
        self.ranges.values().map(|range| (&range.system, range.len))
    }

    /// Every handle, to give back at the end.
    #[cfg(feature = "cuda")]
    pub(crate) fn handles(&self) -> impl Iterator<Item = &H> {
        self.handles.values().map(|handle| &handle.system)
    }

    /// Every mapping with its range, offset and length, to give back at the end.
    #[cfg(feature = "cuda")]
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (&R, usize, usize)> {
        self.ranges.values().flat_map(|range| {
            range.mappings.iter().map(|(offset, mapping)| (&range.system, *offset, mapping.len))
        })
    }

    /// A handle that there is, to change what the backend keeps of it.
    pub(crate) fn handle_mut(&mut self, id: HandleId) -> Option<&mut H> {
        self.handles.get_mut(&id).map(|handle| &mut handle.system)
    }

    /// Writable at one address means accessible at no other, once the span has got its new access.
    fn check_alias(
        &self,
        range: RangeId,
        offset: usize,
        handle: HandleId,
        access: Access,
        span: std::ops::Range<usize>,
    ) -> Result<()> {
        let places = self.handles.get(&handle).map_or(&[][..], |handle| &handle.places);
        for place in places.iter().filter(|place| **place != Place { range, offset }) {
            let other = if place.range == range && span.contains(&place.offset) {
                access
            } else {
                let mapping =
                    self.ranges.get(&place.range).and_then(|range| range.mappings.get(&place.offset));
                mapping.map_or(Access::None, |mapping| mapping.access)
            };
            if access.max(other) == Access::ReadWrite && access.min(other) > Access::None {
                return Err(IllegalUse::Aliased { offset }.into());
            }
        }
        Ok(())
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

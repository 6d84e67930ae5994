//! Who is mapped where, with which access: the rules of [`VirtualMemory`](crate::VirtualMemory), for every backend.
//!
//! Each call checks, then runs the backend's closure, then records; a closure that fails leaves the record as it was.
//! `R` and `H` are what a backend keeps of a range and of a handle.

use std::collections::BTreeMap;

use crate::error::IllegalUse;
use crate::{Access, HandleId, RangeId, Result};

#[derive(Debug)]
pub(crate) struct Ledger<R, H> {
    page_bytes: usize,
    /// Ids are never used twice, so that a stale one is found out.
    next_id: u64,
    ranges: BTreeMap<RangeId, Range<R>>,
    handles: BTreeMap<HandleId, Handle<H>>,
}

#[derive(Debug)]
struct Range<R> {
    len: usize,
    system: R,
    /// By offset; they do not overlap.
    mappings: BTreeMap<usize, Mapping>,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    handle: HandleId,
    len: usize,
    access: Access,
}

#[derive(Debug)]
struct Handle<H> {
    len: usize,
    system: H,
    places: Vec<Place>,
}

/// Where a handle is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    range: RangeId,
    offset: usize,
}

impl<R, H> Ledger<R, H> {
    /// A ledger for pages whose size is a multiple of `granularity`.
    pub(crate) fn new(page_bytes: usize, granularity: usize) -> Result<Self> {
        if page_bytes == 0 || granularity == 0 || !page_bytes.is_multiple_of(granularity) {
            return Err(IllegalUse::PageSize { page_bytes, granularity }.into());
        }
        Ok(Self { page_bytes, next_id: 0, ranges: BTreeMap::new(), handles: BTreeMap::new() })
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    pub(crate) fn reserve(&mut self, len: usize, call: impl FnOnce() -> Result<R>) -> Result<RangeId> {
        self.check_len(len)?;
        let range = Range { len, system: call()?, mappings: BTreeMap::new() };
        let id = RangeId(self.take_id());
        self.ranges.insert(id, range);
        Ok(id)
    }

    pub(crate) fn create(&mut self, len: usize, call: impl FnOnce() -> Result<H>) -> Result<HandleId> {
        self.check_len(len)?;
        let handle = Handle { len, system: call()?, places: Vec::new() };
        let id = HandleId(self.take_id());
        self.handles.insert(id, handle);
        Ok(id)
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
            self.check_alias(range_id, *start, mapping.handle, access, offset..offset + len)?;
        }
        let range = self.ranges.get_mut(&range_id).ok_or(IllegalUse::UnknownRange(range_id))?;
        for (start, mapping) in mappings {
            call(&mut range.system, start, mapping.len)?;
            range.mappings.insert(start, Mapping { access, ..mapping });
        }
        Ok(())
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
        let range = self.ranges.get_mut(&range_id).ok_or(IllegalUse::UnknownRange(range_id))?;
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

    pub(crate) fn release(&mut self, id: HandleId, call: impl FnOnce(&H, usize) -> Result<()>) -> Result<()> {
        let handle = self.handles.get(&id).ok_or(IllegalUse::UnknownHandle(id))?;
        if !handle.places.is_empty() {
            return Err(IllegalUse::StillMapped.into());
        }
        call(&handle.system, handle.len)?;
        self.handles.remove(&id);
        Ok(())
    }

    pub(crate) fn free(&mut self, id: RangeId, call: impl FnOnce(&mut R) -> Result<()>) -> Result<()> {
        let range = self.ranges.get_mut(&id).ok_or(IllegalUse::UnknownRange(id))?;
        if !range.mappings.is_empty() {
            return Err(IllegalUse::StillMapped.into());
        }
        call(&mut range.system)?;
        self.ranges.remove(&id);
        Ok(())
    }

    /// The range, if every page of the span (any bytes) is mapped in it with at least this access.
    pub(crate) fn accessible(&self, id: RangeId, offset: usize, len: usize, access: Access) -> Result<&R> {
        let range = self.ranges.get(&id).ok_or(IllegalUse::UnknownRange(id))?;
        let end = range.end_of(offset, len)?;
        let mut covered = offset;
        let first = range.mappings.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (&start, mapping) in range.mappings.range(first..) {
            if covered >= end || start > covered {
                break;
            }
            if start + mapping.len <= covered {
                continue;
            }
            if mapping.access < access {
                return Err(IllegalUse::NoAccess { offset: covered }.into());
            }
            covered = start + mapping.len;
        }
        if covered < end {
            return Err(IllegalUse::NotMapped { offset: covered }.into());
        }
        Ok(&range.system)
    }

    /// Every range, to give back at the end.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = &R> {
        self.ranges.values().map(|range| &range.system)
    }

    /// The mappings that fill the span exactly.
    fn whole_mappings(&self, id: RangeId, offset: usize, len: usize) -> Result<Vec<(usize, Mapping)>> {
        let range = self.ranges.get(&id).ok_or(IllegalUse::UnknownRange(id))?;
        self.check_len(len)?;
        let end = range.end_of(offset, len)?;
        let mut mappings = Vec::new();
        let mut covered = offset;
        if let Some((&start, before)) = range.mappings.range(..offset).next_back()
            && start + before.len > offset
        {
            return Err(IllegalUse::PartOfHandle { offset }.into());
        }
        for (&start, mapping) in range.mappings.range(offset..end) {
            if start != covered {
                break;
            }
            mappings.push((start, *mapping));
            covered = start + mapping.len;
        }
        match covered {
            covered if covered == end => Ok(mappings),
            covered if covered > end => Err(IllegalUse::PartOfHandle { offset: end }.into()),
            offset => Err(IllegalUse::NotMapped { offset }.into()),
        }
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

    fn check_len(&self, len: usize) -> Result<()> {
        let fits = isize::try_from(len).is_ok();
        if len == 0 || !fits || !len.is_multiple_of(self.page_bytes) {
            return Err(IllegalUse::NotWholePages { bytes: len }.into());
        }
        Ok(())
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl<R> Range<R> {
    fn end_of(&self, offset: usize, len: usize) -> Result<usize> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(end),
            _ => Err(IllegalUse::OutsideRange { offset, len }.into()),
        }
    }
}

//! Which mappings a span of a range consists of.

use super::{Ledger, Mapping, Range};
use crate::error::IllegalUse;
use crate::{Access, HandleId, RangeId, Result};

/// Where some bytes of a span lie.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) handle: HandleId,
    /// In the handle.
    pub(crate) bytes: std::ops::Range<usize>,
}

impl<R, H> Ledger<R, H> {
    /// The mappings that fill the span exactly.
    pub(super) fn whole_mappings(
        &self,
        id: RangeId,
        offset: usize,
        len: usize,
    ) -> Result<Vec<(usize, Mapping)>> {
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

    /// The pieces of a span of any bytes, in order, if every page of it is mapped with at least this access.
    pub(crate) fn pieces(
        &self,
        id: RangeId,
        offset: usize,
        len: usize,
        access: Access,
    ) -> Result<Vec<Piece>> {
        let range = self.ranges.get(&id).ok_or(IllegalUse::UnknownRange(id))?;
        let mut pieces = Vec::new();
        range.walk(offset, len, access, |start, mapping, bytes| {
            pieces.push(Piece { handle: mapping.handle, bytes: bytes.start - start..bytes.end - start });
        })?;
        Ok(pieces)
    }
}

impl<R> Range<R> {
    /// Visits every mapping of a span of any bytes, with its offset and which bytes of the range it covers there, until one
    /// lacks the access.
    pub(super) fn walk(
        &self,
        offset: usize,
        len: usize,
        access: Access,
        mut visit: impl FnMut(usize, &Mapping, std::ops::Range<usize>),
    ) -> Result<()> {
        let end = self.end_of(offset, len)?;
        let mut covered = offset;
        let first = self.mappings.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (&start, mapping) in self.mappings.range(first..) {
            if covered >= end || start > covered {
                break;
            }
            let mapping_end = start + mapping.len;
            if mapping_end <= covered {
                continue;
            }
            if mapping.access < access {
                return Err(IllegalUse::NoAccess { offset: covered }.into());
            }
            visit(start, mapping, covered..mapping_end.min(end));
            covered = mapping_end;
        }
        if covered < end {
            return Err(IllegalUse::NotMapped { offset: covered }.into());
        }
        Ok(())
    }

    pub(super) fn end_of(&self, offset: usize, len: usize) -> Result<usize> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(end),
            _ => Err(IllegalUse::OutsideRange { offset, len }.into()),
        }
    }
}

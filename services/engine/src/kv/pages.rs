//! How pages come into slots and out of them.

use fused_virtual_memory::{Access, Error as MemoryError, VirtualMemory};

use super::extents::{ExtentId, extent_pages};
use super::mapper::Place;
use super::slot::{Mapped, State};
use super::{Error, KvCache};

/// Whether a slot's pages end where they were asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exactly {
    Yes,
    No,
}

impl<M: VirtualMemory> KvCache<M> {
    /// Maps until the slot has `num_pages`. A sequence that grows into a page gets some more with it, where nobody is short,
    /// unless its pages are to end `exactly` there.
    pub(super) fn map_to(&mut self, idx: usize, num_pages: usize, exactly: Exactly) -> Result<(), Error> {
        if num_pages > self.slots[idx].num_pages() && self.slots[idx].is_busy {
            self.settle()?;
        }
        let mapped = self.slots[idx].num_pages();
        if num_pages > mapped {
            let own = &self.slots[idx].extents[self.slots[idx].num_needed..];
            let not_needed = own.iter().filter(|mapped| !self.extents.is_needed(mapped.extent));
            let num_own: usize = not_needed.map(|mapped| self.extents.num_pages_of(mapped.extent)).sum();
            if num_pages - mapped > self.extents.num_available() - num_own {
                return Err(Error::OutOfPages);
            }
            while self.slots[idx].num_pages() < num_pages {
                let missing = num_pages - self.slots[idx].num_pages();
                let wanted = match exactly {
                    Exactly::Yes => missing,
                    Exactly::No => missing.max(self.pages_ahead(idx)),
                };
                let extent = self.take(extent_pages(wanted), idx)?;
                self.map_behind(idx, extent).map_err(Error::or_out_of_pages)?;
            }
        }
        Ok(())
    }

    /// Notes how many of a slot's pages, from the first on, are needed.
    pub(super) fn need(&mut self, idx: usize, num_pages: usize) {
        let Self { slots, extents, .. } = self;
        let slot = &mut slots[idx];
        let num_needed = slot.num_covering(num_pages);
        for mapped in slot.extents.get(slot.num_needed..num_needed).unwrap_or(&[]) {
            extents.need(mapped.extent);
        }
        for mapped in slot.extents.get(num_needed..slot.num_needed).unwrap_or(&[]) {
            extents.unneed(mapped.extent);
        }
        slot.num_needed = num_needed;
    }

    /// An extent of so many pages that is mapped nowhere, for the slot `taker`: a free one, a new one, one made of smaller
    /// or larger free ones, or one that somebody loses. A smaller one where the system has no memory for it, which others
    /// on the machine may have taken: the pool is what could be had.
    pub(super) fn take(&mut self, num_pages: usize, taker: usize) -> Result<ExtentId, Error> {
        let (wanted, mut num_pages) = (num_pages, num_pages);
        loop {
            let unmapped = match num_pages == wanted {
                true => self.extents.take_unmapped(wanted),
                false => self.extents.take_unmapped_within(wanted),
            };
            if let Some(extent) = unmapped {
                return Ok(extent);
            }
            if self.extents.num_uncreated() >= num_pages {
                match self.create(num_pages) {
                    Err(Error::Memory(MemoryError::OutOfMemory { .. })) => {
                        self.extents.refused(num_pages);
                        num_pages = (num_pages / 2).max(1);
                        continue;
                    }
                    created => return created,
                }
            }
            if self.extents.num_free() >= num_pages && self.release_smallest()? {
                continue;
            }
            if !self.evict(taker)? {
                return Err(Error::OutOfPages);
            }
        }
    }

    /// Looks whether the system has memory again that it had not: for an extent, each time that a slot is given back.
    pub(super) fn regain(&mut self) {
        let num_uncreated = self.extents.num_uncreated();
        let num_pages = extent_pages(self.extents.num_withheld());
        if self.extents.restore(num_pages) == 0 {
            return;
        }
        match self.create(num_pages) {
            Ok(extent) => self.extents.put_unmapped(extent),
            // Nobody needs it as yet: whoever does hears why there is none.
            Err(_) => self.extents.refused(num_uncreated + 1),
        }
    }

    fn create(&mut self, num_pages: usize) -> Result<ExtentId, Error> {
        let handle = self.memory.create(num_pages * self.memory.page_bytes())?;
        self.num_driver_calls += 1;
        self.extents.reserve(num_pages);
        Ok(self.extents.created(handle, num_pages))
    }

    /// Gives the smallest free extent's memory back, so that it can be created in another size.
    fn release_smallest(&mut self) -> Result<bool, Error> {
        let Some(extent) = self.extents.take_smallest_unmapped() else { return Ok(false) };
        let released = self.extents.handle(extent).map_or(Ok(()), |handle| self.memory.release(handle));
        if let Err(error) = released {
            self.extents.put_unmapped(extent);
            return Err(error.into());
        }
        self.num_driver_calls += 1;
        self.extents.released(extent);
        Ok(true)
    }

    /// Takes one extent from somebody who does not need it: from the end of the parked slot longest out of use; failing
    /// that, of the live one with most mapped ahead. Returns whether there was one.
    fn evict(&mut self, taker: usize) -> Result<bool, Error> {
        let is_free = |idx: &usize| *idx != taker && !self.slots[*idx].is_busy && !self.is_in_copy(*idx);
        let parked = self.parked.oldest_first().find(is_free);
        let victim = parked.or_else(|| {
            let surplus = |idx: &usize| self.slots[*idx].extents.len() - self.slots[*idx].num_needed;
            let live = self.live.iter().copied().filter(is_free);
            live.filter(|idx| surplus(idx) > 0).max_by_key(|idx| (surplus(idx), std::cmp::Reverse(*idx)))
        });
        match victim {
            Some(victim) => self.unmap_last(victim).map(|()| true),
            // Somebody's extents may be on their way.
            None if self.num_in_transit > 0 => self.settle().map(|()| true),
            None => Ok(false),
        }
    }

    /// Unmaps the last extent of a slot.
    pub(super) fn unmap_last(&mut self, idx: usize) -> Result<(), Error> {
        let Some(Mapped { extent, end, .. }) = self.slots[idx].extents.last().copied() else { return Ok(()) };
        let place = self.place(idx, end - self.extents.num_pages_of(extent), extent);
        if let Err(error) = self.memory.unmap(place.range, place.offset, place.len) {
            // It is still there and nobody may touch it, before somebody makes it writable.
            self.forget_behind(idx, end - self.extents.num_pages_of(extent));
            if let Some(last) = self.slots[idx].extents.last_mut() {
                last.is_writable = false;
            }
            return Err(error.into());
        }
        self.num_driver_calls += 1;
        self.drop_last(idx);
        if self.extents.unmapped(extent) {
            self.extents.put_unmapped(extent);
        }
        Ok(())
    }

    /// Maps an extent that is in no list behind the slot's others. Where that fails it is free again.
    fn map_behind(&mut self, idx: usize, extent: ExtentId) -> Result<(), Error> {
        let place = self.place(idx, self.slots[idx].num_pages(), extent);
        let Some(handle) = self.extents.handle(extent) else { return Err(Error::OutOfPages) };
        if let Err(error) = self.memory.map(place.range, place.offset, handle) {
            self.extents.put_unmapped(extent);
            return Err(error.into());
        }
        self.num_driver_calls += 1;
        self.push(idx, extent, false);
        self.open_last(idx, Access::ReadWrite)
    }

    /// Makes the extent accessible that was mapped last, or takes it away again.
    fn open_last(&mut self, idx: usize, access: Access) -> Result<(), Error> {
        let Some(Mapped { extent, end, .. }) = self.slots[idx].extents.last().copied() else { return Ok(()) };
        let place = self.place(idx, end - self.extents.num_pages_of(extent), extent);
        if let Err(error) = self.memory.set_access(place.range, place.offset, place.len, access) {
            // Where that fails too, the slot keeps it, as one that nobody may touch.
            let _ = self.unmap_last(idx);
            return Err(error.into());
        }
        self.num_driver_calls += 1;
        if let Some(last) = self.slots[idx].extents.last_mut() {
            last.is_writable = access == Access::ReadWrite;
        }
        Ok(())
    }

    /// Maps the first `num_extents` of a slot into another one, which has none; nobody writes there any more.
    pub(super) fn share(&mut self, from: usize, to: usize, num_extents: usize) -> Result<(), Error> {
        for nth in 0..num_extents {
            let Mapped { extent, end, is_writable } = self.slots[from].extents[nth];
            let Some(handle) = self.extents.handle(extent) else { return Err(Error::OutOfPages) };
            let start = end - self.extents.num_pages_of(extent);
            if is_writable {
                let Place { range, offset, len } = self.place(from, start, extent);
                self.memory.set_access(range, offset, len, Access::Read)?;
                self.num_driver_calls += 1;
                self.slots[from].extents[nth].is_writable = false;
            }
            let Place { range, offset, .. } = self.place(to, start, extent);
            self.memory.map(range, offset, handle)?;
            self.num_driver_calls += 1;
            self.push(to, extent, false);
            self.open_last(to, Access::Read)?;
        }
        Ok(())
    }

    /// Makes everything behind the first `num_pages` of a slot writable: unmaps from its end what others share, and takes
    /// back the rest.
    pub(super) fn make_writable(&mut self, idx: usize, num_pages: usize) -> Result<(), Error> {
        let first = self.slots[idx].num_within(num_pages);
        let num_own =
            self.slots[idx].extents[first..].iter().take_while(|m| !self.extents.is_shared(m.extent)).count();
        while self.slots[idx].extents.len() > first + num_own {
            self.unmap_last(idx)?;
        }
        for nth in first..first + num_own {
            let Mapped { extent, end, is_writable } = self.slots[idx].extents[nth];
            if !is_writable {
                let Place { range, offset, len } =
                    self.place(idx, end - self.extents.num_pages_of(extent), extent);
                self.memory.set_access(range, offset, len, Access::ReadWrite)?;
                self.num_driver_calls += 1;
                self.slots[idx].extents[nth].is_writable = true;
            }
        }
        Ok(())
    }

    /// Notes that an extent is mapped behind the slot's others.
    pub(super) fn push(&mut self, idx: usize, extent: ExtentId, is_writable: bool) {
        let num_pages = self.slots[idx].num_pages();
        let end = num_pages + self.extents.num_pages_of(extent);
        self.extents.mapped(extent);
        self.slots[idx].extents.push(Mapped { extent, end, is_writable });
        self.resized(idx, num_pages);
    }

    /// Notes that the last extent of a slot is going; whatever was in it is no more.
    pub(super) fn drop_last(&mut self, idx: usize) {
        let num_pages = self.slots[idx].num_pages();
        self.slots[idx].extents.pop();
        self.forget_behind(idx, self.slots[idx].num_pages());
        debug_assert!(self.slots[idx].num_needed <= self.slots[idx].extents.len(), "a needed extent goes");
        self.resized(idx, num_pages);
    }

    /// Notes that nothing is left of what was behind the first `num_pages` of a slot.
    fn forget_behind(&mut self, idx: usize, num_pages: usize) {
        let num_tokens = num_pages * self.memory.page_bytes() / self.layout.token_bytes();
        let content = &mut self.slots[idx].content;
        match &mut self.index {
            Some(index) if content.num_valid > num_tokens => content.truncate(idx, num_tokens, index),
            _ => content.num_valid = content.num_valid.min(num_tokens),
        }
    }

    fn resized(&mut self, idx: usize, old_num_pages: usize) {
        if let State::Parked { since } = self.slots[idx].state {
            self.parked.remove(idx, since, old_num_pages);
            self.parked.insert(idx, since, self.slots[idx].num_pages());
        }
    }

    pub(super) fn place(&self, idx: usize, start: usize, extent: ExtentId) -> Place {
        let page_bytes = self.memory.page_bytes();
        let len = self.extents.num_pages_of(extent) * page_bytes;
        Place { range: self.slots[idx].range, offset: start * page_bytes, len }
    }

    /// Whether something is about to be copied from a slot or to it, so that its pages must stay where they are.
    pub(super) fn is_in_copy(&self, idx: usize) -> bool {
        self.copies.iter().any(|copy| copy.from.idx() == idx || copy.to.idx() == idx)
    }
}

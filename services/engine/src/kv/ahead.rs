//! Pages mapped ahead of their need, by the mapper.

use fused_virtual_memory::VirtualMemory;

use super::extents::extent_pages;
use super::mapper::{Grown, Growth, NotGrown, Place, Source};
use super::slot::{Mapped, SlotId, State};
use super::{Error, KvCache};

/// A sequence grows by extents of at most this part of what it has: so much is mapped and not used, at worst.
const GROWTH_DIVISOR: usize = 64;

impl<M: VirtualMemory> KvCache<M> {
    /// Begins to map for sequences that are near the end of their pages, while the step that takes them there runs.
    ///
    /// # Errors
    /// The mapper's thread has ended.
    pub fn map_ahead(&mut self, slots: impl IntoIterator<Item = SlotId>) -> Result<(), Error> {
        self.collect()?;
        for slot in slots {
            let idx = slot.idx();
            let State::Live { num_tokens, .. } = self.slots[idx].state else { continue };
            let most = self.pages_for(self.size.max_model_len);
            let num_pages = self.slots[idx].num_pages();
            let (page_bytes, token_bytes) = (self.memory.page_bytes(), self.layout.token_bytes());
            let left_bytes = (num_pages * page_bytes).saturating_sub(num_tokens * token_bytes);
            let is_near = left_bytes < (page_bytes / 2).max(2 * token_bytes);
            if is_near && num_pages < most && !self.slots[idx].is_busy {
                self.begin_growth(idx, self.pages_ahead(idx));
            }
        }
        self.make_ready();
        Ok(())
    }

    /// Maps, an extent a step, what a sequence typically begins with into a slot that nobody has as yet, for the one that comes
    /// next: as long as there is memory to spare, which is until all of it has been used once.
    fn make_ready(&mut self) {
        let wanted = self.typical_pages as usize;
        if wanted == 0 || self.extents.num_free() < 2 * wanted + self.watermark() {
            return;
        }
        let Some(idx) =
            self.ready_slot().or_else(|| self.parked.empty().find(|idx| !self.slots[*idx].is_busy))
        else {
            return;
        };
        let num_pages = self.slots[idx].num_pages();
        if num_pages < wanted && !self.slots[idx].is_busy {
            self.begin_growth(idx, extent_pages(wanted - num_pages));
            self.ready = Some(idx);
        }
    }

    /// The slot that was made ready, if nobody has taken it or its pages.
    pub(super) fn ready_slot(&self) -> Option<usize> {
        self.ready.filter(|idx| {
            let slot = &self.slots[*idx];
            !slot.is_live() && slot.content.num_valid == 0 && (slot.is_busy || slot.num_pages() > 0)
        })
    }

    /// Pages that a slot which grows is given at once.
    pub(super) fn pages_ahead(&self, idx: usize) -> usize {
        let num_pages = self.slots[idx].num_pages();
        let most = self.pages_for(self.size.max_model_len) - num_pages;
        let spare = self.extents.num_available().saturating_sub(self.watermark());
        let ahead = extent_pages((num_pages / GROWTH_DIVISOR).min(most));
        if ahead <= spare { ahead } else { 1 }
    }

    /// Has an extent mapped behind a slot by the mapper, if one can be had without anybody's need.
    fn begin_growth(&mut self, idx: usize, num_pages: usize) {
        if num_pages > self.extents.num_available().saturating_sub(self.num_in_transit) {
            return;
        }
        let Some(source) = self.source(num_pages, idx) else { return };
        let num_pages = match source {
            Source::New => num_pages,
            Source::Unmapped(extent, _) | Source::Slot { extent, .. } => self.extents.num_pages_of(extent),
        };
        let range = self.slots[idx].range;
        let page_bytes = self.memory.page_bytes();
        let offset = self.slots[idx].num_pages() * page_bytes;
        let place = Place { range, offset, len: num_pages * page_bytes };
        let growth = Growth { slot: idx, place, num_pages, source };
        self.num_in_transit += num_pages;
        self.slots[idx].is_busy = true;
        if let Source::Slot { slot, .. } = source {
            self.slots[slot].is_busy = true;
        }
        if !self.mapper.begin(&*self.memory, growth) {
            self.take_in(Grown { growth, outcome: Err(NotGrown::Untaken), num_calls: 0 });
        }
    }

    /// Where the mapper gets an extent of so many pages, or nearly so many.
    fn source(&mut self, num_pages: usize, taker: usize) -> Option<Source> {
        if let Some(extent) = self.extents.take_unmapped(num_pages) {
            return Some(Source::Unmapped(extent, self.extents.handle(extent)?));
        }
        if self.extents.num_uncreated() >= num_pages {
            self.extents.reserve(num_pages);
            return Some(Source::New);
        }
        if self.extents.num_free() < num_pages {
            let is_free = |idx: &usize| *idx != taker && !self.slots[*idx].is_busy && !self.is_in_copy(*idx);
            let victim = self.parked.oldest_first().find(is_free)?;
            let Mapped { extent, end, is_writable } = *self.slots[victim].extents.last()?;
            let size = self.extents.num_pages_of(extent);
            let fits_behind = self.slots[taker].num_pages() + size <= self.pages_for(self.size.max_model_len);
            if is_writable && size <= 2 * num_pages && fits_behind {
                let place = self.place(victim, end - size, extent);
                let handle = self.extents.handle(extent)?;
                self.drop_last(victim);
                // Nobody maps it while it is on its way.
                self.extents.unmapped(extent);
                return Some(Source::Slot { extent, handle, slot: victim, place });
            }
        }
        // Another size must be broken first, which happens once for many extents.
        let extent = self.take(num_pages, taker).ok()?;
        Some(Source::Unmapped(extent, self.extents.handle(extent)?))
    }

    /// Takes in what the mapper has done until now.
    pub(super) fn collect(&mut self) -> Result<(), Error> {
        while let Some(grown) = self.mapper.poll()? {
            self.take_in(grown);
        }
        Ok(())
    }

    /// Waits until the mapper has nothing more to do.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        while let Some(grown) = self.mapper.wait()? {
            self.take_in(grown);
        }
        Ok(())
    }

    fn take_in(&mut self, Grown { growth, outcome, num_calls }: Grown) {
        let Growth { slot, num_pages, source, .. } = growth;
        self.num_driver_calls += num_calls as u64;
        self.num_in_transit -= num_pages;
        self.slots[slot].is_busy = false;
        if let Source::Slot { slot, .. } = source {
            self.slots[slot].is_busy = false;
        }
        let extent = match (source, outcome) {
            (Source::Unmapped(extent, _) | Source::Slot { extent, .. }, _) => extent,
            (Source::New, Err(error @ (NotGrown::Untaken | NotGrown::NoMemory))) => {
                self.extents.unreserve(num_pages);
                if let NotGrown::NoMemory = error {
                    self.extents.refused(num_pages);
                }
                return;
            }
            (Source::New, Ok(handle) | Err(NotGrown::Unmapped(handle) | NotGrown::Closed(handle))) => {
                self.extents.created(handle, num_pages)
            }
        };
        match (outcome, source) {
            (Ok(_), _) => self.push(slot, extent, true),
            (Err(NotGrown::Closed(_)), _) => self.push(slot, extent, false),
            // It could not be unmapped.
            (Err(NotGrown::Untaken), Source::Slot { slot, .. }) => self.push(slot, extent, false),
            (Err(_), _) => self.extents.put_unmapped(extent),
        }
    }
}

//! What can be told of the cache, and what must always hold.

use std::time::Duration;

use fused_virtual_memory::VirtualMemory;

use super::KvCache;
use super::slot::Slot;

/// Where the pages are, in bytes. `mapped + parked + free = total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvStats {
    /// The pool.
    pub total_bytes: usize,
    /// In extents that a live sequence needs; one that several share counts once.
    pub mapped_bytes: usize,
    /// In extents that are mapped and that no live sequence needs: whoever needs them may take them.
    pub parked_bytes: usize,
    /// Mapped nowhere.
    pub free_bytes: usize,
    /// Of `parked_bytes`: behind the need of a live sequence, for its next tokens.
    pub ahead_bytes: usize,
    /// Of `mapped_bytes`: where no keys and values are as yet.
    pub unused_bytes: usize,
    /// Slots in use.
    pub live_slots: usize,
}

impl<M: VirtualMemory> KvCache<M> {
    /// Slots in use.
    #[must_use]
    pub fn num_live(&self) -> usize {
        self.live.len()
    }

    /// Counts the slots that were given back: while it stays the same, nobody for whom there was no room finds some.
    #[must_use]
    pub fn num_releases(&self) -> u64 {
        self.num_releases
    }

    /// Driver calls until now, those of the mapper's thread included.
    #[must_use]
    pub fn num_driver_calls(&self) -> u64 {
        self.num_driver_calls
    }

    /// How long steps have waited for the mapper's thread, in all.
    #[must_use]
    pub fn waited_for_mapper(&self) -> Duration {
        self.mapper.waited()
    }

    /// Time that a simulated driver has spent beside the steps, not before them.
    #[must_use]
    pub fn spent_ahead(&self) -> Duration {
        self.mapper.spent()
    }

    /// Where the pages are.
    #[must_use]
    pub fn stats(&self) -> KvStats {
        let page_bytes = self.memory.page_bytes();
        let num_parked = self.extents.num_available() - self.extents.num_free();
        let mut stats = KvStats {
            total_bytes: self.extents.num_pages() * page_bytes,
            mapped_bytes: self.extents.num_needed() * page_bytes,
            parked_bytes: num_parked * page_bytes,
            free_bytes: self.extents.num_free() * page_bytes,
            live_slots: self.num_live(),
            ..KvStats::default()
        };
        for slot in self.live.iter().map(|idx| &self.slots[*idx]) {
            let needed_bytes = slot.num_needed_pages() * page_bytes;
            stats.ahead_bytes += (slot.num_pages() - slot.num_needed_pages()) * page_bytes;
            stats.unused_bytes +=
                needed_bytes.saturating_sub(slot.content.num_valid * self.layout.token_bytes());
        }
        stats
    }

    /// What must hold after every step, for debug builds: no page is lost, every count is that of the slots, nobody writes
    /// where others read, and the index knows whole blocks of what is there and nothing else.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let uses = self.slots.iter().flat_map(|slot| {
            let needed = |nth| nth < slot.num_needed;
            slot.extents.iter().enumerate().map(move |(nth, mapped)| (mapped.extent, needed(nth)))
        });
        let slot_is = |slot: &Slot| {
            let mut end = 0;
            let contiguous = slot.extents.iter().all(|mapped| {
                end += self.extents.num_pages_of(mapped.extent);
                mapped.end == end && !(mapped.is_writable && self.extents.is_shared(mapped.extent))
            });
            let valid_bytes = slot.content.num_valid * self.layout.token_bytes();
            contiguous
                && slot.num_needed <= slot.extents.len()
                && (slot.is_live() || slot.num_needed == 0)
                && valid_bytes <= slot.num_pages() * self.memory.page_bytes()
        };
        let num_entries: usize = self.slots.iter().map(|slot| slot.content.num_entries()).sum();
        self.extents.is_consistent(uses, self.num_in_transit)
            && self.slots.iter().all(slot_is)
            && self.index.as_ref().is_none_or(|index| index.num_entries() == num_entries)
            && self.slots.len() == self.parked.len() + self.live.len()
            && self.slots.iter().enumerate().all(|(idx, slot)| slot.is_live() == self.live.contains(&idx))
    }
}

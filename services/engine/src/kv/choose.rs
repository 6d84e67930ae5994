//! Which slot fits best.

use fused_virtual_memory::VirtualMemory;

use super::KvCache;
use super::find::Found;
use super::slot::State;

/// Slots looked at for the one that fits best: so many that some extent of one of them ends where the sequence does.
const MAX_LOOKED_AT: usize = 256;
/// A slot is sought that has room for so many times the tokens by which sequences typically grow. What is too much is not
/// lost: whoever needs it takes it.
const EXPECTED_GROWTH: f64 = 2.5;

impl<M: VirtualMemory> KvCache<M> {
    /// The slot that a sequence of `num_pages` gets, which need not have its beginning.
    pub(super) fn choose(&self, found: Found, num_shared: usize, num_pages: usize) -> Option<usize> {
        let is_free = |idx: &usize| {
            !(self.slots[*idx].is_busy
                || self.is_in_copy(*idx)
                || (found.num_valid > 0 && *idx == found.slot))
        };
        let empty = self.parked.empty().find(is_free);
        if num_shared > 0 {
            // A slot for shared pages must have none of its own.
            return empty.or_else(|| self.parked.oldest_first().find(is_free));
        }
        let expected = num_pages + self.pages_for((EXPECTED_GROWTH * self.typical_growth) as usize);
        let keeps_others = self.index.is_some() && self.extents.num_free() >= expected;
        // With memory to spare nothing is taken from those who may come back.
        if keeps_others && empty.is_some() {
            // All it needs, or nothing: extents that end where it happens would keep others from sharing its beginning.
            let fits = |idx: &usize| {
                self.slots[*idx].num_pages() >= num_pages && !self.misfit(*idx, num_pages, num_pages).0
            };
            return self.ready_slot().filter(is_free).filter(fits).or(empty);
        }
        let settled = self.parked.settled();
        let is_old = |idx: &usize| match self.slots[*idx].state {
            State::Parked { since } => since <= settled || self.slots[*idx].content.num_valid == 0,
            State::Live { .. } => false,
        };
        let large = self.parked.at_least(expected).filter(is_free).filter(is_old).take(MAX_LOOKED_AT);
        let small = self.parked.below(expected).filter(is_free).filter(is_old).take(MAX_LOOKED_AT);
        let best = large.chain(small).min_by_key(|idx| self.misfit(*idx, num_pages, expected));
        best.or(empty).or_else(|| self.parked.oldest_first().find(is_free))
    }

    /// How badly a slot's pages fit a sequence that needs `num_pages` now and is expected to need `expected`: first whether
    /// more than a little of an extent goes to waste or others' pages must go, then what is missing, then what is too much.
    fn misfit(&self, idx: usize, num_pages: usize, expected: usize) -> (bool, usize, usize) {
        let slot = &self.slots[idx];
        let num_own = slot.extents.iter().take_while(|mapped| !self.extents.is_shared(mapped.extent)).count();
        let own = num_own.checked_sub(1).map_or(0, |last| slot.extents[last].end);
        let wasted = if own < num_pages { 0 } else { self.wasted_pages(idx, num_pages) };
        let is_bad = wasted > tolerable_waste(num_pages) || num_own < slot.extents.len();
        (is_bad, expected.saturating_sub(own), own.saturating_sub(expected))
    }

    /// Pages of the extent in which the first `num_pages` of a slot end, behind those.
    pub(super) fn wasted_pages(&self, idx: usize, num_pages: usize) -> usize {
        let slot = &self.slots[idx];
        let last = slot.num_covering(num_pages).checked_sub(1).and_then(|last| slot.extents.get(last));
        last.map_or(0, |mapped| mapped.end.saturating_sub(num_pages))
    }
}

/// A thirty-second: about what is lost at the end of a page anyway.
pub(super) fn tolerable_waste(num_pages: usize) -> usize {
    (num_pages / 32).max(1)
}

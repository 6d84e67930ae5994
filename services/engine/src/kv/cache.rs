use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;

use fused_virtual_memory::{Access, HandleId, HostMemory, RangeId, VirtualMemory};

use super::{Error, KvLayout, KvSize, KvStats};

/// Pages mapped beyond the need whenever a slot grows and nobody has to give any up for it: a decode then maps once in
/// several pages, with one wait.
const NUM_PAGES_AHEAD: usize = 2;

/// Which slot; an index below the number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u32);

impl SlotId {
    /// The slot's index.
    #[must_use]
    pub fn idx(self) -> usize {
        self.0 as usize
    }
}

/// All keys and values of all sequences.
#[derive(Debug)]
pub struct KvCache<M> {
    memory: M,
    layout: KvLayout,
    size: KvSize,
    slots: Vec<Slot>,
    /// Created and mapped nowhere.
    unmapped: Vec<HandleId>,
    num_created: usize,
    num_pages: usize,
    num_releases: u64,
}

#[derive(Debug)]
struct Slot {
    range: RangeId,
    /// Mapped from the slot's start on, without a gap, readable and writable.
    pages: Vec<HandleId>,
    state: State,
}

#[derive(Debug)]
enum State {
    Live {
        num_tokens: usize,
    },
    /// `since` orders the slots by when they were given back.
    Parked {
        since: u64,
    },
}

impl<M: VirtualMemory> KvCache<M> {
    /// Reserves the addresses of all slots. Physical pages are created as they are needed.
    ///
    /// # Errors
    /// The pool cannot hold one sequence of the greatest length, or the system refuses.
    pub fn new(mut memory: M, layout: KvLayout, size: KvSize) -> Result<Self, Error> {
        let page_bytes = memory.page_bytes();
        let num_pages = size.pool_bytes / page_bytes;
        let slot_bytes = size
            .max_model_len
            .checked_mul(layout.token_bytes())
            .and_then(|bytes| bytes.checked_next_multiple_of(page_bytes))
            .filter(|bytes| *bytes > 0 && size.num_slots > 0 && u32::try_from(size.num_slots).is_ok())
            .ok_or(Error::Unaddressable(size))?;
        if slot_bytes / page_bytes > num_pages {
            return Err(Error::PoolTooSmall { slot_bytes, pool_bytes: num_pages * page_bytes });
        }
        let slots = (0..size.num_slots).map(|_| {
            let range = memory.reserve(slot_bytes)?;
            Ok(Slot { range, pages: Vec::new(), state: State::Parked { since: 0 } })
        });
        let slots = slots.collect::<Result<_, Error>>()?;
        Ok(Self {
            memory,
            layout,
            size,
            slots,
            unmapped: Vec::new(),
            num_created: 0,
            num_pages,
            num_releases: 0,
        })
    }

    /// What a token looks like in memory.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Sequences that run at the same time.
    #[must_use]
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// Takes the parked slot whose pages fit best: the fewest that suffice, else the most. `None` while all are live.
    #[must_use]
    pub fn acquire(&mut self, expected_tokens: usize) -> Option<SlotId> {
        let needed = self.pages_for(expected_tokens);
        let parked = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_parked());
        let (idx, _) = parked.min_by_key(|(_, slot)| {
            let num_pages = slot.pages.len();
            if num_pages >= needed { (false, num_pages) } else { (true, needed - num_pages) }
        })?;
        self.slots[idx].state = State::Live { num_tokens: 0 };
        Some(SlotId(u32::try_from(idx).ok()?))
    }

    /// Maps what the slot still needs to hold `num_tokens`. Pages that are in use by nobody else are taken for it:
    /// free ones first, then parked ones, then what live slots have mapped ahead of their need.
    ///
    /// # Errors
    /// [`Error::OutOfPages`] where the other live slots need the rest; the slot holds what it held before.
    pub fn ensure(&mut self, slot: SlotId, num_tokens: usize) -> Result<(), Error> {
        let held = self.held_tokens(slot).ok_or(Error::NotHeld { slot, num_tokens })?;
        if num_tokens > self.size.max_model_len {
            return Err(Error::NotHeld { slot, num_tokens });
        }
        let num_tokens = num_tokens.max(held);
        let needed = self.pages_for(num_tokens);
        if needed > self.slots[slot.idx()].pages.len() {
            if needed - self.pages_for(held) > self.available_pages() {
                return Err(Error::OutOfPages);
            }
            while self.slots[slot.idx()].pages.len() < needed {
                let page = self.take_page(slot)?;
                self.map_page(slot, page)?;
            }
            self.map_ahead(slot);
        }
        self.slots[slot.idx()].state = State::Live { num_tokens };
        Ok(())
    }

    /// Gives a slot back; its pages stay mapped. Returns how many bytes those are, 0 for a slot that was not live.
    pub fn release(&mut self, slot: SlotId) -> usize {
        if self.held_tokens(slot).is_none() {
            return 0;
        }
        self.num_releases += 1;
        let page_bytes = self.memory.page_bytes();
        let slot = &mut self.slots[slot.idx()];
        slot.state = State::Parked { since: self.num_releases };
        slot.pages.len() * page_bytes
    }

    /// Whether a new sequence of so many tokens would find its pages, and every live slot one more beside it. Admitting
    /// without that room would only lead to the youngest giving way at once.
    #[must_use]
    pub fn has_room_for(&self, num_tokens: usize) -> bool {
        let num_live = self.slots.iter().filter(|slot| !slot.is_parked()).count();
        self.pages_for(num_tokens) + num_live <= self.available_pages()
    }

    /// Where the pages are.
    #[must_use]
    pub fn stats(&self) -> KvStats {
        let page_bytes = self.memory.page_bytes();
        let num_free = self.unmapped.len() + self.num_pages - self.num_created;
        let mut stats = KvStats {
            total_bytes: self.num_pages * page_bytes,
            free_bytes: num_free * page_bytes,
            ..KvStats::default()
        };
        for slot in &self.slots {
            let bytes = slot.pages.len() * page_bytes;
            match slot.state {
                State::Live { .. } => {
                    stats.mapped_bytes += bytes;
                    stats.live_slots += 1;
                }
                State::Parked { .. } => stats.parked_bytes += bytes,
            }
        }
        stats
    }

    /// What must hold after every step, for debug builds: no page is lost, and none is in two places.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let stats = self.stats();
        let mut seen = BTreeSet::new();
        let mut pages = self.slots.iter().flat_map(|slot| &slot.pages).chain(&self.unmapped);
        pages.all(|page| seen.insert(*page))
            && stats.mapped_bytes + stats.parked_bytes + stats.free_bytes == stats.total_bytes
    }

    /// The memory below, to look at in tests.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// Pages that no live slot needs for the tokens it holds.
    fn available_pages(&self) -> usize {
        let needed: usize = self.slots.iter().map(|slot| self.needed_pages(slot)).sum();
        self.num_pages - needed
    }

    fn needed_pages(&self, slot: &Slot) -> usize {
        match slot.state {
            State::Live { num_tokens } => self.pages_for(num_tokens),
            State::Parked { .. } => 0,
        }
    }

    fn pages_for(&self, num_tokens: usize) -> usize {
        num_tokens.saturating_mul(self.layout.token_bytes()).div_ceil(self.memory.page_bytes())
    }

    /// Tokens ensured in a live slot.
    fn held_tokens(&self, slot: SlotId) -> Option<usize> {
        match self.slots.get(slot.idx())?.state {
            State::Live { num_tokens } => Some(num_tokens),
            State::Parked { .. } => None,
        }
    }

    /// Nobody needs these pages, so no error either: whoever does need one says why there is none.
    fn map_ahead(&mut self, slot: SlotId) {
        let most = self.pages_for(self.size.max_model_len);
        for _ in 0..NUM_PAGES_AHEAD {
            if self.slots[slot.idx()].pages.len() == most {
                break;
            }
            let Ok(Some(page)) = self.free_page() else { break };
            if self.map_page(slot, page).is_err() {
                break;
            }
        }
    }

    /// Maps a page behind the slot's others. Where that fails the page is free again.
    fn map_page(&mut self, slot: SlotId, page: HandleId) -> Result<(), Error> {
        let page_bytes = self.memory.page_bytes();
        let Slot { range, pages, .. } = &mut self.slots[slot.idx()];
        let offset = pages.len() * page_bytes;
        let mapped = self.memory.map(*range, offset, page).and_then(|()| {
            let accessible = self.memory.set_access(*range, offset, page_bytes, Access::ReadWrite);
            accessible.or_else(|error| self.memory.unmap(*range, offset, page_bytes).and(Err(error)))
        });
        match mapped {
            Ok(()) => pages.push(page),
            Err(_) => self.unmapped.push(page),
        }
        Ok(mapped?)
    }

    /// A page that no slot but `slot` needs, unmapped.
    fn take_page(&mut self, slot: SlotId) -> Result<HandleId, Error> {
        let free = self.free_page();
        if let Ok(Some(page)) = free {
            return Ok(page);
        }
        let Some(victim_idx) = self.victim(slot) else {
            free?;
            return Err(Error::OutOfPages);
        };
        let page_bytes = self.memory.page_bytes();
        let Slot { range, pages, .. } = &mut self.slots[victim_idx];
        let page = pages.pop().ok_or(Error::OutOfPages)?;
        let unmapped = self.memory.unmap(*range, pages.len() * page_bytes, page_bytes);
        if let Err(error) = unmapped {
            pages.push(page);
            return Err(error.into());
        }
        Ok(page)
    }

    /// A page in no slot; `None` when the pool is used up.
    fn free_page(&mut self) -> Result<Option<HandleId>, Error> {
        if let Some(page) = self.unmapped.pop() {
            return Ok(Some(page));
        }
        if self.num_created == self.num_pages {
            return Ok(None);
        }
        let page = self.memory.create(self.memory.page_bytes())?;
        self.num_created += 1;
        Ok(Some(page))
    }

    /// Who loses a page: the parked slot with most of them, among equals the one parked longest; failing that, the live
    /// one with most beyond its need.
    fn victim(&self, taker: SlotId) -> Option<usize> {
        let candidates = self.slots.iter().enumerate().filter(|(idx, _)| *idx != taker.idx());
        let with_surplus = candidates.filter_map(|(idx, slot)| {
            let surplus = slot.pages.len() - self.needed_pages(slot);
            let age = match slot.state {
                State::Live { .. } => None,
                State::Parked { since } => Some(Reverse(since)),
            };
            (surplus > 0).then_some((age.is_some(), surplus, age, idx))
        });
        with_surplus.max().map(|(.., idx)| idx)
    }
}

impl<M: HostMemory> KvCache<M> {
    /// The first `num_tokens` of a slot.
    ///
    /// # Errors
    /// They were not ensured.
    pub fn slot_bytes(&self, slot: SlotId, num_tokens: usize) -> Result<&[u8], Error> {
        let range = self.range_of(slot, num_tokens)?;
        Ok(self.memory.bytes(range, 0, num_tokens * self.layout.token_bytes())?)
    }

    /// Some tokens of a slot, to write.
    ///
    /// # Errors
    /// They were not ensured.
    pub fn slot_bytes_mut(&mut self, slot: SlotId, tokens: Range<usize>) -> Result<&mut [u8], Error> {
        let range = self.range_of(slot, tokens.end)?;
        let token_bytes = self.layout.token_bytes();
        let len = tokens.len() * token_bytes;
        let offset = tokens.end * token_bytes - len;
        Ok(self.memory.bytes_mut(range, offset, len)?)
    }

    fn range_of(&self, slot: SlotId, num_tokens: usize) -> Result<RangeId, Error> {
        match self.held_tokens(slot) {
            Some(held) if num_tokens <= held => Ok(self.slots[slot.idx()].range),
            _ => Err(Error::NotHeld { slot, num_tokens }),
        }
    }
}

impl Slot {
    fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked { .. })
    }
}

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use fused_virtual_memory::{Pinned, RangeId, Span, VirtualMemory};
use fused_vocabulary::TokenId;

use super::extents::Extents;
use super::mapper::Mapper;
use super::pages::Exactly;
use super::parked::Parked;
use super::prefix::PrefixIndex;
use super::slot::{Slot, State};
use super::{Error, KvLayout, KvSize, SlotId};

/// The part of the pool that is kept free for the growth of live sequences when another one is to be admitted: a hundredth.
const WATERMARK_DIVISOR: usize = 100;

/// All keys and values of all sequences.
#[derive(Debug)]
pub struct KvCache<M: VirtualMemory> {
    pub(super) memory: Arc<M>,
    pub(super) layout: KvLayout,
    pub(super) size: KvSize,
    /// Those reserved until now, at most [`KvSize::num_slots`].
    pub(super) slots: Vec<Slot>,
    /// Slots that have a sequence.
    pub(super) live: BTreeSet<usize>,
    /// Bytes of addresses of one slot.
    slot_bytes: usize,
    pub(super) extents: Extents,
    pub(super) parked: Parked,
    /// `None`: keys and values are not used again.
    pub(super) index: Option<PrefixIndex>,
    pub(super) mapper: Mapper,
    /// Pages on their way into slots.
    pub(super) num_in_transit: usize,
    /// To be carried out, in order, before the next step runs. Both ends stay as they are until then.
    pub(super) copies: Vec<KvCopy>,
    /// Counts lives of slots and uses of parked ones.
    pub(super) tick: u64,
    pub(super) num_releases: u64,
    pub(super) num_driver_calls: u64,
    /// Tokens by which a sequence grows after it was admitted, a moving average.
    pub(super) typical_growth: f64,
    /// Pages with which a sequence begins, likewise.
    pub(super) typical_pages: f64,
    /// A slot into which pages were mapped for the sequence that comes next.
    pub(super) ready: Option<usize>,
}

/// Keys and values of one slot that another one needs too, in bytes from the start of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvCopy {
    /// Where they are.
    pub from: SlotId,
    /// Where they are needed.
    pub to: SlotId,
    /// Which.
    pub bytes: Range<usize>,
}

/// What a step does with a slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotUse {
    /// Which slot.
    pub slot: SlotId,
    /// Tokens that are only read.
    pub context_len: usize,
    /// Tokens behind them, which are written.
    pub num_tokens: usize,
}

impl<M: VirtualMemory> KvCache<M> {
    /// Reserves the addresses of a slot for each sequence that may run; further slots and physical pages are made as they
    /// are needed. Nothing is mapped ahead of a step by another thread before [`start_mapper`](Self::start_mapper).
    ///
    /// # Errors
    /// The pool cannot hold one sequence of the greatest length, or the system refuses.
    pub fn new(memory: M, layout: KvLayout, size: KvSize) -> Result<Self, Error> {
        let page_bytes = memory.page_bytes();
        let num_pages = size.pool_bytes / page_bytes;
        let num_slots = size.num_slots.max(size.num_sequences);
        let slot_bytes = size
            .max_model_len
            .checked_mul(layout.token_bytes())
            .and_then(|bytes| bytes.checked_next_multiple_of(page_bytes))
            .filter(|bytes| *bytes > 0 && size.num_sequences > 0 && u32::try_from(num_slots).is_ok())
            .ok_or(Error::Unaddressable(size))?;
        if slot_bytes / page_bytes > num_pages {
            return Err(Error::PoolTooSmall { slot_bytes, pool_bytes: num_pages * page_bytes });
        }
        let size = KvSize { num_slots, ..size };
        let mut kv = Self {
            memory: Arc::new(memory),
            layout,
            size,
            slots: Vec::new(),
            live: BTreeSet::new(),
            slot_bytes,
            extents: Extents::new(num_pages),
            parked: Parked::default(),
            index: size.shares_prefixes.then(PrefixIndex::default),
            mapper: Mapper::inline(),
            num_in_transit: 0,
            copies: Vec::new(),
            tick: 0,
            num_releases: 0,
            num_driver_calls: 0,
            typical_growth: 0.0,
            typical_pages: 0.0,
            ready: None,
        };
        for _ in 0..size.num_sequences {
            kv.add_slot()?;
        }
        Ok(kv)
    }

    /// Reserves the addresses of one more slot.
    fn add_slot(&mut self) -> Result<(), Error> {
        let range = self.memory.reserve(self.slot_bytes)?;
        self.parked.insert(self.slots.len(), 0, 0);
        self.slots.push(Slot::new(range));
        Ok(())
    }

    /// Makes sure of a slot without pages, as long as there may be more slots: an ended sequence then loses what it has for
    /// want of memory only.
    pub(super) fn add_slot_if_none_is_empty(&mut self) {
        if self.parked.empty().next().is_none()
            && self.slots.len() < self.size.num_slots
            && self.add_slot().is_err()
        {
            // The system has no more addresses to give: from now on the slot longest out of use is taken.
            self.size.num_slots = self.slots.len();
        }
    }

    /// From now on a thread of its own maps ahead.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start_mapper(&mut self) -> Result<(), Error> {
        self.settle()?;
        self.mapper = Mapper::thread(&self.memory, self.size.num_sequences + 1)?;
        Ok(())
    }

    /// What a token looks like in memory.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// How the memory is divided.
    #[must_use]
    pub fn size(&self) -> &KvSize {
        &self.size
    }

    /// The memory below.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Holds slots for a step that is about to work on them.
    ///
    /// # Errors
    /// Tokens that were not ensured, or a slot twice.
    pub fn pin(&self, uses: impl IntoIterator<Item = SlotUse>) -> Result<Pinned<M>, Error> {
        let spans = uses.into_iter().map(|SlotUse { slot, context_len, num_tokens }| {
            let num_tokens = context_len + num_tokens;
            let token_bytes = self.layout.token_bytes();
            let range = self.range_of(slot, num_tokens)?;
            Ok(Span { range, len: num_tokens * token_bytes, writable_from: context_len * token_bytes })
        });
        Ok(Pinned::new(&self.memory, spans.collect::<Result<Vec<_>, Error>>()?)?)
    }

    /// Holds the two slots of a copy.
    ///
    /// # Errors
    /// They are not what they were when the copy was decided.
    pub fn pin_copy(&self, copy: &KvCopy) -> Result<Pinned<M>, Error> {
        let KvCopy { from, to, bytes } = copy;
        let span = |slot: &SlotId, writable_from| {
            let range = self.slots.get(slot.idx()).map(|slot| slot.range);
            let range = range.ok_or(Error::NotHeld { slot: *slot, num_tokens: 0 })?;
            Ok::<_, Error>(Span { range, len: bytes.end, writable_from })
        };
        Ok(Pinned::new(&self.memory, [span(from, bytes.end)?, span(to, bytes.start)?])?)
    }

    /// Where a slot's addresses are, if `num_tokens` are ensured in it.
    ///
    /// # Errors
    /// They are not.
    pub fn range_of(&self, slot: SlotId, num_tokens: usize) -> Result<RangeId, Error> {
        match self.held_tokens(slot) {
            Some(held) if num_tokens <= held => Ok(self.slots[slot.idx()].range),
            _ => Err(Error::NotHeld { slot, num_tokens }),
        }
    }

    /// Where a slot's addresses are, whatever is in it.
    #[cfg(test)]
    pub(crate) fn range(&self, slot: SlotId) -> RangeId {
        self.slots[slot.idx()].range
    }

    /// What must be copied before the next step, for whoever runs it. From now on both ends may change.
    #[must_use]
    pub fn take_copies(&mut self) -> Vec<KvCopy> {
        std::mem::take(&mut self.copies)
    }

    /// Whether something must be copied before the next step.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Maps what the slot still needs to hold `num_tokens`, of what no live sequence needs: free pages first, then parked
    /// ones, those longest out of use, then what live sequences have mapped ahead of their need.
    ///
    /// # Errors
    /// [`Error::OutOfPages`] where the other live slots need the rest; the slot holds what it held before.
    pub fn ensure(&mut self, slot: SlotId, num_tokens: usize) -> Result<(), Error> {
        let held = self.held_tokens(slot).ok_or(Error::NotHeld { slot, num_tokens })?;
        if num_tokens > self.size.max_model_len {
            return Err(Error::TooLong { num_tokens, max_model_len: self.size.max_model_len });
        }
        if num_tokens > held {
            if self.num_live() == 1 {
                self.extents.restore(usize::MAX);
            }
            let (idx, num_pages) = (slot.idx(), self.pages_for(num_tokens));
            self.map_to(idx, num_pages, Exactly::No)?;
            // It is, but where a driver's call for what was mapped ahead has failed.
            self.make_writable(idx, self.slots[idx].num_needed_pages())?;
            self.need(idx, num_pages);
            if let State::Live { num_tokens: held, .. } = &mut self.slots[slot.idx()].state {
                *held = num_tokens;
            }
        }
        Ok(())
    }

    /// Notes what is known of a live sequence's prompt: all of it that has arrived, which begins with what was known before.
    /// Others that need it too then wait for it.
    pub fn announce(&mut self, slot: SlotId, prompt: &[TokenId]) {
        if let (Some(Slot { content, state: State::Live { .. }, .. }), Some(index)) =
            (self.slots.get_mut(slot.idx()), &mut self.index)
        {
            content.announce(slot.idx(), prompt, index);
        }
    }

    /// Notes that a step has computed these tokens, the next ones of the slot.
    pub fn computed(&mut self, slot: SlotId, tokens: &[TokenId]) {
        let Some(Slot { content, .. }) = self.slots.get_mut(slot.idx()) else { return };
        match &mut self.index {
            Some(index) => content.compute(slot.idx(), tokens, index),
            None => content.num_valid += tokens.len(),
        }
    }

    /// Gives a slot back; its pages stay mapped. Returns how many bytes the sequence needed, 0 for a slot that was not
    /// live.
    pub fn release(&mut self, slot: SlotId) -> usize {
        let idx = slot.idx();
        let Some(State::Live { num_tokens, num_admitted, .. }) = self.slots.get(idx).map(|slot| slot.state)
        else {
            return 0;
        };
        let bytes = self.needed_bytes(slot);
        self.need(idx, 0);
        self.tick += 1;
        self.num_releases += 1;
        self.typical_growth += (num_tokens.saturating_sub(num_admitted) as f64 - self.typical_growth) / 32.0;
        self.typical_pages += (self.pages_for(num_admitted) as f64 - self.typical_pages) / 32.0;
        let content = &mut self.slots[idx].content;
        match &mut self.index {
            // What is known of a prompt but was never computed is of no use to anybody.
            Some(index) => content.truncate(idx, content.num_valid, index),
            None => content.num_valid = 0,
        }
        self.slots[idx].state = State::Parked { since: self.tick };
        self.live.remove(&idx);
        self.parked.insert(idx, self.tick, self.slots[idx].num_pages());
        self.regain();
        bytes
    }

    /// Bytes that a live sequence needs of its slot; 0 for a slot that is not live.
    #[must_use]
    pub fn needed_bytes(&self, slot: SlotId) -> usize {
        let slot = self.slots.get(slot.idx()).filter(|slot| slot.is_live());
        slot.map_or(0, |slot| slot.num_needed_pages() * self.memory.page_bytes())
    }

    pub(super) fn pages_for(&self, num_tokens: usize) -> usize {
        num_tokens.saturating_mul(self.layout.token_bytes()).div_ceil(self.memory.page_bytes())
    }

    /// Pages that are left alone when another sequence is admitted: a hundredth of the pool, and at least one for each
    /// live sequence. Without them the youngest would only have to give way at once.
    pub(super) fn watermark(&self) -> usize {
        match self.num_live() {
            0 => 0,
            num_live => num_live.max(self.extents.num_pages() / WATERMARK_DIVISOR),
        }
    }

    /// Tokens ensured in a live slot.
    fn held_tokens(&self, slot: SlotId) -> Option<usize> {
        match self.slots.get(slot.idx())?.state {
            State::Live { num_tokens, .. } => Some(num_tokens),
            State::Parked { .. } => None,
        }
    }
}

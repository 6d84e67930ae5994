//! Which slot a sequence gets, and what of its prompt is there already.

use fused_virtual_memory::VirtualMemory;
use fused_vocabulary::TokenId;

use super::choose::tolerable_waste;
use super::find::{Coming, Found};
use super::pages::Exactly;
use super::prefix::BLOCK_TOKENS;
use super::slot::{SlotId, State};
use super::{Error, KvCache, KvCopy};

/// A sequence that asks for a slot.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Known, and to be computed as far as no slot has them.
    pub tokens: &'a [TokenId],
    /// Whether more of its prompt is to come.
    pub is_arriving: bool,
    /// Only sequences with the same one have a prefix in common.
    pub salt: Option<&'a str>,
    /// Whether its keys and values may be those that another sequence computed.
    pub reuses: bool,
    /// Tokens for which there must be room, at least those known.
    pub num_reserved: usize,
    /// Whether steps are in flight: the pages that they read stay accessible as they are, since a driver need not change that
    /// without a moment in which nothing is.
    pub is_ahead: bool,
}

/// What becomes of it.
#[derive(Debug)]
pub enum Admission {
    /// It has a slot with memory for its tokens; the first `num_cached` are computed, at most all but the last.
    Admitted {
        /// Its slot.
        slot: SlotId,
        /// Tokens that need not be computed.
        num_cached: usize,
    },
    /// A running sequence is about to compute what it needs too.
    Coming(Coming),
    /// All that is known of it is there, and there is nothing to do before more of its prompt is.
    AllIsThere,
    /// What it is to share is copied in this step, or would have to be made read-only under a step in flight.
    NotNow,
    /// All slots or too many pages are in use.
    NoRoom,
    /// The system refuses.
    Failed(Error),
}

impl<M: VirtualMemory> KvCache<M> {
    /// Gives a sequence a slot: the one that holds its beginning, if no other sequence is likely to want that; one into which
    /// the pages of its beginning are mapped; or else the parked one that fits best, with all its pages.
    #[must_use]
    pub fn admit(&mut self, candidate: &Candidate<'_>) -> Admission {
        self.admit_leaving(self.watermark(), candidate)
    }

    fn admit_leaving(&mut self, num_spare_pages: usize, candidate: &Candidate<'_>) -> Admission {
        if self.num_live() >= self.size.num_sequences {
            return Admission::NoRoom;
        }
        let found = self.find(candidate);
        if let Some(coming) = found.coming {
            return Admission::Coming(coming);
        }
        let num_pages = self.pages_for(candidate.num_reserved.max(candidate.tokens.len()));
        let all_is_there = found.num_valid > 0 && found.num_valid + BLOCK_TOKENS > candidate.tokens.len();
        if candidate.is_arriving && all_is_there {
            return Admission::AllIsThere;
        }
        if self.is_better_shared_later(found, num_pages, candidate.is_ahead) {
            return Admission::NotNow;
        }
        let admitted = match self.try_admit(candidate, found, num_spare_pages) {
            // What it was to copy from may be all the memory, or the one slot, there is to be had.
            Ok(None) | Err(Error::OutOfPages) if found.num_valid > 0 => {
                let anew = self.try_admit(candidate, Found::default(), num_spare_pages);
                anew.map(|slot| slot.map(|slot| (slot, 0)))
            }
            admitted => admitted.map(|slot| slot.map(|slot| (slot, found.num_valid))),
        };
        match admitted {
            Ok(Some((slot, num_cached))) => Admission::Admitted { slot, num_cached },
            Ok(None) | Err(Error::OutOfPages) => Admission::NoRoom,
            Err(error) => Admission::Failed(error),
        }
    }

    /// Gives a sequence that shares nothing a slot with memory for so many tokens, be it the last there is.
    ///
    /// # Errors
    /// No slot is free, no pages are, or there are no slots for so many tokens.
    pub fn acquire(&mut self, num_tokens: usize) -> Result<SlotId, Error> {
        let tokens = &[];
        let candidate = Candidate {
            tokens,
            is_arriving: false,
            salt: None,
            reuses: false,
            num_reserved: num_tokens,
            is_ahead: false,
        };
        match self.admit_leaving(0, &candidate) {
            Admission::Admitted { slot, .. } => Ok(slot),
            Admission::Failed(error) => Err(error),
            Admission::NoRoom | Admission::Coming(_) | Admission::AllIsThere | Admission::NotNow => {
                Err(Error::OutOfPages)
            }
        }
    }

    fn try_admit(
        &mut self,
        candidate: &Candidate<'_>,
        found: Found,
        num_spare_pages: usize,
    ) -> Result<Option<SlotId>, Error> {
        self.settle()?;
        if self.num_live() == 0 {
            // Whoever is alone tries for all that the system may have.
            self.extents.restore(usize::MAX);
        }
        let num_tokens = candidate.num_reserved.max(candidate.tokens.len());
        if num_tokens > self.size.max_model_len {
            return Err(Error::TooLong { num_tokens, max_model_len: self.size.max_model_len });
        }
        let num_pages = self.pages_for(num_tokens);
        let num_shared = self.num_shareable(found);
        // What others need is not needed anew.
        let num_there: usize = self.slots[found.slot].extents[..num_shared]
            .iter()
            .filter(|mapped| self.extents.is_needed(mapped.extent))
            .map(|mapped| self.extents.num_pages_of(mapped.extent))
            .sum();
        if num_pages - num_there + num_spare_pages > self.extents.num_available() {
            return Ok(None);
        }
        let (idx, first_written) = if self.can_go_on_in(found) {
            (found.slot, found.num_valid * self.layout.token_bytes())
        } else {
            let shared_bytes = self.end_bytes(found.slot, num_shared);
            let num_shared = if self.is_worth_sharing(shared_bytes, num_pages) { num_shared } else { 0 };
            self.add_slot_if_none_is_empty();
            let Some(idx) = self.choose(found, num_shared, num_pages) else { return Ok(None) };
            self.share_beginning(found, idx, num_shared).map_err(Error::or_out_of_pages)?;
            (idx, self.end_bytes(found.slot, num_shared))
        };
        let slot = self.occupy(idx, candidate);
        let bytes = first_written..found.num_valid * self.layout.token_bytes();
        if !bytes.is_empty() {
            // Before pages are taken from anybody: from now on none are from where it is copied.
            self.copies.push(KvCopy { from: slot_id(found.slot), to: slot, bytes });
        }
        if let Err(error) = self.fill(idx, found, num_pages, first_written) {
            self.copies.retain(|copy| copy.to != slot);
            self.slots[idx].content.num_valid = 0;
            self.release(slot);
            return Err(error);
        }
        if found.num_valid > 0 {
            self.touch(found.slot);
        }
        let content = &mut self.slots[idx].content;
        match &mut self.index {
            Some(index) => content.replace(idx, candidate.tokens, candidate.salt, found.num_valid, index),
            None => content.num_valid = 0,
        }
        Ok(Some(slot))
    }

    /// Maps the first `num_shared` extents of a prompt's beginning into a slot in place of its own.
    fn share_beginning(&mut self, found: Found, idx: usize, num_shared: usize) -> Result<(), Error> {
        if num_shared > 0 {
            while !self.slots[idx].extents.is_empty() {
                self.unmap_last(idx)?;
            }
            self.share(found.slot, idx, num_shared)?;
        }
        Ok(())
    }

    /// Where the first `num_extents` of a slot end, in bytes.
    pub(super) fn end_bytes(&self, idx: usize, num_extents: usize) -> usize {
        let last = num_extents.checked_sub(1).and_then(|last| self.slots[idx].extents.get(last));
        last.map_or(0, |mapped| mapped.end * self.memory.page_bytes())
    }

    /// The slot is a live sequence's from now on.
    fn occupy(&mut self, idx: usize, candidate: &Candidate<'_>) -> SlotId {
        if let State::Parked { since } = self.slots[idx].state {
            self.parked.remove(idx, since, self.slots[idx].num_pages());
        }
        self.tick += 1;
        let num_admitted = candidate.tokens.len();
        let num_tokens = candidate.num_reserved.max(num_admitted);
        self.slots[idx].state = State::Live { num_tokens, num_admitted, since: self.tick };
        self.live.insert(idx);
        slot_id(idx)
    }

    /// Gives it pages, those from `first_written` on, in bytes, for itself alone.
    fn fill(
        &mut self,
        idx: usize,
        found: Found,
        num_pages: usize,
        first_written: usize,
    ) -> Result<(), Error> {
        self.make_writable(idx, first_written / self.memory.page_bytes())?;
        let kept = self.slots[idx].num_covering(first_written.div_ceil(self.memory.page_bytes()));
        while self.slots[idx].extents.len() > kept
            && self.slots[idx].num_pages() > num_pages
            && self.wasted_pages(idx, num_pages) > tolerable_waste(num_pages)
        {
            self.unmap_last(idx)?;
        }
        // Whoever shares the same beginning next finds that the extents end where it does.
        let common_pages = found.num_valid * self.layout.token_bytes() / self.memory.page_bytes();
        self.map_to(idx, common_pages, Exactly::Yes)?;
        self.map_to(idx, num_pages, Exactly::No)?;
        self.need(idx, num_pages);
        Ok(())
    }

    /// A parked slot has been of use.
    fn touch(&mut self, idx: usize) {
        if let State::Parked { since } = self.slots[idx].state {
            let num_pages = self.slots[idx].num_pages();
            self.parked.remove(idx, since, num_pages);
            self.tick += 1;
            self.slots[idx].state = State::Parked { since: self.tick };
            self.parked.insert(idx, self.tick, num_pages);
        }
    }
}

pub(super) fn slot_id(idx: usize) -> SlotId {
    SlotId(u32::try_from(idx).unwrap_or(u32::MAX))
}

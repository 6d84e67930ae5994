//! Which slot a sequence gets, and what of its prompt is there already.

use fused_virtual_memory::VirtualMemory;
use fused_vocabulary::TokenId;

use super::pages::Exactly;
use super::prefix::BLOCK_TOKENS;
use super::slot::{SlotId, State};
use super::{Error, KvCache, KvCopy};

/// Pages in common from which on they are shared, if they are also an eighth of what the sequence needs; fewer are copied.
/// Sharing takes two driver calls an extent and a slot of which nothing is mapped as yet, so that all the rest must be mapped
/// anew; a copy of a few pages takes microseconds and goes into a parked slot. On the Mooncake trace, whose prompts of 12,000
/// tokens nearly all begin with the same 512, this makes 0.3 driver calls a step of 1.4.
const MIN_SHARED_PAGES: usize = 8;
const MIN_SHARED_PART: usize = 8;
/// Tokens that another sequence must be about to compute for a prompt to wait for them: a step for fewer is soon done.
const MIN_COMING_TOKENS: usize = 2 * BLOCK_TOKENS;
/// Slots looked at for the one that fits best: so many that some extent of one of them ends where the sequence does.
const MAX_LOOKED_AT: usize = 256;
/// A slot is sought that has room for so many times the tokens by which sequences typically grow. What is too much is not
/// lost: whoever needs it takes it.
const EXPECTED_GROWTH: f64 = 2.5;

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
    /// What it is to share is copied in this step.
    NotNow,
    /// All slots or too many pages are in use.
    NoRoom,
    /// The system refuses.
    Failed(Error),
}

/// A prefix that a running sequence computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coming {
    slot: SlotId,
    since: u64,
    num_tokens: usize,
}

/// What is there of a prompt.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// A slot that holds the first `num_valid` tokens.
    slot: usize,
    num_valid: usize,
    coming: Option<Coming>,
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
        if self.is_better_shared_later(found, num_pages) {
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
        let candidate =
            Candidate { tokens, is_arriving: false, salt: None, reuses: false, num_reserved: num_tokens };
        match self.admit_leaving(0, &candidate) {
            Admission::Admitted { slot, .. } => Ok(slot),
            Admission::Failed(error) => Err(error),
            Admission::NoRoom | Admission::Coming(_) | Admission::AllIsThere | Admission::NotNow => {
                Err(Error::OutOfPages)
            }
        }
    }

    /// Whether a sequence is still about to compute what somebody waits for.
    #[must_use]
    pub fn is_coming(&self, coming: &Coming) -> bool {
        let slot = &self.slots[coming.slot.idx()];
        matches!(slot.state, State::Live { since, .. } if since == coming.since)
            && slot.content.num_valid < coming.num_tokens
    }

    /// Tokens of a prompt that are computed already, as of now.
    #[must_use]
    pub fn num_cached(&self, candidate: &Candidate<'_>) -> usize {
        self.find(candidate).num_valid
    }

    fn find(&self, candidate: &Candidate<'_>) -> Found {
        let Some(index) = self.index.as_ref().filter(|_| candidate.reuses) else { return Found::default() };
        let mut found = Found::default();
        // Something must be computed, or there is nothing to draw the next token from.
        let most = candidate.tokens.len().saturating_sub(1);
        let mut num_coming = 0;
        for idx in index.longest(candidate.salt, candidate.tokens) {
            let content = &self.slots[idx].content;
            let num_common = content.num_common(candidate.tokens, candidate.salt).min(most);
            let num_valid = num_common.min(content.num_valid);
            // Of equals the one of whose pages most can be shared, and those now; parked ones are as good and less in the way.
            let rank = |found: Found| {
                let shareable = self.end_bytes(found.slot, self.num_shareable(found));
                let is_there = !self.is_copied_to(found.slot);
                (found.num_valid, shareable, is_there, !self.slots[found.slot].is_live())
            };
            let other = Found { slot: idx, num_valid, ..found };
            if rank(other) > rank(found) {
                found = other;
            }
            if let State::Live { since, .. } = self.slots[idx].state {
                // The last token that is known of a prompt still arriving is kept back.
                let num_tokens = num_common.min(content.tokens.len() - 1);
                if num_tokens > num_coming.max(content.num_valid) {
                    num_coming = num_tokens;
                    found.coming = Some(Coming { slot: slot_id(idx), since, num_tokens });
                }
            }
        }
        found.coming = found.coming.filter(|coming| coming.num_tokens >= found.num_valid + MIN_COMING_TOKENS);
        found
    }

    fn try_admit(
        &mut self,
        candidate: &Candidate<'_>,
        found: Found,
        num_spare_pages: usize,
    ) -> Result<Option<SlotId>, Error> {
        self.settle()?;
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
            let Some(idx) = self.choose(found, num_shared, num_pages) else { return Ok(None) };
            self.share_beginning(found, idx, num_shared)?;
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

    /// How many extents of the slot that has a prompt's beginning lie wholly within it.
    fn num_shareable(&self, found: Found) -> usize {
        let num_pages = found.num_valid * self.layout.token_bytes() / self.memory.page_bytes();
        self.slots[found.slot].num_within(num_pages)
    }

    /// Whether the pages that a prompt would share are written in this step, by a copy. In the next one they can be shared, and
    /// a beginning that many ask for at the same time is in memory once.
    fn is_better_shared_later(&self, found: Found, num_pages: usize) -> bool {
        let shared_bytes = self.end_bytes(found.slot, self.num_shareable(found));
        self.is_worth_sharing(shared_bytes, num_pages) && self.is_copied_to(found.slot)
    }

    /// Whether a beginning is to be shared, not copied, by a sequence that needs so many pages.
    fn is_worth_sharing(&self, shared_bytes: usize, num_pages: usize) -> bool {
        let least = MIN_SHARED_PAGES.max(num_pages / MIN_SHARED_PART);
        shared_bytes >= least * self.memory.page_bytes()
    }

    /// Whether a slot is about to be copied to.
    fn is_copied_to(&self, idx: usize) -> bool {
        self.copies.iter().any(|copy| copy.to.idx() == idx)
    }

    /// Whether a sequence goes on in the very slot that has its beginning: nobody else is in it, and there is not so much more
    /// in it that another prompt may begin with.
    fn can_go_on_in(&self, Found { slot: idx, num_valid, .. }: Found) -> bool {
        let slot = &self.slots[idx];
        if num_valid == 0 || slot.is_live() || self.is_in_copy(idx) || 2 * num_valid < slot.content.num_valid
        {
            return false;
        }
        // Where it writes first, the page must be its own.
        let first = slot.num_within(num_valid * self.layout.token_bytes() / self.memory.page_bytes());
        slot.extents.get(first).is_none_or(|mapped| !self.extents.is_shared(mapped.extent))
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
    fn end_bytes(&self, idx: usize, num_extents: usize) -> usize {
        let last = num_extents.checked_sub(1).and_then(|last| self.slots[idx].extents.get(last));
        last.map_or(0, |mapped| mapped.end * self.memory.page_bytes())
    }

    /// The slot that a sequence of `num_pages` gets, which need not have its beginning.
    fn choose(&self, found: Found, num_shared: usize, num_pages: usize) -> Option<usize> {
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
            return empty;
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
    fn wasted_pages(&self, idx: usize, num_pages: usize) -> usize {
        let slot = &self.slots[idx];
        let last = slot.num_covering(num_pages).checked_sub(1).and_then(|last| slot.extents.get(last));
        last.map_or(0, |mapped| mapped.end.saturating_sub(num_pages))
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

/// As much as a sequence that grows has mapped ahead.
fn tolerable_waste(num_pages: usize) -> usize {
    (num_pages / 32).max(1)
}

fn slot_id(idx: usize) -> SlotId {
    SlotId(u32::try_from(idx).unwrap_or(u32::MAX))
}

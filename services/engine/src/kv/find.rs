//! What of a prompt is there already, or about to be.

use fused_virtual_memory::VirtualMemory;

use super::KvCache;
use super::admit::{Candidate, slot_id};
use super::prefix::BLOCK_TOKENS;
use super::slot::{SlotId, State};

/// Pages in common from which on they are shared, if they are also an eighth of what the sequence needs; fewer are copied.
/// Sharing takes two driver calls an extent and a slot of which nothing is mapped as yet, so that all the rest must be mapped
/// anew; a copy of a few pages takes microseconds and goes into a parked slot. On the Mooncake trace, whose prompts of 12,000
/// tokens nearly all begin with the same 512, this makes 0.3 driver calls a step of 1.4.
const MIN_SHARED_PAGES: usize = 8;
const MIN_SHARED_PART: usize = 8;
/// Tokens that another sequence must be about to compute for a prompt to wait for them: a step for fewer is soon done.
const MIN_COMING_TOKENS: usize = 2 * BLOCK_TOKENS;

/// A prefix that a running sequence computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coming {
    slot: SlotId,
    since: u64,
    num_tokens: usize,
}

impl Coming {
    /// Tokens of the prompt, from the first on, that are going to be there.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}

/// What is there of a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// A slot that holds the first `num_valid` tokens.
    pub(super) slot: usize,
    pub(super) num_valid: usize,
    pub(super) coming: Option<Coming>,
}

impl<M: VirtualMemory> KvCache<M> {
    /// Whether a sequence is still about to compute what somebody waits for.
    #[must_use]
    pub fn is_coming(&self, coming: &Coming) -> bool {
        let slot = &self.slots[coming.slot.idx()];
        matches!(slot.state, State::Live { since, .. } if since == coming.since)
            && slot.content.num_valid < coming.num_tokens
    }

    /// Tokens of a prompt that a slot has, as of now, or is about to have.
    #[must_use]
    pub fn num_cached(&self, candidate: &Candidate<'_>) -> usize {
        let found = self.find(candidate);
        found.coming.map_or(found.num_valid, |coming| coming.num_tokens)
    }

    pub(super) fn find(&self, candidate: &Candidate<'_>) -> Found {
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
        found.coming = found.coming.filter(|coming| {
            coming.num_tokens >= found.num_valid + MIN_COMING_TOKENS
                || self.saves_pages(found, *coming, candidate)
        });
        found
    }

    /// Whether, of what is coming, so much more can be shared than of what is there that a step's wait is worth it, be it for a
    /// few tokens: an extent is shared whole or not at all.
    fn saves_pages(&self, found: Found, coming: Coming, candidate: &Candidate<'_>) -> bool {
        let then = Found { slot: coming.slot.idx(), num_valid: coming.num_tokens, coming: None };
        let bytes = |found: Found| self.end_bytes(found.slot, self.num_shareable(found));
        let num_pages = self.pages_for(candidate.num_reserved.max(candidate.tokens.len()));
        self.is_worth_sharing(bytes(then).saturating_sub(bytes(found)), num_pages)
    }

    /// How many extents of the slot that has a prompt's beginning lie wholly within it.
    pub(super) fn num_shareable(&self, found: Found) -> usize {
        let num_pages = found.num_valid * self.layout.token_bytes() / self.memory.page_bytes();
        self.slots[found.slot].num_within(num_pages)
    }

    /// Whether the pages that a prompt would share are written in this step, by a copy, or may be read by one in flight while they
    /// still have to be made read-only. Soon they can be shared, and a beginning that many ask for at the same time is in memory
    /// once.
    pub(super) fn is_better_shared_later(&self, found: Found, num_pages: usize, is_ahead: bool) -> bool {
        let num_shareable = self.num_shareable(found);
        let slot = &self.slots[found.slot];
        let is_read =
            is_ahead && slot.is_live() && slot.extents[..num_shareable].iter().any(|m| m.is_writable);
        self.is_worth_sharing(self.end_bytes(found.slot, num_shareable), num_pages)
            && (is_read || self.is_copied_to(found.slot))
    }

    /// Whether a beginning is to be shared, not copied, by a sequence that needs so many pages.
    pub(super) fn is_worth_sharing(&self, shared_bytes: usize, num_pages: usize) -> bool {
        let least = MIN_SHARED_PAGES.max(num_pages / MIN_SHARED_PART);
        shared_bytes >= least * self.memory.page_bytes()
    }

    /// Whether a slot is about to be copied to.
    pub(super) fn is_copied_to(&self, idx: usize) -> bool {
        self.copies.iter().any(|copy| copy.to.idx() == idx)
    }

    /// Whether a sequence goes on in the very slot that has its beginning: nobody else is in it, and there is not so much more
    /// in it that another prompt may begin with.
    pub(super) fn can_go_on_in(&self, Found { slot: idx, num_valid, .. }: Found) -> bool {
        let slot = &self.slots[idx];
        if num_valid == 0 || slot.is_live() || self.is_in_copy(idx) || 2 * num_valid < slot.content.num_valid
        {
            return false;
        }
        // Where it writes first, the page must be its own.
        let first = slot.num_within(num_valid * self.layout.token_bytes() / self.memory.page_bytes());
        slot.extents.get(first).is_none_or(|mapped| !self.extents.is_shared(mapped.extent))
    }
}

use fused_virtual_memory::RangeId;
use fused_vocabulary::TokenId;

use super::extents::ExtentId;
use super::prefix::{BLOCK_TOKENS, Chain, PrefixIndex};

/// Which slot; an index below the number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(super) u32);

impl SlotId {
    /// The slot's index.
    #[must_use]
    pub fn idx(self) -> usize {
        self.0 as usize
    }
}

/// A range of addresses for one sequence, and what is in it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) range: RangeId,
    /// Mapped from the slot's start on, without a gap.
    pub(super) extents: Vec<Mapped>,
    /// How many of them, from the first on, a live sequence needs.
    pub(super) num_needed: usize,
    pub(super) content: Content,
    pub(super) state: State,
    /// The mapper is at work on the end of its extents.
    pub(super) is_busy: bool,
}

/// An extent in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    pub(super) extent: ExtentId,
    /// Pages from the slot's start to its end.
    pub(super) end: usize,
    /// Not where several slots map it, or where a driver's call for it has failed and nobody may touch it.
    pub(super) is_writable: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Live {
        /// Ensured.
        num_tokens: usize,
        /// Known when the sequence was admitted.
        num_admitted: usize,
        /// Tells this life of the slot from others.
        since: u64,
    },
    /// `since` orders the slots by when they were last of use.
    Parked { since: u64 },
}

/// Whose keys and values a slot holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Known: those computed, and of a live sequence also what is known of its prompt.
    pub(super) tokens: Vec<TokenId>,
    /// Whoever has another one has nothing in common with this.
    salt: Option<Box<str>>,
    /// Tokens whose keys and values are in the slot.
    pub(super) num_valid: usize,
    /// Where `tokens` stand in the index: one entry a whole block, behind one for the salt.
    chains: Vec<Chain>,
}

impl Slot {
    pub(super) fn new(range: RangeId) -> Self {
        Self {
            range,
            extents: Vec::new(),
            num_needed: 0,
            content: Content::default(),
            state: State::Parked { since: 0 },
            is_busy: false,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    /// Pages mapped.
    pub(super) fn num_pages(&self) -> usize {
        self.extents.last().map_or(0, |mapped| mapped.end)
    }

    /// Pages of the extents that a live sequence needs.
    pub(super) fn num_needed_pages(&self) -> usize {
        self.num_needed.checked_sub(1).and_then(|last| self.extents.get(last)).map_or(0, |mapped| mapped.end)
    }

    /// How many extents it takes to cover so many pages, of those mapped.
    pub(super) fn num_covering(&self, num_pages: usize) -> usize {
        let num_short = self.extents.partition_point(|mapped| mapped.end < num_pages);
        if num_pages == 0 { 0 } else { (num_short + 1).min(self.extents.len()) }
    }

    /// Extents that lie wholly within so many pages.
    pub(super) fn num_within(&self, num_pages: usize) -> usize {
        self.extents.partition_point(|mapped| mapped.end <= num_pages)
    }
}

impl Content {
    /// Other tokens, the first `num_valid` of which are in the slot.
    pub(super) fn replace(
        &mut self,
        slot: usize,
        tokens: &[TokenId],
        salt: Option<&str>,
        num_valid: usize,
        index: &mut PrefixIndex,
    ) {
        let num_same = self.num_common(tokens, salt);
        self.truncate(slot, num_same, index);
        if num_same == 0 {
            self.chains = vec![Chain::new(salt)];
            self.salt = salt.map(Box::from);
        }
        self.tokens.extend_from_slice(&tokens[num_same..]);
        self.num_valid = num_valid;
        self.enter(slot, index);
    }

    /// Tokens in common with another sequence: 0 where the salts differ. Compared themselves, not by their hashes, of which
    /// somebody who looks long enough may find two alike.
    pub(super) fn num_common(&self, tokens: &[TokenId], salt: Option<&str>) -> usize {
        if self.salt.as_deref() == salt { super::prefix::common_prefix(&self.tokens, tokens) } else { 0 }
    }

    /// These are known, from the first on.
    pub(super) fn announce(&mut self, slot: usize, tokens: &[TokenId], index: &mut PrefixIndex) {
        self.tokens.extend_from_slice(tokens.get(self.tokens.len()..).unwrap_or(&[]));
        self.enter(slot, index);
    }

    /// These tokens, the next ones, have been computed.
    pub(super) fn compute(&mut self, slot: usize, tokens: &[TokenId], index: &mut PrefixIndex) {
        let num_known = (self.tokens.len() - self.num_valid).min(tokens.len());
        debug_assert_eq!(
            self.tokens[self.num_valid..][..num_known],
            tokens[..num_known],
            "another sequence's tokens"
        );
        self.tokens.extend_from_slice(&tokens[num_known..]);
        self.num_valid += tokens.len();
        self.enter(slot, index);
    }

    /// Keeps the first `num_tokens` at most.
    pub(super) fn truncate(&mut self, slot: usize, num_tokens: usize, index: &mut PrefixIndex) {
        self.tokens.truncate(num_tokens);
        self.num_valid = self.num_valid.min(num_tokens);
        let num_chains = 1 + self.tokens.len() / BLOCK_TOKENS;
        if self.chains.len() > num_chains {
            for chain in self.chains.drain(num_chains..) {
                index.remove(chain, slot);
            }
        }
    }

    /// Entries in the index.
    pub(super) fn num_entries(&self) -> usize {
        self.chains.len().saturating_sub(1)
    }

    /// Enters blocks that have become whole.
    fn enter(&mut self, slot: usize, index: &mut PrefixIndex) {
        let Some(mut chain) = self.chains.last().copied() else { return };
        let first = self.num_entries() * BLOCK_TOKENS;
        for block in self.tokens[first..].chunks_exact(BLOCK_TOKENS) {
            chain = chain.with(block);
            index.insert(chain, slot);
            self.chains.push(chain);
        }
    }
}

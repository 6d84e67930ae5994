use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use fused_vocabulary::TokenId;

/// Tokens of one block. A shorter common prefix is not found; a longer one is found to the token.
pub(super) const BLOCK_TOKENS: usize = 16;
/// Slots compared with a prompt, of those that share its longest known beginning.
const MAX_COMPARED: usize = 8;

/// Which slots hold a sequence that begins in a certain way.
///
/// Every whole block of a slot's tokens is entered under a hash of all tokens up to its end, so that a look-up walks along
/// the prompt as far as anybody has the same tokens. A hash only proposes: whoever uses a slot compares tokens and salt.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex {
    slots: HashMap<Chain, BTreeSet<usize>>,
}

/// A hash of a sequence's beginning, of whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chain(u64);

impl Chain {
    /// Of no tokens. Sequences with different salts have nothing in common.
    pub(super) fn new(salt: Option<&str>) -> Self {
        Self(hash(&salt))
    }

    /// With one more block.
    #[must_use]
    pub(super) fn with(self, block: &[TokenId]) -> Self {
        Self(hash(&(self.0, block)))
    }
}

/// The same in every run, so that a simulation can be repeated.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl PrefixIndex {
    /// Slots that share the longest known beginning of `tokens`, a few of them; none where nobody shares a block.
    pub(super) fn longest(&self, salt: Option<&str>, tokens: &[TokenId]) -> Vec<usize> {
        let mut chain = Chain::new(salt);
        let mut found = None;
        for block in tokens.chunks_exact(BLOCK_TOKENS) {
            chain = chain.with(block);
            match self.slots.get(&chain) {
                Some(slots) => found = Some(slots),
                None => break,
            }
        }
        // The youngest slots too would do; which ones is chance, as long as it is always the same.
        found.into_iter().flatten().copied().take(MAX_COMPARED).collect()
    }

    pub(super) fn insert(&mut self, chain: Chain, slot: usize) {
        self.slots.entry(chain).or_default().insert(slot);
    }

    pub(super) fn remove(&mut self, chain: Chain, slot: usize) {
        if let Some(slots) = self.slots.get_mut(&chain) {
            slots.remove(&slot);
            if slots.is_empty() {
                self.slots.remove(&chain);
            }
        }
    }

    /// Entries in all, for debug builds.
    pub(super) fn num_entries(&self) -> usize {
        self.slots.values().map(BTreeSet::len).sum()
    }
}

/// Tokens that both begin with.
pub(super) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    // Whole blocks first: comparing slices of a fixed length is quicker than token by token.
    let blocks = a.chunks_exact(BLOCK_TOKENS).zip(b.chunks_exact(BLOCK_TOKENS));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK_TOKENS;
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}

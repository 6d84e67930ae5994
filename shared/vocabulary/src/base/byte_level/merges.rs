use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::FixedState;

use crate::TokenId;

/// The merge rules of byte pair encoding, and how they turn a word into tokens.
///
/// The result is that of the `tokenizers` crate: again and again the pair with the lowest rank merges, of equal ones the
/// leftmost.
pub(super) struct Merges {
    by_byte: [TokenId; 256],
    /// By left and right id: rank and merged id.
    rules: HashMap<u64, Rule, FixedState>,
}

#[derive(Clone, Copy)]
struct Rule {
    rank: u32,
    merged: TokenId,
}

/// Up to so many symbols a scan for the lowest rank is faster than a heap, which long words need to stay linear.
const MAX_SCANNED: usize = 48;
const NO_RANK: u32 = u32::MAX;

impl Merges {
    /// `rules`: left, right and merged ids in rank order. Nothing where two rules make the same token: which of them
    /// merges first then depends on stale entries of that crate's heap, which is not worth imitating.
    pub(super) fn new(
        by_byte: [TokenId; 256],
        rules: impl Iterator<Item = (TokenId, TokenId, TokenId)>,
    ) -> Option<Self> {
        let mut made = std::collections::HashSet::new();
        let mut by_pair = HashMap::with_hasher(FixedState::with_seed(0));
        for (rank, (left, right, merged)) in (0..NO_RANK).zip(rules) {
            if !made.insert(merged) {
                return None;
            }
            by_pair.insert(pair(left, right), Rule { rank, merged });
        }
        Some(Self { by_byte, rules: by_pair })
    }

    /// Appends a word's tokens.
    pub(super) fn encode(&self, word: &[u8], out: &mut Vec<TokenId>) {
        if word.len() <= MAX_SCANNED { self.encode_short(word, out) } else { self.encode_long(word, out) }
    }

    fn rule(&self, left: TokenId, right: TokenId) -> Rule {
        self.rules.get(&pair(left, right)).copied().unwrap_or(Rule { rank: NO_RANK, merged: left })
    }

    fn encode_short(&self, word: &[u8], out: &mut Vec<TokenId>) {
        let mut ids = [TokenId(0); MAX_SCANNED];
        // By place: the rule for it and the place after it.
        let mut rules = [Rule { rank: NO_RANK, merged: TokenId(0) }; MAX_SCANNED];
        let mut len = word.len();
        for (id, byte) in ids.iter_mut().zip(word) {
            *id = self.by_byte[usize::from(*byte)];
        }
        for place in 1..len {
            rules[place - 1] = self.rule(ids[place - 1], ids[place]);
        }
        loop {
            let pairs = len.saturating_sub(1);
            let Some((place, rule)) = rules[..pairs].iter().enumerate().min_by_key(|(_, rule)| rule.rank)
            else {
                break;
            };
            if rule.rank == NO_RANK {
                break;
            }
            ids[place] = rule.merged;
            ids.copy_within(place + 2..len, place + 1);
            rules.copy_within(place + 1..pairs, place);
            len -= 1;
            if place > 0 {
                rules[place - 1] = self.rule(ids[place - 1], ids[place]);
            }
            if place + 1 < len {
                rules[place] = self.rule(ids[place], ids[place + 1]);
            }
        }
        out.extend_from_slice(&ids[..len]);
    }

    /// With a heap and links between the symbols that are left: n log n, however long the word.
    fn encode_long(&self, word: &[u8], out: &mut Vec<TokenId>) {
        const GONE: u32 = u32::MAX;
        let mut ids: Vec<_> = word.iter().map(|byte| self.by_byte[usize::from(*byte)]).collect();
        let len = ids.len();
        // Links by place; the first place has none before it, the last none after it.
        let mut after: Vec<usize> = (1..=len).collect();
        let mut before: Vec<usize> = (0..len).map(|place| place.wrapping_sub(1)).collect();
        let mut queue = BinaryHeap::new();
        let note = |queue: &mut BinaryHeap<_>, ids: &[TokenId], left: usize, right: usize| {
            let rule = self.rule(ids[left], ids[right]);
            if rule.rank != NO_RANK {
                queue.push(std::cmp::Reverse((rule.rank, left, rule.merged)));
            }
        };
        for right in 1..len {
            note(&mut queue, &ids, right - 1, right);
        }
        while let Some(std::cmp::Reverse((rank, left, merged))) = queue.pop() {
            let right = after[left];
            // An entry is stale when one of its symbols has merged since.
            if ids[left].0 == GONE || right >= len || self.rule(ids[left], ids[right]).rank != rank {
                continue;
            }
            ids[left] = merged;
            ids[right] = TokenId(GONE);
            after[left] = after[right];
            if after[left] < len {
                before[after[left]] = left;
                note(&mut queue, &ids, left, after[left]);
            }
            if before[left] < len {
                note(&mut queue, &ids, before[left], left);
            }
        }
        out.extend(ids.into_iter().filter(|id| id.0 != GONE));
    }
}

fn pair(left: TokenId, right: TokenId) -> u64 {
    u64::from(left.0) << 32 | u64::from(right.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes, and rules over `a`, `b` and `c` in which ranks and lengths cross.
    fn merges() -> Merges {
        let by_byte = std::array::from_fn(|byte| TokenId(byte as u32));
        let [a, b, c] = [b'a', b'b', b'c'].map(|byte| TokenId(u32::from(byte)));
        let rules =
            [(a, b), (b, c), (TokenId(256), c), (TokenId(256), TokenId(256)), (a, a), (c, TokenId(259))];
        Merges::new(by_byte, rules.into_iter().zip(256..).map(|((l, r), id)| (l, r, TokenId(id)))).unwrap()
    }

    /// The definition, step by step.
    fn plain(merges: &Merges, word: &[u8]) -> Vec<TokenId> {
        let mut ids: Vec<_> = word.iter().map(|byte| merges.by_byte[usize::from(*byte)]).collect();
        loop {
            let rules = ids.windows(2).map(|pair| merges.rule(pair[0], pair[1])).enumerate();
            match rules.min_by_key(|(_, rule)| rule.rank) {
                Some((place, rule)) if rule.rank != NO_RANK => {
                    ids[place] = rule.merged;
                    ids.remove(place + 1);
                }
                _ => return ids,
            }
        }
    }

    proptest! {
        #[test]
        fn both_ways_follow_the_definition(word in "[abcd]{0,80}") {
            let (merges, word) = (merges(), word.as_bytes());
            let (mut long, mut either) = (Vec::new(), Vec::new());
            merges.encode_long(word, &mut long);
            merges.encode(word, &mut either);
            prop_assert_eq!(&long, &plain(&merges, word));
            prop_assert_eq!(either, long);
        }
    }

    #[test]
    fn two_rules_for_one_token_are_not_taken() {
        let by_byte = [TokenId(0); 256];
        let rules = [(TokenId(1), TokenId(2), TokenId(9)), (TokenId(3), TokenId(4), TokenId(9))];
        assert!(Merges::new(by_byte, rules.into_iter()).is_none());
    }
}

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::TokenId;

/// The words that are one token, which is most of any text: found by one look instead of merging.
///
/// Short words stand in the table itself, so that a look touches one cache line.
pub(super) struct Words {
    slots: Vec<Slot>,
    long: HashMap<Box<[u8]>, TokenId, FixedState>,
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    id: TokenId,
}

/// A word of up to 15 bytes, and how many they are; no word has the key 0.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key([u64; 2]);

const MAX_SHORT: usize = 15;
const EMPTY: Key = Key([0; 2]);

impl Words {
    pub(super) fn new<'a>(words: impl Iterator<Item = (&'a [u8], TokenId)>) -> Self {
        let words: Vec<_> = words.collect();
        // A quarter full, so that a miss ends after a look or two.
        let num_slots = (words.len() * 4).next_power_of_two().max(4);
        let mut table = Self {
            slots: vec![Slot { key: EMPTY, id: TokenId(0) }; num_slots],
            long: HashMap::with_hasher(FixedState::with_seed(0)),
        };
        for (word, id) in words {
            match Key::of(word) {
                Some(key) => {
                    let idx = table.slot(key);
                    table.slots[idx] = Slot { key, id };
                }
                None => {
                    table.long.insert(word.into(), id);
                }
            }
        }
        table
    }

    pub(super) fn get(&self, word: &[u8]) -> Option<TokenId> {
        match Key::of(word) {
            Some(key) => {
                let slot = &self.slots[self.slot(key)];
                (slot.key == key).then_some(slot.id)
            }
            None => self.long.get(word).copied(),
        }
    }

    /// Where the key stands, or would.
    fn slot(&self, key: Key) -> usize {
        let mask = self.slots.len() - 1;
        let mut idx = key.hash() & mask;
        while self.slots[idx].key != key && self.slots[idx].key != EMPTY {
            idx = (idx + 1) & mask;
        }
        idx
    }
}

impl Key {
    fn of(word: &[u8]) -> Option<Self> {
        if word.is_empty() || word.len() > MAX_SHORT {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..word.len()].copy_from_slice(word);
        bytes[MAX_SHORT] = word.len() as u8;
        let (low, high) = bytes.split_at(8);
        let half = |bytes: &[u8]| bytes.iter().rev().fold(0, |half, byte| half << 8 | u64::from(*byte));
        Some(Self([half(low), half(high)]))
    }

    /// Multiplied and folded: the table is made once from the vocabulary, so no text can make it collide more.
    #[expect(clippy::cast_possible_truncation, reason = "a hash")]
    fn hash(self) -> usize {
        let [low, high] = self.0;
        let product = u128::from(low ^ 0x9E37_79B9_7F4A_7C15) * u128::from(high ^ 0xD6E8_FEB8_6659_FD93);
        (product ^ (product >> 64)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_every_length_are_found_and_others_not() {
        let all = "abcdefghijklmnopqrstuvwxyz".as_bytes();
        let words: Vec<&[u8]> = (1..=26).map(|len| &all[..len]).chain([&b"\0"[..], b"\0\0"]).collect();
        let table = Words::new(words.iter().copied().zip((0..).map(TokenId)));
        for (word, id) in words.iter().zip(0..) {
            assert_eq!(table.get(word), Some(TokenId(id)));
        }
        for absent in ["", "b", "bcd", "abcdefghijklmno0", "\0\0\0"] {
            assert_eq!(table.get(absent.as_bytes()), None);
        }
    }
}

use super::counts::{Count, Discount, ONE};
use super::symbols::Symbol;

/// Pairs are counted in so many tables, by hash, whatever the number of threads: so these do not change which pairs are
/// dropped.
pub(super) const NUM_TABLES: usize = 8;

const MIN_SLOTS: usize = 1 << 12;

/// Two neighbours, by the hash of the base ids that they spell: `ab` `c` and `a` `bc` are one pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// 0 in an empty slot.
    key: u64,
    pub(super) count: Count,
    /// How it stood where it was first seen.
    pub(super) left: Symbol,
    pub(super) right: Symbol,
}

const EMPTY: Pair = Pair { key: 0, count: Count::ZERO, left: Symbol(0), right: Symbol(0) };

impl Pair {
    fn is_empty(&self) -> bool {
        self.key == 0
    }
}

/// A hash table of pairs that drops the rarest when it is full, as lossy counting does: what is left may have been counted
/// too low by what the table's floor says, which only matters to pairs that are rare.
pub(super) struct PairTable {
    slots: Vec<Pair>,
    num: usize,
    max: usize,
    /// Pairs worth no more than this may go to make room.
    floor: u64,
}

/// Which table a pair belongs to.
#[inline]
pub(super) fn table_of(key: u64) -> usize {
    (key >> 56) as usize % NUM_TABLES
}

impl PairTable {
    /// A table of at most `max` pairs.
    pub(super) fn new(max: usize) -> Self {
        Self { slots: vec![EMPTY; MIN_SLOTS], num: 0, max, floor: ONE }
    }

    pub(super) fn clear(&mut self) {
        self.slots.fill(EMPTY);
        self.num = 0;
        self.floor = ONE;
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.slots.iter().filter(|slot| !slot.is_empty())
    }

    #[inline]
    pub(super) fn add(&mut self, key: u64, (left, right): (Symbol, Symbol), block: u32, discount: &Discount) {
        let key = key.max(1);
        let slot = self.slot(key);
        let is_new = self.slots[slot].is_empty();
        if is_new {
            self.slots[slot] = Pair { key, left, right, ..EMPTY };
        }
        self.slots[slot].count.add(block, discount);
        if is_new {
            self.num += 1;
            if self.num > self.max || self.num * 2 > self.slots.len() {
                self.make_room();
            }
        }
    }

    /// The slot of a key, or the empty one that it would take. There always is one: at most half are taken.
    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) as usize & mask;
        while !self.slots[slot].is_empty() && self.slots[slot].key != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    #[cold]
    fn make_room(&mut self) {
        while self.num > self.max {
            self.drop_rarest();
        }
        let len = if self.num * 2 > self.slots.len() { self.slots.len() * 2 } else { self.slots.len() };
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; len]);
        for pair in old.into_iter().filter(|pair| !pair.is_empty()) {
            let slot = self.slot(pair.key);
            self.slots[slot] = pair;
        }
    }

    /// The floor rises if this frees less than half of the room. Slots must be filled anew afterwards.
    fn drop_rarest(&mut self) {
        let floor = self.floor;
        for slot in self.slots.iter_mut().filter(|slot| slot.count.worth() <= floor) {
            *slot = EMPTY;
        }
        self.num = self.pairs().count();
        if self.num * 2 > self.max {
            self.floor = floor.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn filled(max: usize, keys: &[u64]) -> PairTable {
        let (mut table, discount) = (PairTable::new(max), Discount::new());
        for (block, key) in keys.iter().enumerate() {
            table.add(*key, (Symbol(*key as u32), Symbol(0)), block as u32 / 4, &discount);
        }
        table
    }

    fn content(table: &PairTable) -> HashMap<u64, Count> {
        table.pairs().map(|pair| (pair.key, pair.count)).collect()
    }

    proptest! {
        #[test]
        fn with_room_it_counts_as_a_map_does(keys in prop::collection::vec(0_u64..300, 0..3000)) {
            let table = filled(1000, &keys);
            let discount = Discount::new();
            let mut map: HashMap<u64, Count> = HashMap::new();
            for (block, key) in keys.iter().enumerate() {
                map.entry((*key).max(1)).or_default().add(block as u32 / 4, &discount);
            }
            prop_assert_eq!(content(&table), map);
            prop_assert_eq!(table.num, table.pairs().count());
        }
    }

    #[test]
    fn it_is_bounded_drops_rare_pairs_and_is_used_again_as_new() {
        // Every third occurrence is one of 20 pairs, the others are all different.
        let key = |idx: u64| if idx.is_multiple_of(3) { 1 + idx / 3 % 20 } else { 1000 + idx };
        let keys: Vec<u64> = (0..40_000).map(key).collect();
        let mut table = filled(5000, &keys);
        assert!(table.num <= 5000 && table.slots.len() <= 1 << 14);
        let worth = |key| content(&table).get(&key).map_or(0, |count| count.worth());
        assert!((1..=20).all(|key| worth(key) > ONE * 600));
        assert_eq!(content(&table), content(&filled(5000, &keys)));
        table.clear();
        assert_eq!(content(&table), HashMap::new());
        let discount = Discount::new();
        for (block, key) in keys.iter().enumerate() {
            table.add(*key, (Symbol(*key as u32), Symbol(0)), block as u32 / 4, &discount);
        }
        assert_eq!(content(&table), content(&filled(5000, &keys)));
    }

    #[test]
    fn where_all_are_alike_the_floor_rises() {
        let keys: Vec<u64> = (0..8).flat_map(|_| 1..=200).collect();
        assert!(filled(100, &keys).num <= 100);
    }
}

use std::collections::BTreeSet;

/// Slots without a sequence, in the orders in which they are looked for.
#[derive(Debug, Default)]
pub(super) struct Parked {
    /// With pages, by when they were last of use.
    by_age: BTreeSet<(u64, usize)>,
    /// The same, by how many pages.
    by_pages: BTreeSet<(usize, usize)>,
    empty: BTreeSet<usize>,
}

impl Parked {
    pub(super) fn insert(&mut self, slot: usize, since: u64, num_pages: usize) {
        if num_pages == 0 {
            self.empty.insert(slot);
        } else {
            self.by_age.insert((since, slot));
            self.by_pages.insert((num_pages, slot));
        }
    }

    pub(super) fn remove(&mut self, slot: usize, since: u64, num_pages: usize) {
        self.empty.remove(&slot);
        self.by_age.remove(&(since, slot));
        self.by_pages.remove(&(num_pages, slot));
    }

    pub(super) fn len(&self) -> usize {
        self.empty.len() + self.by_age.len()
    }

    /// Slots without pages.
    pub(super) fn empty(&self) -> impl Iterator<Item = usize> {
        self.empty.iter().copied()
    }

    /// Slots with pages, the one longest out of use first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = usize> {
        self.by_age.iter().map(|(_, slot)| *slot)
    }

    /// Slots with at least so many pages, the smallest first.
    pub(super) fn at_least(&self, num_pages: usize) -> impl Iterator<Item = usize> {
        self.by_pages.range((num_pages, 0)..).map(|(_, slot)| *slot)
    }

    /// Slots with fewer pages, the largest first.
    pub(super) fn below(&self, num_pages: usize) -> impl Iterator<Item = usize> {
        self.by_pages.range(..(num_pages, 0)).rev().map(|(_, slot)| *slot)
    }

    /// All but the tenth of the slots with pages that was of use last were so no later than this.
    pub(super) fn settled(&self) -> u64 {
        let (first, last) = (self.by_age.first(), self.by_age.last());
        first.zip(last).map_or(0, |((oldest, _), (youngest, _))| youngest - (youngest - oldest) / 10)
    }
}

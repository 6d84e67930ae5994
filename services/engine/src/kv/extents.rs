use fused_virtual_memory::HandleId;

/// Pages of the largest extent, a power of two: 64 MiB of 2 MiB pages. Making an extent accessible costs the same for any
/// size up to that (22 µs on an H200), and beyond it more.
pub(super) const MAX_EXTENT_PAGES: usize = 32;
const NUM_CLASSES: usize = MAX_EXTENT_PAGES.ilog2() as usize + 1;

/// Which extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ExtentId(u32);

/// The pool: physical memory in extents of 1, 2, 4 … 32 pages, and how many slots use each. Counts, and calls nobody.
#[derive(Debug)]
pub(super) struct Extents {
    num_pages: usize,
    /// Pages that no extent was made of as yet.
    num_uncreated: usize,
    /// Pages by which the pool is smaller than it was made, because the system had no memory for them.
    num_withheld: usize,
    /// Pages of extents that are mapped nowhere.
    num_unmapped: usize,
    /// Pages of extents that live sequences need.
    num_needed: usize,
    /// `None`: the place is free for the next.
    extents: Vec<Option<Extent>>,
    vacant: Vec<ExtentId>,
    /// Mapped nowhere, by class: of `1 << class` pages.
    unmapped: [Vec<ExtentId>; NUM_CLASSES],
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    handle: HandleId,
    num_pages: usize,
    /// Slots in which it is mapped.
    num_mapped: usize,
    /// Live sequences that need it.
    num_needing: usize,
}

impl Extents {
    pub(super) fn new(num_pages: usize) -> Self {
        Self {
            num_pages,
            num_uncreated: num_pages,
            num_withheld: 0,
            num_unmapped: 0,
            num_needed: 0,
            extents: Vec::new(),
            vacant: Vec::new(),
            unmapped: Default::default(),
        }
    }

    /// All pages there are, without those for which the system had no memory.
    pub(super) fn num_pages(&self) -> usize {
        self.num_pages
    }

    pub(super) fn num_uncreated(&self) -> usize {
        self.num_uncreated
    }

    /// Pages mapped nowhere, created or not.
    pub(super) fn num_free(&self) -> usize {
        self.num_uncreated + self.num_unmapped
    }

    /// Pages that live sequences need.
    pub(super) fn num_needed(&self) -> usize {
        self.num_needed
    }

    /// Pages that no live sequence needs.
    pub(super) fn num_available(&self) -> usize {
        self.num_pages - self.num_needed
    }

    /// Takes pages from those not created, for an extent about to be.
    pub(super) fn reserve(&mut self, num_pages: usize) {
        self.num_uncreated -= num_pages;
    }

    /// Gives them back where it could not be created, or is no more.
    pub(super) fn unreserve(&mut self, num_pages: usize) {
        self.num_uncreated += num_pages;
    }

    /// The system had no memory for so many pages: the pool is smaller by what cannot be created.
    pub(super) fn refused(&mut self, num_pages: usize) {
        let num_refused = self.num_uncreated.saturating_sub(num_pages.saturating_sub(1));
        self.num_uncreated -= num_refused;
        self.num_pages -= num_refused;
        self.num_withheld += num_refused;
    }

    /// Counts up to so many pages again that the system had no memory for: it may have by now. Returns how many.
    pub(super) fn restore(&mut self, num_pages: usize) -> usize {
        let num_restored = num_pages.min(self.num_withheld);
        self.num_withheld -= num_restored;
        self.num_pages += num_restored;
        self.num_uncreated += num_restored;
        num_restored
    }

    /// Pages that [`restore`](Self::restore) would count again.
    pub(super) fn num_withheld(&self) -> usize {
        self.num_withheld
    }

    /// An extent made of reserved pages; mapped nowhere and in no list: it is on its way into a slot.
    pub(super) fn created(&mut self, handle: HandleId, num_pages: usize) -> ExtentId {
        let extent = Some(Extent { handle, num_pages, num_mapped: 0, num_needing: 0 });
        match self.vacant.pop() {
            Some(id) => {
                self.extents[id.0 as usize] = extent;
                id
            }
            None => {
                self.extents.push(extent);
                ExtentId(u32::try_from(self.extents.len() - 1).unwrap_or(u32::MAX))
            }
        }
    }

    /// Takes an unmapped extent of exactly so many pages.
    pub(super) fn take_unmapped(&mut self, num_pages: usize) -> Option<ExtentId> {
        let id = self.unmapped[class(num_pages)].pop()?;
        self.num_unmapped -= num_pages;
        Some(id)
    }

    /// Takes the largest unmapped extent of at most so many pages.
    pub(super) fn take_unmapped_within(&mut self, num_pages: usize) -> Option<ExtentId> {
        (0..=class(num_pages)).rev().find_map(|class| self.take_unmapped(1 << class))
    }

    /// Takes the smallest unmapped extent, to be released.
    pub(super) fn take_smallest_unmapped(&mut self) -> Option<ExtentId> {
        let class = self.unmapped.iter().position(|extents| !extents.is_empty())?;
        self.take_unmapped(1 << class)
    }

    /// Puts an extent that is mapped nowhere into the list of those.
    pub(super) fn put_unmapped(&mut self, id: ExtentId) {
        let num_pages = self.num_pages_of(id);
        self.num_unmapped += num_pages;
        self.unmapped[class(num_pages)].push(id);
    }

    /// Forgets an extent that was taken and released; its pages can be created anew.
    pub(super) fn released(&mut self, id: ExtentId) {
        if let Some(extent) = self.extents[id.0 as usize].take() {
            self.num_uncreated += extent.num_pages;
            self.vacant.push(id);
        }
    }

    pub(super) fn handle(&self, id: ExtentId) -> Option<HandleId> {
        self.extents[id.0 as usize].map(|extent| extent.handle)
    }

    pub(super) fn num_pages_of(&self, id: ExtentId) -> usize {
        self.extents[id.0 as usize].map_or(0, |extent| extent.num_pages)
    }

    /// Whether several slots map it.
    pub(super) fn is_shared(&self, id: ExtentId) -> bool {
        self.extents[id.0 as usize].is_some_and(|extent| extent.num_mapped > 1)
    }

    pub(super) fn is_needed(&self, id: ExtentId) -> bool {
        self.extents[id.0 as usize].is_some_and(|extent| extent.num_needing > 0)
    }

    /// One more slot maps it.
    pub(super) fn mapped(&mut self, id: ExtentId) {
        if let Some(extent) = &mut self.extents[id.0 as usize] {
            extent.num_mapped += 1;
        }
    }

    /// One slot less maps it. Returns whether none does any more; then it is on its way, in no list.
    pub(super) fn unmapped(&mut self, id: ExtentId) -> bool {
        let Some(extent) = &mut self.extents[id.0 as usize] else { return false };
        extent.num_mapped -= 1;
        extent.num_mapped == 0
    }

    /// One more live sequence needs it.
    pub(super) fn need(&mut self, id: ExtentId) {
        if let Some(extent) = &mut self.extents[id.0 as usize] {
            extent.num_needing += 1;
            if extent.num_needing == 1 {
                self.num_needed += extent.num_pages;
            }
        }
    }

    /// One live sequence less needs it.
    pub(super) fn unneed(&mut self, id: ExtentId) {
        if let Some(extent) = &mut self.extents[id.0 as usize] {
            extent.num_needing -= 1;
            if extent.num_needing == 0 {
                self.num_needed -= extent.num_pages;
            }
        }
    }

    /// Whether what is counted here is what the slots say: `uses` has every mapping of every slot and whether it is needed
    /// there; `num_in_transit` pages are on their way. For debug builds.
    pub(super) fn is_consistent(
        &self,
        uses: impl Iterator<Item = (ExtentId, bool)>,
        num_in_transit: usize,
    ) -> bool {
        let mut counted = vec![(0, 0); self.extents.len()];
        for (id, is_needed) in uses {
            counted[id.0 as usize].0 += 1;
            counted[id.0 as usize].1 += usize::from(is_needed);
        }
        let pages = |ids: &[ExtentId]| ids.iter().map(|id| self.num_pages_of(*id)).sum::<usize>();
        let num_unmapped: usize = self.unmapped.iter().map(|ids| pages(ids)).sum();
        let unmapped_are = self.unmapped.iter().flatten().all(|id| counted[id.0 as usize].0 == 0);
        let extents =
            || self.extents.iter().zip(&counted).filter_map(|(extent, uses)| Some((extent.as_ref()?, *uses)));
        let counts_hold = extents().all(|(extent, uses)| (extent.num_mapped, extent.num_needing) == uses);
        let sum = |is: fn(&Extent) -> bool| {
            extents().filter(|(e, _)| is(e)).map(|(e, _)| e.num_pages).sum::<usize>()
        };
        counts_hold
            && unmapped_are
            && num_unmapped == self.num_unmapped
            && sum(|extent| extent.num_needing > 0) == self.num_needed
            && self.num_uncreated + self.num_unmapped + sum(|extent| extent.num_mapped > 0) + num_in_transit
                == self.num_pages
    }
}

/// The pages of the largest extent that is no larger than `num_pages`, at least 1.
pub(super) fn extent_pages(num_pages: usize) -> usize {
    1 << num_pages.clamp(1, MAX_EXTENT_PAGES).ilog2()
}

fn class(num_pages: usize) -> usize {
    num_pages.ilog2() as usize
}

//! What a memory should be: a table of pages, the content of every handle's pages, and the pins.

use std::collections::BTreeMap;

use fused_virtual_memory::Access;

#[derive(Clone, Copy)]
struct Entry {
    handle: usize,
    page_of_handle: usize,
    access: Access,
}

#[derive(Clone, Copy)]
struct Pin {
    len: usize,
    writable_from: usize,
}

/// Every method answers whether the call is allowed, and does it if so.
pub(crate) struct Model {
    page_bytes: usize,
    range_pages: usize,
    shared_pins: bool,
    table: BTreeMap<(usize, usize), Entry>,
    handles: BTreeMap<usize, Vec<Vec<u8>>>,
    freed: Vec<bool>,
    pins: Vec<Vec<Pin>>,
}

impl Model {
    pub(crate) fn new(page_bytes: usize, num_ranges: usize, range_pages: usize, shared_pins: bool) -> Self {
        Self {
            page_bytes,
            range_pages,
            shared_pins,
            table: BTreeMap::new(),
            handles: BTreeMap::new(),
            freed: vec![false; num_ranges],
            pins: vec![Vec::new(); num_ranges],
        }
    }

    pub(crate) fn create(&mut self, handle: usize, num_pages: usize) {
        self.handles.insert(handle, vec![vec![0; self.page_bytes]; num_pages]);
    }

    pub(crate) fn map(&mut self, range: usize, page: usize, handle: usize) -> bool {
        let Some(content) = self.handles.get(&handle) else { return false };
        let pages = page..page + content.len();
        let is_free = pages.end <= self.range_pages
            && pages.clone().all(|page| !self.table.contains_key(&(range, page)));
        if is_free && !self.freed[range] {
            let entries = pages.enumerate().map(|(page_of_handle, page)| {
                ((range, page), Entry { handle, page_of_handle, access: Access::None })
            });
            self.table.extend(entries);
            return true;
        }
        false
    }

    pub(crate) fn set_access(&mut self, range: usize, page: usize, num_pages: usize, access: Access) -> bool {
        let Some(pages) = self.whole(range, page, num_pages) else { return false };
        if pages.iter().any(|page| access < self.pinned_access(*page)) {
            return false;
        }
        let mut table = self.table.clone();
        for page in &pages {
            table.get_mut(page).unwrap().access = access;
        }
        // Judged by the outcome: no page of this span that is writable anywhere is accessible anywhere else.
        let sound = pages.iter().all(|page| {
            let one = table[page];
            let same = table
                .values()
                .filter(|other| (other.handle, other.page_of_handle) == (one.handle, one.page_of_handle));
            let accesses: Vec<_> =
                same.map(|entry| entry.access).filter(|access| *access > Access::None).collect();
            access == Access::None || accesses.len() <= 1 || !accesses.contains(&Access::ReadWrite)
        });
        if sound {
            self.table = table;
        }
        sound
    }

    pub(crate) fn unmap(&mut self, range: usize, page: usize, num_pages: usize) -> bool {
        let Some(pages) = self.whole(range, page, num_pages) else { return false };
        if pages.iter().any(|page| self.pinned_access(*page) > Access::None) {
            return false;
        }
        self.table.retain(|page, _| !pages.contains(page));
        true
    }

    pub(crate) fn release(&mut self, handle: usize) -> bool {
        let is_mapped = self.table.values().any(|entry| entry.handle == handle);
        !is_mapped && self.handles.remove(&handle).is_some()
    }

    pub(crate) fn free(&mut self, range: usize) -> bool {
        let is_mapped = self.table.keys().any(|(mapped, _)| *mapped == range);
        let is_free = !is_mapped && !self.freed[range] && self.pins[range].is_empty();
        self.freed[range] |= is_free;
        is_free
    }

    pub(crate) fn may_pin(&self, range: usize, len: usize, writable_from: usize) -> bool {
        let writable = len.saturating_sub(writable_from);
        (self.shared_pins || self.pins[range].is_empty())
            && self.may_access(range, 0, len, Access::Read)
            && (writable == 0 || self.may_access(range, writable_from, writable, Access::ReadWrite))
    }

    pub(crate) fn pin(&mut self, range: usize, len: usize, writable_from: usize) -> bool {
        let may_pin = self.may_pin(range, len, writable_from);
        if may_pin {
            self.pins[range].push(Pin { len, writable_from });
        }
        may_pin
    }

    pub(crate) fn unpin(&mut self, range: usize) {
        self.pins[range].pop();
    }

    pub(crate) fn may_access(&self, range: usize, offset: usize, len: usize, access: Access) -> bool {
        let end = offset + len;
        !self.freed[range]
            && end <= self.range_pages * self.page_bytes
            && (offset / self.page_bytes..end.div_ceil(self.page_bytes))
                .filter(|_| len > 0)
                .all(|page| self.table.get(&(range, page)).is_some_and(|entry| entry.access >= access))
    }

    pub(crate) fn read(&self, range: usize, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        for (page, part) in self.parts(offset, len) {
            let entry = self.table[&(range, page)];
            bytes.extend_from_slice(&self.handles[&entry.handle][entry.page_of_handle][part]);
        }
        bytes
    }

    pub(crate) fn fill(&mut self, range: usize, offset: usize, len: usize, value: u8) {
        for (page, part) in self.parts(offset, len) {
            let entry = self.table[&(range, page)];
            self.handles.get_mut(&entry.handle).unwrap()[entry.page_of_handle][part].fill(value);
        }
    }

    pub(crate) fn pages_of(&self, handle: usize) -> Option<usize> {
        self.handles.get(&handle).map(Vec::len)
    }

    pub(crate) fn first_unmapped(&self, range: usize) -> usize {
        (0..self.range_pages)
            .find(|page| !self.table.contains_key(&(range, *page)))
            .unwrap_or(self.range_pages)
    }

    /// Range, first page and number of pages of every mapping.
    pub(crate) fn mappings(&self) -> Vec<(usize, usize, usize)> {
        let first = self.table.iter().filter(|(_, entry)| entry.page_of_handle == 0);
        first.map(|(&(range, page), entry)| (range, page, self.handles[&entry.handle].len())).collect()
    }

    /// Every handle with its content.
    pub(crate) fn contents(&self) -> Vec<(usize, Vec<u8>)> {
        self.handles.iter().map(|(handle, pages)| (*handle, pages.concat())).collect()
    }

    /// The pages of a span that consists of whole mappings, or `None`.
    fn whole(&self, range: usize, page: usize, num_pages: usize) -> Option<Vec<(usize, usize)>> {
        let pages: Vec<_> = (page..page + num_pages).map(|page| (range, page)).collect();
        let first = self.table.get(pages.first()?)?;
        let last = self.table.get(pages.last()?)?;
        let all_mapped = pages.iter().all(|page| self.table.contains_key(page));
        let last_page = self.handles[&last.handle].len() - 1;
        (all_mapped && first.page_of_handle == 0 && last.page_of_handle == last_page).then_some(pages)
    }

    /// What the pins need of a page: the most that they need of any page of its mapping.
    fn pinned_access(&self, (range, page): (usize, usize)) -> Access {
        let entry = self.table[&(range, page)];
        let first = page - entry.page_of_handle;
        let pages = first..first + self.handles[&entry.handle].len();
        let needs = |page: usize, pin: &Pin| {
            let (start, end) = (page * self.page_bytes, (page + 1) * self.page_bytes);
            let is_read = start < pin.len;
            let is_written = pin.writable_from < end.min(pin.len) && is_read;
            if is_written {
                Access::ReadWrite
            } else if is_read {
                Access::Read
            } else {
                Access::None
            }
        };
        let pins = &self.pins[range];
        pages.flat_map(|page| pins.iter().map(move |pin| needs(page, pin))).max().unwrap_or(Access::None)
    }

    /// Some bytes of a range as parts of pages.
    fn parts(&self, offset: usize, len: usize) -> Vec<(usize, std::ops::Range<usize>)> {
        let (page_bytes, end) = (self.page_bytes, offset + len);
        let pages = (offset / page_bytes..end.div_ceil(page_bytes)).filter(|_| len > 0);
        let part = |page: usize| {
            let start = page * page_bytes;
            (page, offset.max(start) - start..end.min(start + page_bytes) - start)
        };
        pages.map(part).collect()
    }
}

//! Random calls on [`LinuxMemory`], each checked against a page table written in the plainest way.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests, which the lints take for production code"
)]

use std::collections::BTreeMap;

use fused_virtual_memory::{Access, Error, HandleId, HostMemory, LinuxMemory, RangeId, VirtualMemory};
use proptest::prelude::*;

const PAGE: usize = 16384;
const NUM_RANGES: usize = 2;
const RANGE_PAGES: usize = 4;

#[derive(Clone, Debug)]
enum Call {
    Create { num_pages: usize },
    Map { range: usize, page: usize, handle: usize },
    SetAccess { range: usize, page: usize, num_pages: usize, access: Access },
    Unmap { range: usize, page: usize, num_pages: usize },
    Release { handle: usize },
    Free { range: usize },
    Write { range: usize, offset: usize, len: usize, value: u8 },
}

fn call() -> impl Strategy<Value = Call> {
    let range = 0..NUM_RANGES;
    let page = 0..RANGE_PAGES + 1;
    // Mostly one, so that spans often hit whole handles.
    let num_pages = prop_oneof![1 => Just(0usize), 12 => Just(1), 3 => Just(2), 1 => Just(3)];
    let handle = 0..6usize;
    let access = prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::ReadWrite)];
    let bytes = 0..RANGE_PAGES * PAGE + 1;
    prop_oneof![
        2 => num_pages.clone().prop_map(|num_pages| Call::Create { num_pages }),
        6 => (range.clone(), page.clone(), handle.clone())
            .prop_map(|(range, page, handle)| Call::Map { range, page, handle }),
        8 => (range.clone(), page.clone(), num_pages.clone(), access).prop_map(|(range, page, num_pages, access)|
            Call::SetAccess { range, page, num_pages, access }),
        2 => (range.clone(), page, num_pages)
            .prop_map(|(range, page, num_pages)| Call::Unmap { range, page, num_pages }),
        1 => handle.prop_map(|handle| Call::Release { handle }),
        1 => range.clone().prop_map(|range| Call::Free { range }),
        8 => (range, bytes, 0..2 * PAGE, 1..=u8::MAX)
            .prop_map(|(range, offset, len, value)| Call::Write { range, offset, len, value }),
    ]
}

#[derive(Clone, Copy)]
struct Entry {
    handle: usize,
    page_of_handle: usize,
    access: Access,
}

/// What the memory should be: a table of pages, and the content of every handle's pages.
#[derive(Default)]
struct Model {
    table: BTreeMap<(usize, usize), Entry>,
    handles: BTreeMap<usize, Vec<Vec<u8>>>,
    freed: [bool; NUM_RANGES],
}

impl Model {
    /// The pages of a span that consists of whole mappings, or `None`.
    fn whole(&self, range: usize, page: usize, num_pages: usize) -> Option<Vec<(usize, usize)>> {
        let pages: Vec<_> = (page..page + num_pages).map(|page| (range, page)).collect();
        let first = self.table.get(pages.first()?)?;
        let last = self.table.get(pages.last()?)?;
        let all_mapped = pages.iter().all(|page| self.table.contains_key(page));
        let last_page = self.handles[&last.handle].len() - 1;
        (all_mapped && first.page_of_handle == 0 && last.page_of_handle == last_page).then_some(pages)
    }

    fn map(&mut self, range: usize, page: usize, handle: usize) -> bool {
        let Some(content) = self.handles.get(&handle) else { return false };
        let pages = page..page + content.len();
        let free =
            pages.end <= RANGE_PAGES && pages.clone().all(|page| !self.table.contains_key(&(range, page)));
        if free && !self.freed[range] {
            let entries = pages.enumerate().map(|(page_of_handle, page)| {
                ((range, page), Entry { handle, page_of_handle, access: Access::None })
            });
            self.table.extend(entries);
            return true;
        }
        false
    }

    fn set_access(&mut self, range: usize, page: usize, num_pages: usize, access: Access) -> bool {
        let Some(pages) = self.whole(range, page, num_pages) else { return false };
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

    fn unmap(&mut self, range: usize, page: usize, num_pages: usize) -> bool {
        let Some(pages) = self.whole(range, page, num_pages) else { return false };
        self.table.retain(|page, _| !pages.contains(page));
        true
    }

    fn write(&mut self, range: usize, offset: usize, len: usize, value: u8) -> bool {
        let end = offset + len;
        let ok = !self.freed[range]
            && end <= RANGE_PAGES * PAGE
            && (offset / PAGE..end.div_ceil(PAGE)).filter(|_| len > 0).all(|page| {
                self.table.get(&(range, page)).is_some_and(|entry| entry.access == Access::ReadWrite)
            });
        if ok {
            for byte in offset..end {
                let entry = self.table[&(range, byte / PAGE)];
                self.handles.get_mut(&entry.handle).unwrap()[entry.page_of_handle][byte % PAGE] = value;
            }
        }
        ok
    }
}

/// The real memory, the model, and how the model's numbers are called in the real one.
struct Pair {
    memory: LinuxMemory,
    model: Model,
    ranges: Vec<RangeId>,
    handles: Vec<HandleId>,
}

impl Pair {
    fn new() -> Self {
        let mut memory = LinuxMemory::new(PAGE, 512 * PAGE).unwrap();
        let ranges = (0..NUM_RANGES).map(|_| memory.reserve(RANGE_PAGES * PAGE).unwrap()).collect();
        Self { memory, model: Model::default(), ranges, handles: Vec::new() }
    }

    fn make(&mut self, call: &Call) {
        let (memory, model) = (&mut self.memory, &mut self.model);
        let (outcome, expected) = match *call {
            Call::Create { num_pages } => {
                let created = memory.create(num_pages * PAGE).map(|handle| {
                    model.handles.insert(self.handles.len(), vec![vec![0; PAGE]; num_pages]);
                    self.handles.push(handle);
                });
                (created, num_pages > 0)
            }
            Call::Map { range, page, handle } => {
                let Some(&id) = self.handles.get(handle) else { return };
                (memory.map(self.ranges[range], page * PAGE, id), model.map(range, page, handle))
            }
            Call::SetAccess { range, page, num_pages, access } => (
                memory.set_access(self.ranges[range], page * PAGE, num_pages * PAGE, access),
                model.set_access(range, page, num_pages, access),
            ),
            Call::Unmap { range, page, num_pages } => (
                memory.unmap(self.ranges[range], page * PAGE, num_pages * PAGE),
                model.unmap(range, page, num_pages),
            ),
            Call::Release { handle } => {
                let Some(&id) = self.handles.get(handle) else { return };
                let mapped = model.table.values().any(|entry| entry.handle == handle);
                let expected = !mapped && model.handles.remove(&handle).is_some();
                (memory.release(id), expected)
            }
            Call::Free { range } => {
                let mapped = model.table.keys().any(|(mapped, _)| *mapped == range);
                let expected = !mapped && !model.freed[range];
                model.freed[range] |= expected;
                (memory.free(self.ranges[range]), expected)
            }
            Call::Write { range, offset, len, value } => {
                let bytes = memory.bytes_mut(self.ranges[range], offset, len);
                (bytes.map(|bytes| bytes.fill(value)), model.write(range, offset, len, value))
            }
        };
        match outcome {
            Ok(()) => assert!(expected, "{call:?} was allowed"),
            Err(Error::Illegal(error)) => assert!(!expected, "{call:?}: {error}"),
            Err(error) => panic!("{call:?}: {error:?}"),
        }
    }

    fn assert_same_content(&self) {
        for (range, page) in (0..NUM_RANGES).flat_map(|range| (0..RANGE_PAGES).map(move |page| (range, page)))
        {
            let bytes = self.memory.bytes(self.ranges[range], page * PAGE, PAGE);
            let entry = self.model.table.get(&(range, page)).filter(|entry| entry.access > Access::None);
            match (bytes, entry) {
                (Ok(bytes), Some(entry)) => {
                    assert!(bytes == self.model.handles[&entry.handle][entry.page_of_handle]);
                }
                (Err(_), None) => {}
                (bytes, entry) => {
                    panic!(
                        "range {range}, page {page}: readable {}, model {}",
                        bytes.is_ok(),
                        entry.is_some()
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn every_call_does_what_a_page_table_says(calls in prop::collection::vec(call(), 1..150)) {
        let mut pair = Pair::new();
        for call in &calls {
            pair.make(call);
        }
        pair.assert_same_content();
    }
}

//! Random calls on [`LinuxMemory`] against a page table, and two threads at once.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, which the lints take for production code")]

mod against_model;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use against_model::{Backend, calls, check};
use fused_virtual_memory::{Access, Error, LinuxMemory, Pinned, RangeId, Span, VirtualMemory};
use proptest::prelude::*;

const PAGE: usize = 16384;

impl Backend for LinuxMemory {
    const SHARED_PINS: bool = false;

    fn read_pinned(&self, pinned: &Pinned<Self>, _: Span) -> Vec<u8> {
        pinned.bytes(0).to_vec()
    }

    fn fill_pinned(&self, pinned: &mut Pinned<Self>, span: Span, value: u8) {
        let from = span.writable_from.min(span.len);
        if from < span.len {
            pinned.bytes_mut(0, from..span.len).unwrap().fill(value);
        }
        assert!(pinned.bytes_mut(0, from..span.len + 1).is_err());
        assert!(from == 0 || pinned.bytes_mut(0, from - 1..span.len).is_err());
    }

    fn read_anywhere(&self, _: RangeId, _: usize, _: usize) -> Option<Result<Vec<u8>, Error>> {
        None
    }

    fn fill_anywhere(&self, _: RangeId, _: usize, _: usize, _: u8) -> Option<Result<(), Error>> {
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn every_call_does_what_a_page_table_says(calls in calls()) {
        check(LinuxMemory::new(PAGE, 1024 * PAGE).unwrap(), &calls);
    }
}

/// The engine's division of labour: while a step reads and writes what it has pinned, the next pages of the same range are
/// mapped, and pages come, are shared and go elsewhere.
#[test]
fn one_thread_maps_ahead_while_the_other_works_on_what_it_has_pinned() {
    const NUM_PAGES: usize = 400;
    let memory = Arc::new(LinuxMemory::new(PAGE, (NUM_PAGES + 8) * PAGE).unwrap());
    let range = memory.reserve(NUM_PAGES * PAGE).unwrap();
    let num_mapped = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let others = [memory.reserve(PAGE).unwrap(), memory.reserve(PAGE).unwrap()];
            for page in 0..NUM_PAGES {
                let handle = memory.create(PAGE).unwrap();
                memory.map(range, page * PAGE, handle).unwrap();
                memory.set_access(range, page * PAGE, PAGE, Access::ReadWrite).unwrap();
                num_mapped.store(page + 1, Ordering::Release);
                let shared = memory.create(PAGE).unwrap();
                for other in others {
                    memory.map(other, 0, shared).unwrap();
                    memory.set_access(other, 0, PAGE, Access::Read).unwrap();
                }
                for other in others {
                    memory.unmap(other, 0, PAGE).unwrap();
                }
                memory.release(shared).unwrap();
            }
        });
        let mut num_written = 0;
        while num_written < NUM_PAGES {
            let len = num_mapped.load(Ordering::Acquire) * PAGE;
            let writable_from = num_written * PAGE;
            let mut pinned = Pinned::new(&memory, [Span { range, len, writable_from }]).unwrap();
            for page in num_written..len / PAGE {
                let value = u8::try_from(page % 251).unwrap();
                pinned.bytes_mut(0, page * PAGE..(page + 1) * PAGE).unwrap().fill(value);
            }
            let is_right = |(page, bytes): (usize, &[u8])| bytes[7] == u8::try_from(page % 251).unwrap();
            assert!(pinned.bytes(0).chunks(PAGE).enumerate().all(is_right));
            num_written = len / PAGE;
        }
    });
}

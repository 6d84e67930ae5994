//! Random calls on [`CudaMemory`] against a page table, and what the driver does differently from a host. Says that it
//! skips where there is no GPU.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "the helpers of tests, which the lints take for production code"
)]

mod against_model;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use against_model::{Backend, calls, check};
use fused_virtual_memory::{
    Access, CudaMemory, Error, HandleId, IllegalUse, Pinned, RangeId, Span, VirtualMemory,
};
use proptest::test_runner::{Config, TestRunner};

const DEVICE: i32 = 0;
const MIB: usize = 1 << 20;
const PAGE: usize = 2 * MIB;

/// `None`, and a line about it, where there is no GPU.
fn memory(num_pages: usize) -> Option<CudaMemory> {
    match CudaMemory::new(DEVICE, PAGE, num_pages * PAGE) {
        Ok(memory) => Some(memory),
        Err(error @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn illegal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> IllegalUse {
    match outcome.unwrap_err() {
        Error::Illegal(illegal) => illegal,
        other => panic!("{other:?}"),
    }
}

fn read(memory: &CudaMemory, range: RangeId, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(range, offset, &mut bytes).unwrap();
    bytes
}

impl Backend for CudaMemory {
    const SHARED_PINS: bool = true;

    fn read_pinned(&self, _: &Pinned<Self>, span: Span) -> Vec<u8> {
        read(self, span.range, 0, span.len)
    }

    fn fill_pinned(&self, _: &mut Pinned<Self>, span: Span, value: u8) {
        let from = span.writable_from.min(span.len);
        self.write(span.range, from, &vec![value; span.len - from]).unwrap();
    }

    fn read_anywhere(&self, range: RangeId, offset: usize, len: usize) -> Option<Result<Vec<u8>, Error>> {
        let mut bytes = vec![0xAA; len];
        Some(self.read(range, offset, &mut bytes).map(|()| bytes))
    }

    fn fill_anywhere(
        &self,
        range: RangeId,
        offset: usize,
        len: usize,
        value: u8,
    ) -> Option<Result<(), Error>> {
        Some(self.write(range, offset, &vec![value; len]))
    }

    fn zero(&self, handle: HandleId, len: usize) {
        let range = self.reserve(len).unwrap();
        self.map(range, 0, handle).unwrap();
        self.set_access(range, 0, len, Access::ReadWrite).unwrap();
        self.write(range, 0, &vec![0; len]).unwrap();
        self.unmap(range, 0, len).unwrap();
        self.free(range).unwrap();
    }
}

#[test]
fn every_call_does_what_a_page_table_says() {
    // Held, so that the driver does not make and destroy its context for every case.
    let Some(_held) = memory(1) else { return };
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&calls(), |calls| {
        check(memory(1024).unwrap(), &calls);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_page_at_two_addresses_can_be_read_at_both_and_written_at_none() {
    let Some(memory) = memory(4) else { return };
    let memory = Arc::new(memory);
    let ranges = [memory.reserve(PAGE).unwrap(), memory.reserve(PAGE).unwrap()];
    let [one, two] = ranges;
    let handle = memory.create(PAGE).unwrap();
    for range in ranges {
        memory.map(range, 0, handle).unwrap();
    }
    memory.set_access(one, 0, PAGE, Access::ReadWrite).unwrap();
    memory.write(one, PAGE - 5, b"hello").unwrap();
    assert_eq!(illegal(memory.set_access(two, 0, PAGE, Access::Read)), IllegalUse::Aliased { offset: 0 });
    memory.set_access(one, 0, PAGE, Access::Read).unwrap();
    memory.set_access(two, 0, PAGE, Access::Read).unwrap();
    for range in ranges {
        assert_eq!(read(&memory, range, PAGE - 5, 5), b"hello");
        assert_eq!(illegal(memory.write(range, 0, b"x")), IllegalUse::NoAccess { offset: 0 });
    }
    assert_ne!(memory.device_address(one).unwrap(), memory.device_address(two).unwrap());
    let span = |range| Span { range, len: PAGE, writable_from: PAGE };
    let pinned = [one, one, two].map(|range| Pinned::new(&memory, [span(range)]).unwrap());
    assert_eq!(illegal(memory.unmap(one, 0, PAGE)), IllegalUse::Pinned { offset: 0 });
    drop(pinned);
    memory.unmap(one, 0, PAGE).unwrap();
    assert_eq!(read(&memory, two, PAGE - 5, 5), b"hello", "the handle keeps its content");
}

#[test]
fn a_handle_goes_as_a_whole() {
    let Some(memory) = memory(8) else { return };
    let range = memory.reserve(8 * PAGE).unwrap();
    let handle = memory.create(4 * PAGE).unwrap();
    memory.map(range, PAGE, handle).unwrap();
    let part = IllegalUse::PartOfHandle { offset: 2 * PAGE };
    assert_eq!(illegal(memory.set_access(range, PAGE, PAGE, Access::Read)), part);
    assert_eq!(illegal(memory.unmap(range, PAGE, PAGE)), part);
    assert_eq!(illegal(memory.release(handle)), IllegalUse::StillMapped);
    memory.set_access(range, PAGE, 4 * PAGE, Access::ReadWrite).unwrap();
    memory.set_access(range, PAGE, 4 * PAGE, Access::None).unwrap();
    memory.unmap(range, PAGE, 4 * PAGE).unwrap();
    memory.release(handle).unwrap();
    memory.free(range).unwrap();
}

#[test]
fn memory_runs_out_where_it_is_told_to_and_where_the_device_ends() {
    let Some(small) = memory(2) else { return };
    let handle = small.create(PAGE).unwrap();
    assert!(matches!(small.create(2 * PAGE), Err(Error::OutOfMemory { len }) if len == 2 * PAGE));
    small.release(handle).unwrap();
    small.create(2 * PAGE).unwrap();
    // Eight tebibytes: more than a device has.
    let Some(boundless) = memory(1 << 22) else { return };
    let len = 8 << 40;
    assert!(matches!(boundless.create(len), Err(Error::OutOfMemory { len: asked }) if asked == len));
    boundless.create(PAGE).unwrap();
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let Some(held) = memory(1) else { return };
    let granularity = CudaMemory::granularity(DEVICE).unwrap();
    let page_size = IllegalUse::PageSize { page_bytes: 65536, granularity };
    assert_eq!(illegal(CudaMemory::new(DEVICE, 65536, 0)), page_size);
    let no_device = CudaMemory::new(1000, PAGE, 0).unwrap_err();
    assert!(matches!(no_device, Error::NoDevice { device: 1000, .. }), "{no_device}");
    let too_much = held.reserve(1 << 50).unwrap_err();
    assert!(matches!(&too_much, Error::Driver { call: "cuMemAddressReserve", .. }), "{too_much}");
}

/// Everything is given back: a second round finds as much as the first one.
#[test]
fn dropping_gives_everything_back() {
    let Some(_held) = memory(1) else { return };
    for _ in 0..20 {
        let memory = memory(1 << 22).unwrap();
        let memory = Arc::new(memory);
        let range = memory.reserve(16 << 30).unwrap();
        for nth in 0..4 {
            let handle = memory.create(4 << 30).unwrap();
            memory.map(range, nth * (4 << 30), handle).unwrap();
        }
        memory.set_access(range, 0, 16 << 30, Access::ReadWrite).unwrap();
        let span = Span { range, len: 16 << 30, writable_from: 0 };
        drop(Pinned::new(&memory, [span]).unwrap());
    }
}

/// Any thread may call: one maps ahead, the other copies to and from what it has pinned.
#[test]
fn one_thread_maps_ahead_while_the_other_works_on_what_it_has_pinned() {
    const NUM_PAGES: usize = 64;
    let Some(memory) = memory(NUM_PAGES) else { return };
    let memory = Arc::new(memory);
    let range = memory.reserve(NUM_PAGES * PAGE).unwrap();
    let num_mapped = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for page in 0..NUM_PAGES {
                let handle = memory.create(PAGE).unwrap();
                memory.map(range, page * PAGE, handle).unwrap();
                memory.set_access(range, page * PAGE, PAGE, Access::ReadWrite).unwrap();
                num_mapped.store(page + 1, Ordering::Release);
            }
        });
        let mut num_written = 0;
        while num_written < NUM_PAGES {
            let pages = num_mapped.load(Ordering::Acquire);
            let span = Span { range, len: pages * PAGE, writable_from: num_written * PAGE };
            let pinned = Pinned::new(&memory, [span]).unwrap();
            for page in num_written..pages {
                memory.write(range, page * PAGE, &vec![u8::try_from(page).unwrap(); PAGE]).unwrap();
            }
            for page in 0..pages {
                assert_eq!(read(&memory, range, page * PAGE + 7, 1), [u8::try_from(page).unwrap()]);
            }
            drop(pinned);
            num_written = pages;
        }
    });
}

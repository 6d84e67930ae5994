//! The rules of `VirtualMemory`, one by one, on both backends where no bytes are needed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests, which the lints take for production code"
)]

use std::sync::Arc;
use std::time::Duration;

use fused_virtual_memory::{
    Access, Calls, DriverCosts, Error, IllegalUse, LinuxMemory, Pinned, RangeId, SimulatedMemory, Span,
    VirtualMemory,
};

const PAGE: usize = 65536;

fn illegal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> IllegalUse {
    match outcome.unwrap_err() {
        Error::Illegal(illegal) => illegal,
        other => panic!("{other:?}"),
    }
}

fn linux() -> Arc<LinuxMemory> {
    Arc::new(LinuxMemory::new(PAGE, 8 * PAGE).unwrap())
}

/// A range of so many pages, each a handle of its own, with this access.
fn mapped(memory: &impl VirtualMemory, num_pages: usize, access: Access) -> RangeId {
    let range = memory.reserve(num_pages * PAGE).unwrap();
    for page in 0..num_pages {
        let handle = memory.create(PAGE).unwrap();
        memory.map(range, page * PAGE, handle).unwrap();
    }
    memory.set_access(range, 0, num_pages * PAGE, access).unwrap();
    range
}

fn to_read(range: RangeId, len: usize) -> Span {
    Span { range, len, writable_from: len }
}

fn to_write(range: RangeId, len: usize) -> Span {
    Span { range, len, writable_from: 0 }
}

fn wrong_calls_are_errors(memory: &impl VirtualMemory) {
    let range = memory.reserve(4 * PAGE).unwrap();
    let handle = memory.create(2 * PAGE).unwrap();
    assert_eq!(illegal(memory.reserve(PAGE + 1)), IllegalUse::NotWholePages { bytes: PAGE + 1 });
    assert_eq!(illegal(memory.create(0)), IllegalUse::NotWholePages { bytes: 0 });
    assert_eq!(illegal(memory.map(range, 1, handle)), IllegalUse::NotWholePages { bytes: 1 });
    let outside = IllegalUse::OutsideRange { offset: 3 * PAGE, len: 2 * PAGE };
    assert_eq!(illegal(memory.map(range, 3 * PAGE, handle)), outside);
    assert_eq!(illegal(memory.unmap(range, 0, PAGE)), IllegalUse::NotMapped { offset: 0 });
    memory.map(range, PAGE, handle).unwrap();
    assert_eq!(illegal(memory.map(range, 0, handle)), IllegalUse::AlreadyMapped { offset: 0 });
    assert_eq!(illegal(memory.unmap(range, PAGE, PAGE)), IllegalUse::PartOfHandle { offset: 2 * PAGE });
    assert_eq!(illegal(memory.unmap(range, 2 * PAGE, PAGE)), IllegalUse::PartOfHandle { offset: 2 * PAGE });
    assert_eq!(illegal(memory.unmap(range, PAGE, 3 * PAGE)), IllegalUse::NotMapped { offset: 3 * PAGE });
    assert_eq!(illegal(memory.release(handle)), IllegalUse::StillMapped);
    assert_eq!(illegal(memory.free(range)), IllegalUse::StillMapped);
    memory.unmap(range, PAGE, 2 * PAGE).unwrap();
    memory.release(handle).unwrap();
    memory.free(range).unwrap();
    assert_eq!(illegal(memory.release(handle)), IllegalUse::UnknownHandle(handle));
    assert_eq!(illegal(memory.free(range)), IllegalUse::UnknownRange(range));
}

#[test]
fn wrong_calls_are_errors_on_linux() {
    wrong_calls_are_errors(&*linux());
}

#[test]
fn wrong_calls_are_errors_in_simulation() {
    wrong_calls_are_errors(&SimulatedMemory::new(PAGE, 2 * PAGE).unwrap());
}

fn what_a_step_holds_stays_as_it_needs_it(memory: &Arc<impl VirtualMemory + std::fmt::Debug>) {
    let range = mapped(&**memory, 4, Access::ReadWrite);
    // Reads one page and a half, and writes half a page behind that.
    let span = Span { range, len: 2 * PAGE, writable_from: PAGE + PAGE / 2 };
    let pinned = Pinned::new(memory, [span]).unwrap();
    assert_eq!((pinned.len(), pinned.is_empty()), (1, false));
    assert_eq!(illegal(memory.unmap(range, PAGE, PAGE)), IllegalUse::Pinned { offset: PAGE });
    assert_eq!(illegal(memory.unmap(range, 0, 4 * PAGE)), IllegalUse::Pinned { offset: 0 });
    let to_none = memory.set_access(range, 0, PAGE, Access::None);
    assert_eq!(illegal(to_none), IllegalUse::Pinned { offset: 0 });
    let to_read_all = memory.set_access(range, 0, 4 * PAGE, Access::Read);
    assert_eq!(illegal(to_read_all), IllegalUse::Pinned { offset: PAGE });
    assert_eq!(illegal(Pinned::new(memory, [to_read(range, 1)])), IllegalUse::AlreadyPinned(range));
    assert_eq!(illegal(memory.free(range)), IllegalUse::Pinned { offset: 0 });
    memory.set_access(range, 0, PAGE, Access::Read).unwrap();
    memory.set_access(range, 0, PAGE, Access::ReadWrite).unwrap();
    memory.set_access(range, 2 * PAGE, PAGE, Access::None).unwrap();
    memory.unmap(range, 3 * PAGE, PAGE).unwrap();
    let other = mapped(&**memory, 1, Access::Read);
    memory.unmap(other, 0, PAGE).unwrap();
    drop(pinned);
    memory.unmap(range, 0, 3 * PAGE).unwrap();
    let nothing = Pinned::new(memory, [to_write(range, 0)]).unwrap();
    assert_eq!(illegal(memory.free(range)), IllegalUse::Pinned { offset: 0 });
    drop(nothing);
    memory.free(range).unwrap();
}

#[test]
fn what_a_step_holds_stays_as_it_needs_it_on_linux() {
    what_a_step_holds_stays_as_it_needs_it(&linux());
}

#[test]
fn what_a_step_holds_stays_as_it_needs_it_in_simulation() {
    what_a_step_holds_stays_as_it_needs_it(&Arc::new(SimulatedMemory::new(PAGE, 8 * PAGE).unwrap()));
}

#[test]
fn all_spans_are_pinned_or_none() {
    let memory = linux();
    let (first, second) = (mapped(&*memory, 2, Access::Read), mapped(&*memory, 2, Access::ReadWrite));
    let gap = memory.reserve(PAGE).unwrap();
    let pin = |spans: [Span; 2]| illegal(Pinned::new(&memory, spans));
    assert_eq!(pin([to_read(first, PAGE), to_read(gap, 1)]), IllegalUse::NotMapped { offset: 0 });
    assert_eq!(pin([to_read(first, PAGE), to_read(first, PAGE)]), IllegalUse::AlreadyPinned(first));
    assert_eq!(pin([to_write(second, 2 * PAGE), to_write(first, PAGE)]), IllegalUse::NoAccess { offset: 0 });
    let beyond = Span { range: first, len: 2 * PAGE, writable_from: 2 * PAGE - 1 };
    assert_eq!(pin([to_read(second, PAGE), beyond]), IllegalUse::NoAccess { offset: 2 * PAGE - 1 });
    let too_long = IllegalUse::OutsideRange { offset: 0, len: 2 * PAGE + 1 };
    assert_eq!(pin([to_read(second, PAGE), to_read(first, 2 * PAGE + 1)]), too_long);
    memory.unmap(first, 0, 2 * PAGE).unwrap();
    memory.unmap(second, 0, 2 * PAGE).unwrap();
}

#[test]
fn a_token_ends_its_own_pin_only() {
    let (one, other) = (linux(), linux());
    let (range, same_number) = (mapped(&*one, 1, Access::Read), mapped(&*other, 1, Access::Read));
    assert_eq!(range, same_number);
    let token = one.pin(range, PAGE, PAGE).unwrap();
    let pinned = Pinned::new(&other, [to_read(same_number, PAGE)]).unwrap();
    other.unpin(token);
    assert_eq!(illegal(other.unmap(same_number, 0, PAGE)), IllegalUse::Pinned { offset: 0 });
    assert_eq!(pinned.bytes(0).len(), PAGE);
    assert_eq!(illegal(one.unmap(range, 0, PAGE)), IllegalUse::Pinned { offset: 0 });
}

#[test]
fn the_same_page_at_two_addresses_can_be_read_but_not_written() {
    let memory = linux();
    let (one, two) = (memory.reserve(PAGE).unwrap(), memory.reserve(PAGE).unwrap());
    let handle = memory.create(PAGE).unwrap();
    memory.map(one, 0, handle).unwrap();
    memory.map(two, 0, handle).unwrap();
    memory.set_access(one, 0, PAGE, Access::ReadWrite).unwrap();
    let mut pinned = Pinned::new(&memory, [to_write(one, PAGE)]).unwrap();
    pinned.bytes_mut(0, 0..5).unwrap().copy_from_slice(b"hello");
    assert_eq!(illegal(memory.set_access(two, 0, PAGE, Access::Read)), IllegalUse::Aliased { offset: 0 });
    drop(pinned);
    memory.set_access(one, 0, PAGE, Access::Read).unwrap();
    memory.set_access(two, 0, PAGE, Access::Read).unwrap();
    assert_eq!(
        illegal(memory.set_access(one, 0, PAGE, Access::ReadWrite)),
        IllegalUse::Aliased { offset: 0 }
    );
    assert_eq!(illegal(Pinned::new(&memory, [to_write(two, 1)])), IllegalUse::NoAccess { offset: 0 });
    let mut both = Pinned::new(&memory, [to_read(one, PAGE), to_read(two, PAGE)]).unwrap();
    assert_eq!((&both.bytes(0)[..5], &both.bytes(1)[..5]), (&b"hello"[..], &b"hello"[..]));
    assert_eq!(illegal(both.bytes_mut(1, 0..5)), IllegalUse::OutsideSpan { start: 0, end: 5 });
}

#[test]
fn the_same_page_twice_in_one_span_is_not_writable() {
    let memory = linux();
    let range = memory.reserve(2 * PAGE).unwrap();
    let handle = memory.create(PAGE).unwrap();
    memory.map(range, 0, handle).unwrap();
    memory.map(range, PAGE, handle).unwrap();
    let writable = memory.set_access(range, 0, 2 * PAGE, Access::ReadWrite);
    assert_eq!(illegal(writable), IllegalUse::Aliased { offset: 0 });
}

#[test]
fn bytes_run_across_handles_but_not_across_a_gap() {
    let memory = linux();
    let range = memory.reserve(4 * PAGE).unwrap();
    for offset in [0, PAGE, 3 * PAGE] {
        let handle = memory.create(PAGE).unwrap();
        memory.map(range, offset, handle).unwrap();
        memory.set_access(range, offset, PAGE, Access::ReadWrite).unwrap();
    }
    let mut pinned = Pinned::new(&memory, [to_write(range, 2 * PAGE)]).unwrap();
    pinned.bytes_mut(0, PAGE - 3..PAGE + 3).unwrap().copy_from_slice(b"across");
    assert_eq!(&pinned.bytes(0)[PAGE - 3..PAGE + 3], b"across");
    drop(pinned);
    for len in [2 * PAGE + 1, 4 * PAGE] {
        let outcome = Pinned::new(&memory, [to_write(range, len)]);
        assert_eq!(illegal(outcome), IllegalUse::NotMapped { offset: 2 * PAGE });
    }
}

#[test]
fn bytes_outside_a_span_are_errors() {
    let memory = linux();
    let range = mapped(&*memory, 2, Access::ReadWrite);
    let mut pinned = Pinned::new(&memory, [Span { range, len: 100, writable_from: 50 }]).unwrap();
    assert_eq!(pinned.bytes(0).len(), 100);
    assert!(pinned.bytes(1).is_empty());
    assert_eq!(pinned.bytes_mut(0, 50..100).unwrap().len(), 50);
    #[expect(clippy::reversed_empty_ranges, reason = "what a caller may get wrong")]
    let wrong = [49..60, 60..101, 90..80, 0..usize::MAX, 101..101];
    for bytes in wrong {
        let outside = IllegalUse::OutsideSpan { start: bytes.start, end: bytes.end };
        assert_eq!(illegal(pinned.bytes_mut(0, bytes.clone())), outside);
        assert_eq!(illegal(pinned.copy(0, 0, bytes)), outside);
    }
    assert_eq!(illegal(pinned.bytes_mut(1, 0..0)), IllegalUse::NoSuchSpan(1));
    assert_eq!(illegal(pinned.copy(0, 1, 0..0)), IllegalUse::NoSuchSpan(1));
    assert_eq!(illegal(pinned.copy(1, 0, 50..50)), IllegalUse::NoSuchSpan(1));
}

#[test]
fn a_page_shared_in_part_is_copied_from_span_to_span() {
    let memory = linux();
    let (from, to) = (mapped(&*memory, 1, Access::ReadWrite), mapped(&*memory, 1, Access::ReadWrite));
    let mut pinned = Pinned::new(&memory, [to_write(from, 10), to_write(to, 20)]).unwrap();
    pinned.bytes_mut(0, 0..10).unwrap().copy_from_slice(b"0123456789");
    pinned.copy(0, 1, 2..6).unwrap();
    assert_eq!(&pinned.bytes(1)[..8], b"\0\x002345\0\0");
    let outside = IllegalUse::OutsideSpan { start: 5, end: 11 };
    assert_eq!(illegal(pinned.copy(0, 1, 5..11)), outside);
}

#[test]
fn a_page_keeps_its_content_when_it_moves() {
    let memory = linux();
    let (from, to) = (memory.reserve(PAGE).unwrap(), memory.reserve(PAGE).unwrap());
    let handle = memory.create(PAGE).unwrap();
    memory.map(from, 0, handle).unwrap();
    memory.set_access(from, 0, PAGE, Access::ReadWrite).unwrap();
    let mut pinned = Pinned::new(&memory, [to_write(from, PAGE)]).unwrap();
    pinned.bytes_mut(0, 0..PAGE).unwrap().fill(7);
    drop(pinned);
    memory.unmap(from, 0, PAGE).unwrap();
    memory.map(to, 0, handle).unwrap();
    memory.set_access(to, 0, PAGE, Access::Read).unwrap();
    let pinned = Pinned::new(&memory, [to_read(to, PAGE)]).unwrap();
    assert!(pinned.bytes(0).iter().all(|byte| *byte == 7));
}

#[test]
fn a_page_size_that_linux_cannot_map_is_refused() {
    assert!(matches!(illegal(LinuxMemory::new(1000, 0)), IllegalUse::PageSize { page_bytes: 1000, .. }));
    assert!(matches!(illegal(LinuxMemory::new(0, 0)), IllegalUse::PageSize { page_bytes: 0, .. }));
}

fn memory_runs_out_where_it_is_told_to(memory: &impl VirtualMemory) {
    let handle = memory.create(PAGE).unwrap();
    assert!(matches!(memory.create(2 * PAGE), Err(Error::OutOfMemory { len }) if len == 2 * PAGE));
    memory.release(handle).unwrap();
    memory.create(2 * PAGE).unwrap();
    assert!(matches!(memory.create(PAGE), Err(Error::OutOfMemory { len: PAGE })));
}

#[test]
fn memory_runs_out_where_it_is_told_to_on_linux() {
    memory_runs_out_where_it_is_told_to(&LinuxMemory::new(PAGE, 2 * PAGE).unwrap());
}

#[test]
fn memory_runs_out_where_it_is_told_to_in_simulation() {
    memory_runs_out_where_it_is_told_to(&SimulatedMemory::new(PAGE, 2 * PAGE).unwrap());
}

#[test]
fn a_simulation_counts_calls() {
    let memory = SimulatedMemory::new(PAGE, 2 * PAGE).unwrap();
    let range = memory.reserve(PAGE).unwrap();
    let handle = memory.create(PAGE).unwrap();
    memory.map(range, 0, handle).unwrap();
    memory.map(range, 0, handle).unwrap_err();
    let calls = Calls { reserve: 1, create: 1, map: 1, ..Calls::default() };
    assert_eq!((memory.calls(), memory.calls().total()), (calls, 3));
    assert_eq!(memory.spent(), Duration::ZERO);
}

#[test]
fn a_simulation_charges_what_the_driver_takes() {
    const PAGE: usize = 2 << 20;
    let memory = SimulatedMemory::new(PAGE, 1 << 40).unwrap().with_costs(DriverCosts::h200());
    let range = memory.reserve(256 * PAGE).unwrap();
    let handles = [memory.create(PAGE).unwrap(), memory.create(128 * PAGE).unwrap()];
    memory.create(1 << 41).unwrap_err();
    memory.map(range, 0, handles[0]).unwrap();
    memory.map(range, PAGE, handles[1]).unwrap();
    let mapped = Duration::from_nanos(5_000 + 9_000 + 18_000 + 2 * 800);
    assert_eq!(memory.spent(), mapped);
    memory.set_access(range, 0, 129 * PAGE, Access::ReadWrite).unwrap();
    assert_eq!(memory.spent() - mapped, Duration::from_micros(22 + 35), "one call over two handles");
    let accessible = memory.spent();
    memory.unmap(range, 0, PAGE).unwrap();
    memory.release(handles[0]).unwrap();
    assert_eq!(memory.spent() - accessible, Duration::from_micros(15 + 10));
}

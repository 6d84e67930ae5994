//! The rules of `VirtualMemory`, one by one, on both backends where no bytes are needed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests, which the lints take for production code"
)]

use fused_virtual_memory::{
    Access, Calls, Error, HostMemory, IllegalUse, LinuxMemory, SimulatedMemory, VirtualMemory,
};

const PAGE: usize = 65536;

fn illegal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> IllegalUse {
    match outcome.unwrap_err() {
        Error::Illegal(illegal) => illegal,
        other => panic!("{other:?}"),
    }
}

fn wrong_calls_are_errors(mut memory: impl VirtualMemory) {
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
    wrong_calls_are_errors(LinuxMemory::new(PAGE, 8 * PAGE).unwrap());
}

#[test]
fn wrong_calls_are_errors_in_simulation() {
    wrong_calls_are_errors(SimulatedMemory::new(PAGE, 2 * PAGE).unwrap());
}

#[test]
fn the_same_page_at_two_addresses_can_be_read_but_not_written() {
    let mut memory = LinuxMemory::new(PAGE, 8 * PAGE).unwrap();
    let range = memory.reserve(2 * PAGE).unwrap();
    let handle = memory.create(PAGE).unwrap();
    memory.map(range, 0, handle).unwrap();
    memory.map(range, PAGE, handle).unwrap();
    assert_eq!(
        illegal(memory.set_access(range, 0, 2 * PAGE, Access::ReadWrite)),
        IllegalUse::Aliased { offset: 0 }
    );
    memory.set_access(range, 0, PAGE, Access::ReadWrite).unwrap();
    memory.bytes_mut(range, 0, 5).unwrap().copy_from_slice(b"hello");
    assert_eq!(
        illegal(memory.set_access(range, PAGE, PAGE, Access::Read)),
        IllegalUse::Aliased { offset: PAGE }
    );
    memory.set_access(range, 0, 2 * PAGE, Access::Read).unwrap();
    assert_eq!(memory.bytes(range, PAGE, 5).unwrap(), b"hello");
    assert_eq!(illegal(memory.bytes_mut(range, 0, 5)), IllegalUse::NoAccess { offset: 0 });
}

#[test]
fn bytes_run_across_handles_but_not_across_a_gap() {
    let mut memory = LinuxMemory::new(PAGE, 8 * PAGE).unwrap();
    let range = memory.reserve(4 * PAGE).unwrap();
    for offset in [0, PAGE, 3 * PAGE] {
        let handle = memory.create(PAGE).unwrap();
        memory.map(range, offset, handle).unwrap();
        memory.set_access(range, offset, PAGE, Access::ReadWrite).unwrap();
    }
    memory.bytes_mut(range, PAGE - 3, 6).unwrap().copy_from_slice(b"across");
    assert_eq!(memory.bytes(range, PAGE - 3, 6).unwrap(), b"across");
    assert_eq!(illegal(memory.bytes(range, 2 * PAGE - 1, 2)), IllegalUse::NotMapped { offset: 2 * PAGE });
    assert_eq!(illegal(memory.bytes(range, 2 * PAGE, 2 * PAGE)), IllegalUse::NotMapped { offset: 2 * PAGE });
    let outside = IllegalUse::OutsideRange { offset: 4 * PAGE, len: 1 };
    assert_eq!(illegal(memory.bytes(range, 4 * PAGE, 1)), outside);
    assert!(memory.bytes(range, usize::MAX, 2).is_err());
}

#[test]
fn a_page_keeps_its_content_when_it_moves() {
    let mut memory = LinuxMemory::new(PAGE, 8 * PAGE).unwrap();
    let (from, to) = (memory.reserve(PAGE).unwrap(), memory.reserve(PAGE).unwrap());
    let handle = memory.create(PAGE).unwrap();
    memory.map(from, 0, handle).unwrap();
    memory.set_access(from, 0, PAGE, Access::ReadWrite).unwrap();
    memory.bytes_mut(from, 0, PAGE).unwrap().fill(7);
    memory.unmap(from, 0, PAGE).unwrap();
    memory.map(to, 0, handle).unwrap();
    memory.set_access(to, 0, PAGE, Access::Read).unwrap();
    assert!(memory.bytes(to, 0, PAGE).unwrap().iter().all(|byte| *byte == 7));
    assert!(memory.bytes(from, 0, 1).is_err());
}

#[test]
fn a_page_size_that_linux_cannot_map_is_refused() {
    assert!(matches!(illegal(LinuxMemory::new(1000, 0)), IllegalUse::PageSize { page_bytes: 1000, .. }));
    assert!(matches!(illegal(LinuxMemory::new(0, 0)), IllegalUse::PageSize { page_bytes: 0, .. }));
}

fn memory_runs_out_where_it_is_told_to(mut memory: impl VirtualMemory) {
    let handle = memory.create(PAGE).unwrap();
    assert!(matches!(memory.create(2 * PAGE), Err(Error::OutOfMemory { len }) if len == 2 * PAGE));
    memory.release(handle).unwrap();
    memory.create(2 * PAGE).unwrap();
    assert!(matches!(memory.create(PAGE), Err(Error::OutOfMemory { len: PAGE })));
}

#[test]
fn memory_runs_out_where_it_is_told_to_on_linux() {
    memory_runs_out_where_it_is_told_to(LinuxMemory::new(PAGE, 2 * PAGE).unwrap());
}

#[test]
fn memory_runs_out_where_it_is_told_to_in_simulation() {
    memory_runs_out_where_it_is_told_to(SimulatedMemory::new(PAGE, 2 * PAGE).unwrap());
}

#[test]
fn a_simulation_counts_calls() {
    let mut memory = SimulatedMemory::new(PAGE, 2 * PAGE).unwrap();
    let range = memory.reserve(PAGE).unwrap();
    let handle = memory.create(PAGE).unwrap();
    memory.map(range, 0, handle).unwrap();
    memory.map(range, 0, handle).unwrap_err();
    let calls = Calls { reserve: 1, create: 1, map: 1, ..Calls::default() };
    assert_eq!(memory.calls(), calls);
}

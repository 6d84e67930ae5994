//! In a process of its own, because it uses up what the whole process has.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, which the lints take for production code")]

use fused_virtual_memory::{Error, LinuxMemory, VirtualMemory};

#[test]
fn too_many_mappings_say_so_and_leave_the_rest_usable() {
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > 200_000 {
        println!("skipped: vm.max_map_count = {limit} takes too long to exhaust");
        return;
    }
    let page = rustix::param::page_size();
    let memory = LinuxMemory::new(page, page).unwrap();
    let range = memory.reserve(2 * (limit + 1) * page).unwrap();
    let handle = memory.create(page).unwrap();
    // Every second page, so that the system cannot join neighbours.
    let offsets = (0..=limit).map(|idx| 2 * idx * page);
    let failed = offsets.map(|offset| memory.map(range, offset, handle)).find_map(Result::err).unwrap();
    assert!(matches!(failed, Error::TooManyMappings { limit: named } if named == limit), "{failed:?}");
    memory.unmap(range, 0, page).unwrap();
    memory.map(range, 0, handle).unwrap();
}

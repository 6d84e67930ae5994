//! How much memory this machine, or this container, has left.

use std::fs;

/// Bytes that can be used without swapping: of the machine, or of the control group if that has less. `None` where the
/// system does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_machine(&text));
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let container =
        (|| of_container(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?))();
    match (machine, container) {
        (Some(machine), Some(container)) => Some(machine.min(container)),
        (machine, container) => machine.or(container),
    }
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// `None` where there is no limit, which is the word `max`.
fn of_container(limit: &str, current: &str, stat: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    // File pages that nobody uses are given up before anybody is refused memory; a mapped checkpoint makes many.
    let unused = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let unused: u64 = unused.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(current.saturating_sub(unused)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says() {
        assert!(available_bytes().unwrap() > 1 << 20);
    }

    #[test]
    fn the_machines_memory_is_in_kilobytes() {
        assert_eq!(of_machine("MemTotal: 9 kB\nMemAvailable:    24 kB\n"), Some(24 * 1024));
        assert_eq!(of_machine("MemTotal: 9 kB\n"), None);
        assert_eq!(of_machine("MemAvailable: lots\n"), None);
    }

    #[test]
    fn a_containers_file_pages_count_as_available() {
        assert_eq!(of_container("1000\n", "700\n", "anon 400\ninactive_file 250\n"), Some(550));
        assert_eq!(of_container("1000\n", "1200\n", ""), Some(0));
        assert_eq!(of_container("max\n", "700\n", ""), None);
    }
}

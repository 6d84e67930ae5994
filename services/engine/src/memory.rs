//! How much memory this machine, or this container, has left.

use std::fs;
use std::path::Path;

/// Bytes that can be used without swapping: of the machine, or of a control group that this process is in, if that has
/// less. `None` where the system does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The limit of this process's control groups on their memory; `None` where there is none.
#[must_use]
pub fn container_limit_bytes() -> Option<u64> {
    let limit = |dir: &Path, version: &Version| number(dir, version.limit);
    [&VERSION_2, &VERSION_1].into_iter().filter_map(|version| of_groups(Path::new("/"), version, limit)).min()
}

/// `root`: where `/proc` and `/sys` are.
fn available_under(root: &Path) -> Option<u64> {
    let machine = read(&root.join("proc/meminfo")).and_then(|text| of_machine(&text));
    let groups = [&VERSION_2, &VERSION_1].map(|version| of_groups(root, version, of_group));
    machine.into_iter().chain(groups.into_iter().flatten()).min()
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the two versions of control groups call the same things. Both may be mounted at once.
struct Version {
    file_system: &'static str,
    /// Of a line of `/proc/self/cgroup`, and among a mount's options.
    controller: &'static str,
    limit: &'static str,
    current: &'static str,
    /// In `memory.stat`: file pages that nobody uses, of the group and those in it.
    unused: &'static str,
}

const VERSION_2: Version = Version {
    file_system: "cgroup2",
    controller: "",
    limit: "memory.max",
    current: "memory.current",
    unused: "inactive_file ",
};

const VERSION_1: Version = Version {
    file_system: "cgroup",
    controller: "memory",
    limit: "memory.limit_in_bytes",
    current: "memory.usage_in_bytes",
    unused: "total_inactive_file ",
};

/// The least that any of the groups has which this process is in: a limit holds for all groups inside. `of_group` reads a
/// group's directory.
fn of_groups(
    root: &Path,
    version: &Version,
    of_group: impl Fn(&Path, &Version) -> Option<u64>,
) -> Option<u64> {
    let groups = read(&root.join("proc/self/cgroup"))?;
    let group = groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == version.controller).then_some(path)
    })?;
    let mounts = read(&root.join("proc/self/mountinfo"))?;
    let (mounted, mount_point) = mounts.lines().find_map(|line| mount(line, version))?;
    let mount_point = root.join(mount_point.trim_start_matches('/'));
    // Inside a container the group's path may be the host's, of which the mount shows the end.
    let inside = Path::new(group).strip_prefix(mounted).unwrap_or(Path::new(""));
    let dirs = inside.ancestors().map(|dir| mount_point.join(dir));
    dirs.filter_map(|dir| of_group(&dir, version)).min()
}

/// Which group is mounted, and where.
fn mount<'a>(line: &'a str, version: &Version) -> Option<(&'a str, &'a str)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let file_system = kind.next()?;
    let options = kind.nth(1)?;
    let is_it = file_system == version.file_system
        && (version.controller.is_empty()
            || options.split(',').any(|controller| controller == version.controller));
    let mut place = place.split(' ').skip(3);
    is_it.then_some((place.next()?, place.next()?))
}

/// `None` where there is no limit, which is the word `max`.
fn of_group(dir: &Path, version: &Version) -> Option<u64> {
    let (limit, current) = (number(dir, version.limit)?, number(dir, version.current)?);
    // File pages that nobody uses are given up before anybody is refused memory; a mapped checkpoint makes many.
    let stat = read(&dir.join("memory.stat")).unwrap_or_default();
    let unused = stat.lines().find_map(|line| line.strip_prefix(version.unused));
    let unused: u64 = unused.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(current.saturating_sub(unused)))
}

fn number(dir: &Path, name: &str) -> Option<u64> {
    read(&dir.join(name))?.trim().parse().ok()
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A file system of these files, `proc/meminfo` with a million kB beside them.
    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let root = TempDir::new().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n");
        for (path, content) in files.iter().chain([&meminfo]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        available_under(root.path())
    }

    const MACHINE: u64 = 1_000_000 * 1024;
    const V2_MOUNT: (&str, &str) =
        ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");

    #[test]
    fn this_machine_says() {
        assert!(available_bytes().unwrap() > 1 << 20);
    }

    #[test]
    fn the_machines_memory_is_in_kilobytes() {
        assert_eq!(of_machine("MemTotal: 9 kB\nMemAvailable:    24 kB\n"), Some(24 * 1024));
        assert_eq!(of_machine("MemTotal: 9 kB\n"), None);
        assert_eq!(of_machine("MemAvailable: lots\n"), None);
        assert_eq!(available(&[]), Some(MACHINE));
    }

    #[test]
    fn a_containers_file_pages_count_as_available() {
        let container = |limit, current, stat| {
            available(&[
                ("proc/self/cgroup", "0::/\n"),
                V2_MOUNT,
                ("sys/fs/cgroup/memory.max", limit),
                ("sys/fs/cgroup/memory.current", current),
                ("sys/fs/cgroup/memory.stat", stat),
            ])
        };
        assert_eq!(container("1000\n", "700\n", "anon 400\ninactive_file 250\n"), Some(550));
        assert_eq!(container("1000\n", "1200\n", ""), Some(0));
        assert_eq!(container("max\n", "700\n", ""), Some(MACHINE));
    }

    #[test]
    fn the_group_of_this_process_counts_and_those_around_it() {
        let nested = |inner, outer| {
            available(&[
                ("proc/self/cgroup", "0::/system.slice/fused.service\n"),
                V2_MOUNT,
                ("sys/fs/cgroup/system.slice/memory.max", outer),
                ("sys/fs/cgroup/system.slice/memory.current", "100\n"),
                ("sys/fs/cgroup/system.slice/fused.service/memory.max", inner),
                ("sys/fs/cgroup/system.slice/fused.service/memory.current", "10\n"),
            ])
        };
        assert_eq!(nested("500\n", "max\n"), Some(490));
        assert_eq!(nested("max\n", "700\n"), Some(600));
        assert_eq!(nested("500\n", "400\n"), Some(300));
    }

    #[test]
    fn groups_of_version_1_count() {
        let version_1 = |cgroup, mount: &str, dir: &str, limit| {
            let mounts = format!(
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                 32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                 35 31 0:32 {mount} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            );
            let file = |name: &str| format!("sys/fs/cgroup/memory/{dir}/{name}");
            available(&[
                ("proc/self/cgroup", cgroup),
                ("proc/self/mountinfo", &mounts),
                (&file("memory.limit_in_bytes"), limit),
                (&file("memory.usage_in_bytes"), "300\n"),
                (&file("memory.stat"), "inactive_file 1\ntotal_inactive_file 50\n"),
            ])
        };
        let own = "9:name=systemd:/\n4:memory:/job/1\n1:cpu:/\n0::/\n";
        assert_eq!(version_1(own, "/", "job/1", "1000\n"), Some(750));
        assert_eq!(version_1(own, "/", "job", "1000\n"), Some(750));
        // No limit, as version 1 writes it.
        assert_eq!(version_1(own, "/", "job/1", "9223372036854771712\n"), Some(MACHINE));
        // A container: the mount shows the group that the host calls otherwise.
        let docker = "4:cpu,memory:/docker/abc\n";
        assert_eq!(version_1(docker, "/docker/abc", ".", "1000\n"), Some(750));
        assert_eq!(version_1(docker, "/elsewhere", ".", "1000\n"), Some(750));
    }
}

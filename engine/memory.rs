//! How much memory this process may still take: what the machine has free, what `ulimit -v` leaves of the address space, and what
//! the control group (a container, a job of a cluster) leaves. Read from Linux's /proc and /sys; elsewhere it is not known.

use std::fmt;
use std::path::Path;

/// Memory that can be taken, and what bounds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Why there are no more.
    pub bound: Bound,
}

/// What bounds a process's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// What can be taken without swapping.
    Free,
    /// The limit of the address space.
    AddressSpace(u64),
    /// The limit of the control group.
    ControlGroup(u64),
}

impl Bound {
    /// Whether what goes beyond is refused, or ends the process, at once.
    pub fn is_hard(self) -> bool {
        self != Bound::Free
    }
}

/// "1500 MiB are left of the address space (ulimit -v) of 4096 MiB"
impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.bytes >> 20;
        match self.bound {
            Bound::Free => write!(f, "{left} MiB of memory are free"),
            Bound::AddressSpace(limit) => {
                write!(f, "{left} MiB are left of the {} MiB that ulimit -v allows", limit >> 20)
            }
            Bound::ControlGroup(limit) => {
                write!(f, "{left} MiB are left of the {} MiB of this control group", limit >> 20)
            }
        }
    }
}

/// Memory that this process can take now; `None` where the system does not say.
pub fn room() -> Option<Room> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let free = read("/proc/meminfo").and_then(|text| kib(&text, "MemAvailable:"));
    let rooms = [
        free.map(|bytes| Room { bytes, bound: Bound::Free }),
        address_space(&read("/proc/self/limits").unwrap_or_default(), || {
            kib(&read("/proc/self/status")?, "VmSize:")
        }),
        control_group(&read("/proc/self/cgroup").unwrap_or_default(), Path::new("/sys/fs/cgroup")),
    ];
    rooms.into_iter().flatten().min_by_key(|room| room.bytes)
}

/// Whether address space is bounded as memory is, by `ulimit -v` or by `vm.overcommit_memory = 2`.
pub(crate) fn address_space_is_bounded() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    address_space(&read("/proc/self/limits"), || Some(0)).is_some()
        || read("/proc/sys/vm/overcommit_memory").trim() == "2"
}

/// Memory and swap of the machine, in bytes; `None` where the system does not say.
pub(crate) fn machine_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(kib(&text, "MemTotal:")? + kib(&text, "SwapTotal:").unwrap_or(0))
}

/// The value in bytes of a line `name   123 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What /proc/self/limits says; `used` is asked where there is a limit.
fn address_space(limits: &str, used: impl FnOnce() -> Option<u64>) -> Option<Room> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let bytes = limit.saturating_sub(used()?);
    Some(Room { bytes, bound: Bound::AddressSpace(limit) })
}

/// The tightest limit of the groups that /proc/self/cgroup names and of those above them, of version 2 or 1. A container may see
/// its own group as the root.
fn control_group(groups: &str, root: &Path) -> Option<Room> {
    let number = |path: &Path| -> Option<u64> {
        std::fs::read_to_string(path).ok()?.trim().parse().ok() // "max" is none
    };
    let room = |group: &Path, [limit, used, inactive]: [&str; 3]| {
        let limit = number(&group.join(limit))?;
        let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        // Files' pages that the kernel takes back before it refuses anything.
        let cached = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok());
        let used = number(&group.join(used))?.saturating_sub(cached.unwrap_or(0));
        Some(Room { bytes: limit.saturating_sub(used), bound: Bound::ControlGroup(limit) })
    };
    let mut tightest: Option<Room> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, names) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current", "inactive_file "]),
            _ if controllers.split(',').any(|name| name == "memory") => {
                let names =
                    ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];
                (root.join("memory"), names)
            }
            _ => continue,
        };
        let own = root.join(path.trim_start_matches('/'));
        let above = own.ancestors().take_while(|group| group.starts_with(&root));
        let rooms = above.filter_map(|group| room(group, names)).chain(tightest);
        tightest = rooms.min_by_key(|room| room.bytes);
    }
    tightest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_address_space_are_read() {
        let limits = |value: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max cpu time              unlimited            unlimited            seconds   \n\
                 Max address space         {value}           unlimited            bytes     \n"
            )
        };
        let of = |value: &str| address_space(&limits(value), || Some(1 << 30));
        let bound = Bound::AddressSpace(4 << 30);
        assert_eq!(of("4294967296"), Some(Room { bytes: 3 << 30, bound }));
        assert_eq!(of("unlimited "), None);
        assert_eq!(of("1000").unwrap().bytes, 0);
        assert!(bound.is_hard() && !Bound::Free.is_hard());
        let said = of("4294967296").unwrap().to_string();
        assert_eq!(said, "3072 MiB are left of the 4096 MiB that ulimit -v allows");
        assert_eq!(kib("MemFree: 1 kB\nMemAvailable:   2 kB\n", "MemAvailable:"), Some(2048));
        assert_eq!(kib("MemAvailable: 18446744073709551615 kB", "MemAvailable:"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: &str, files: &[(&str, &str)]| {
            let directory = root.path().join(path);
            std::fs::create_dir_all(&directory).unwrap();
            for (name, text) in files {
                std::fs::write(directory.join(name), text).unwrap();
            }
        };
        assert_eq!(control_group("0::/a/b\n", root.path()), None);
        group("a/b", &[("memory.max", "max\n"), ("memory.current", "5\n")]);
        assert_eq!(control_group("0::/a/b\n", root.path()), None);
        let stat = "anon 4\ninactive_file 30\n";
        group("a", &[("memory.max", "100\n"), ("memory.current", "70\n"), ("memory.stat", stat)]);
        let room = Room { bytes: 60, bound: Bound::ControlGroup(100) };
        assert_eq!(control_group("0::/a/b\n", root.path()), Some(room));
        assert_eq!(control_group("0::/other\n", root.path()), None);
        // Version 1, where the container does not see its own path.
        group("memory", &[("memory.limit_in_bytes", "90\n"), ("memory.usage_in_bytes", "50\n")]);
        let groups = "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/a\n";
        let room = Room { bytes: 40, bound: Bound::ControlGroup(90) };
        assert_eq!(control_group(groups, root.path()), Some(room));
        assert_eq!(control_group("nonsense\n:\n", root.path()), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_room() {
        assert!(room().is_some_and(|room| room.bytes > 0));
    }
}

//! How much memory there is: the machine's, or less where a container (cgroup) sets a limit.

use procfs::Current;
use procfs::process::Process;
use std::path::{Path, PathBuf};

/// Where the limits of cgroups are, by the version of cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";
const CGROUPS_V1: &str = "/sys/fs/cgroup/memory";

/// Memory that this process can have, in bytes; none when the system does not say.
pub fn memory_bytes() -> Option<u64> {
    let machine = procfs::Meminfo::current().ok().map(|memory| memory.mem_total);
    machine.into_iter().chain(container_bytes()).min()
}

/// The least limit of the cgroups that this process is in.
fn container_bytes() -> Option<u64> {
    let groups = Process::myself().ok()?.cgroups().ok()?;
    let limit = |group: &procfs::ProcessCGroup| {
        if group.controllers.iter().any(|controller| controller == "memory") {
            least_limit(Path::new(CGROUPS_V1), &group.pathname, "memory.limit_in_bytes")
        } else if group.hierarchy == 0 {
            least_limit(Path::new(CGROUPS), &group.pathname, "memory.max")
        } else {
            None
        }
    };
    groups.0.iter().filter_map(limit).min()
}

/// The least of the limits that a group and those around it set. What is no number (`max`) is none.
fn least_limit(root: &Path, group: &str, file: &str) -> Option<u64> {
    let inside: PathBuf = Path::new(group).components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
    let limit = |folder: &Path| std::fs::read_to_string(root.join(folder).join(file)).ok()?.trim().parse().ok();
    inside.ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_around_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("outer/inner");
        std::fs::create_dir_all(&inner).unwrap();
        let limit = || least_limit(root.path(), "/outer/inner", "memory.max");
        assert_eq!(limit(), None);
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit(), None);
        std::fs::write(root.path().join("outer/memory.max"), "1000\n").unwrap();
        assert_eq!(limit(), Some(1000));
        std::fs::write(inner.join("memory.max"), "2000\n").unwrap();
        assert_eq!(limit(), Some(1000));
        std::fs::write(inner.join("memory.max"), "500\n").unwrap();
        assert_eq!(limit(), Some(500));
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(memory_bytes().unwrap() > 64 << 20);
    }
}

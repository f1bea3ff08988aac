//! Whether the kernel has killed processes for want of memory.
//!
//! The control group says so of its own processes, where it has the memory controller; the kernel
//! counts all of the host.

use std::path::{Path, PathBuf};

use crewboss_host::cgroup;

/// Where the kernel counts for the whole host.
const VMSTAT: &str = "/proc/vmstat";

/// The line of both files that counts.
const COUNTER: &str = "oom_kill";

/// How many were killed at some time.
#[derive(Debug)]
pub struct KillCounts {
    group: Counter,
    host: Counter,
}

#[derive(Debug)]
struct Counter {
    file: PathBuf,
    then: Option<u64>,
}

impl KillCounts {
    /// As of now, for this process's own group.
    pub fn now() -> Self {
        let group = cgroup::own_group().map(|group| group.join("memory.events"));
        Self::of(&group.unwrap_or_default(), Path::new(VMSTAT))
    }

    fn of(group: &Path, host: &Path) -> Self {
        Self { group: Counter::of(group), host: Counter::of(host) }
    }

    /// What has happened since, as the rest of a sentence; nothing if nothing has, or nobody
    /// counts.
    pub fn since(&self) -> String {
        let told = |count: u64, whose: &str| {
            let (noun, were) = if count == 1 { ("process", "was") } else { ("processes", "were") };
            format!("; {count} {noun} of {whose} {were} killed by the kernel for want of memory meanwhile")
        };
        match (self.group.since(), self.host.since()) {
            (count @ 1.., _) => told(count, "its control group"),
            (0, count @ 1..) => told(count, "its host"),
            (0, 0) => String::new(),
        }
    }
}

impl Counter {
    fn of(file: &Path) -> Self {
        Self { file: file.to_owned(), then: read(file) }
    }

    fn since(&self) -> u64 {
        self.then.zip(read(&self.file)).map_or(0, |(then, now)| now.saturating_sub(then))
    }
}

fn read(file: &Path) -> Option<u64> {
    let text = crewboss_ground::kernel_text(file).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == COUNTER).and_then(|(_, count)| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_the_kernel_has_killed_since_is_told() {
        let base = tempfile::tempdir().unwrap();
        let (events, vmstat) = (base.path().join("memory.events"), base.path().join("vmstat"));
        let write = |group: u64, host: u64| {
            let group = format!("low 0\nhigh 3\nmax 9\noom 2\noom_kill {group}\noom_group_kill 0\n");
            fs::write(&events, group).unwrap();
            fs::write(&vmstat, format!("nr_free_pages 100\noom_kill {host}\n")).unwrap();
        };
        write(1, 5);
        let counts = KillCounts::of(&events, &vmstat);
        assert_eq!(counts.since(), "");
        write(1, 7);
        assert_eq!(
            counts.since(),
            "; 2 processes of its host were killed by the kernel for want of memory meanwhile"
        );
        write(2, 8);
        assert_eq!(
            counts.since(),
            "; 1 process of its control group was killed by the kernel for want of memory meanwhile"
        );
        // Without the memory controller there is no such file.
        fs::remove_file(&events).unwrap();
        assert!(counts.since().contains("of its host"));
        assert_eq!(KillCounts::of(&events, &base.path().join("none")).since(), "");
    }
}

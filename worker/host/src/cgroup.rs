//! A control group (v2) of the session's own, where that can be had: one write kills everything in
//! it. Where it cannot be had nothing is said; the probe reports it as a missing feature.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_protocol::SessionId;
use rustix::fs::{Mode, OFlags};

/// Emptied groups take the kernel a moment to let go of.
const REMOVE_WITHIN: Duration = Duration::from_secs(2);

/// Where the unified hierarchy is mounted, and our group in it.
pub fn own_group() -> Option<PathBuf> {
    let mounts = crewboss_ground::kernel_text("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4)).flatten()
    })?;
    let groups = crewboss_ground::kernel_text("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(mount).join(group.trim_start_matches('/')))
}

/// The path that a session's group would have, if one can be made here at all.
pub fn plan(session: &SessionId) -> Option<PathBuf> {
    let parent = own_group()?;
    let may = rustix::fs::access(&parent, rustix::fs::Access::WRITE_OK).is_ok();
    may.then(|| parent.join(format!("crewboss-{session}")))
}

/// Makes the group and moves this process into it; children follow by themselves. Returns whether
/// that worked.
pub fn enter(group: &Path) -> bool {
    std::fs::create_dir(group).is_ok()
        && crewboss_ground::tell_kernel(group.join("cgroup.procs"), "0").is_ok()
}

/// Moves this process out of its group into the parent, so that the group can be removed.
pub fn leave(group: &Path) {
    if let Some(parent) = group.parent() {
        let _stays = crewboss_ground::tell_kernel(parent.join("cgroup.procs"), "0");
    }
}

/// The number of the unified hierarchy's file system.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Whether a path is one that [`plan`] makes for this session: a control group, and ours. Anything
/// else in an owner record is not touched, as a directory with files of these names may have been
/// laid out by anybody.
pub fn belongs_to(group: &Path, session: &SessionId) -> bool {
    let name = group.file_name().and_then(|name| name.to_str());
    let plain = group.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    name == Some(&format!("crewboss-{session}")) && plain && is_own_group(group)
}

fn is_own_group(group: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(open) = rustix::fs::open(group, flags, Mode::empty()) else { return false };
    let unified =
        rustix::fs::fstatfs(&open).is_ok_and(|found| u64::try_from(found.f_type) == Ok(CGROUP2_MAGIC));
    let own = rustix::process::geteuid().as_raw();
    unified && rustix::fs::fstat(&open).is_ok_and(|found| found.st_uid == own)
}

/// The processes in a group.
pub fn members(group: &Path) -> Vec<u32> {
    let text = crewboss_ground::kernel_text(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills everything in a group and removes it. Returns whether it is gone.
pub fn kill_and_remove(group: &Path) -> bool {
    let end = Instant::now() + REMOVE_WITHIN;
    loop {
        // Kernels before 5.14 have no cgroup.kill: one by one then.
        if crewboss_ground::tell_kernel(group.join("cgroup.kill"), "1").is_err() {
            let is_member = |pid| members(group).contains(&pid);
            for process in crate::process::identified(&members(group), is_member) {
                process.signal(rustix::process::Signal::KILL);
            }
        }
        if std::fs::remove_dir(group).is_ok() || !group.exists() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_looks_like_a_group_is_none() {
        let top = tempfile::tempdir().unwrap();
        let session: SessionId = "run.1".parse().unwrap();
        let group = top.path().join("crewboss-run.1");
        std::fs::create_dir(&group).unwrap();
        std::fs::write(group.join("cgroup.procs"), "1\n").unwrap();
        assert!(!belongs_to(&group, &session));
        // Where a group can be had, ours is one, and a link to it is none.
        if let Some(real) = plan(&session).filter(|real| std::fs::create_dir(real).is_ok()) {
            let linked = top.path().join("linked/crewboss-run.1");
            std::fs::create_dir(top.path().join("linked")).unwrap();
            std::os::unix::fs::symlink(&real, &linked).unwrap();
            let found = (belongs_to(&real, &session), belongs_to(&linked, &session));
            std::fs::remove_dir(&real).unwrap();
            assert_eq!(found, (true, false));
        }
    }
}

//! Keeping the work directory small: sources, warm directories, packs and old binaries that nobody uses any more.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::layout::Layout;
use crate::source::{self, UNFINISHED};
use crate::storage::remove_tree;

/// Sources kept.
const SOURCES_MAX: usize = 64;

/// Sources kept when the disk is nearly full.
const SOURCES_WHEN_FULL: usize = 4;

/// The disk is nearly full below this many bytes, or below this share of it (in per cent).
const FREE_BYTES_MIN: u64 = 2 << 30;
const FREE_PERCENT_MIN: u64 = 5;

/// Warm directories that were not used for this long are removed.
const WARM_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// With more packs than this, looking objects up gets slow: all objects are dropped, since sources that are checked out do
/// not need them and the boss sends again what is missing.
const PACKS_MAX: usize = 50;

/// Binaries kept beside our own.
const BINARIES_MAX: usize = 4;

/// A binary younger than this may belong to somebody who is just starting.
const BINARY_AGE_MIN: Duration = Duration::from_secs(24 * 3600);

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Sources.
    pub sources: usize,
    /// Unfinished check-outs of dead processes.
    pub unfinished: usize,
    /// Warm directories.
    pub warm: usize,
    /// Whether the objects were dropped.
    pub objects: bool,
    /// Binaries.
    pub binaries: usize,
}

/// Removes what nobody needs, unless somebody else uses the work directory right now: then `None`. To be called at the
/// start of a worker, before it takes its own shared lock on `locks/users`.
///
/// # Errors
/// If the lock cannot be opened. What cannot be removed is left for the next time.
pub fn prune(layout: &Layout) -> io::Result<Option<Pruned>> {
    fs::create_dir_all(layout.locks())?;
    let users = File::options().create(true).append(true).open(layout.locks().join("users"))?;
    match users.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    let now = SystemTime::now();
    let mut pruned = Pruned { unfinished: remove_unfinished(layout), ..Pruned::default() };
    pruned.sources = prune_sources(layout);
    pruned.warm = prune_warm(layout, now);
    pruned.objects = prune_objects(layout);
    // Binaries are shared by all work directories, but a running one keeps working after its file is removed.
    pruned.binaries = std::env::current_exe().map_or(0, |exe| prune_binaries(&exe, now));
    Ok(Some(pruned))
}

fn entries(directory: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(directory).map(|entries| entries.filter_map(Result::ok).collect()).unwrap_or_default()
}

fn remove_unfinished(layout: &Layout) -> usize {
    let garbage = entries(&layout.sources()).into_iter();
    let garbage = garbage.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED));
    garbage.filter(|entry| remove_tree(&entry.path()).is_ok()).count()
}

/// Sources that were checked out before the machine started are not trusted either: nothing was synced to the disk, and
/// after a crash their files may be empty.
fn prune_sources(layout: &Layout) -> usize {
    let keep = if is_nearly_full(layout.work()) { SOURCES_WHEN_FULL } else { SOURCES_MAX };
    let boot = boot_time();
    let made = |path: &Path| fs::metadata(path).and_then(|found| found.created()).ok();
    let mut removed = 0;
    for (index, (tree, _)) in source::list(layout).into_iter().enumerate() {
        let path = layout.source(tree);
        let of_earlier_boot = made(&path).zip(boot).is_some_and(|(made, boot)| made < boot);
        if (index >= keep || of_earlier_boot) && remove_tree(&path).is_ok() {
            drop(fs::remove_file(source::used(layout, tree)));
            removed += 1;
        }
    }
    // Archives go with their trees, also if only the tree's directory was taken away.
    crate::machine::exchange::source::prune(layout);
    removed
}

fn boot_time() -> Option<SystemTime> {
    let seconds = sysinfo::System::boot_time().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn is_nearly_full(work: &Path) -> bool {
    rustix::fs::statvfs(work).is_ok_and(|found| {
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        free < FREE_BYTES_MIN || found.f_bavail < found.f_blocks / 100 * FREE_PERCENT_MIN
    })
}

fn prune_warm(layout: &Layout, now: SystemTime) -> usize {
    let old = |path: &Path| {
        let used = fs::metadata(path.join("used")).or_else(|_| fs::metadata(path));
        let used = used.and_then(|found| found.modified());
        used.is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age > WARM_AGE_MAX))
    };
    let warm = entries(&layout.warm_root()).into_iter().map(|entry| entry.path());
    warm.filter(|path| old(path) && remove_tree(path).is_ok()).count()
}

fn prune_objects(layout: &Layout) -> bool {
    let packs = entries(&layout.objects().join("objects/pack"));
    let packs =
        packs.iter().filter(|entry| entry.path().extension().is_some_and(|kind| kind == "pack")).count();
    packs > PACKS_MAX && remove_tree(&layout.objects()).is_ok()
}

/// Removes old `.../bin/<sha256>/crewboss` beside our own.
fn prune_binaries(own: &Path, now: SystemTime) -> usize {
    let Some((own, bin)) = own.parent().and_then(|own| Some((own, own.parent()?))) else { return 0 };
    let is_hash = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
    };
    // Only where binaries are kept this way: not beside one that was installed or just built.
    if !is_hash(own) || bin.file_name().is_none_or(|name| name != "bin") {
        return 0;
    }
    let mut others: Vec<(SystemTime, PathBuf)> = entries(bin)
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| is_hash(path) && path != own && path.join("crewboss").is_file())
        .filter_map(|path| Some((fs::metadata(path.join("crewboss")).ok()?.modified().ok()?, path)))
        .collect();
    others.sort();
    let old = |time: &SystemTime| now.duration_since(*time).is_ok_and(|age| age > BINARY_AGE_MIN);
    let removable = others.len().saturating_sub(BINARIES_MAX - 1);
    let removable = others.into_iter().take(removable).filter(|(time, _)| old(time));
    removable.filter(|(_, path)| remove_tree(path).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_binaries_of_the_cache_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let bin = home.path().join("bin");
        let now = SystemTime::now();
        let place = |digit: char, days: u64| {
            let directory = bin.join(digit.to_string().repeat(64));
            fs::create_dir_all(&directory).unwrap();
            let file = File::create(directory.join("crewboss")).unwrap();
            file.set_modified(now - Duration::from_secs(days * 24 * 3600 + 60)).unwrap();
            directory
        };
        let own = place('0', 100);
        let kept = [place('1', 0), place('2', 3), place('3', 4)];
        let removed = [place('4', 5), place('5', 50)];
        fs::create_dir(bin.join("something")).unwrap();
        assert_eq!(prune_binaries(&own.join("crewboss"), now), 2);
        assert!(own.exists() && bin.join("something").exists());
        assert!(kept.iter().all(|path| path.exists()));
        assert!(!removed.iter().any(|path| path.exists()));
        assert_eq!(prune_binaries(Path::new("/usr/bin/crewboss"), now), 0);
    }

    #[test]
    fn nothing_is_pruned_while_somebody_uses_the_directory() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path().to_owned());
        fs::create_dir_all(layout.sources().join(".new-1-0")).unwrap();
        fs::create_dir_all(layout.locks()).unwrap();
        let users = File::create(layout.locks().join("users")).unwrap();
        users.lock_shared().unwrap();
        assert_eq!(prune(&layout).unwrap(), None);
        // Closing is not enough: a program that another thread is just starting may have it open as well.
        users.unlock().unwrap();
        assert_eq!(prune(&layout).unwrap().unwrap().unfinished, 1);
    }

    #[test]
    fn the_least_recently_used_sources_go() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path().to_owned());
        for number in 0..70_u8 {
            let tree = crewboss_protocol::TreeId([number; 20]);
            fs::create_dir_all(layout.source(tree)).unwrap();
            fs::write(layout.source_archive(tree), "").unwrap();
            let used = File::create(source::used(&layout, tree)).unwrap();
            used.set_modified(SystemTime::now() - Duration::from_secs(u64::from(number))).unwrap();
        }
        let keep = if is_nearly_full(work.path()) { SOURCES_WHEN_FULL } else { SOURCES_MAX };
        assert_eq!(prune(&layout).unwrap().unwrap().sources, 70 - keep);
        assert!(layout.source(crewboss_protocol::TreeId([0; 20])).exists());
        assert!(!layout.source(crewboss_protocol::TreeId([69; 20])).exists());
        assert!(layout.source_archive(crewboss_protocol::TreeId([0; 20])).exists());
        assert!(!layout.source_archive(crewboss_protocol::TreeId([69; 20])).exists());
    }
}

//! Keeping the work directory small: sources, warm directories and packs that nobody uses any more.
//!
//! What goes is only renamed while nobody else is here, which takes no time that anybody would
//! notice; its content is removed afterwards, while work goes on. Old programs of crewboss are none
//! of a worker's business: whoever brings a new one removes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crewboss_ground::Directory;
use crewboss_host::layout::Layout;
use crewboss_host::storage::remove_tree;

use crate::slots::lock_alone;
use crate::source::{self, UNFINISHED};

/// Sources kept.
const SOURCES_MAX: usize = 64;

/// Sources kept when the disk is nearly full.
const SOURCES_WHEN_FULL: usize = 4;

/// The disk is nearly full below this many bytes, or below this share of it (in per cent).
const FREE_BYTES_MIN: u64 = 2 << 30;
const FREE_PERCENT_MIN: u64 = 5;

/// Warm directories that were not used for this long are removed.
const WARM_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// With more packs than this, looking objects up gets slow: all objects are dropped, since sources
/// that are checked out do not need them and the boss sends again what is missing. Not sooner than
/// that, since an incremental target starts cold when the objects of its last tree are gone.
const PACKS_MAX: usize = 200;

/// What goes wrong is told for this many things at most: the reason is mostly the same for all.
const ERRORS_MAX: usize = 3;

/// What was set aside.
#[derive(Debug, Default)]
pub struct Aside {
    /// What is to be removed. Nobody knows it by this name, so that may take its time; what is left
    /// of it when this process ends is set aside again by the next one.
    pub graves: Vec<PathBuf>,
    /// What could not be set aside, for a person.
    pub errors: Vec<String>,
}

/// Sets aside what nobody needs, unless somebody else uses the work directory right now: then
/// nothing. To be called at the start of a worker, before it takes its own shared lock on
/// `locks/users`.
///
/// # Errors
/// If the lock cannot be had for another reason.
pub fn set_aside(layout: &Layout) -> io::Result<Aside> {
    let Some(_alone) = lock_alone(layout)? else { return Ok(Aside::default()) };
    // What dead processes have not finished making, or removing.
    let unfinished = entries(&layout.sources()).into_iter().map(|entry| entry.path());
    let unfinished = unfinished.filter(|path| has_prefix(path, UNFINISHED)).collect();
    let mut aside = Aside { graves: unfinished, errors: Vec::new() };
    set_sources_aside(layout, &mut aside);
    for old in old_warm(layout, SystemTime::now()) {
        aside.take(layout, &old);
    }
    if has_many_packs(layout) {
        aside.take(layout, &layout.objects());
    }
    Ok(aside)
}

impl Aside {
    /// Renames one directory, which no other way of removing does at once. In `sources`, as a
    /// read-only subvolume cannot leave its directory, and all others can.
    fn take(&mut self, layout: &Layout, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let grave = layout.sources().join(format!("{UNFINISHED}{}-gone-{name}", std::process::id()));
        let renamed = Directory::make(&layout.sources())
            .map_err(io::Error::from)
            .and_then(|_| fs::rename(path, &grave));
        let is_aside = renamed.is_ok();
        match renamed {
            Ok(()) => self.graves.push(grave),
            Err(error) => self.complain(format!("cannot prune {}: {error}", path.display())),
        }
        is_aside
    }

    /// Removes what was set aside, as long as it may. Returns what went wrong with any of it, for a
    /// person.
    pub fn remove(mut self, go_on: impl Fn() -> bool) -> Vec<String> {
        for grave in std::mem::take(&mut self.graves) {
            if !go_on() {
                break;
            }
            if let Err(error) = remove_tree(&grave) {
                self.complain(error.to_string());
            }
        }
        self.errors
    }

    fn complain(&mut self, text: String) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(text);
        }
    }
}

fn has_prefix(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
}

fn entries(directory: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(directory).map(|entries| entries.filter_map(Result::ok).collect()).unwrap_or_default()
}

/// Sources that were checked out before the machine started are not trusted either: nothing was
/// synced to the disk, and after a crash their files may be empty.
fn set_sources_aside(layout: &Layout, aside: &mut Aside) {
    let keep = if is_nearly_full(layout.work()) { SOURCES_WHEN_FULL } else { SOURCES_MAX };
    let boot = boot_time();
    let made = |path: &Path| fs::metadata(path).and_then(|found| found.created()).ok();
    for (index, (tree, _)) in source::list(layout).into_iter().enumerate() {
        let path = layout.source(tree);
        let of_earlier_boot = made(&path).zip(boot).is_some_and(|(made, boot)| made < boot);
        if (index >= keep || of_earlier_boot) && aside.take(layout, &path) {
            drop(fs::remove_file(source::used(layout, tree)));
        }
    }
    // Archives go with their trees, also if only the tree's directory was taken away.
    source::archive::prune(layout);
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

fn old_warm(layout: &Layout, now: SystemTime) -> Vec<PathBuf> {
    let old = |path: &PathBuf| {
        let used = fs::metadata(path.join("used")).or_else(|_| fs::metadata(path));
        let used = used.and_then(|found| found.modified());
        used.is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age > WARM_AGE_MAX))
    };
    entries(&layout.warm_root()).into_iter().map(|entry| entry.path()).filter(old).collect()
}

fn has_many_packs(layout: &Layout) -> bool {
    let packs = entries(&layout.objects().join("objects/pack"));
    packs.iter().filter(|entry| entry.path().extension().is_some_and(|kind| kind == "pack")).count()
        > PACKS_MAX
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crewboss_protocol::TreeId;

    fn at_work() -> (tempfile::TempDir, Layout) {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        fs::create_dir_all(layout.sources()).unwrap();
        (work, layout)
    }

    #[test]
    fn nothing_is_pruned_while_somebody_uses_the_directory() {
        let (_work, layout) = at_work();
        fs::create_dir_all(layout.sources().join(".new-1-0")).unwrap();
        let user = crate::slots::lock_as_user(&layout).unwrap();
        assert!(set_aside(&layout).unwrap().graves.is_empty());
        // Closing is not enough: a program that another thread is just starting may have it open as
        // well.
        user.unlock().unwrap();
        assert_eq!(set_aside(&layout).unwrap().graves, [layout.sources().join(".new-1-0")]);
        // Nor does it keep others out once it is done.
        crate::slots::lock_as_user(&layout).unwrap();
    }

    #[test]
    fn the_least_recently_used_sources_go_with_their_archives() {
        let (work, layout) = at_work();
        for number in 0..70_u8 {
            let tree = TreeId([number; 20]);
            fs::create_dir(layout.source(tree)).unwrap();
            fs::write(layout.source(tree).join("file"), "").unwrap();
            fs::write(layout.source_archive(tree), "").unwrap();
            let used = File::create(source::used(&layout, tree)).unwrap();
            used.set_modified(SystemTime::now() - Duration::from_secs(u64::from(number))).unwrap();
        }
        let keep = if is_nearly_full(work.path()) { SOURCES_WHEN_FULL } else { SOURCES_MAX };
        let aside = set_aside(&layout).unwrap();
        assert_eq!((aside.graves.len(), aside.errors.len()), (70 - keep, 0));
        assert!(aside.graves.iter().all(|grave| grave.join("file").exists()));
        for (number, stays) in [(0, true), (69, false)] {
            let tree = TreeId([number; 20]);
            let there = [layout.source(tree), layout.source_archive(tree), source::used(&layout, tree)];
            assert_eq!(there.map(|path| path.exists()), [stays; 3], "{number}");
        }
        // Whoever was to remove them has not: the next one does.
        assert!(aside.remove(|| false).is_empty());
        let aside = set_aside(&layout).unwrap();
        assert_eq!(aside.graves.len(), 70 - keep);
        assert!(aside.remove(|| true).is_empty());
        assert!(set_aside(&layout).unwrap().graves.is_empty());
    }

    #[test]
    fn old_warm_directories_and_too_many_packs_go() {
        let (_work, layout) = at_work();
        for (key, days) in [("old", 31), ("young", 29)] {
            fs::create_dir_all(layout.warm(key).join("good-1")).unwrap();
            let used = File::create(layout.warm(key).join("used")).unwrap();
            used.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
        }
        let packs = layout.objects().join("objects/pack");
        fs::create_dir_all(&packs).unwrap();
        let fill = |many| (0..many).for_each(|n| fs::write(packs.join(format!("{n}.pack")), "").unwrap());
        fill(PACKS_MAX);
        assert_eq!(set_aside(&layout).unwrap().graves.len(), 1);
        assert!(!layout.warm("old").exists() && layout.warm("young").exists() && packs.exists());
        fill(PACKS_MAX + 1);
        set_aside(&layout).unwrap();
        assert!(!layout.objects().exists());
    }

    #[test]
    fn what_cannot_be_renamed_is_told_and_stays() {
        let (_work, layout) = at_work();
        let mut aside = Aside::default();
        assert!(!aside.take(&layout, &layout.warm("none")));
        assert_eq!((aside.graves.len(), aside.errors.len()), (0, 1));
    }
}

//! Warm directories: where an incremental target starts from what it built last.
//!
//! ```text
//! <work>/warm/<key>/build/{src,out,tree}    where it runs: always the same path, since build
//!                                           systems store paths
//! <work>/warm/<key>/good-<n>/{src,out,tree} what succeeded; never written again
//! <work>/warm/<key>/current                 the number of the one to start from, and the boot it
//!                                           was made in
//! ```
//!
//! Whoever holds the lock `locks/warm-<key>` may use `build` and change `current`. A good directory
//! becomes current by the renaming of one file, so a crash leaves the old or the new one. Attempts
//! whose results are still to be fetched hold a shared lock on their good directory itself; one
//! that is neither current nor locked is removed by whoever sees it.

use std::fmt;
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crewboss_ground::{Directory, open_directory};
use crewboss_ground::{Held, Open, Replace, read_record};
use crewboss_host::layout::Layout;
use crewboss_host::storage::{Way, remove_tree};
use crewboss_protocol::TreeId;
use rustix::fs::{FlockOperation, flock};

use super::error::EnvError;
use crate::source::{self, Objects};

/// Longest note that is read.
const NOTE_BYTES_MAX: u64 = 4 << 10;

/// What makes two builds start from the same directory: the hash, in hexadecimal, of everything but
/// the source that decides what is built.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WarmKey(String);

/// A text that is no [`WarmKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a warm key is 8 to 64 lower-case hexadecimal digits")]
pub struct WarmKeyError;

impl FromStr for WarmKey {
    type Err = WarmKeyError;
    fn from_str(text: &str) -> Result<Self, WarmKeyError> {
        let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits && (8..=64).contains(&text.len()) { Ok(Self(text.to_owned())) } else { Err(WarmKeyError) }
    }
}

impl WarmKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The right to use one warm directory, or what was built in it.
#[derive(Debug)]
pub(super) struct Hold {
    /// `<work>/warm/<key>`.
    root: PathBuf,
    /// Where src and out are: `build`, then `good-<n>` or a directory of the attempt.
    place: PathBuf,
    /// While `build` is ours.
    lock: Option<Held>,
    /// The good directory, locked as long as somebody may read it.
    reading: Option<Held>,
}

impl Hold {
    /// Makes `build` with the source of `tree`, from the last good directory if there is one;
    /// whether there was is told as well. `None` if somebody else builds there right now.
    pub(super) fn take(
        layout: &Layout,
        way: Way,
        key: &WarmKey,
        tree: TreeId,
    ) -> Result<Option<(Self, bool)>, EnvError> {
        let Some(lock) = lock(layout, key)? else { return Ok(None) };
        let root = layout.warm(key.as_str());
        Directory::make(&root).map_err(|error| EnvError::io("make", &root)(error.into()))?;
        note_use(&root)?;
        let hold = Self { place: root.join("build"), root, lock: Some(lock), reading: None };
        hold.clear()?;
        let made = match current(&hold.root).map(|good| hold.start_warm(layout, way, &good, tree)) {
            Some(Ok(())) => Ok(true),
            Some(Err(error)) if error.refusal() == crewboss_protocol::message::Refusal::NoSpace => Err(error),
            // Whatever is wrong with the good directory or the objects of its tree, starting cold
            // still works.
            Some(Err(_)) | None => {
                hold.clear().and_then(|()| hold.start_cold(layout, way, tree)).map(|()| false)
            }
        };
        match made {
            Ok(warm) => Ok(Some((hold, warm))),
            Err(error) => {
                drop(hold.clear());
                Err(error)
            }
        }
    }

    fn clear(&self) -> Result<(), EnvError> {
        remove_tree(&self.place).map_err(EnvError::io("remove", &self.place))
    }

    fn start_warm(&self, layout: &Layout, way: Way, good: &Path, tree: TreeId) -> Result<(), EnvError> {
        let note = good.join("tree");
        let text =
            read_record(&note, NOTE_BYTES_MAX).map_err(|error| EnvError::io("read", &note)(error.into()))?;
        let old: TreeId = String::from_utf8_lossy(&text.unwrap_or_default())
            .trim()
            .parse()
            .map_err(|why| EnvError::io("read", &note)(io::Error::new(io::ErrorKind::InvalidData, why)))?;
        fs::create_dir(&self.place).map_err(EnvError::io("make", &self.place))?;
        way.copy(&good.join("src"), &self.src(), false).map_err(EnvError::io("copy to", &self.src()))?;
        way.copy(&good.join("out"), &self.out(), false).map_err(EnvError::io("copy to", &self.out()))?;
        let update = |source| EnvError::Update { path: self.src(), source };
        if old != tree {
            let objects = Objects::open(&layout.objects()).map_err(update)?;
            source::apply(&objects, &self.src(), Some(old), tree, true).map_err(update)?;
        }
        self.note_tree(tree)
    }

    fn start_cold(&self, layout: &Layout, way: Way, tree: TreeId) -> Result<(), EnvError> {
        fs::create_dir(&self.place).map_err(EnvError::io("make", &self.place))?;
        let copied = way.copy(&layout.source(tree), &self.src(), true);
        copied.map_err(EnvError::io("copy the source to", &self.src()))?;
        way.create(&self.out()).map_err(EnvError::io("make", &self.out()))?;
        self.note_tree(tree)
    }

    fn note_tree(&self, tree: TreeId) -> Result<(), EnvError> {
        let note = self.place.join("tree");
        let written = Replace::with_mode(0o600).path(&note, format!("{tree}\n").as_bytes());
        written.map_err(|error| EnvError::io("write", &note)(error.into()))
    }

    pub(super) fn src(&self) -> PathBuf {
        self.place.join("src")
    }

    pub(super) fn out(&self) -> PathBuf {
        self.place.join("out")
    }

    /// Makes what was built the current good directory, and lets the next build start.
    pub(super) fn publish(&mut self) -> Result<(), EnvError> {
        if self.lock.is_none() {
            return Ok(());
        }
        let number = numbers(&self.root).into_iter().max().unwrap_or(0) + 1;
        let good = self.root.join(format!("good-{number}"));
        let reading = open_directory(&self.place).map_err(EnvError::io("open", &self.place))?;
        flock(&reading, FlockOperation::NonBlockingLockShared)
            .map_err(|error| EnvError::io("lock", &self.place)(error.into()))?;
        fs::rename(&self.place, &good).map_err(EnvError::io("rename", &self.place))?;
        self.place = good;
        self.reading = Some(Held::new(reading));
        let current = self.root.join("current");
        Replace::with_mode(0o600)
            .path(&current, format!("{number} {}\n", boot_id()).as_bytes())
            .map_err(|error| EnvError::io("write", &current)(error.into()))?;
        collect(&self.root);
        self.lock = None;
        Ok(())
    }

    /// Moves what was built to a place of the attempt's own, and lets the next build start.
    pub(super) fn give_up(&mut self, place: &Path) -> Result<(), EnvError> {
        if self.lock.is_some() {
            fs::rename(&self.place, place).map_err(EnvError::io("rename", &self.place))?;
            self.place = place.to_owned();
            self.lock = None;
        }
        Ok(())
    }

    /// Removes what nobody needs any more.
    pub(super) fn remove(mut self) -> Result<(), EnvError> {
        if self.lock.is_some() {
            self.clear()?;
        }
        if self.reading.take().is_some() {
            collect(&self.root);
        }
        Ok(())
    }
}

/// Takes the lock of a key; `None` if somebody else has it.
pub(super) fn lock(layout: &Layout, key: &WarmKey) -> Result<Option<Held>, EnvError> {
    let path = layout.locks().join(format!("warm-{key}"));
    let file = Open::lock().path(&path).map_err(|error| EnvError::io("open", &path)(error.into()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Held::new(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(EnvError::io("lock", &path)(error)),
    }
}

fn note_use(root: &Path) -> Result<(), EnvError> {
    let path = root.join("used");
    let touched = Open::append().path(&path).map_err(io::Error::from);
    let touched = touched.and_then(|file| file.set_modified(std::time::SystemTime::now()));
    touched.map_err(EnvError::io("write", &path))
}

/// The good directory to start from. One of an earlier boot is not trusted: nothing was synced to
/// the disk, and after a crash of the machine files may be empty.
fn current(root: &Path) -> Option<PathBuf> {
    // One that cannot be read is none: a cold build costs less than a wrong one.
    let text = String::from_utf8(read_record(&root.join("current"), NOTE_BYTES_MAX).ok()??).ok()?;
    let (number, boot) = text.trim().split_once(' ')?;
    let number: u64 = number.parse().ok()?;
    let good = root.join(format!("good-{number}"));
    (boot == boot_id() && good.is_dir()).then_some(good)
}

fn boot_id() -> String {
    crewboss_ground::kernel_text("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn numbers(root: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let number = |entry: io::Result<fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.strip_prefix("good-")?.parse().ok()
    };
    // After the last of all numbers none is left.
    entries.filter_map(number).filter(|number| *number < u64::MAX).collect()
}

/// Removes good directories that are neither current nor read. What cannot be removed is tried
/// again next time.
fn collect(root: &Path) {
    for number in numbers(root) {
        let good = root.join(format!("good-{number}"));
        let Ok(file) = open_directory(&good) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let held = Held::new(file);
        // Only now: who publishes one holds its lock until it is current. And one that another has
        // removed meanwhile may have a successor of its name.
        if current(root).as_ref() != Some(&good) && held.is_at(&good).unwrap_or(false) {
            drop(remove_tree(&good));
        }
    }
}

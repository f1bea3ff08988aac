//! Spare directories: of attempts that are over and left them as they were made.
//!
//! A snapshot costs a transaction commit, a copy more, and most tasks never write to their source.
//! So a copy that was not touched serves the next attempt; the proof is in [`super::fingerprint`].
//! The empty directories around it are as good as new if they are empty still.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crewboss_host::storage::remove_tree;
use crewboss_protocol::TreeId;

use super::fingerprint::Fingerprint;

/// The directories that every attempt has beside its source.
pub(super) const INNER: [&str; 3] = ["out", "home", "tmp"];

/// Their mode. A stricter umask only means that none of them serves twice.
pub(super) const INNER_MODE: u32 = 0o755;

/// Spares kept at a time. About as many attempts can be prepared ahead.
const SPARES_MAX: usize = 256;

#[derive(Debug)]
struct Spare {
    /// The tree that its `src` is a copy of; `None` if it has no `src`.
    tree: Option<TreeId>,
    /// An attempt's directory with nothing in it but `src` and empty [`INNER`] directories.
    directory: PathBuf,
    fingerprint: Option<Fingerprint>,
}

#[derive(Debug, Default)]
pub(super) struct Spares {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spares: Vec<Spare>,
    /// Trees known to be too big.
    big: HashSet<TreeId>,
}

impl Spares {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fingerprint of a copy that was just made, unless it is too big to be kept.
    pub(super) fn fingerprint(&self, tree: TreeId, src: &Path) -> Option<Fingerprint> {
        if self.state().big.contains(&tree) {
            return None;
        }
        let fingerprint = Fingerprint::of_new(src).ok().flatten();
        if fingerprint.is_none() {
            self.state().big.insert(tree);
        }
        fingerprint
    }

    /// Turns a spare with a copy of this tree, or without a copy, into the new directory `attempt`.
    /// Some of the [`INNER`] directories may be missing in it. Gives the fingerprint of the copy.
    pub(super) fn take(&self, tree: Option<TreeId>, attempt: &Path) -> Option<Option<Fingerprint>> {
        loop {
            let spare = {
                let mut state = self.state();
                let index = state.spares.iter().rposition(|spare| spare.tree == tree)?;
                state.spares.remove(index)
            };
            if fs::rename(&spare.directory, attempt).is_ok() {
                return Some(spare.fingerprint);
            }
            // Gone or not movable: then it is of no use.
            drop(remove_tree(&spare.directory));
        }
    }

    /// Keeps the directory of an attempt that is over, if its copy of the source, should it have
    /// one, is as it was made. It stays where it is until it is taken. False if it cannot be kept;
    /// nothing was changed then.
    pub(super) fn keep(&self, attempt: &Path, copy: Option<(TreeId, &Path, Fingerprint)>) -> bool {
        if copy.as_ref().is_some_and(|(_, src, fingerprint)| !fingerprint.holds(src)) {
            return false;
        }
        let (tree, fingerprint) = copy.map(|(tree, _, fingerprint)| (tree, fingerprint)).unzip();
        if !clear(attempt, tree.is_some()) {
            drop(remove_tree(attempt));
            return true;
        }
        let oldest = {
            let mut state = self.state();
            state.spares.push(Spare { tree, directory: attempt.to_owned(), fingerprint });
            (state.spares.len() > SPARES_MAX).then(|| state.spares.remove(0))
        };
        if let Some(oldest) = oldest {
            drop(remove_tree(&oldest.directory));
        }
        true
    }
}

/// Removes everything from an attempt's directory but its copy of the source, if it has one, and
/// what is as good as new.
fn clear(directory: &Path, has_copy: bool) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.into_iter().all(|entry| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let kept = (has_copy && name == "src")
                || (INNER.iter().any(|inner| name == *inner) && is_as_new(&entry.path()));
            kept || remove_tree(&entry.path()).is_ok()
        })
    })
}

/// Whether a directory is empty, and its owner and mode are those that it was made with.
fn is_as_new(directory: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(directory) else { return false };
    let own = rustix::process::geteuid().as_raw();
    found.is_dir()
        && found.uid() == own
        && found.mode() & 0o7777 == INNER_MODE
        && fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

//! Spare copies of sources: of attempts that are over, and proven to be as they were made.
//!
//! A snapshot costs a transaction commit, a copy more, and most tasks never write to their source. So a copy that was not
//! touched serves the next attempt. The proof is in [`super::fingerprint`].

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crewboss_protocol::TreeId;

use super::fingerprint::Fingerprint;
use crate::storage::remove_tree;

/// Spares kept at a time. About as many attempts can be prepared ahead.
const SPARES_MAX: usize = 256;

#[derive(Debug)]
struct Spare {
    tree: TreeId,
    /// A directory with nothing but `src` in it.
    directory: PathBuf,
    fingerprint: Fingerprint,
}

#[derive(Debug, Default)]
pub(super) struct Spares {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spares: Vec<Spare>,
    made: u64,
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

    /// Turns a spare of this tree into the new directory `attempt` with its `src`.
    pub(super) fn take(&self, tree: TreeId, attempt: &Path) -> Option<Fingerprint> {
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

    /// Keeps the copy of an attempt that is over if it is as it was made, and removes all else of the attempt.
    pub(super) fn keep(&self, tree: TreeId, attempt: &Path, src: &Path, fingerprint: Fingerprint) -> bool {
        let number = {
            let mut state = self.state();
            state.made += 1;
            state.made
        };
        if !fingerprint.holds(src) {
            return false;
        }
        let directory = attempt.with_file_name(format!(".spare-{number}"));
        if fs::rename(attempt, &directory).is_err() {
            return false;
        }
        if !remove_all_but_src(&directory) {
            // The attempt's name is free in any case; what cannot be removed is swept with the session.
            drop(remove_tree(&directory));
            return true;
        }
        let oldest = {
            let mut state = self.state();
            state.spares.push(Spare { tree, directory, fingerprint });
            (state.spares.len() > SPARES_MAX).then(|| state.spares.remove(0))
        };
        if let Some(oldest) = oldest {
            drop(remove_tree(&oldest.directory));
        }
        true
    }
}

fn remove_all_but_src(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.into_iter().all(|entry| {
        entry.is_ok_and(|entry| entry.file_name() == "src" || remove_tree(&entry.path()).is_ok())
    })
}

//! Removing used snapshots in batches.
//!
//! Snapshots made by several threads at once share a transaction commit, unless another snapshot is
//! destroyed in between: then all take turns, and sixteen threads are no faster than one. So
//! destroying waits until it is worth a pause of all making, and then many are destroyed in the
//! time that one is made.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crewboss_host::storage::remove_tree;

/// Destroyed together: takes about as long as making one.
const BATCH: usize = 64;

/// Nothing waits longer than this while environments come and go, since a used snapshot may hold
/// much data.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// If no snapshot was made for this long, there is nothing to disturb.
const QUIET: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Graves {
    /// Shared by those who make snapshots, exclusive for the one who destroys them.
    gate: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<PathBuf>,
    since: Option<Instant>,
    made: Option<Instant>,
    number: u64,
}

impl Graves {
    /// To be held while a snapshot is made.
    pub(super) fn making(&self) -> RwLockReadGuard<'_, ()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).made = Some(Instant::now());
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees an attempt's name at once, and removes its content now or a little later.
    pub(super) fn bury(&self, attempt: &Path) -> std::io::Result<()> {
        let now = Instant::now();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.number += 1;
            let grave = attempt.with_file_name(format!(".gone-{}", state.number));
            std::fs::rename(attempt, &grave)?;
            state.waiting.push(grave);
            state.since.get_or_insert(now);
        }
        if self.is_due(now) { self.tidy() } else { Ok(()) }
    }

    /// Whether it is time to remove what waits.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let older = |then: Option<Instant>, age| then.is_none_or(|then| now.duration_since(then) > age);
        state.since.is_some()
            && (state.waiting.len() >= BATCH || older(state.since, WAIT_MAX) || older(state.made, QUIET))
    }

    /// Removes all that waits.
    pub(super) fn tidy(&self) -> std::io::Result<()> {
        let waiting = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.since = None;
            std::mem::take(&mut state.waiting)
        };
        if waiting.is_empty() {
            return Ok(());
        }
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        // Every one is tried; the first error is told.
        waiting.iter().map(|grave| remove_tree(grave)).fold(Ok(()), Result::and)
    }
}

//! A held guest that runs again for a while.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crewboss_protocol::chain;

use super::shelf::{Draft, Shelf, ShelfError};
use super::{MemoryError, save_memory};
use crate::guest::hub;
use crate::guest::kept::Kept;
use crate::guest::tap::{self, TapError};
use crate::qemu::child::Ended;
use crate::qemu::command::Link;
use crate::qemu::error::QemuError;
use crate::qemu::process::Qemu;
use crate::qemu::qmp::QmpError;
use crate::qemu::saved::{self, Kind, SavedError};
use crate::qemu::version::Program;

/// QEMU greets at once; a host that is short of everything may let it wait.
const GREETING_WITHIN: Duration = Duration::from_secs(30);

/// Reading a memory takes as long as its disk needs.
const RESTORE_WITHIN: Duration = Duration::from_secs(300);

/// QEMU says why it ends while it ends.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// Why a held guest does not run again.
#[derive(Debug, thiserror::Error)]
pub enum ReviveError {
    /// Its files.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Its network.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The private network of its task.
    #[error("cannot make a network")]
    Network(#[source] io::Error),
    /// QEMU does not start.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// Its memory does not come back.
    #[error("its memory, saved by QEMU {saved_by}, cannot be restored by QEMU {by}{}", last_line(.said))]
    Restore {
        /// The version that saved it.
        saved_by: String,
        /// The version that restores it.
        by: String,
        /// What QEMU said.
        said: String,
        /// Why.
        #[source]
        source: Box<SavedError>,
    },
    /// It does not go on.
    #[error("it cannot go on")]
    Continue(#[source] QmpError),
}

fn last_line(said: &str) -> String {
    let line = said.lines().last().unwrap_or_default();
    if line.is_empty() { String::new() } else { format!(" ({line})") }
}

/// A held guest that runs. What it was is safe; what becomes of it is lost unless it is put away.
#[derive(Debug)]
pub struct Revived {
    /// Its process.
    pub qemu: Qemu,
    /// How it runs. `memory` says whether it goes on where it was stopped, else it boots.
    pub kept: Kept,
    draft: Draft,
}

/// What became of a guest that was put away.
#[derive(Debug)]
pub enum PutAway {
    /// It is what it was when it was left.
    Whole,
    /// Its disk is as it was left; its memory could not be saved, for this reason.
    DiskOnly(String),
    /// It is what it was before it was entered, for this reason.
    AsBefore(String),
}

/// Lets the held guest in this directory run: from its saved memory, or else from its disk.
///
/// # Errors
/// If it does not run. It is what it was then.
pub fn revive(guest: &Path) -> Result<Revived, ReviveError> {
    let shelf = Shelf::new(guest);
    let (number, mut kept, state) = shelf.load()?;
    let draft = shelf.begin(number.saturating_add(1))?;
    kept.config = draft.clone_disks(&kept.config)?;
    kept.config.incoming = kept.memory;
    let networks = networks(&kept)?;
    let program = Program::find()?;
    let mut qemu = Qemu::start(&program, &kept.config, guest, networks)?;
    let version = qemu.wait_ready(Instant::now() + GREETING_WITHIN)?;
    let saved_by = std::mem::replace(&mut kept.qemu, version.to_string());
    if kept.memory {
        let until = Instant::now() + RESTORE_WITHIN;
        saved::restore(&mut qemu.qmp, &state, Kind::Whole, until).map_err(|source| {
            qemu.child.wait(Instant::now() + LAST_WORDS_WITHIN);
            let said = qemu.child.said();
            ReviveError::Restore { saved_by, by: version.to_string(), said, source: Box::new(source) }
        })?;
        qemu.qmp.cont(until).map_err(ReviveError::Continue)?;
    }
    kept.config.incoming = false;
    kept.prepared &= kept.memory;
    Ok(Revived { qemu, kept, draft })
}

/// The other guests of its task are gone, and with them their network.
fn networks(kept: &Kept) -> Result<Vec<OwnedFd>, ReviveError> {
    let mut networks: Vec<OwnedFd> = kept.bridge.as_deref().map(tap::open).transpose()?.into_iter().collect();
    if kept.config.networks.iter().any(|nic| nic.link == Link::Frames) {
        networks.push(hub::loose_end().map_err(ReviveError::Network)?);
    }
    Ok(networks)
}

impl Revived {
    /// Stops it and keeps what it has become. QEMU has ended then.
    ///
    /// # Errors
    /// If its files cannot be written; it is what it was before it was entered then.
    pub fn put_away(mut self) -> Result<(Kept, PutAway), ShelfError> {
        let before = |kept: Kept, why: String| Ok((kept, PutAway::AsBefore(why)));
        let without = match save_memory(&mut self.qemu, &self.draft.state(), &mut || true) {
            Ok(()) => None,
            Err(MemoryError::Ended) => match self.qemu.child.try_ended() {
                // A guest that was switched off has nothing in its memory.
                Some(Ended::Code(0)) => Some("it was switched off".to_owned()),
                how => {
                    let how = how.map_or_else(String::new, |how| format!(" with {how}"));
                    return before(self.kept, format!("QEMU ended{how}: {}", self.qemu.child.said().trim()));
                }
            },
            // Its disk alone, in the middle of work, would be less than what is there already.
            Err(error) if self.kept.memory => return before(self.kept, chain(&error)),
            Err(error) => Some(chain(&error)),
        };
        self.qemu.kill();
        self.kept.memory = without.is_none();
        self.draft.commit(&self.kept)?;
        Ok((self.kept, without.map_or(PutAway::Whole, PutAway::DiskOnly)))
    }
}

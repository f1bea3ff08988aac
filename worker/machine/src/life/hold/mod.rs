//! Held guests: a task has ended strangely, and its guest is kept for a person, as files and a
//! record and no process.
//!
//! [`keep`] makes one of a guest that runs; [`shelf`] is what lies on the disk; [`revive`] lets it
//! run again for a while and puts it away again. All of it lies in the guest's snapshot, so
//! removing a held guest is removing that.

pub mod revive;
pub mod shelf;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crewboss_host::storage::free_bytes;
use crewboss_protocol::advice::Advice;
use crewboss_protocol::chain;
use crewboss_protocol::limits::HELD_MAX;
use crewboss_protocol::machine::HeldGuest;

use crate::books::record::{self, RecordError, Step};
use crate::books::room::RESERVE;
use crate::guest::running::Guest;
use crate::halt;
use crate::images::directory::Machines;
use crate::qemu::process::Qemu;
use crate::qemu::saved::{self, Kind, SavedError};
use shelf::{Shelf, ShelfError};

/// Saving writes as many bytes as the guest uses of its memory; a disk that takes longer hangs.
pub const SAVE_WITHIN: Duration = Duration::from_secs(180);

/// Why a guest is not held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// There are too many already.
    #[error("this host holds {HELD_MAX} guests already; {} lists them, to release one", Advice::Guests)]
    Full,
    /// The worker proper wants an end.
    #[error("the run was stopped meanwhile")]
    GivenUp,
    /// Its files.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Its record.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why a guest's memory was not saved.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// There is no memory any more.
    #[error("QEMU has ended")]
    Ended,
    /// The disk is too full.
    #[error("its memory takes {needs} MiB and the disk has {has} MiB free")]
    Room {
        /// Mebibytes that it takes.
        needs: u64,
        /// Mebibytes that there are.
        has: u64,
    },
    /// QEMU could not do it.
    #[error(transparent)]
    Saved(#[from] SavedError),
}

/// Stops a guest and keeps it, as long as that is `wanted`. QEMU has ended then. What is known of
/// it is given with `held`; whether its memory is there is filled in. Returns as well why its
/// memory is not there.
///
/// # Errors
/// If it cannot be kept, or is not wanted any more. It is still a guest to be ended then.
pub fn keep(
    guest: &mut Guest,
    held: HeldGuest,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<(HeldGuest, Option<String>), HoldError> {
    let machines = guest.machines().clone();
    check_number(&machines)?;
    guest.record.advance(&machines, Step::Saving)?;
    halt::at(Step::Saving);
    let draft = Shelf::new(guest.directory()).begin(1)?;
    let without = match save_memory(guest.qemu(), &draft.state(), wanted) {
        Ok(()) => None,
        Err(MemoryError::Saved(SavedError::GivenUp)) => return Err(HoldError::GivenUp),
        Err(error) => Some(chain(&error)),
    };
    guest.qemu().kill();
    let mut kept = guest.kept().clone();
    kept.memory = without.is_none();
    kept.own_disks(guest.directory())?;
    draft.commit(&kept)?;
    let held = HeldGuest { memory: kept.memory, ..held };
    guest.record.hold(&machines, held.clone())?;
    halt::at(Step::Held);
    Ok((held, without))
}

/// Those that came first stay: a person may be on the way to them.
pub fn check_number(machines: &Machines) -> Result<(), HoldError> {
    let held = record::held(machines, SystemTime::now()).len();
    if held < HELD_MAX { Ok(()) } else { Err(HoldError::Full) }
}

/// Saves everything of a guest into a file, whole or not at all. The guest is stopped then.
///
/// # Errors
/// If it cannot be saved, or is not wanted any more.
pub fn save_memory(
    qemu: &mut Qemu,
    state: &Path,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<(), MemoryError> {
    if qemu.child.try_ended().is_some() {
        return Err(MemoryError::Ended);
    }
    check_room(state.parent().unwrap_or(state), resident(qemu.child.pid()).unwrap_or(0))?;
    let until = Instant::now() + SAVE_WITHIN;
    Ok(saved::save_while(&mut qemu.qmp, state, Kind::Whole, until, wanted)?)
}

/// Whether a directory has room for a memory of these many bytes, so that others do not run out of
/// it.
///
/// # Errors
/// If it has not.
pub fn check_room(directory: &Path, memory: u64) -> Result<(), MemoryError> {
    let needs = memory.saturating_add(RESERVE) >> 20;
    let has = free_bytes(directory).unwrap_or(u64::MAX);
    if has >> 20 < needs { Err(MemoryError::Room { needs, has: has >> 20 }) } else { Ok(()) }
}

/// Memory that a process has, in bytes.
fn resident(pid: u32) -> Option<u64> {
    let text = crewboss_ground::kernel_text(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

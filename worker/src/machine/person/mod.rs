//! A person and a guest: getting in ([`enter`]), running a stage of it again ([`retry`]), ending it ([`release`]).
//!
//! These are processes of their own on the host, started by the person's `crewboss`. They belong to no session. A guest that
//! was held runs as a child of such a process, which the kernel kills with it, so nothing outlives the person's visit; what
//! lies on the disk is then as it was before.

mod agent;
mod bridge;
pub mod enter;
pub mod release;
pub mod retry;
mod shown;
mod terminal;
mod visit;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::SystemTime;

use crewboss_protocol::Name;

use super::directory::Machines;
use super::hold::revive::ReviveError;
use super::hold::shelf::ShelfError;
use super::lock::{self, GuestLock, LockError};
use super::record::{GuestRecord, RecordError};

/// Why a person could not do with a guest what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PersonError {
    /// There is none of that name.
    #[error("there is no guest {guest} in {}", machines.display())]
    NoGuest {
        /// The name.
        guest: Name,
        /// The machine directory.
        machines: PathBuf,
    },
    /// It runs a task.
    #[error("the guest {guest} runs a task, which waits for nobody")]
    Runs {
        /// Which.
        guest: Name,
    },
    /// Its owner has died and nobody has swept yet.
    #[error("the guest {guest} was left by a worker that died; the next worker here removes it")]
    Abandoned {
        /// Which.
        guest: Name,
    },
    /// Another person is in it.
    #[error("process {pid} is in the guest {guest}; only one person can be")]
    Entered {
        /// Which.
        guest: Name,
        /// The process.
        pid: u32,
    },
    /// It is being removed, or a person just goes.
    #[error("the guest {guest} is being removed, or somebody is just leaving it")]
    Locked {
        /// Which.
        guest: Name,
    },
    /// Its machine may have no further guest now.
    #[error("as many guests of {machine} run as it may have; wait until one has ended")]
    NoPlace {
        /// The machine.
        machine: Name,
    },
    /// A stage can be retried in a held guest only.
    #[error("the guest {guest} is waiting within its task and is not held; enter it, or release it")]
    NotHeld {
        /// Which.
        guest: Name,
    },
    /// It has no way in of this kind.
    #[error("the guest {guest} has no {what}{hint}")]
    NoWay {
        /// Which.
        guest: Name,
        /// What it lacks.
        what: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Its task does not let anybody in.
    #[error("the task of the guest {guest} does not let anybody in: {why}")]
    Refused {
        /// Which.
        guest: Name,
        /// Why.
        why: String,
    },
    /// The agent does not answer.
    #[error(
        "the agent of the guest {guest} does not {what} in {seconds} s; `crewboss enter --console` shows its console"
    )]
    Silent {
        /// Which.
        guest: Name,
        /// What it should have done.
        what: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// The agent cannot do it.
    #[error("the guest {guest} cannot do it: {why}")]
    Unable {
        /// Which.
        guest: Name,
        /// What it says.
        why: String,
    },
    /// The guest is gone in the middle of something.
    #[error("the guest {guest} ended{how}")]
    Ended {
        /// Which.
        guest: Name,
        /// How, with a comma before it.
        how: String,
    },
    /// Without its memory nobody knows how far it had come.
    #[error(
        "the memory of the guest {guest} was not kept, only its disk; `--wipe` starts with the source unpacked anew"
    )]
    NoMemory {
        /// Which.
        guest: Name,
    },
    /// It does not come back to life.
    #[error("cannot restore the guest {guest}")]
    Revive {
        /// Which.
        guest: Name,
        /// Why.
        #[source]
        source: Box<ReviveError>,
    },
    /// It cannot be put away.
    #[error("cannot keep the guest {guest}")]
    PutAway {
        /// Which.
        guest: Name,
        /// Why.
        #[source]
        source: ShelfError,
    },
    /// Its record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The system.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PersonError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// A guest that nobody else can enter, release or remove meanwhile.
#[derive(Debug)]
struct Claimed {
    record: GuestRecord,
    /// Its lock.
    _lock: GuestLock,
}

/// Takes a guest that is held or waits.
fn claim(machines: &Machines, guest: &Name) -> Result<Claimed, PersonError> {
    let none = || PersonError::NoGuest { guest: guest.clone(), machines: machines.root().to_owned() };
    GuestRecord::load(machines, guest).ok_or_else(none)?;
    let Some(lock) = lock::try_guest(machines, guest)? else {
        return Err(match lock::in_guest(machines, guest) {
            Some(process) => PersonError::Entered { guest: guest.clone(), pid: process.pid },
            None => PersonError::Locked { guest: guest.clone() },
        });
    };
    // Whoever had the lock may have removed it.
    let record = GuestRecord::load(machines, guest).ok_or_else(none)?;
    let guest = guest.clone();
    match (&record.held, &record.waiting) {
        (Some(_), _) => {}
        _ if !record.is_owned() => return Err(PersonError::Abandoned { guest }),
        (None, Some(_)) => {}
        (None, None) => return Err(PersonError::Runs { guest }),
    }
    Ok(Claimed { record, _lock: lock })
}

/// The time in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Says something to the person, on a line of its own even where a terminal is raw.
fn say(text: &str) {
    // A person who has gone hears nothing.
    let _unheard = write!(io::stderr().lock(), "crewboss: {text}\r\n");
}

/// Shows a command that the person may take as it stands.
fn to_type(line: &str) {
    let _unheard = write!(io::stderr().lock(), "  {line}\r\n");
}

#[cfg(test)]
mod tests;

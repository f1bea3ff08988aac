//! A person and a guest: getting in ([`enter`]), running a stage of it again ([`retry`]), ending it
//! ([`release`]).
//!
//! These are processes of their own on the host, started by the person's `crewboss`, to which they
//! speak as [`caller`] says. They belong to no session. A guest that was held runs as a child of
//! such a process, which the kernel kills with it, so nothing outlives the person's visit; what
//! lies on the disk is then as it was before.

mod agent;
mod bridge;
pub mod caller;
mod claim;
pub mod enter;
pub mod release;
pub mod retry;
mod visit;

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use crewboss_machine::books::lock::LockError;
use crewboss_machine::books::record::RecordError;
use crewboss_machine::life::hold::revive::ReviveError;
use crewboss_machine::life::hold::shelf::ShelfError;
use crewboss_protocol::advice::Advice;
use crewboss_protocol::machine::Visitor;
use crewboss_protocol::{HostName, Name};

use claim::{Claimed, claim};

/// Who comes, and to which host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The person, as `user@computer`.
    pub person: String,
    /// What the person's crew calls this host.
    pub host: HostName,
}

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
    #[error(
        "somebody is in the guest {guest}, and only one person can be: {}\n  hint: {} saves what was done there and lets you in",
        .visitor.told(now()), Advice::TakeOver(.host, .guest)
    )]
    Entered {
        /// Which.
        guest: Name,
        /// Who.
        visitor: Visitor,
        /// Where.
        host: HostName,
    },
    /// Whoever is in it belongs to somebody else's account.
    #[error("this user may not end the visit to the guest {guest} of {}", .visitor.told(now()))]
    Foreign {
        /// Which.
        guest: Name,
        /// Who.
        visitor: Visitor,
    },
    /// The person has gone before anything was done.
    #[error("nobody is there any more")]
    Alone,
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
    /// Its task has no such stage.
    #[error("the task of the guest {guest} has no stage {stage}; it has {}", .stages.join(", "))]
    NoStage {
        /// Which.
        guest: Name,
        /// What was asked for.
        stage: Name,
        /// What there is.
        stages: Vec<String>,
    },
    /// It has no way in of this kind.
    #[error("the guest {guest} has no {what}{hint}")]
    NoWay {
        /// Which.
        guest: Name,
        /// What it lacks.
        what: &'static str,
        /// What to do about it.
        hint: String,
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
        "the agent of the guest {guest} does not {what} in {seconds} s\n  hint: {} shows its console",
        Advice::Console(.host, .guest)
    )]
    Silent {
        /// Which.
        guest: Name,
        /// Where.
        host: HostName,
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

/// The time in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;

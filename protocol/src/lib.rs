//! What boss and worker say to each other: messages, ids, limits and the line codec.
//!
//! This crate knows nothing of sockets, processes or git. Everything that arrives from the other
//! side passes through [`codec`] (bounded memory, never a panic), then through the types in [`id`]
//! (which refuse names that could leave a directory), then through [`Validate::validate`].
//! `PROTOCOL.md` beside this crate is the reference for readers; a test holds it against the types.
#![warn(unreachable_pub)]
#![forbid(unsafe_code)]

pub mod advice;
pub mod bulk;
pub mod clean;
pub mod clock;
pub mod codec;
pub mod guest;
pub mod harmless;
pub mod host;
pub mod id;
pub mod json;
pub mod limits;
pub mod machine;
pub mod message;
pub mod outcome;
pub mod overview;
pub mod phase;
pub mod target;
pub mod tree;
pub mod units;
pub mod visit;

pub use clean::{CleanReport, LeftAlone, WhyLeft};
pub use clock::Millis;
pub use host::{Feature, HostFacts, Load, SlotHolder, Toolchain};
pub use id::{Attempt, HostName, Name, RelPath, RunId, SessionId, TaskId, TaskRef, TreeId};
pub use machine::MachineUse;
pub use message::{FromWorker, Invalid, ToWorker, Validate};
pub use outcome::{Outcome, StageExit, StageResult};
pub use phase::{Phase, PhaseClock, Phases};
pub use target::{Command, Environment, Stage, Target};

/// The version of the line protocol. Both sides are always the same build, so this only guards
/// against a worker started by hand; a difference ends the session.
pub const PROTOCOL_VERSION: u32 = 1;

/// The variable that the processes of a session on a host carry, so that whoever ends it finds
/// them.
pub const SESSION_VARIABLE: &str = "CREWBOSS_SESSION";

/// An error and its causes in one line, each said once: how errors travel in messages and stand in
/// logs.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

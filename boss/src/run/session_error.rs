//! Why a session with a host ended, and whether another one makes sense.

use std::io;
use std::time::Duration;

use crewboss_protocol::HostName;
use crewboss_protocol::codec::DecodeError;
use crewboss_protocol::message::{Ending, WorkerErrorKind};

use crate::link::{Exit, LinkError, ShipError, SshFailure, limit_name};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Ship(#[from] ShipError),
    #[error("the worker said something that cannot be taken")]
    Decode(#[source] DecodeError),
    #[error("the worker is another build ({theirs}) than this boss ({ours})")]
    Build { theirs: String, ours: String },
    #[error("the worker did not say `ready` but {got}")]
    NotReady { got: String },
    #[error("the worker gave up: {text}")]
    Worker { kind: WorkerErrorKind, text: String },
    #[error("nothing was heard for {} s{}", after.as_secs(), limit_name(limit))]
    Silent { after: Duration, limit: &'static str },
    #[error("{}", stood_still(*after))]
    OwnStandstill { after: Duration },
    #[error("{reason}")]
    Stuck { reason: String },
    #[error(
        "it says more than {limit} lines in a second for 10 s on end (`messages` in [limits] of crew.toml)"
    )]
    Flood { limit: u32 },
    #[error("{why}")]
    Ending { why: Ending },
    #[error("the worker ended unexpectedly{}", said(stderr))]
    Ended { stderr: String },
    #[error("reading from the worker failed")]
    Read(#[source] io::Error),
    #[error("the source could not be brought there: {text}")]
    Source { text: String, lasting: bool },
    #[error("the boss is done")]
    Quit,
}

/// That a worker ended since this boss was not there for it.
pub(super) fn stood_still(length: Duration) -> String {
    format!(
        "this boss stood still for {} s (it was stopped, or its computer slept), so its worker there ended",
        length.as_secs()
    )
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it wrote: {stderr}") }
}

/// Whether a person has to do something before a connection can stand.
fn is_lasting(error: &LinkError) -> bool {
    match error {
        LinkError::Ssh { why, .. } => matches!(
            why,
            SshFailure::UnknownName
                | SshFailure::Denied
                | SshFailure::HostKeyChanged
                | SshFailure::HostKeyUnknown
                | SshFailure::Algorithms
                | SshFailure::Config
        ),
        LinkError::Lost { .. } | LinkError::Channel { .. } => false,
        LinkError::Destination { .. }
        | LinkError::Start { .. }
        | LinkError::Directory { .. }
        | LinkError::Pipe { .. } => true,
    }
}

impl SessionError {
    /// Whether trying again cannot help.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Link(error) | Self::Ship(ShipError::Link(error)) => is_lasting(error),
            Self::Ship(ShipError::Io { .. }) => false,
            // Killed before it said a word: for want of memory, or by somebody who cleans up.
            Self::Ship(ShipError::NotExecutable { exit, .. }) => matches!(exit, Exit::Code(_)),
            // A shell that says nothing for half a minute will not do so the next time either.
            Self::Ship(_) => true,
            Self::Flood { .. } | Self::Build { .. } | Self::Decode(_) | Self::NotReady { .. } => true,
            Self::Worker { kind, .. } => !matches!(kind, WorkerErrorKind::Internal),
            Self::Source { lasting, .. } => *lasting,
            Self::OwnStandstill { .. } | Self::Stuck { .. } | Self::Ending { .. } => false,
            Self::Silent { .. } | Self::Ended { .. } | Self::Read(_) | Self::Quit => false,
        }
    }

    /// Whether the session ended since we wanted it to.
    pub(super) fn is_quit(&self) -> bool {
        matches!(self, Self::Quit)
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Link(error) => error.hint(),
            Self::Ship(error) => error.hint(),
            Self::Worker { kind: WorkerErrorKind::NoSpace, .. } => {
                Some("make room on the host, or give it another `work` directory in the crew file")
            }
            Self::Worker { kind: WorkerErrorKind::WorkDirectory, .. } => {
                Some("give the host a `work` directory in the crew file that its user can write")
            }
            _ => None,
        }
    }

    /// All that a person should know of it. It is said of a host that is named already.
    pub(crate) fn story(&self, host: &HostName) -> String {
        let text = crate::with_hint(self, self.hint());
        match text.strip_prefix(&format!("host {host}: ")) {
            Some(rest) => rest.to_owned(),
            None => text,
        }
    }
}

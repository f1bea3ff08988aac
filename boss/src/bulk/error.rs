//! What can go wrong on a bulk channel.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crewboss_protocol::HostName;
use crewboss_protocol::bulk::BulkErrorKind;
use crewboss_protocol::codec::DecodeError;

/// Why a bulk request failed. See [`BulkError::spoils_the_channel`].
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// The host says so.
    #[error("host {host}: {}", crate::one_line(text))]
    Remote {
        /// Which host.
        host: HostName,
        /// What kind of failure.
        kind: BulkErrorKind,
        /// Details.
        text: String,
    },
    /// The channel has ended.
    #[error("host {host}: the bulk channel has ended")]
    Lost {
        /// Which host.
        host: HostName,
    },
    /// The host does nothing on it any more.
    #[error("host {host}: the bulk channel stood still for {} s, or nearly so (`{limit}` in [limits] of crew.toml)", after.as_secs())]
    Stalled {
        /// Which host.
        host: HostName,
        /// For how long.
        after: Duration,
        /// The setting that says how long that may be.
        limit: &'static str,
    },
    /// Reading or writing the channel failed.
    #[error("host {host}: the bulk channel broke")]
    Io {
        /// Which host.
        host: HostName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came is no answer.
    #[error("host {host}: a bulk answer cannot be understood")]
    Decode {
        /// Which host.
        host: HostName,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The host said something that does not fit, or sent what breaks a rule.
    #[error("host {host}: {what}")]
    Rule {
        /// Which host.
        host: HostName,
        /// What it did.
        what: String,
    },
    /// An artifact's data does not have the checksum that came with it.
    #[error("host {host}: artifact {name} arrived damaged: its checksum differs")]
    Checksum {
        /// Which host.
        host: HostName,
        /// Which artifact.
        name: String,
    },
    /// More or less data than announced.
    #[error("host {host}: {what} was announced with {announced} bytes, and {bytes} came")]
    Length {
        /// Which host.
        host: HostName,
        /// Of what.
        what: String,
        /// As announced.
        announced: u64,
        /// As received, as far as it was.
        bytes: u64,
    },
    /// A file that a host or a task made is none that can be here, mostly for its name: not this
    /// computer's failure.
    #[error("host {host}: artifact {name} cannot be stored here")]
    Unstorable {
        /// Which host.
        host: HostName,
        /// Which artifact.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of ours cannot be written.
    #[error("cannot write {}", path.display())]
    Local {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log cannot be written here.
    #[error("cannot write the log that arrives")]
    Sink(#[source] io::Error),
    /// The pack could not be made.
    #[error("cannot make the pack of source objects")]
    Produce(#[source] io::Error),
    /// An earlier request left the channel in the middle of something.
    #[error("host {host}: the bulk channel cannot be used after an earlier failure")]
    Spoilt {
        /// Which host.
        host: HostName,
    },
}

impl BulkError {
    /// Whether the channel must be dropped and another opened.
    pub fn spoils_the_channel(&self) -> bool {
        !matches!(self, BulkError::Remote { .. } | BulkError::Produce(_))
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            BulkError::Remote { kind: BulkErrorKind::NoSpace, .. } => {
                Some("make room on the host, or give it another `work` directory in the crew file")
            }
            BulkError::Local { source, .. } | BulkError::Sink(source)
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                Some("make room on this computer, or choose another directory by --out")
            }
            _ => None,
        }
    }
}

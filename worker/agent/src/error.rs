//! Why the agent cannot do something. The host gets it as text.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crewboss_host::tar::TarError;
use crewboss_host::text::shortened;
use crewboss_protocol::chain;
use crewboss_protocol::guest::{DocumentError, FromGuest};
use crewboss_protocol::id::Name;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("no port {name:?} below /sys/class/virtio-ports within {} s: is the driver virtio_console loaded?", within.as_secs())]
    NoPort { name: &'static str, within: Duration },
    #[error("no disk with the serial number {serial:?} below /sys/block: is the driver virtio_blk loaded?")]
    NoDisk { serial: &'static str },
    #[error("cannot read the source on {}", path.display())]
    Source {
        path: PathBuf,
        #[source]
        source: TarError,
    },
    #[error("the source has an entry that would lie outside of it: {name:?}")]
    Outside { name: String },
    #[error("the disk {} for artifacts is full; it has {size} bytes", path.display())]
    ResultDisk { path: PathBuf, size: u64 },
    #[error("cannot read the task")]
    Document(#[source] DocumentError),
    #[error("there is no task yet")]
    NoTask,
    #[error("the task has no stage {name}")]
    NoStage { name: Name },
    #[error("the agent is busy: {what}")]
    Busy { what: &'static str },
    #[error("{what} was stopped")]
    Stopped { what: &'static str },
    #[error("some processes of {what} live on after SIGKILL")]
    Unkillable { what: String },
    #[error("{} cannot be started", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} ended with {exit}", program.display())]
    Ended { program: PathBuf, exit: crewboss_protocol::StageExit },
    #[error(
        "the process that was to {what} was killed, by the stage itself or since the guest is out of memory"
    )]
    Died { what: &'static str },
    #[error("the host sent something that is no message")]
    Line(#[source] crewboss_protocol::codec::DecodeError),
    #[error("no network device has the address {mac}: is the driver virtio_net loaded?")]
    NoDevice { mac: String },
    #[error("the identity's {what} is {value:?}, which cannot be one")]
    Identity { what: &'static str, value: String },
}

impl AgentError {
    /// An error with the path that it happened at.
    pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// As the message to the host.
    pub(super) fn told(&self) -> FromGuest {
        FromGuest::Failed { text: shortened(chain(self)), full: matches!(self, Self::ResultDisk { .. }) }
    }
}

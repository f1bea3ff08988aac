//! Why an environment cannot be made or removed.

use std::io;
use std::path::{Path, PathBuf};

use crewboss_host::storage::is_no_space;
use crewboss_protocol::TreeId;
use crewboss_protocol::message::Refusal;

use crate::source::SourceError;
use crate::source::archive::SourceArchiveError;

/// Why an environment cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// The source has not been checked out here, or was removed.
    #[error("the source of tree {tree} is not on this host")]
    NoSource {
        /// The tree.
        tree: TreeId,
    },
    /// The source of a warm directory cannot be brought to the wanted tree.
    #[error("cannot update the source in {}", path.display())]
    Update {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// The source cannot be made into a disk for guests.
    #[error("cannot make a disk for guests of the source of tree {tree}")]
    Archive {
        /// The tree.
        tree: TreeId,
        /// Why.
        #[source]
        source: SourceArchiveError,
    },
    /// The file system refuses.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl EnvError {
    /// How to report it to the boss.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoSource { .. } => Refusal::NoSource,
            Self::Update { source, .. } if source.is_no_space() => Refusal::NoSpace,
            Self::Io { source, .. } if is_no_space(source) => Refusal::NoSpace,
            Self::Archive { source, .. } if source.is_no_space() => Refusal::NoSpace,
            Self::Update { .. } | Self::Archive { .. } | Self::Io { .. } => Refusal::Environment,
        }
    }

    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

//! What can be wrong with a machine's directory.

use std::io;
use std::path::{Path, PathBuf};

use crewboss_protocol::Name;

use crate::images::manifest::ManifestError;

/// Why a machine cannot be used, or its copy not be made.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// No volume has it.
    #[error("there is no machine {name} in {}", root.display())]
    NoMachine {
        /// The machine directory.
        root: PathBuf,
        /// The machine's name.
        name: Name,
    },
    /// It is there and is not used.
    #[error("cannot use {}: {why}", path.display())]
    Unfit {
        /// Where.
        path: PathBuf,
        /// Why, with what helps.
        why: String,
    },
    /// Something cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its link is not there: an operator took it out of use.
    #[error("the machine is withdrawn: {} is not there", link.display())]
    Withdrawn {
        /// Where the link was.
        link: PathBuf,
    },
    /// A file or directory has the name of the link.
    #[error("{} is not a symbolic link", link.display())]
    NoLink {
        /// Where the link should be.
        link: PathBuf,
    },
    /// It leads out of the machine's directory, or to something that is no revision.
    #[error("{} leads to {}: {why}", link.display(), target.display())]
    Target {
        /// The link.
        link: PathBuf,
        /// What it says.
        target: PathBuf,
        /// What is wrong with that.
        why: &'static str,
    },
    /// Its target does not exist.
    #[error("{} leads nowhere: {} is not there", link.display(), target.display())]
    Nowhere {
        /// The link.
        link: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// An ordinary directory, or a file, or something on another file system.
    #[error("{} is not a btrfs subvolume", path.display())]
    NoSubvolume {
        /// Which.
        path: PathBuf,
    },
    /// It changed each time just while a snapshot of it was made.
    #[error("{} was replaced {tries} times while a snapshot of it was made", path.display())]
    Restless {
        /// Which.
        path: PathBuf,
        /// How often it was tried.
        tries: u32,
    },
    /// A snapshot cannot be made.
    #[error("cannot make a snapshot of {} as {}", from.display(), to.display())]
    Snapshot {
        /// Of what.
        from: PathBuf,
        /// Where.
        to: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There is no copy for this toolchain.
    #[error("the machine is not bootstrapped: {} is not there", path.display())]
    NotBootstrapped {
        /// Where the copy would be.
        path: PathBuf,
    },
    /// What the copy says of itself is no record.
    #[error("{} is damaged", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Something cannot be written or renamed.
    #[error("cannot {what} {}", path.display())]
    Write {
        /// What was to be done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name would make a copy look like something else.
    #[error("no toolchain can be called {name}")]
    ToolchainName {
        /// The name.
        name: Name,
    },
}

impl DirectoryError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Read { path: path.to_owned(), source }
    }

    pub(super) fn write<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Write { what, path: path.to_owned(), source }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoMachine { .. } => Some("`crewboss machines` lists what the host has"),
            Self::Withdrawn { .. } => Some("publish a revision: `ln -sfn NAME-1.R NAME-1`"),
            Self::NoLink { .. } => Some("name the revision NAME-1.R and link NAME-1 to it"),
            Self::Target { .. } => {
                Some("the link holds nothing but the name of a revision beside it: `ln -sfn NAME-1.R NAME-1`")
            }
            Self::Nowhere { .. } => Some("link to a revision that is there, or remove the link"),
            Self::NoSubvolume { .. } => {
                Some("a revision is made with `btrfs subvolume create` or `btrfs subvolume snapshot`")
            }
            Self::Restless { .. } => Some("replace revisions less often"),
            Self::Manifest(error) => error.hint(),
            Self::NotBootstrapped { .. } => Some("`crewboss machines bootstrap` makes the copy"),
            Self::ToolchainName { .. } => Some(super::TOOLCHAIN_NAME_HINT),
            Self::Unfit { .. }
            | Self::Read { .. }
            | Self::Snapshot { .. }
            | Self::Record { .. }
            | Self::Write { .. } => None,
        }
    }

    /// Whether it is the host that fails, and not the machine that is not as it should be.
    pub fn is_of_host(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Snapshot { .. } | Self::Write { .. })
    }

    /// Whether the file system was full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Snapshot { source, .. } | Self::Write { source, .. } | Self::Read { source, .. } => {
                crewboss_host::storage::is_no_space(source)
            }
            _ => false,
        }
    }
}

//! What is to be built: targets at commits, and what each needs of a host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crewboss_protocol::{Feature, Name, Target};

/// Which commits to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The working tree as it is on disk: uncommitted and untracked files included, ignored ones
    /// not.
    WorkingTree,
    /// A git revision (`HEAD`, a tag, an id) or range (`a..b`).
    Range(String),
}

/// A target of the build file, with what only the boss needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPlan {
    /// What the worker is told.
    pub target: Target,
    /// What a host must have, besides the target's toolchain.
    pub needs: Needs,
    /// Higher goes first; 0 is ordinary.
    pub priority: u32,
}

/// What a host must have.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    /// Features found by the worker's probe.
    pub features: BTreeSet<Feature>,
    /// Tags given to the host in the crew file.
    pub tags: BTreeSet<Name>,
    /// Memory of the host in bytes.
    pub memory: u64,
    /// Free space on the host in bytes.
    pub disk: u64,
}

/// What takes uploads of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadCommand {
    /// The program and its arguments. No shell looks at them.
    pub words: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// What is done at the boss with the uploads of tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uploads {
    /// Where commands are run.
    pub directory: PathBuf,
    /// The commands by type. An upload of another type is only brought back.
    pub commands: BTreeMap<Name, UploadCommand>,
}

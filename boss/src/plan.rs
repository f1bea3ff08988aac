//! What is to be built: targets at commits, and what each needs of a host.

use std::collections::BTreeSet;

use crewboss_protocol::{Feature, Name, Target};

/// Which commits to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The working tree as it is on disk: uncommitted and untracked files included, ignored ones not.
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

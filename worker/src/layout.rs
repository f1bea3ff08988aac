//! Where everything lies below the work directory of a host.

use std::path::{Path, PathBuf};

use crewboss_protocol::{SessionId, TaskRef, TreeId};

/// The paths below one work directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    work: PathBuf,
}

impl Layout {
    /// The layout below an absolute directory, which need not exist yet.
    pub fn new(work: PathBuf) -> Self {
        Self { work }
    }

    /// The work directory itself.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The bare repository that bosses push into.
    pub fn objects(&self) -> PathBuf {
        self.work.join("objects.git")
    }

    /// The directory of all checked-out trees.
    pub fn sources(&self) -> PathBuf {
        self.work.join("sources")
    }

    /// One checked-out tree.
    pub fn source(&self, tree: TreeId) -> PathBuf {
        self.sources().join(tree.to_string())
    }

    /// The directory of all sessions.
    pub fn tasks(&self) -> PathBuf {
        self.work.join("tasks")
    }

    /// Everything of one session.
    pub fn session(&self, session: &SessionId) -> PathBuf {
        self.tasks().join(session.as_str())
    }

    /// Everything of one attempt.
    pub fn attempt(&self, session: &SessionId, at: TaskRef) -> PathBuf {
        self.session(session).join(at.to_string())
    }

    /// The directory of lock files.
    pub fn locks(&self) -> PathBuf {
        self.work.join("locks")
    }

    /// The directory of all warm build directories.
    pub fn warm_root(&self) -> PathBuf {
        self.work.join("warm")
    }

    /// The warm build directory under one key.
    pub fn warm(&self, key: &str) -> PathBuf {
        self.warm_root().join(key)
    }

    /// What earlier probes found out.
    pub fn probe_cache(&self) -> PathBuf {
        self.work.join("probe.json")
    }
}

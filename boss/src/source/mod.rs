//! The source: which commits are meant, and which objects a host lacks.
//!
//! Only trees and blobs travel. A host gets neither commits nor history, and needs no git. Everything here blocks
//! while it reads the repository: call it on a thread that may wait.

mod check;
mod error;
mod missing;
mod pack;
mod select;
mod working_tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crewboss_protocol::TreeId;
use git2::{Oid, Repository};
use tempfile::TempDir;

use crate::plan::Selection;
pub use error::SourceError;
pub use missing::Missing;
pub use pack::PackStats;

/// One commit to build, or the working tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The commit's id; of the working tree, the id of its tree.
    pub id: TreeId,
    /// What is built.
    pub tree: TreeId,
    /// The id's first digits, as many as git shows.
    pub short: String,
    /// The first line of its message. May have any characters but controls.
    pub subject: String,
    /// When it was committed, in seconds since 1970.
    pub time: i64,
    /// Whether it is the working tree as it is on disk.
    pub working_tree: bool,
}

/// What a selection means, and the objects that go with it. Clones are cheap and can be used on several threads.
#[derive(Debug, Clone)]
pub struct Source {
    /// The repository with all objects: the user's own, or one beside it that holds what only the disk has.
    git_dir: PathBuf,
    commits: Vec<Commit>,
    _scratch: Option<Arc<TempDir>>,
}

impl Source {
    /// Finds the repository that a path is in, resolves the selection and checks that all of it can be sent. Neither
    /// index nor branches nor stash nor objects of the repository are changed.
    ///
    /// # Errors
    /// If there is no usable repository, the selection names nothing, or the source has submodules or files that are
    /// kept by Git LFS.
    pub fn open(path: &Path, selection: &Selection) -> Result<Self, SourceError> {
        let repository = discover(path)?;
        let source = match selection {
            Selection::Range(range) => {
                let commits = select::range(&repository, range)?;
                Self { git_dir: repository.path().to_owned(), commits, _scratch: None }
            }
            Selection::WorkingTree => {
                let (scratch, commit) = working_tree::take(&repository)?;
                let git_dir = scratch.path().to_owned();
                Self { git_dir, commits: vec![commit], _scratch: Some(Arc::new(scratch)) }
            }
        };
        let repository = source.repository()?;
        check::all(&repository, &source.commits)?;
        Ok(source)
    }

    /// The commits, oldest first.
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// The objects of the wanted trees that a host lacks which has these other trees, whole.
    ///
    /// Objects that are elsewhere in what the host has may be listed as well; that costs time and nothing else.
    ///
    /// # Errors
    /// If an object is not in the repository (it is shallow or partial) or cannot be read.
    pub fn missing(&self, wanted: &[TreeId], have: &[TreeId]) -> Result<Missing, SourceError> {
        missing::find(&self.repository()?, wanted, have)
    }

    /// Writes a git pack with these objects.
    ///
    /// # Errors
    /// If an object cannot be read, or `out` fails.
    pub fn pack(&self, missing: &Missing, out: &mut dyn std::io::Write) -> Result<PackStats, SourceError> {
        pack::write(&self.git_dir, missing, out)
    }

    fn repository(&self) -> Result<Repository, SourceError> {
        Repository::open(&self.git_dir).map_err(|error| SourceError::open(&self.git_dir, error))
    }
}

fn discover(path: &Path) -> Result<Repository, SourceError> {
    Repository::discover(path).map_err(|error| SourceError::open(path, error))
}

fn tree_id(id: Oid) -> TreeId {
    let mut bytes = [0; 20];
    bytes.copy_from_slice(id.as_bytes());
    TreeId(bytes)
}

fn oid(id: TreeId) -> Result<Oid, SourceError> {
    Oid::from_bytes(&id.0)
        .map_err(|source| SourceError::Git { doing: "read an object id", source: source.into() })
}

#[cfg(test)]
mod tests;

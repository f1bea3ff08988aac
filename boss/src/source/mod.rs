//! The source: which commits are meant, and which objects a host lacks.
//!
//! Only trees and blobs travel. A host gets neither commits nor history, and needs no git.
//! Everything here blocks while it reads the repository: call it on a thread that may wait.

mod check;
mod error;
mod git;
mod known;
mod library;
mod long;
mod missing;
mod pack;
mod place;
mod scratch;
mod select;
mod user;
mod working_tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crewboss_protocol::TreeId;
use git2::{Oid, Repository};

use crate::plan::Selection;
use error::Lack;
pub use error::SourceError;
use missing::Long;
pub use missing::Missing;
pub use pack::PackStats;
pub use place::{bare_repository_of, is_accepted_by_git, repository_of};
use scratch::Scratch;
use user::User;

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

/// What a selection means, and the objects that go with it. Clones are cheap and can be used on
/// several threads.
#[derive(Debug, Clone)]
pub struct Source {
    commits: Vec<Commit>,
    long: Arc<Long>,
    /// The repository beside the user's own, with all objects.
    scratch: Arc<Scratch>,
}

/// Something that git would list.
#[derive(Debug)]
struct Listed {
    /// Below the top of the working tree.
    path: Vec<u8>,
    /// What the index has, if it is tracked.
    mode: Option<u32>,
    /// Whether it is a repository of its own.
    nested: bool,
}

impl Listed {
    fn tracked(path: Vec<u8>, mode: u32) -> Self {
        const SUBMODULE: u32 = 0o160_000;
        Self { path, mode: Some(mode), nested: mode == SUBMODULE }
    }
}

/// What of the user's configuration has a meaning here.
#[derive(Debug)]
struct Settings {
    /// Digits of a short id, if not as many as are needed.
    abbrev: Option<u32>,
    /// Whether the disk knows which files may be executed.
    trust_modes: bool,
    /// By what objects are named, if not by SHA-1.
    object_format: Option<String>,
    /// Whether objects are fetched when they are needed.
    partial: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { abbrev: None, trust_modes: true, object_format: None, partial: false }
    }
}

impl Settings {
    const NAMES: [&str; 4] =
        ["core.abbrev", "core.filemode", "extensions.objectformat", "extensions.partialclone"];

    fn take(&mut self, name: &str, value: &str) {
        match name {
            "core.abbrev" => self.abbrev = value.parse().ok(),
            "core.filemode" => {
                self.trust_modes = !["false", "no", "off", "0", ""].contains(&&*value.to_lowercase())
            }
            "extensions.objectformat" => self.object_format = Some(value.to_owned()).filter(|f| f != "sha1"),
            "extensions.partialclone" => self.partial = true,
            _ => self.partial |= name.ends_with(".promisor"),
        }
    }

    fn lack(&self, objects: &Path) -> Lack {
        if objects.with_file_name("shallow").exists() {
            Lack::Shallow
        } else if self.partial {
            Lack::Partial
        } else {
            Lack::Damaged
        }
    }
}

impl Source {
    /// Finds the repository that a path is in, resolves the selection and checks that all of it can
    /// be sent. Neither index nor branches nor stash nor objects of the repository are changed.
    ///
    /// # Errors
    /// If there is no usable repository, the selection names nothing, or the source has submodules
    /// or files that are kept by Git LFS.
    pub fn open(path: &Path, selection: &Selection) -> Result<Self, SourceError> {
        let top = repository_of(path).unwrap_or_else(|| path.to_owned());
        Self::of(&User::at(&top)?, top, selection)
    }

    fn of(user: &User, top: PathBuf, selection: &Selection) -> Result<Self, SourceError> {
        let settings = user.settings()?;
        if let Some(format) = settings.object_format.clone() {
            return Err(SourceError::ObjectFormat { top, format });
        }
        let scratch = Scratch::new(&user.objects()?, &settings)?;
        Self::taken(user, &top, &settings, scratch, selection)
    }

    fn taken(
        user: &User,
        top: &Path,
        settings: &Settings,
        scratch: Scratch,
        selection: &Selection,
    ) -> Result<Self, SourceError> {
        let taken = open(scratch.path()).and_then(|beside| {
            let commits = match selection {
                Selection::Range(range) => select::commits(&beside, range, user.commits(range)?)?,
                Selection::WorkingTree => vec![user.working_tree(top, &beside, settings.trust_modes)?],
            };
            check::all(&beside, &commits).map(|long| (commits, long))
        });
        let lack = |error: SourceError| match user.objects() {
            Ok(objects) => error.of_lack(settings.lack(&objects)),
            Err(_) => error,
        };
        let (commits, long) = taken.map_err(lack)?;
        Ok(Self { commits, long: Arc::new(long), scratch: Arc::new(scratch) })
    }

    /// The commits, oldest first.
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// The objects of the wanted trees that a host lacks which has these other trees, whole.
    ///
    /// Objects that are elsewhere in what the host has may be listed as well; that costs time and
    /// nothing else.
    ///
    /// # Errors
    /// If an object is not in the repository (it is shallow or partial) or cannot be read.
    pub fn missing(&self, wanted: &[TreeId], have: &[TreeId]) -> Result<Missing, SourceError> {
        missing::find(&self.repository()?, &self.long, wanted, have)
    }

    /// Writes a git pack with these objects.
    ///
    /// # Errors
    /// If an object cannot be read, or `out` fails.
    pub fn pack(&self, missing: &Missing, out: &mut dyn std::io::Write) -> Result<PackStats, SourceError> {
        pack::write(self.scratch.path(), missing, out)
    }

    /// Writes the content of a file that is too long to be packed, piece by piece.
    ///
    /// # Errors
    /// As for a pack.
    pub fn write(&self, id: TreeId, out: &mut dyn std::io::Write) -> Result<(), SourceError> {
        long::write(self.scratch.path(), oid(id)?, out)
    }

    fn repository(&self) -> Result<Repository, SourceError> {
        open(self.scratch.path())
    }
}

fn open(scratch: &Path) -> Result<Repository, SourceError> {
    Repository::open(scratch)
        .map_err(|source| SourceError::Keep { path: scratch.to_owned(), source: source.into() })
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
mod disk_tests;
#[cfg(test)]
mod tests;

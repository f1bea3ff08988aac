//! The user's repository: asked by `git` if it is installed, else by libgit2.

use std::path::{Path, PathBuf};
use std::sync::Once;

use git2::{ConfigLevel, Oid, Repository};

use super::error::SourceError;
use super::git::{Git, as_path};
use super::known::{Filtered, Known};
use super::library::{Library, is_same};
use super::{Commit, Listed, Settings, select, working_tree};

/// Whoever is asked.
pub(super) enum User {
    Git(Git),
    Library(Library),
}

impl User {
    pub(super) fn at(top: &Path) -> Result<Self, SourceError> {
        match Git::at(top) {
            Some(git) => {
                ignore_foreign_settings();
                Ok(Self::Git(git))
            }
            None => Library::at(top).map(Self::Library),
        }
    }

    pub(super) fn settings(&self) -> Result<Settings, SourceError> {
        match self {
            Self::Git(git) => git.settings(),
            Self::Library(library) => library.settings(),
        }
    }

    pub(super) fn objects(&self) -> Result<PathBuf, SourceError> {
        match self {
            Self::Git(git) => git.objects(),
            Self::Library(library) => Ok(library.objects()),
        }
    }

    /// The commits that a text means, the oldest first.
    pub(super) fn commits(&self, range: &str) -> Result<Vec<Oid>, SourceError> {
        let revisions = select::revisions(range);
        if let Some(option) = revisions.iter().find(|revision| revision.starts_with('-')) {
            return Err(SourceError::Option { range: range.to_owned(), option: option.clone() });
        }
        match self {
            Self::Git(git) => git.commits(range, &revisions),
            Self::Library(library) => library.commits(range),
        }
    }

    /// Takes the working tree, which must be the directory that has the `.git`: around a git
    /// directory that lies elsewhere there may be anything.
    pub(super) fn working_tree(
        &self,
        top: &Path,
        beside: &Repository,
        trust_modes: bool,
    ) -> Result<Commit, SourceError> {
        let (tree, index) = match self {
            Self::Git(git) => (git.working_tree()?, git.index()?),
            Self::Library(library) => (library.working_tree()?, library.index()),
        };
        if !is_same(&tree, top) {
            return Err(SourceError::Elsewhere { top: top.to_owned(), tree });
        }
        let mut listed = self.list()?;
        leave_out(beside.path(), top, &mut listed);
        let filtered = self.filtered(&listed)?;
        working_tree::take(beside, top, listed, Known::read(&index, filtered), trust_modes)
    }

    fn list(&self) -> Result<Vec<Listed>, SourceError> {
        match self {
            Self::Git(git) => git.list(),
            Self::Library(library) => library.list(),
        }
    }

    fn filtered(&self, listed: &[Listed]) -> Result<Filtered, SourceError> {
        let tracked = listed.iter().filter(|file| file.mode.is_some());
        let paths: Vec<&[u8]> = tracked.map(|file| file.path.as_slice()).collect();
        match self {
            Self::Git(git) => git.filtered(&paths),
            Self::Library(library) => library.filtered(&paths),
        }
    }
}

/// Leaves out the files of the repository beside the user's: TMPDIR may lie within the working
/// tree.
fn leave_out(beside: &Path, top: &Path, listed: &mut Vec<Listed>) {
    let (Ok(beside), Ok(top)) = (beside.canonicalize(), top.canonicalize()) else { return };
    if let Ok(below) = beside.strip_prefix(top) {
        listed.retain(|file| !as_path(&file.path).starts_with(below));
    }
}

/// With every repository, libgit2 reads the settings of the user and of the system, and fails where
/// it may not. Where `git` answers for the user's repository, libgit2 only opens ours.
fn ignore_foreign_settings() {
    static IGNORED: Once = Once::new();
    IGNORED.call_once(|| {
        for level in [ConfigLevel::ProgramData, ConfigLevel::System, ConfigLevel::XDG, ConfigLevel::Global] {
            // SAFETY: libgit2 reads these paths when it opens a repository. It opens none before
            // this: only `Source` does, and it comes through here first, one thread at a time.
            #[expect(unsafe_code, reason = "it changes a setting of the whole process")]
            let set = unsafe { git2::opts::set_search_path(level, "") };
            if let Err(error) = set {
                tracing::debug!(%error, "libgit2 goes on reading settings of others");
            }
        }
    });
}

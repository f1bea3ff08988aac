//! What libgit2 knows of the user's repository, for computers without `git`.
//!
//! It is poorer: what it cannot read as git would (some kinds of index and of branches), it
//! refuses, and so do we.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use git2::{
    AttrCheckFlags, Delta, DiffOptions, ErrorCode, Index, Oid, Repository, RepositoryOpenFlags, RevparseMode,
    Sort,
};

use super::error::SourceError;
use super::git::as_path;
use super::known::Filtered;
use super::select::COMMITS_MAX;
use super::{Listed, Settings};

/// Asks about one repository.
pub(super) struct Library {
    repository: Repository,
    top: PathBuf,
}

impl Library {
    /// For the repository in a directory.
    pub(super) fn at(top: &Path) -> Result<Self, SourceError> {
        let above: [&Path; 0] = [];
        let repository = Repository::open_ext(top, RepositoryOpenFlags::NO_SEARCH, above);
        let repository = repository.map_err(|error| SourceError::open(top, error))?;
        Ok(Self { repository, top: top.to_owned() })
    }

    fn failed(&self, source: git2::Error) -> SourceError {
        SourceError::Open { path: self.top.clone(), source: source.into() }
    }

    pub(super) fn objects(&self) -> PathBuf {
        self.repository.commondir().join("objects")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.repository.path().join("index")
    }

    /// Where the repository says that the working tree is.
    pub(super) fn working_tree(&self) -> Result<PathBuf, SourceError> {
        if self.repository.is_bare() {
            return Err(SourceError::Bare);
        }
        let config = self.repository.config().map_err(|error| self.failed(error))?;
        let named = config.get_path("core.worktree").ok();
        Ok(named.map_or_else(|| self.top.clone(), |path| self.repository.path().join(path)))
    }

    pub(super) fn settings(&self) -> Result<Settings, SourceError> {
        let config = self.repository.config().map_err(|error| self.failed(error))?;
        let mut settings = Settings::default();
        for name in Settings::NAMES {
            if let Ok(value) = config.get_string(name) {
                settings.take(name, &value);
            }
        }
        Ok(settings)
    }

    pub(super) fn list(&self) -> Result<Vec<Listed>, SourceError> {
        let path = self.index();
        let mut found = Vec::new();
        // One that is there and cannot be read must not be taken for none: files that were added
        // would be missing.
        if path.symlink_metadata().is_ok() {
            let index = Index::open(&path)
                .map_err(|source| SourceError::Index { path: path.clone(), source: source.into() })?;
            found.extend(index.iter().map(|entry| Listed::tracked(entry.path, entry.mode)));
        }
        self.repository.set_workdir(&self.top, false).map_err(|error| self.failed(error))?;
        self.list_rest(&mut found).map_err(|error| self.failed(error))?;
        Ok(found)
    }

    /// Compared with an empty index, everything that is not ignored is new, and no file is read to
    /// find that out.
    fn list_rest(&self, found: &mut Vec<Listed>) -> Result<(), git2::Error> {
        let nothing = Index::new()?;
        let mut options = DiffOptions::new();
        options.include_ignored(true).include_untracked(true).recurse_untracked_dirs(true);
        let differences = self.repository.diff_index_to_workdir(Some(&nothing), Some(&mut options))?;
        for delta in differences.deltas() {
            let Some(path) = delta.new_file().path_bytes() else { continue };
            let path = path.strip_suffix(b"/").unwrap_or(path);
            let nested = self.top.join(as_path(path)).join(".git").exists();
            // A repository in the working tree comes as an ignored directory, though no rule
            // ignores it.
            let passed = delta.status() == Delta::Ignored
                && (!nested || self.repository.is_path_ignored(as_path(path))?);
            if !passed {
                found.push(Listed { path: path.to_owned(), mode: None, nested });
            }
        }
        Ok(())
    }

    pub(super) fn filtered(&self, paths: &[&[u8]]) -> Result<Filtered, SourceError> {
        let mut filtered = Filtered::new();
        for path in paths {
            for name in super::git::FILTERS {
                let value = self
                    .repository
                    .get_attr_bytes(&as_path(path), name, AttrCheckFlags::FILE_THEN_INDEX)
                    .map_err(|error| self.failed(error))?;
                if value.is_some() {
                    filtered.insert(path.to_vec());
                }
            }
        }
        Ok(filtered)
    }

    /// The commits that a revision or a range means, the oldest first.
    pub(super) fn commits(&self, range: &str) -> Result<Vec<Oid>, SourceError> {
        let repository = &self.repository;
        if repository.is_empty().unwrap_or(false) {
            return Err(SourceError::NoCommits);
        }
        let failed = |source: git2::Error| match source.code() {
            ErrorCode::UnbornBranch => SourceError::NoCommits,
            _ => SourceError::range(range, source),
        };
        let form = || SourceError::RangeForm(range.to_owned());
        if range.contains("...") || range.contains(char::is_whitespace) {
            return Err(form());
        }
        let spec = repository.revparse(range).map_err(failed)?;
        let from = spec.from().ok_or_else(form)?.peel_to_commit().map_err(failed)?;
        if spec.mode().contains(RevparseMode::SINGLE) {
            return Ok(vec![from.id()]);
        }
        let to = spec.to().ok_or_else(form)?.peel_to_commit().map_err(failed)?;
        let walk = || {
            let mut walk = repository.revwalk()?;
            walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE)?;
            walk.push(to.id())?;
            walk.hide(from.id())?;
            walk.take(COMMITS_MAX + 1).collect::<Result<Vec<_>, _>>()
        };
        walk().map_err(|error: git2::Error| super::select::absent_or(error, "walk the commits"))
    }
}

/// Whether two paths lead to the same directory.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

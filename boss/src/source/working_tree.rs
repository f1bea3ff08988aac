//! The working tree as it is on disk, as a git tree.
//!
//! Nothing of the user's repository is written. A bare repository is made in a temporary directory that sees the
//! user's objects as alternates and takes the new ones; it also lets several threads, and git itself, pack from it.
//! The user's index is read as a copy in memory: its record of file times saves reading files that have not changed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use git2::{Delta, DiffOptions, Index, IndexAddOption, Repository, RepositoryInitOptions};
use tempfile::TempDir;

use super::error::SourceError;
use super::{Commit, tree_id};

/// Digits of an id that people see.
const SHORT_DIGITS: usize = 10;

/// Takes the working tree. The directory holds its objects and is removed when dropped.
pub(super) fn take(repository: &Repository) -> Result<(TempDir, Commit), SourceError> {
    let directory = repository.workdir().ok_or(SourceError::Bare)?;
    let scratch = make_scratch(repository)?;
    let failed =
        |source: git2::Error| SourceError::WorkingTree { path: directory.to_owned(), source: source.into() };
    let beside = Repository::open(scratch.path()).map_err(failed)?;
    beside.set_workdir(directory, false).map_err(failed)?;
    let mut index = known_files(repository).map_err(failed)?;
    beside.set_index(&mut index).map_err(failed)?;
    // Takes untracked files in, and takes out what is gone.
    index.add_all(["*"], IndexAddOption::DEFAULT, None).map_err(failed)?;
    refuse_nested(&beside, directory, &index)?;
    let tree = index.write_tree_to(&beside).map_err(failed)?;
    let id = tree_id(tree);
    let short = tree.to_string().chars().take(SHORT_DIGITS).collect();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let commit = Commit {
        id,
        tree: id,
        short,
        subject: "working tree".to_owned(),
        time: i64::try_from(time).unwrap_or(i64::MAX),
        working_tree: true,
    };
    Ok((scratch, commit))
}

/// libgit2 passes silently over a repository inside the working tree that is no submodule. A build that misses a
/// directory without a word is worse than one that is refused.
fn refuse_nested(beside: &Repository, workdir: &Path, index: &Index) -> Result<(), SourceError> {
    let failed = |source: git2::Error| SourceError::Git {
        doing: "look for nested repositories",
        source: source.into(),
    };
    let mut options = DiffOptions::new();
    options.include_ignored(true).include_untracked(true).recurse_untracked_dirs(true);
    let found = beside.diff_index_to_workdir(Some(index), Some(&mut options)).map_err(failed)?;
    for delta in found.deltas() {
        let file = delta.new_file();
        let Some(path) = file.path().filter(|_| delta.status() == Delta::Ignored) else { continue };
        // It comes as an ignored directory, though no rule ignores it.
        let nested = workdir.join(path).join(".git").exists();
        if nested && !beside.is_path_ignored(path).map_err(failed)? {
            let path = path.to_string_lossy().trim_end_matches('/').to_owned();
            return Err(SourceError::Submodule { commit: "working tree".to_owned(), path });
        }
    }
    Ok(())
}

/// What git tracks, with file times if the index can be read here, else only with content.
fn known_files(repository: &Repository) -> Result<Index, git2::Error> {
    let path = repository.path().join("index");
    if path.exists()
        && let Ok(index) = Index::open(&path)
    {
        return Ok(index);
    }
    let mut index = Index::new()?;
    if let Ok(tree) = repository.head().and_then(|head| head.peel_to_tree()) {
        index.read_tree(&tree)?;
    }
    Ok(index)
}

fn make_scratch(repository: &Repository) -> Result<TempDir, SourceError> {
    let scratch = tempfile::Builder::new()
        .prefix("crewboss-source-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(SourceError::Scratch)?;
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false);
    Repository::init_opts(scratch.path(), &options)
        .map_err(|source| SourceError::Git { doing: "make a temporary repository", source: source.into() })?;
    lend(repository.commondir(), scratch.path()).map_err(SourceError::Scratch)?;
    Ok(scratch)
}

/// Lets the repository beside see the user's objects, and read files as the user's own does.
fn lend(common: &Path, scratch: &Path) -> io::Result<()> {
    let objects = fs::canonicalize(common.join("objects"))?;
    let mut alternates = objects.as_os_str().as_bytes().to_vec();
    alternates.push(b'\n');
    fs::create_dir_all(scratch.join("objects/info"))?;
    fs::write(scratch.join("objects/info/alternates"), alternates)?;
    fs::create_dir_all(scratch.join("info"))?;
    for file in ["info/exclude", "info/attributes"] {
        copy_if_there(&common.join(file), &scratch.join(file))?;
    }
    // Line ends, file modes, global ignores. The last section wins, so ours follows the user's.
    let config = scratch.join("config");
    let mut text = fs::read(common.join("config")).unwrap_or_default();
    text.extend_from_slice(b"\n[core]\n\tbare = false\n\tworktree = .\n[gc]\n\tauto = 0\n");
    fs::write(config, text)
}

fn copy_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

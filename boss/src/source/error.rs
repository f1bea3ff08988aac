//! What can be wrong with the source.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use git2::ErrorCode;

/// What libgit2 says, without the numbers that it appends for programs.
#[derive(Debug)]
pub struct GitReason(git2::Error);

impl fmt::Display for GitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl std::error::Error for GitReason {}

impl From<git2::Error> for GitReason {
    fn from(error: git2::Error) -> Self {
        Self(error)
    }
}

/// Why the source cannot be built from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No repository at or above the path.
    #[error("{} is not in a git repository", .0.display())]
    NotARepository(PathBuf),
    /// git refuses repositories of other users.
    #[error("the git repository at {} belongs to another user", .0.display())]
    Owner(PathBuf),
    /// It cannot be opened.
    #[error("cannot open the git repository at {}", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: GitReason,
    },
    /// There is no commit yet.
    #[error("the repository has no commits")]
    NoCommits,
    /// There is no working tree.
    #[error("the repository is bare: it has no working tree")]
    Bare,
    /// The revision or range cannot be resolved.
    #[error("{range:?} names no commit")]
    Range {
        /// As it was given.
        range: String,
        /// Why.
        #[source]
        source: GitReason,
    },
    /// The range is well formed and empty.
    #[error("{0:?} is a range without commits")]
    EmptyRange(String),
    /// `a...b` and the like.
    #[error("{0:?} is no range that can be built")]
    RangeForm(String),
    /// More than a run can hold.
    #[error("{range:?} has more than {max} commits")]
    TooMany {
        /// As it was given.
        range: String,
        /// The limit.
        max: usize,
    },
    /// An object of the commit is not here.
    #[error("object {id} is not in the repository{}", place(path))]
    Absent {
        /// Which.
        id: String,
        /// Where in the tree, if known.
        path: String,
    },
    /// A submodule.
    #[error("commit {commit}: {path:?} is a submodule, which cannot be sent to hosts")]
    Submodule {
        /// In which commit.
        commit: String,
        /// Where.
        path: String,
    },
    /// A pointer of Git LFS in place of a file.
    #[error("commit {commit}: {path:?} is kept by Git LFS; its content is not in the repository")]
    Lfs {
        /// In which commit.
        commit: String,
        /// Where.
        path: String,
    },
    /// Something that no host would check out.
    #[error("commit {commit}: {path:?} cannot be checked out on a host: {why}")]
    Unfit {
        /// In which commit.
        commit: String,
        /// Where.
        path: String,
        /// Why not.
        why: String,
    },
    /// Reading the working tree failed.
    #[error("cannot read the working tree at {}", path.display())]
    WorkingTree {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: GitReason,
    },
    /// The place beside the repository cannot be made.
    #[error("cannot make a temporary directory for the working tree's objects")]
    Scratch(#[source] io::Error),
    /// git failed.
    #[error("cannot {doing}")]
    Git {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: GitReason,
    },
    /// The `git` program failed.
    #[error("`git pack-objects` failed: {0}")]
    PackObjects(String),
    /// The pack cannot be written to where it should go.
    #[error("cannot pass the pack on")]
    Write(#[source] io::Error),
}

fn place(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" ({path})") }
}

impl SourceError {
    pub(super) fn open(path: &Path, source: git2::Error) -> Self {
        match source.code() {
            ErrorCode::NotFound => Self::NotARepository(path.to_owned()),
            ErrorCode::Owner => Self::Owner(path.to_owned()),
            _ => Self::Open { path: path.to_owned(), source: source.into() },
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotARepository(_) => "run it in a repository, or begin one by `git init`",
            Self::Owner(_) => {
                "if you trust it, allow it by `git config --global --add safe.directory DIRECTORY`"
            }
            Self::NoCommits => "commit something, or leave `commits` out to build the working tree",
            Self::Bare => "name what to build by --commits",
            Self::Range { .. } => {
                "see `git log` for what there is; remote branches are named as in `origin/main`"
            }
            Self::EmptyRange(_) => {
                "in `a..b`, b must have commits that a does not have; a single revision builds that one"
            }
            Self::RangeForm(_) => "write a revision, or a range as `a..b`",
            Self::TooMany { .. } => "build fewer commits at once",
            Self::Absent { .. } => {
                "the repository is shallow or partial: fetch the rest by `git fetch --unshallow --refetch`"
            }
            Self::Submodule { .. } => {
                "take the submodule's files into the repository, or ignore a nested repository by .gitignore"
            }
            Self::Lfs { .. } => {
                "take the file into git itself by `git lfs migrate export`, or fetch it in a stage"
            }
            _ => return None,
        })
    }
}

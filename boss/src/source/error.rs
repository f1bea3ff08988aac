//! What can be wrong with the source.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use git2::ErrorCode;

use crate::link::quote;

/// What git or libgit2 says.
#[derive(Debug)]
pub struct GitReason(String);

impl fmt::Display for GitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for GitReason {}

impl From<git2::Error> for GitReason {
    /// Without the numbers that libgit2 appends for programs.
    fn from(error: git2::Error) -> Self {
        Self(error.message().to_owned())
    }
}

impl From<String> for GitReason {
    fn from(said: String) -> Self {
        Self(said)
    }
}

/// Why an object may not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The history ends at some depth.
    Shallow,
    /// Objects are fetched when they are needed.
    Partial,
    /// There is no good reason.
    Damaged,
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
    /// git refuses it, or cannot read it.
    #[error("cannot read the git repository at {}: `git {command}` says: {said}", path.display())]
    Asked {
        /// Where.
        path: PathBuf,
        /// What it was asked.
        command: String,
        /// The last that it said.
        said: String,
    },
    /// git does not answer.
    #[error("cannot read the git repository at {}", path.display())]
    Still {
        /// Where.
        path: PathBuf,
        /// What stood still.
        #[source]
        source: io::Error,
    },
    /// Its objects have longer names than hosts understand.
    #[error("the git repository at {} names its objects by {format}, which cannot be sent to hosts", top.display())]
    ObjectFormat {
        /// Where.
        top: PathBuf,
        /// By what.
        format: String,
    },
    /// What is configured as the working tree is not around the `.git`.
    #[error("the git repository at {} has its working tree elsewhere, at {}", top.display(), tree.display())]
    Elsewhere {
        /// Where the `.git` is.
        top: PathBuf,
        /// Where the working tree is.
        tree: PathBuf,
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
        /// Why its commits may not be there.
        lack: Lack,
    },
    /// The range is well formed and empty.
    #[error("{0:?} names no commits")]
    EmptyRange(String),
    /// More than libgit2 understands.
    #[error("{0:?} is no range that can be built without git, which is not installed here")]
    RangeForm(String),
    /// An option of `git rev-list`.
    #[error("{range:?} names no commits: {option:?} is an option")]
    Option {
        /// As it was given.
        range: String,
        /// The option.
        option: String,
    },
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
        /// Why it may not be there.
        lack: Lack,
    },
    /// Another repository in the working tree.
    #[error("working tree: {path:?} is a repository of its own, which cannot be sent to hosts")]
    Nested {
        /// The working tree.
        top: PathBuf,
        /// Where in it.
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
    /// A file of the working tree cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory of the working tree cannot be read.
    #[error("cannot read the directory {}: {why}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// As git says it.
        why: String,
    },
    /// Something that is tracked is neither a file nor a link on disk.
    #[error("{} cannot be sent to hosts: it is neither a file nor a link", .0.display())]
    NoFile(PathBuf),
    /// A file becomes shorter again and again.
    #[error("{} changes while it is read", .0.display())]
    Changing(PathBuf),
    /// The index is of a kind that only git can read.
    #[error("cannot read the index {}", path.display())]
    Index {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: GitReason,
    },
    /// The place beside the repository cannot be made.
    #[error("cannot make a temporary directory in {}", path.display())]
    Scratch {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The place beside the repository cannot be used, for want of room mostly.
    #[error("cannot keep the source in {}", path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: GitReason,
    },
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
    #[error("`git {command}` failed: {said}")]
    Program {
        /// Which of its commands.
        command: &'static str,
        /// What it said.
        said: String,
    },
    /// The pack cannot be written to where it should go.
    #[error("cannot pass the pack on")]
    Write(#[source] io::Error),
}

fn place(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" ({path})") }
}

/// Lines of what a program said that are told.
const SAID_LINES: usize = 3;

impl SourceError {
    pub(super) fn open(path: &Path, source: git2::Error) -> Self {
        match source.code() {
            ErrorCode::NotFound => Self::NotARepository(path.to_owned()),
            ErrorCode::Owner => Self::Owner(path.to_owned()),
            _ => Self::Open { path: path.to_owned(), source: source.into() },
        }
    }

    /// What git said when it was asked something about the repository at `top`.
    pub(super) fn asked(top: &Path, command: &str, said: &str) -> Self {
        let path = top.to_owned();
        if said.contains("dubious ownership") || said.contains("unsafe repository") {
            return Self::Owner(path);
        }
        if said.contains("must be run in a work tree") {
            return Self::Bare;
        }
        if said.contains("not a git repository") && top.join(".git").symlink_metadata().is_err() {
            return Self::NotARepository(path);
        }
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(SAID_LINES)..];
        let said = last.iter().map(|line| line.trim_start_matches("fatal: ")).collect::<Vec<_>>().join("; ");
        Self::Asked { path, command: command.to_owned(), said }
    }

    pub(super) fn range(range: &str, source: impl Into<GitReason>) -> Self {
        Self::Range { range: range.to_owned(), source: source.into(), lack: Lack::Damaged }
    }

    pub(super) fn absent(id: String, path: &str) -> Self {
        Self::Absent { id, path: path.to_owned(), lack: Lack::Damaged }
    }

    /// The same error, for a repository that lacks objects for a reason.
    pub(super) fn of_lack(self, lack: Lack) -> Self {
        match self {
            Self::Absent { id, path, .. } => Self::Absent { id, path, lack },
            Self::Range { range, source, .. } => Self::Range { range, source, lack },
            other => other,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        let quoted = |path: &Path| quote(&path.to_string_lossy());
        let hint = match self {
            Self::NotARepository(_) => "run it in a repository, or begin one by `git init`",
            Self::Owner(top) => {
                let top = quoted(top);
                return Some(
                    format!("if you trust it, allow it by `git config --global --add safe.directory {top}`")
                        .into(),
                );
            }
            Self::Asked { path, .. } => {
                return Some(format!("see `git -C {} status`", quoted(path)).into());
            }
            Self::Still { path, .. } => {
                let path = quoted(path);
                return Some(
                    format!(
                        "see whether `git -C {path} status` answers, and whether the disk does: `ls {path}`"
                    )
                    .into(),
                );
            }
            Self::ObjectFormat { top, .. } => {
                let top = quoted(top);
                return Some(
                    format!(
                        "build a copy of it: `git init --object-format=sha1 ../copy && git -C {top} \
                         fast-export --all | git -C ../copy fast-import && git -C ../copy reset --hard`"
                    )
                    .into(),
                );
            }
            Self::Elsewhere { top, .. } => {
                let top = quoted(top);
                return Some(
                    format!(
                        "name what to build by --commits, or, if {top} is the working tree, say so by \
                         `git --git-dir={top}/.git config --unset core.worktree`"
                    )
                    .into(),
                );
            }
            Self::Nested { top, path } => {
                let (line, file) = (quote(&ignore_line(path)), quoted(&top.join(".gitignore")));
                return Some(
                    format!(
                        "if it is no part of what is built, have git ignore it: `printf '%s\\n' {line} >>{file}`"
                    )
                    .into(),
                );
            }
            Self::Open { .. } | Self::Index { .. } => {
                "install git here: it is asked, if it is there, and reads what libgit2 cannot"
            }
            Self::NoCommits => "commit something, or leave `commits` out to build the working tree",
            Self::Bare => "name what to build by --commits",
            Self::Range { lack: Lack::Shallow, .. } | Self::Absent { lack: Lack::Shallow, .. } => {
                "the repository is shallow: fetch the rest by `git fetch --unshallow`"
            }
            Self::Range { .. } => {
                "see `git log` for what there is; remote branches are named as in `origin/main`"
            }
            Self::EmptyRange(_) => {
                "in `a..b`, b must have commits that a does not have; a single revision builds that one"
            }
            Self::RangeForm(_) => "write a revision, or a range as `a..b`, or install git here",
            Self::Option { .. } => "name revisions only: the last five commits are HEAD~5..HEAD",
            Self::TooMany { .. } => "build fewer commits at once",
            Self::Absent { lack: Lack::Partial, .. } => {
                "the repository is partial: fetch the rest by `git fetch --refetch --no-filter`"
            }
            Self::Absent { lack: Lack::Damaged, .. } => "the repository is damaged: see `git fsck`",
            Self::Submodule { .. } => "take the submodule's files into the repository itself",
            Self::Lfs { .. } => {
                "take the file into git itself by `git lfs migrate export`, or fetch it in a stage"
            }
            Self::File { .. } | Self::Directory { .. } => {
                "make it readable, or, if git does not track it, have git ignore it"
            }
            Self::NoFile(_) => "remove it, or move it: git tracks a file of that name",
            Self::Changing(_) => "wait for whatever writes it, or have git ignore it by .gitignore",
            Self::Scratch { .. } | Self::Keep { .. } => "TMPDIR can name a directory with more room",
            _ => return None,
        };
        Some(hint.into())
    }
}

/// What ignores one directory, as a line of `.gitignore`.
fn ignore_line(path: &str) -> String {
    let mut line = "/".to_owned();
    for character in path.chars() {
        if matches!(character, '*' | '?' | '[' | '\\') {
            line.push('\\');
        }
        line.push(character);
    }
    line.push('/');
    line
}

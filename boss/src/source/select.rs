//! From a revision or range to commits.

use crewboss_protocol::harmless::one_line;
use git2::{ErrorCode, Oid, Repository, RevparseMode, Sort};

use super::error::SourceError;
use super::{Commit, tree_id};

/// Commits of one run: with one target it is the number of tasks, and more than this is surely a mistake.
const COMMITS_MAX: usize = 100_000;

/// Resolves a range; the oldest commit comes first.
pub(super) fn range(repository: &Repository, range: &str) -> Result<Vec<Commit>, SourceError> {
    if repository.is_empty().unwrap_or(false) {
        return Err(SourceError::NoCommits);
    }
    let failed = |source: git2::Error| match source.code() {
        ErrorCode::UnbornBranch => SourceError::NoCommits,
        _ => SourceError::Range { range: range.to_owned(), source: source.into() },
    };
    let spec = repository.revparse(range).map_err(failed)?;
    let mode = spec.mode();
    if mode.contains(RevparseMode::MERGE_BASE) {
        return Err(SourceError::RangeForm(range.to_owned()));
    }
    let form = || SourceError::RangeForm(range.to_owned());
    let from = spec.from().ok_or_else(form)?.peel_to_commit().map_err(failed)?;
    if mode.contains(RevparseMode::SINGLE) {
        return Ok(vec![commit(repository, from.id())?]);
    }
    let to = spec.to().ok_or_else(form)?.peel_to_commit().map_err(failed)?;
    let ids = walk(repository, from.id(), to.id(), range)?;
    if ids.is_empty() {
        return Err(SourceError::EmptyRange(range.to_owned()));
    }
    ids.into_iter().map(|id| commit(repository, id)).collect()
}

fn walk(repository: &Repository, hidden: Oid, tip: Oid, range: &str) -> Result<Vec<Oid>, SourceError> {
    let failed = |error| absent_or(error, "walk the commits");
    let mut walk = repository.revwalk().map_err(failed)?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE).map_err(failed)?;
    walk.push(tip).map_err(failed)?;
    walk.hide(hidden).map_err(failed)?;
    let ids: Vec<Oid> = walk.take(COMMITS_MAX + 1).collect::<Result<_, _>>().map_err(failed)?;
    if ids.len() > COMMITS_MAX {
        return Err(SourceError::TooMany { range: range.to_owned(), max: COMMITS_MAX });
    }
    Ok(ids)
}

/// What is not found while walking is behind the border of a shallow repository.
fn absent_or(source: git2::Error, doing: &'static str) -> SourceError {
    match source.code() {
        ErrorCode::NotFound => SourceError::Absent { id: source.message().to_owned(), path: String::new() },
        _ => SourceError::Git { doing, source: source.into() },
    }
}

pub(super) fn commit(repository: &Repository, id: Oid) -> Result<Commit, SourceError> {
    let failed = |error| absent_or(error, "read a commit");
    let commit = repository.find_commit(id).map_err(failed)?;
    let short = commit.as_object().short_id().map_err(failed)?;
    Ok(Commit {
        id: tree_id(id),
        tree: tree_id(commit.tree_id()),
        short: String::from_utf8_lossy(&short).into_owned(),
        subject: subject(commit.message_bytes()),
        time: commit.time().seconds(),
        working_tree: false,
    })
}

/// The first line that is not empty, as text that does a terminal no harm.
fn subject(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
    one_line(line)
}

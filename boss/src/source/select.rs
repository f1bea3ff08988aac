//! From ids to commits.

use crewboss_protocol::harmless::one_line;
use git2::{ErrorCode, Oid, Repository};

use super::error::SourceError;
use super::{Commit, tree_id};

/// Commits of one run: with one target it is the number of tasks, and more than this is surely a
/// mistake.
pub(super) const COMMITS_MAX: usize = 100_000;

/// The revisions in a text. Blanks part them, but not within braces (`HEAD@{2 days ago}`), and not
/// in the search for a message (`:/fix the bug`).
pub(super) fn revisions(text: &str) -> Vec<String> {
    if text.trim_start().starts_with(":/") {
        return vec![text.trim_start().to_owned()];
    }
    let mut depth = 0_usize;
    let parts = text.split(|character: char| {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && character.is_whitespace()
    });
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Reads the commits that a range means, the oldest first.
pub(super) fn commits(
    repository: &Repository,
    range: &str,
    ids: Vec<Oid>,
) -> Result<Vec<Commit>, SourceError> {
    if ids.is_empty() {
        return Err(SourceError::EmptyRange(range.to_owned()));
    }
    if ids.len() > COMMITS_MAX {
        return Err(SourceError::TooMany { range: range.to_owned(), max: COMMITS_MAX });
    }
    ids.into_iter().map(|id| commit(repository, id)).collect()
}

/// What is not found while walking is behind the border of a shallow repository.
pub(super) fn absent_or(source: git2::Error, doing: &'static str) -> SourceError {
    match source.code() {
        ErrorCode::NotFound => SourceError::absent(source.message().to_owned(), ""),
        _ => SourceError::Git { doing, source: source.into() },
    }
}

fn commit(repository: &Repository, id: Oid) -> Result<Commit, SourceError> {
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

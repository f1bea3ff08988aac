//! What can be wrong with a configuration, said so that it can be mended at once.

use std::fmt;
use std::path::PathBuf;

use super::trust::Refusal;
use crate::terminal::text::in_place;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or not be trusted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The file is no text.
    #[error("{}:{line}:{column}: this is not UTF-8 text", path.display())]
    NotUtf8 {
        /// Which file.
        path: PathBuf,
        /// Line of the first offending byte, from 1.
        line: usize,
        /// Its place in the line in bytes, from 1.
        column: usize,
    },
    /// The file is text of the kind that Windows makes.
    #[error("{} is UTF-16 text\n  hint: save it as UTF-8", path.display())]
    Utf16 {
        /// Which file.
        path: PathBuf,
    },
    /// The file is larger than anybody writes by hand or by script.
    #[error("{} is larger than {max} bytes, which is no configuration", path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
        /// The limit in bytes.
        max: u64,
    },
    /// There is no build file.
    #[error(
        "there is no build.toml in {} or above it{}\n  hint: write one beside your source, or name one with --file",
        from.display(),
        repository.as_ref().map(|root| format!(" up to {}, the top of the repository", root.display())).unwrap_or_default()
    )]
    NoBuildFile {
        /// Where the search began.
        from: PathBuf,
        /// Where it ended.
        repository: Option<PathBuf>,
    },
    /// There is a repository, and no working tree of it.
    #[error(
        "{} is a bare git repository, and what is built is one with a working tree\n  hint: make one and go there: `git -C {} worktree add DIRECTORY`",
        bare.display(),
        crewboss_ground::in_shell(bare)
    )]
    BareRepository {
        /// Where.
        bare: PathBuf,
    },
    /// The build file lies in no repository.
    #[error("{} is not in a git repository\n  hint: what is built are the commits, or the working tree, of a repository; `git init` makes one", directory.display())]
    NoRepository {
        /// Where the build file is.
        directory: PathBuf,
    },
    /// The repository that the search came upon is somebody else's.
    #[error(
        "the repository in {} belongs to another user, number {owner}, and git would not work in it either\n  hint: if you trust what is built there, allow it by `git config --global --add safe.directory {}`",
        top.display(),
        crewboss_ground::in_shell(top)
    )]
    ForeignRepository {
        /// The directory that has the `.git`.
        top: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The working directory is gone, or the like.
    #[error("cannot find out the working directory")]
    WorkingDirectory(#[source] std::io::Error),
    /// A place in a file is wrong.
    #[error(transparent)]
    Located(Box<Located>),
    /// A build file without a target.
    #[error(
        "{} has no target\n  hint: the smallest one is\n    [target.hello]\n    stages.build = \"make\"",
        path.display()
    )]
    NoTargets {
        /// Which file.
        path: PathBuf,
    },
    /// A crew file without a host.
    #[error(
        "{} has no host\n  hint: the smallest one is\n    [host.lab1]\n    ssh = \"user@lab1\"",
        path.display()
    )]
    NoHosts {
        /// Which file.
        path: PathBuf,
    },
    /// A name on the command line that the file does not have.
    #[error("{} has no {what} {name:?}{}", place, choices(near, all))]
    Unknown {
        /// The file, or what stands in for it.
        place: String,
        /// `target` or `host`.
        what: &'static str,
        /// The name.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
        /// All names, at most a handful.
        all: Vec<String>,
    },
}

fn choices(near: &[String], all: &[String]) -> String {
    if !near.is_empty() {
        format!("\n  hint: did you mean {}?", near.join(" or "))
    } else if !all.is_empty() {
        format!("\n  hint: there is {}", all.join(", "))
    } else {
        String::new()
    }
}

/// An error at a place in a file, with an excerpt.
#[derive(Debug, PartialEq, Eq)]
pub struct Located {
    /// The file.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
    /// What may help.
    pub hint: Option<String>,
    excerpt: String,
    marked: usize,
}

/// Longest part of a line that an excerpt shows, in characters.
const EXCERPT_CHARS_MAX: usize = 100;

impl Located {
    /// Finds line and column of a span of bytes.
    pub fn new(
        path: PathBuf,
        text: &str,
        span: std::ops::Range<usize>,
        message: String,
        hint: Option<String>,
    ) -> Self {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end.max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let column = text[line_start..start].chars().count();
        let marked = text[start..end.min(line_end).max(start)].chars().count().max(1);
        let excerpt: String = text[line_start..line_end].trim_end_matches('\r').to_owned();
        let line = text[..start].matches('\n').count() + 1;
        Self { path, line, column: column + 1, message, hint, excerpt, marked }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl std::error::Error for Located {}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:{}:{}: {}", self.path.display(), self.line, self.column, self.message)?;
        // A long line is shown from somewhat before the place, so that the caret can be seen.
        let skipped = (self.column - 1).saturating_sub(EXCERPT_CHARS_MAX / 2);
        let shown: String = self.excerpt.chars().skip(skipped).take(EXCERPT_CHARS_MAX).collect();
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let before = " ".repeat(self.column - 1 - skipped);
        let carets = "^".repeat(self.marked.min(EXCERPT_CHARS_MAX / 2));
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", in_place(&shown))?;
        write!(f, "{margin} | {before}{carets}")?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Up to three of the candidates that look like a word, nearest first.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let lower = word.to_lowercase();
    let mut near: Vec<(usize, &str)> = candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= allowed)
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .collect();
    near.sort();
    near.truncate(3);
    near.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Edits that turn one text into the other; exchanging two neighbours counts as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_look_alike_are_found() {
        let keys = ["toolchain", "timeout", "stages", "artifacts"];
        assert_eq!(nearest("toolchian", keys), ["toolchain"]);
        assert_eq!(nearest("stage", keys), ["stages"]);
        assert_eq!(nearest("artefacts", keys), ["artifacts"]);
        assert_eq!(nearest("zebra", keys), [""; 0]);
        assert_eq!(nearest("", keys), [""; 0]);
    }

    #[test]
    fn a_place_in_a_long_line_and_beyond_the_end_is_shown() {
        let text = format!("a\n{}X{}", "é".repeat(300), "b".repeat(300));
        let located = Located::new("f".into(), &text, 602..603, "m".to_owned(), None);
        assert_eq!((located.line, located.column), (2, 301));
        let shown = located.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2].chars().position(|c| c == 'X'), lines[3].chars().position(|c| c == '^'));
        let beyond = Located::new("f".into(), "a\n", 9..99, "m".to_owned(), None);
        assert_eq!((beyond.line, beyond.column), (2, 1));
    }
}

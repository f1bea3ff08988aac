//! What the `git` that is installed knows of the user's repository.
//!
//! It is asked instead of libgit2 since it alone reads everything that it writes (its newer
//! indexes, its newer ways to store branches), and since what it accepts, by whatever
//! configuration, is what we accept. Only commands that run nothing of the repository's, change
//! nothing in it and fetch nothing are used.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crewboss_ground::stood_still;
use git2::Oid;

use super::error::SourceError;
use super::known::Filtered;
use super::select::COMMITS_MAX;
use super::{Listed, Settings};

/// Variables that may say how git works; all others of its own would lead it to another repository,
/// index or work tree than the one that is meant. A hook has some of those.
const KEPT: [&str; 3] = ["GIT_CONFIG_", "GIT_EXEC_PATH", "GIT_ATTR_NOSYSTEM"];

/// Takes the place of what the repository's own configuration says.
const SETTINGS: [&str; 3] = ["core.fsmonitor=false", "core.hooksPath=/dev/null", "protocol.allow=never"];

/// Attributes by which a file's content in git may be any other than that on disk.
pub(super) const FILTERS: [&str; 2] = ["filter", "working-tree-encoding"];

/// The program, if it is installed. Only absolute directories of `PATH` count: anything else might
/// lie in the repository.
pub(super) fn program() -> Option<Command> {
    let path = std::env::var_os("PATH")?;
    let directories = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let is_program =
        |file: &PathBuf| file.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0);
    let mut git =
        crewboss_ground::program(directories.map(|directory| directory.join("git")).find(is_program)?);
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_bytes();
        if bytes.starts_with(b"GIT_") && !KEPT.iter().any(|kept| bytes.starts_with(kept.as_bytes())) {
            git.env_remove(&name);
        }
    }
    git.env("LC_ALL", "C").env("GIT_OPTIONAL_LOCKS", "0").env("GIT_NO_REPLACE_OBJECTS", "1");
    // A partial clone must fail, not fetch what may be gigabytes; older versions know the second
    // only.
    git.env("GIT_NO_LAZY_FETCH", "1").env("GIT_ALLOW_PROTOCOL", "none").env("GIT_TERMINAL_PROMPT", "0");
    git.arg("--no-pager");
    for setting in SETTINGS {
        git.args(["-c", setting]);
    }
    Some(git)
}

/// Asks about one repository.
#[derive(Debug)]
pub(super) struct Git {
    top: PathBuf,
}

impl Git {
    /// For the repository in a directory. `None` if git is not installed.
    pub(super) fn at(top: &Path) -> Option<Self> {
        program().map(|_| Self { top: top.to_owned() })
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> io::Result<Output> {
        let mut git = program().ok_or(io::ErrorKind::NotFound)?;
        // By being there, not by naming it: git then finds out whether it trusts the repository.
        git.current_dir(&self.top).args(arguments);
        if let Some(above) = self.top.parent() {
            git.env("GIT_CEILING_DIRECTORIES", above);
        }
        crewboss_ground::output(&mut git, &format!("git {}", arguments[0]), input)
    }

    fn ask(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, SourceError> {
        self.answer(arguments, input).map(|output| output.stdout)
    }

    /// With what it says besides.
    fn answer(&self, arguments: &[&str], input: &[u8]) -> Result<Output, SourceError> {
        let failed = |said: String| SourceError::asked(&self.top, arguments[0], &said);
        let output = self.run(arguments, input).map_err(|source| match source {
            source if stood_still(&source) => SourceError::Still { path: self.top.clone(), source },
            source => failed(source.to_string()),
        })?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
    }

    fn path(&self, arguments: &[&str]) -> Result<PathBuf, SourceError> {
        let mut said = self.ask(arguments, b"")?;
        if said.last() == Some(&b'\n') {
            said.pop();
        }
        Ok(self.top.join(OsStr::from_bytes(&said)))
    }

    /// The directory of the repository's objects.
    pub(super) fn objects(&self) -> Result<PathBuf, SourceError> {
        self.path(&["rev-parse", "--git-path", "objects"])
    }

    /// The file that is the index, which need not be there.
    pub(super) fn index(&self) -> Result<PathBuf, SourceError> {
        self.path(&["rev-parse", "--git-path", "index"])
    }

    /// Where git says that the working tree is.
    pub(super) fn working_tree(&self) -> Result<PathBuf, SourceError> {
        self.path(&["rev-parse", "--show-toplevel"])
    }

    pub(super) fn settings(&self) -> Result<Settings, SourceError> {
        let listed = self.ask(&["config", "-z", "--list"], b"")?;
        let mut settings = Settings::default();
        for entry in listed.split(|byte| *byte == 0) {
            let text = String::from_utf8_lossy(entry);
            // Without a value it is true.
            let (name, value) = text.split_once('\n').unwrap_or((&text, "true"));
            settings.take(name, value);
        }
        Ok(settings)
    }

    /// What git tracks, and what it does not track and does not ignore.
    pub(super) fn list(&self) -> Result<Vec<Listed>, SourceError> {
        let wanted = ["ls-files", "-z", "-t", "--stage", "--cached", "--others", "--exclude-standard"];
        let Output { stdout: text, stderr: said, .. } = self.answer(&wanted, b"")?;
        if let Some((directory, why)) = unread(&said) {
            return Err(SourceError::Directory { path: self.top.join(directory), why });
        }
        let entries = text.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
        entries
            .map(|entry| {
                listed(entry).ok_or_else(|| {
                    let said =
                        format!("what it printed is not understood: {:?}", String::from_utf8_lossy(entry));
                    SourceError::asked(&self.top, wanted[0], &said)
                })
            })
            .collect()
    }

    /// Which of these files may have another content in git than on disk.
    pub(super) fn filtered(&self, paths: &[&[u8]]) -> Result<Filtered, SourceError> {
        let mut input = Vec::new();
        for path in paths {
            input.extend_from_slice(path);
            input.push(0);
        }
        let wanted = ["check-attr", "-z", "--stdin", FILTERS[0], FILTERS[1]];
        let text = self.ask(&wanted, &input)?;
        let words: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
        let plain = |value: &[u8]| value == b"unspecified" || value == b"unset";
        let filtered = words.chunks_exact(3).filter(|answer| !plain(answer[2]));
        Ok(filtered.map(|answer| answer[0].to_owned()).collect::<HashSet<_>>())
    }

    /// The commits that revisions mean, the oldest first.
    pub(super) fn commits(&self, range: &str, revisions: &[String]) -> Result<Vec<Oid>, SourceError> {
        let named = |text: String| SourceError::range(range, text);
        let mut words: Vec<&str> = vec!["rev-parse"];
        words.extend(revisions.iter().map(String::as_str));
        words.push("--");
        let ids = match self.ask(&words, b"") {
            Err(SourceError::Asked { said, .. }) => {
                let none = self.ask(&["rev-list", "--max-count=1", "--all"], b"")?.is_empty();
                return Err(if none { SourceError::NoCommits } else { named(said) });
            }
            ids => String::from_utf8_lossy(&ids?).into_owned(),
        };
        let ids: Vec<&str> = ids.lines().filter(|line| *line != "--").collect();
        // What is a range even if it leaves nothing out, as `a...b` does where the two have nothing
        // in common.
        let is_range = range.contains("..") || ids.iter().any(|id| id.starts_with('^'));
        let most = format!("--max-count={}", COMMITS_MAX + 1);
        let mut words = vec!["rev-list", "--topo-order", "--reverse", most.as_str()];
        if !is_range {
            words.push("--no-walk");
        }
        words.extend(ids);
        words.push("--");
        let said = self.ask(&words, b"").map_err(|error| match error {
            SourceError::Asked { said, .. } => named(said),
            other => other,
        })?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let ids =
            said.lines().map(|line| Oid::from_str(line).map_err(|error| named(error.message().to_owned())));
        ids.collect()
    }
}

/// The first directory that git passed over, with a warning only: nobody knows what is missing of
/// it.
pub(super) fn unread(said: &[u8]) -> Option<(PathBuf, String)> {
    let said = String::from_utf8_lossy(said);
    let (_, after) = said.split_once("could not open directory '")?;
    let (directory, why) = after.split_once("': ").unwrap_or((after, ""));
    Some((directory.into(), why.lines().next().unwrap_or_default().to_owned()))
}

/// Reads `? PATH` of what is not tracked, else `H MODE ID STAGE<tab>PATH`.
fn listed(entry: &[u8]) -> Option<Listed> {
    let (tag, rest) = entry.split_at_checked(2)?;
    if tag == b"? " {
        let nested = rest.ends_with(b"/");
        let path = rest.strip_suffix(b"/").unwrap_or(rest).to_owned();
        return Some(Listed { path, mode: None, nested });
    }
    let tab = rest.iter().position(|byte| *byte == b'\t')?;
    let mode = std::str::from_utf8(rest.get(..6)?).ok()?;
    let mode = u32::from_str_radix(mode, 8).ok()?;
    Some(Listed::tracked(rest[tab + 1..].to_owned(), mode))
}

/// A name as git has it.
pub(super) fn as_path(name: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(name.to_owned()))
}

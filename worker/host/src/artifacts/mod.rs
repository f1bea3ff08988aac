//! Finding the files that a target promised: below `$CREWBOSS_OUT`, then below `$CREWBOSS_SRC`.

pub mod pattern;
mod walk;

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crewboss_ground::Open;
use crewboss_protocol::RelPath;
use crewboss_protocol::guest::PROBLEMS_MAX;
use crewboss_protocol::limits::{ARTIFACTS_MAX, NUMBER_MAX};
use crewboss_protocol::message::{ArtifactCount, TaskLimits};
use rustix::io::Errno;
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};

use crate::storage::is_no_space;
use pattern::Pattern;
use walk::walk;

/// Bytes of all artifacts. A sparse file can be of any length, but the boss refuses a larger
/// number, and the host with it. Archives of uploads and consoles, which are counted with them,
/// take real space and do not come near the other half.
pub(super) const BYTES_MAX: u64 = NUMBER_MAX / 2;

/// One artifact in `artifacts.list`, a file of JSON lines in the attempt's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactLine {
    /// Its name in the result.
    pub path: RelPath,
    /// Where it lies on the host.
    pub file: PathBuf,
}

/// What was found for a list of patterns.
#[derive(Debug, Default)]
pub struct Found {
    /// Name in the result, and where the file lies.
    pub files: BTreeMap<String, PathBuf>,
    /// All bytes.
    pub bytes: u64,
    /// What is wrong, each a sentence: a pattern without a match, a name that cannot be brought
    /// back.
    pub problems: Vec<String>,
    /// There were more than may be, so there are none.
    pub too_many: bool,
}

impl Found {
    /// Gives up: there are more than the task may leave.
    pub(super) fn give_up(&mut self, limits: &TaskLimits) {
        *self = Self { too_many: true, ..Self::default() };
        self.problem(limits.refuse_artifacts());
    }

    /// The numbers for the result.
    pub fn count(&self) -> ArtifactCount {
        let files = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        ArtifactCount { files, directories: directories(self.files.keys()), bytes: self.bytes }
    }

    /// Takes note of something that is wrong.
    pub fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Forgets each file whose name is also the directory of another one, and says so: no directory
    /// can have both. They can come from two roots, or be an archive and what a task has made. To
    /// be done after the last one was added.
    pub fn settle(&mut self) {
        for (name, below) in clashes(&self.files) {
            if let Some(file) = self.files.remove(&name) {
                self.bytes = self.bytes.saturating_sub(file.metadata().map_or(0, |meta| meta.len()));
            }
            self.problem(format!("the artifact {name:?} cannot be brought back beside {below:?}"));
        }
    }

    /// Whether one more file can have this name.
    pub fn has_room_for(&self, name: &str) -> bool {
        let is_free = !self.files.contains_key(name) && first_below(&self.files, name).is_none();
        is_free && self.files.len() < ARTIFACTS_MAX
    }

    /// Writes the list that the bulk channel reads, one JSON line per file.
    ///
    /// # Errors
    /// If the file cannot be written, or a name is not one that could be brought back (which
    /// [`find`] has ruled out).
    pub fn write_list(&self, path: &Path) -> io::Result<()> {
        let mut list = BufWriter::new(Open::create().path(path)?);
        for (name, file) in &self.files {
            let path = RelPath::try_from(name.clone()).map_err(io::Error::other)?;
            serde_json::to_writer(&mut list, &ArtifactLine { path, file: file.clone() })?;
            list.write_all(b"\n")?;
        }
        list.flush()
    }
}

/// How many directories these names need, which must be in order: what lies in one comes in a row.
fn directories<'a>(names: impl Iterator<Item = &'a String>) -> u32 {
    let parent = |name: &'a str| name.rsplit_once('/').map_or("", |(parent, _)| parent);
    let (mut count, mut last) = (0_u32, "");
    for name in names {
        let parts = || parent(name).split('/').filter(|part| !part.is_empty());
        let known = parts().zip(last.split('/')).take_while(|(one, other)| one == other).count();
        count = count.saturating_add(u32::try_from(parts().count() - known).unwrap_or(u32::MAX));
        last = parent(name);
    }
    count
}

/// Names that are also directories of other names, each with the first one of these.
pub fn clashes<T>(files: &BTreeMap<String, T>) -> Vec<(String, String)> {
    let clash = |name: &String| Some((name.clone(), first_below(files, name)?.clone()));
    files.keys().filter_map(clash).collect()
}

fn first_below<'a, T>(files: &'a BTreeMap<String, T>, name: &str) -> Option<&'a String> {
    let directory = format!("{name}/");
    let (first, _) = files.range(directory.clone()..).next()?;
    first.starts_with(&directory).then_some(first)
}

/// What counts of what is found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// More files are none at all: a task may have made any number, and they are kept in memory.
    pub limits: TaskLimits,
    /// Only files that were changed since then.
    pub since: Option<Timespec>,
}

impl Wanted {
    pub(super) fn is_new(&self, found: &Metadata) -> bool {
        self.since.is_none_or(|since| (found.ctime(), found.ctime_nsec()) >= (since.tv_sec, since.tv_nsec))
    }
}

/// Looks for all patterns in the roots, in the first one first. A file found in an earlier root
/// wins. What a task has made so that it cannot be found or read is a problem.
///
/// # Errors
/// If the host fails at it, see [`is_of_host`].
pub fn find(patterns: &[String], roots: &[&Path], wanted: Wanted) -> io::Result<Found> {
    let mut found = Found::default();
    for text in patterns {
        let pattern = match Pattern::parse(text) {
            Ok(pattern) => pattern,
            Err(error) => {
                found.problem(format!("{text:?} cannot name files of a task: {error}"));
                continue;
            }
        };
        let before = found.files.len() + found.problems.len();
        let mut seen = false;
        for root in roots.iter().filter_map(|root| root.canonicalize().ok()) {
            seen = seen || walk(&root, &pattern, wanted, &mut found)?;
            if found.too_many {
                return Ok(found);
            }
        }
        if !seen && before == found.files.len() + found.problems.len() {
            found.problem(format!("nothing matches the artifact {text:?}"));
        }
    }
    Ok(found)
}

/// Whether an error comes from the host and not from what a task has made: its names, rights and
/// files.
pub fn is_of_host(error: &io::Error) -> bool {
    let of_host = [Errno::IO, Errno::ROFS, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
    is_no_space(error) || Errno::from_io_error(error).is_some_and(|errno| of_host.contains(&errno))
}

/// Rewrites a list after directories have moved. That there is no list is fine.
///
/// # Errors
/// If the list cannot be read or written.
pub fn move_list(path: &Path, moved: &[(&Path, &Path)]) -> io::Result<()> {
    if moved.iter().all(|(from, to)| from == to) {
        return Ok(());
    }
    let mut text = String::new();
    match Open::read().path(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?.read_to_string(&mut text)?,
    };
    let mut list = BufWriter::new(Open::create().path(path)?);
    for line in text.lines() {
        let mut line: ArtifactLine = serde_json::from_str(line)?;
        let new = moved.iter().find_map(|(from, to)| Some(to.join(line.file.strip_prefix(from).ok()?)));
        line.file = new.unwrap_or(line.file);
        serde_json::to_writer(&mut list, &line)?;
        list.write_all(b"\n")?;
    }
    list.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    const ALL: Wanted = Wanted {
        limits: TaskLimits { log_bytes: 0, artifacts: 1000, artifact_bytes: u64::MAX },
        since: None,
    };

    fn names(found: &Found) -> Vec<&str> {
        found.files.keys().map(String::as_str).collect()
    }

    #[test]
    fn files_are_found_by_name_and_pattern_in_the_first_root_that_has_them() {
        let base = tempfile::tempdir().unwrap();
        let (out, src) = (base.path().join("out"), base.path().join("src"));
        fs::create_dir_all(out.join("lib/deep")).unwrap();
        fs::create_dir_all(&src).unwrap();
        for file in ["out/u-boot.bin", "out/lib/a.o", "out/lib/deep/b.o", "src/only.txt", "src/u-boot.bin"] {
            fs::write(base.path().join(file), "12").unwrap();
        }
        let patterns = ["u-boot.bin", "lib/*.o", "**/b.o", "only.txt"].map(str::to_owned);
        let found = find(&patterns, &[&out, &src], ALL).unwrap();
        assert_eq!(names(&found), ["lib/a.o", "lib/deep/b.o", "only.txt", "u-boot.bin"]);
        assert_eq!((found.count().files, found.bytes), (4, 8));
        assert!(found.files["u-boot.bin"].ends_with("out/u-boot.bin") && found.problems.is_empty());
        let list = base.path().join("list");
        found.write_list(&list).unwrap();
        let text = fs::read_to_string(list).unwrap();
        let first: ArtifactLine = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first.path.as_str(), "lib/a.o");
    }

    #[test]
    fn of_too_many_files_none_is_kept_and_nobody_looks_further() {
        let base = tempfile::tempdir().unwrap();
        for number in 0..30 {
            fs::write(base.path().join(format!("{number:02}")), "x").unwrap();
        }
        // Whoever looked further would say that it is not there.
        let patterns = ["0*", "**", "none"].map(str::to_owned);
        let limited = |artifacts| Wanted { limits: TaskLimits { artifacts, ..ALL.limits }, ..ALL };
        let found = find(&patterns, &[base.path()], limited(29)).unwrap();
        assert_eq!((found.files.len(), found.bytes), (0, 0));
        assert_eq!(
            found.problems,
            ["it has left more than 29 artifacts (`artifacts` in [limits] of crew.toml)"]
        );
        let found = find(&patterns[..2], &[base.path()], limited(30)).unwrap();
        assert_eq!((found.files.len(), found.problems.len()), (30, 0));
    }

    #[test]
    fn files_that_were_there_before_are_found_and_not_taken() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("old"), "x").unwrap();
        let changed = fs::metadata(base.path().join("old")).unwrap();
        let at = |nanoseconds| Wanted {
            since: Some(Timespec { tv_sec: changed.ctime(), tv_nsec: changed.ctime_nsec() + nanoseconds }),
            limits: TaskLimits { artifacts: 1, ..ALL.limits },
        };
        let of = |wanted| find(&["old".to_owned()], &[base.path()], wanted).unwrap();
        assert_eq!((of(at(0)).files.len(), of(at(1)).files.len()), (1, 0));
        assert!(of(at(1)).problems.is_empty());
    }

    #[test]
    fn the_directories_of_artifacts_are_counted_once() {
        let count = |names: &[&str]| {
            let files = names.iter().map(|name| ((*name).to_owned(), PathBuf::new())).collect();
            Found { files, ..Found::default() }.count().directories
        };
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&["a", "b"]), 0);
        assert_eq!(count(&["a/b/c/d", "a/b/c/e", "a/b-c/d", "a/x", "a-b/c", "b/a/b/c"]), 8);
        assert_eq!(count(&["a/b", "a!/b", "a/c/d", "a0/b"]), 4);
    }

    #[test]
    fn more_bytes_than_a_message_can_say_are_said_and_not_brought_back() {
        let root = tempfile::tempdir().unwrap();
        for file in ["a", "b"] {
            fs::write(root.path().join(file), "123").unwrap();
        }
        let root = root.path().canonicalize().unwrap();
        let mut found = Found { bytes: BYTES_MAX - 3, ..Found::default() };
        walk(&root, &Pattern::parse("{a,b}").unwrap(), ALL, &mut found).unwrap();
        assert_eq!((names(&found), found.bytes), (vec!["a"], BYTES_MAX));
        assert!(found.problems.join("; ").contains("bytes with \"b\""), "{:?}", found.problems);
    }

    #[test]
    fn a_name_that_is_also_the_directory_of_another_one_is_said_and_not_brought_back() {
        let base = tempfile::tempdir().unwrap();
        let (out, src) = (base.path().join("out"), base.path().join("src"));
        fs::create_dir_all(&out).unwrap();
        fs::create_dir_all(src.join("a/deep")).unwrap();
        for file in ["out/a", "out/a-b", "src/a/x", "src/a/deep/y"] {
            fs::write(base.path().join(file), "123").unwrap();
        }
        let mut found = find(&["a*", "a/**"].map(str::to_owned), &[&out, &src], ALL).unwrap();
        found.settle();
        assert_eq!(names(&found), ["a-b", "a/deep/y", "a/x"]);
        assert_eq!(found.bytes, 9);
        assert_eq!(found.problems, ["the artifact \"a\" cannot be brought back beside \"a/deep/y\""]);
        for (name, room) in [("a", false), ("a-b", false), ("a/x", false), ("a-", true), ("c", true)] {
            assert_eq!(found.has_room_for(name), room, "{name}");
        }
    }

    #[test]
    fn what_is_missing_leads_out_or_has_an_impossible_name_is_said() {
        let base = tempfile::tempdir().unwrap();
        let out = base.path().join("out");
        fs::create_dir_all(&out).unwrap();
        fs::write(base.path().join("secret"), "x").unwrap();
        symlink(base.path().join("secret"), out.join("link")).unwrap();
        symlink(base.path(), out.join("up")).unwrap();
        fs::write(out.join("a\nb.txt"), "x").unwrap();
        fs::write(out.join(std::ffi::OsStr::from_bytes(b"\xff.bin")), "x").unwrap();
        fs::create_dir(out.join("dir")).unwrap();
        let problem = |pattern: &str| {
            let found = find(&[pattern.to_owned()], &[&out], ALL).unwrap();
            assert!(found.files.is_empty(), "{pattern} was found");
            found.problems.join("; ")
        };
        assert_eq!(problem("none"), "nothing matches the artifact \"none\"");
        assert!(problem("link").contains("leads out"));
        assert!(problem("up/secret").contains("leads out"));
        assert!(problem("../secret").contains("`..`"));
        assert!(problem("*.txt").contains("control character"));
        assert!(problem("*.bin").contains("not UTF-8"));
        assert!(problem("dir").contains("is a directory"));
        assert!(problem("**/secret").contains("nothing matches"));
        assert!(problem("[").contains("cannot name files of a task: unclosed"));
    }
}

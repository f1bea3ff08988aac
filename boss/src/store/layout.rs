//! Names and paths in the result directory, and who may use it.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crewboss_ground::{Directory, Open};
use crewboss_protocol::{Name, RunId, TaskRef};

use super::durable::make_directories;

/// Longest part of a commit's subject in a directory name.
const SUBJECT_CHARS_MAX: usize = 40;

/// The journal's name.
pub(super) const JOURNAL: &str = "run.jsonl";

/// Names that are ours, besides those of commits.
const OWN_NAMES: [&str; 4] = [".gitignore", ".lock", JOURNAL, "boss.log"];

/// How further names begin that are ours.
const OWN_BEGINNINGS: [&str; 3] = [".part-", ".tmp", "host-"];

/// What went wrong in the result directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory could not be made, written or moved.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something in the result directory is not what it should be.
    #[error(transparent)]
    Ground(#[from] crewboss_ground::Error),
    /// The directory has something in it that is none of ours.
    #[error("{} is no directory of results: {name:?} is in it", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The first of it.
        name: String,
    },
    /// It is none at all.
    #[error("{} is not a directory", .0.display())]
    NoDirectory(PathBuf),
    /// Another boss writes into the same directory.
    #[error(
        "another crewboss is using the result directory {} ({holder}); hint: wait for it, or choose another directory with --out",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who, as far as is known.
        holder: String,
    },
}

impl StoreError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io { .. } => {
                Some("results are kept there; make room for them, or name another directory with --out")
            }
            Self::Foreign { .. } | Self::NoDirectory(_) => Some(
                "name one that is new or empty with --out: whatever is in it is ignored by git from then on, and is no source",
            ),
            Self::Ground(_) | Self::InUse { .. } => None,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// A result directory that this boss alone writes into, until it is dropped.
#[derive(Debug)]
pub struct OutDir {
    root: PathBuf,
    scratch: PathBuf,
    lock: File,
}

impl OutDir {
    /// Makes the directory if need be, takes its lock and removes what a killed boss left half
    /// done.
    ///
    /// It may have come with a repository, so nothing in it is believed to be ours: what has a
    /// fixed name is used if it is a file, or directory, of this user.
    pub fn open(root: &Path, run: &RunId) -> Result<Self, StoreError> {
        if root.metadata().is_ok_and(|found| !found.is_dir()) {
            return Err(StoreError::NoDirectory(root.to_owned()));
        }
        make_directories(root).map_err(StoreError::io("create", root))?;
        let directory = Directory::open(root)?;
        refuse_foreign(root)?;
        let lock = lock(&directory)?;
        match Open::create_new().within(&directory, ".gitignore") {
            Ok(mut ignore) => {
                ignore.write_all(b"*\n").map_err(StoreError::io("write", &root.join(".gitignore")))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        remove_scratch(root)?;
        let scratch = root.join(format!(".part-{run}"));
        fs::create_dir(&scratch).map_err(StoreError::io("create", &scratch))?;
        Ok(Self { root: root.to_owned(), scratch, lock })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an attempt's files are gathered before they are moved into place together.
    pub fn part(&self, at: TaskRef) -> PathBuf {
        self.scratch.join(at.to_string())
    }
}

impl Drop for OutDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.scratch) {
            tracing::warn!(path = %self.scratch.display(), %error, "could not remove");
        }
        // Closing is not enough: a program that another thread is just starting may have it open as
        // well.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(path = %self.root.display(), %error, "could not unlock");
        }
    }
}

/// Refuses a directory with something in it that is not ours, unless a journal says that there are
/// results as well.
fn refuse_foreign(root: &Path) -> Result<(), StoreError> {
    if root.join(JOURNAL).symlink_metadata().is_ok() {
        return Ok(());
    }
    for entry in fs::read_dir(root).map_err(StoreError::io("read", root))? {
        let name = entry.map_err(StoreError::io("read", root))?.file_name();
        let name = name.to_string_lossy();
        let begins = |begin: &&str| name.starts_with(begin);
        if !OWN_NAMES.contains(&&*name) && !OWN_BEGINNINGS.iter().any(begins) && !is_of_commit(&name) {
            return Err(StoreError::Foreign { path: root.to_owned(), name: name.into_owned() });
        }
    }
    Ok(())
}

/// Whether a directory has the results of a commit: `<nn>_of_<mm>_g...`.
fn is_of_commit(name: &str) -> bool {
    let (number, rest) = name.split_once("_of_").unwrap_or_default();
    let (count, _) = rest.split_once("_g").unwrap_or_default();
    [number, count]
        .iter()
        .all(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn lock(root: &Directory) -> Result<File, StoreError> {
    const HOLDER_BYTES_MAX: u64 = 100;
    let mut file = Open::lock().within(root, ".lock")?;
    let path = root.path().join(".lock");
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = Vec::new();
            // It may not have been written yet.
            let _unknown = file.take(HOLDER_BYTES_MAX).read_to_end(&mut holder);
            let holder = String::from_utf8_lossy(&holder).trim().to_owned();
            return Err(StoreError::InUse { path: root.path().to_owned(), holder });
        }
        Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
    }
    let holder = format!("process {}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.write_all(holder.as_bytes()))
        .map_err(StoreError::io("write", &path))?;
    Ok(file)
}

/// Removes what a killed boss had not finished: results, and files that it was about to replace.
fn remove_scratch(root: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(root).map_err(StoreError::io("read", root))? {
        let entry = entry.map_err(StoreError::io("read", root))?;
        let name = entry.file_name();
        if [".part-", ".tmp"].iter().any(|begin| name.to_string_lossy().starts_with(begin)) {
            remove(&entry.path()).map_err(StoreError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Removes whatever has this name. A link is not followed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// A task's directory below the result directory: `<nn>_of_<mm>_g<hash>_<subject>/<target>`, as
/// buildman names them.
pub fn task_path(index: usize, count: usize, short: &str, subject: &str, target: &Name) -> String {
    let width = count.to_string().len().max(2);
    format!("{:0width$}_of_{count:0width$}_g{short}_{}/{target}", index + 1, slug(subject))
}

/// A subject as a part of a file name: letters, digits, `.`, `_` and single dashes.
fn slug(subject: &str) -> String {
    let mut text = String::new();
    for c in subject.chars() {
        let c = if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
        if c != '-' || !text.ends_with('-') {
            text.push(c);
        }
        if text.len() >= SUBJECT_CHARS_MAX {
            break;
        }
    }
    let text = text.trim_matches(['-', '.']);
    if text.is_empty() { "no-subject".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> RunId {
        text.parse().unwrap()
    }

    #[test]
    fn directories_are_named_as_buildman_names_them() {
        let target: Name = "native".parse().unwrap();
        assert_eq!(
            task_path(2, 7, "1a2b3c4", "fs: Fix the `..` case (again)", &target),
            "03_of_07_g1a2b3c4_fs-Fix-the-..-case-again/native"
        );
        assert_eq!(task_path(0, 250, "1a2b3c4", "../../etc\n", &target), "001_of_250_g1a2b3c4_etc/native");
        assert_eq!(task_path(0, 1, "1a2b3c4", "日本語", &target), "01_of_01_g1a2b3c4_no-subject/native");
    }

    #[test]
    fn a_result_directory_has_one_boss_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = OutDir::open(dir.path(), &run("r1")).unwrap();
        let error = OutDir::open(dir.path(), &run("r2")).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())));
        drop(first);
        OutDir::open(dir.path(), &run("r2")).unwrap();
    }

    #[test]
    fn leftovers_of_a_killed_boss_are_removed_and_results_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".part-old/1.1/artifacts")).unwrap();
        fs::create_dir_all(dir.path().join("01_of_01_gabc_x/native")).unwrap();
        let out = OutDir::open(dir.path(), &run("r1")).unwrap();
        assert!(!dir.path().join(".part-old").exists());
        assert!(dir.path().join("01_of_01_gabc_x/native").exists());
        assert_eq!(fs::read_to_string(dir.path().join(".gitignore")).unwrap(), "*\n");
        assert!(out.part("1.1".parse().unwrap()).starts_with(dir.path().join(".part-r1")));
    }

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".lock", ".gitignore", "boss.log", "host-a.log", "02_of_10_gabc_x"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        drop(OutDir::open(dir.path(), &run("r1")).unwrap());
        let project = tempfile::tempdir().unwrap();
        fs::write(project.path().join("main.c"), "").unwrap();
        let error = OutDir::open(project.path(), &run("r1")).unwrap_err();
        assert!(error.to_string().ends_with(" is no directory of results: \"main.c\" is in it"), "{error}");
        assert!(error.hint().is_some() && fs::read_dir(project.path()).unwrap().count() == 1);
        fs::write(project.path().join(JOURNAL), "").unwrap();
        drop(OutDir::open(project.path(), &run("r1")).unwrap());
        let error = OutDir::open(&project.path().join("main.c"), &run("r1")).unwrap_err();
        assert!(matches!(error, StoreError::NoDirectory(_)), "{error}");
        assert!(!is_of_commit("_of__g") && !is_of_commit("1_of_x_g") && is_of_commit("1_of_2_g"));
    }

    #[test]
    fn links_that_came_with_the_directory_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let precious = outside.path().join("precious");
        for (name, refused) in [(".lock", true), (".gitignore", false), (".part-x", false), (".tmpx", false)]
        {
            fs::write(&precious, "keep").unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink(&precious, dir.path().join(name)).unwrap();
            let opened = OutDir::open(dir.path(), &run("r1"));
            assert_eq!(fs::read_to_string(&precious).unwrap(), "keep", "{name}");
            assert_eq!(opened.is_err(), refused, "{name}: {opened:?}");
            if let Err(error) = opened {
                assert!(
                    error.to_string().contains(".lock: it is a symbolic link and not a file; hint: `mv "),
                    "{error}"
                );
            }
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join(".part-x")).unwrap();
        drop(OutDir::open(dir.path(), &run("r1")).unwrap());
        assert!(precious.exists() && !dir.path().join(".part-x").is_symlink());
    }
}

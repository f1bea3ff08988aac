//! Walking one directory tree for a pattern.

use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fs::{File, FileType, Metadata, ReadDir};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crewboss_protocol::RelPath;
use crewboss_protocol::limits::PATH_PARTS_MAX;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::pattern::{Pattern, Places};
use super::{BYTES_MAX, Found, Wanted, is_of_host};

/// Links to directories that are followed for one pattern. In a tree that is full of links to
/// itself a pattern with some `*` would never be done.
const LINKS_MAX: usize = 10_000;

/// Directories that wait to be looked into. A task may have made any number of them.
const OPEN_MAX: usize = 1_000_000;

/// Entries of a directory that are in memory together.
const ENTRIES_AT_ONCE: usize = 1 << 16;

/// Takes up all files below `root`, which must be a canonical path, that match. Links are followed
/// as far as they stay below it: those that a part of the pattern names to where they lead, be it a
/// directory; those that `**` meets only if they lead to a file. Returns whether the pattern has
/// been answered, if only by a problem.
///
/// # Errors
/// If the host fails.
pub(super) fn walk(root: &Path, pattern: &Pattern, wanted: Wanted, found: &mut Found) -> io::Result<bool> {
    let mut walk =
        Walk { root, pattern, wanted, found, seen: false, links: 0, open: Vec::new(), over: false };
    walk.open.push((PathBuf::new(), pattern.start()));
    while let Some((directory, places)) = walk.open.pop() {
        walk.directory(&directory, &places)?;
        if walk.over {
            break;
        }
    }
    Ok(walk.seen)
}

struct Walk<'a> {
    root: &'a Path,
    pattern: &'a Pattern,
    wanted: Wanted,
    found: &'a mut Found,
    seen: bool,
    links: usize,
    /// Directories that are still to be looked into.
    open: Vec<(PathBuf, Places)>,
    /// There is too much of something.
    over: bool,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, places: &Places) -> io::Result<()> {
        if let Some(names) = self.pattern.names(places) {
            for name in names {
                let path = directory.join(name);
                match self.root.join(&path).symlink_metadata() {
                    Ok(meta) => self.entry(&path, meta.file_type(), places)?,
                    Err(error) => self.failed(&path, error)?,
                }
            }
            return Ok(());
        }
        let mut entries = match std::fs::read_dir(self.root.join(directory)) {
            Ok(entries) => entries,
            Err(error) => return self.failed(directory, error),
        };
        while !self.over {
            match some_of(&mut entries) {
                Ok(some) if some.is_empty() => break,
                Ok(some) => some
                    .into_iter()
                    .try_for_each(|(name, kind)| self.entry(&directory.join(name), kind, places))?,
                Err(error) => return self.failed(directory, error),
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, kind: FileType, places: &Places) -> io::Result<()> {
        let step = self.pattern.step(places, path.file_name().unwrap_or_default());
        if step.matches && (!kind.is_dir() || self.pattern.is_name()) {
            self.take(path)?;
        }
        if kind.is_dir() && !step.directory.is_empty() {
            self.enter(path, step.directory);
        } else if kind.is_symlink() && !step.link.is_empty() {
            self.follow(path, step.link)?;
        }
        Ok(())
    }

    fn enter(&mut self, path: &Path, places: Places) {
        // One part has to be left for a name in it.
        if self.open.len() >= OPEN_MAX {
            self.over = true;
            self.problem(format!("there are more than {OPEN_MAX} directories to be looked into"));
        } else if path.components().count() < PATH_PARTS_MAX {
            self.open.push((path.to_owned(), places));
        } else {
            self.problem(format!("there are more than {PATH_PARTS_MAX} directories in each other"));
        }
    }

    /// Goes on where a link leads, if that is a directory.
    fn follow(&mut self, path: &Path, places: Places) -> io::Result<()> {
        let place = match self.root.join(path).canonicalize() {
            Ok(place) => place,
            Err(error) => return self.failed(path, error),
        };
        if !place.starts_with(self.root) {
            self.leads_out(path);
        } else if place.is_dir() {
            self.links += 1;
            if self.links <= LINKS_MAX {
                self.enter(path, places);
            } else {
                self.problem(format!("a pattern leads through more than {LINKS_MAX} links to directories"));
            }
        }
        Ok(())
    }

    /// Takes up one file.
    fn take(&mut self, path: &Path) -> io::Result<()> {
        let file = match self.root.join(path).canonicalize() {
            Ok(file) => file,
            Err(error) => return self.failed(path, error),
        };
        if !file.starts_with(self.root) {
            self.leads_out(path);
            return Ok(());
        }
        let meta = match readable(&file) {
            Ok(Some(meta)) => meta,
            Ok(None) if self.pattern.is_name() => {
                let shown = path.display();
                self.problem(if file.is_dir() {
                    format!("the artifact \"{shown}\" is a directory; `{shown}/**` matches all below it")
                } else {
                    format!("the artifact \"{shown}\" is not a file, but a socket, FIFO or device")
                });
                return Ok(());
            }
            Ok(None) => return Ok(()),
            Err(error) => return self.failed(path, error),
        };
        let shown = path.to_string_lossy();
        let problem = match path.to_str().map(|text| RelPath::try_from(text.to_owned())) {
            None => format!("the artifact {shown:?} has a name that is not UTF-8"),
            Some(Err(error)) => format!("an artifact cannot be brought back: {error}"),
            Some(Ok(_)) if self.found.bytes.saturating_add(meta.len()) > BYTES_MAX => {
                format!("the artifacts have more than {BYTES_MAX} bytes with {shown:?}")
            }
            Some(Ok(_)) => {
                self.seen = true;
                let is_new = self.wanted.is_new(&meta);
                if let Entry::Vacant(entry) = self.found.files.entry(shown.into_owned())
                    && is_new
                {
                    entry.insert(file);
                    self.found.bytes += meta.len();
                }
                if self.found.files.len() > self.wanted.limits.artifacts as usize {
                    self.over = true;
                    self.found.give_up(&self.wanted.limits);
                }
                return Ok(());
            }
        };
        self.problem(problem);
        Ok(())
    }

    fn leads_out(&mut self, path: &Path) {
        let (shown, root) = (path.to_string_lossy(), self.root.display());
        self.problem(format!("the artifact {shown:?} is a link that leads out of {root}"));
    }

    fn problem(&mut self, problem: String) {
        self.seen = true;
        self.found.problem(problem);
    }

    /// What is not there has no match. What is there and cannot be read must not be passed over:
    /// something could be missing.
    fn failed(&mut self, path: &Path, error: io::Error) -> io::Result<()> {
        let is_missing = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
        if Errno::from_io_error(&error).is_some_and(|errno| is_missing.contains(&errno)) {
            return Ok(());
        }
        let shown = if path == Path::new("") { self.root } else { path }.to_string_lossy();
        if is_of_host(&error) {
            return Err(io::Error::new(error.kind(), format!("cannot read {shown:?}: {error}")));
        }
        self.problem(format!("the artifact {shown:?} cannot be read: {error}"));
        Ok(())
    }
}

/// The next entries of a directory, of which there may be any number. What is said of them comes in
/// the order of their names.
fn some_of(entries: &mut ReadDir) -> io::Result<Vec<(OsString, FileType)>> {
    let some = entries.take(ENTRIES_AT_ONCE);
    let some = some.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))));
    let mut some: Vec<_> = some.collect::<io::Result<_>>()?;
    some.sort_unstable_by(|(a, _), (b, _)| OsStr::cmp(a, b));
    Ok(some)
}

/// What is known of a regular file, which is opened to see that it can be read.
#[expect(
    clippy::disallowed_methods,
    reason = "what a build has made has the owner and permissions that it chose; links and FIFOs are refused here"
)]
fn readable(file: &Path) -> io::Result<Option<Metadata>> {
    if !file.symlink_metadata()?.is_file() {
        return Ok(None);
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(file)?;
    file.metadata().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::as_stranger;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn found(root: &Path, pattern: &str) -> (Vec<String>, String) {
        let mut found = Found::default();
        walk(&root.canonicalize().unwrap(), &Pattern::parse(pattern).unwrap(), Wanted::default(), &mut found)
            .unwrap();
        (found.files.into_keys().collect(), found.problems.join("; "))
    }

    #[test]
    fn links_are_looked_through_where_the_pattern_names_them_and_never_out_of_the_tree() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        for directory in ["v1/deep", "v2"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in ["root/v1/x", "root/v1/deep/y", "root/v2/z", "secret"] {
            fs::write(base.path().join(file), "x").unwrap();
        }
        symlink("v1", root.join("latest")).unwrap();
        symlink("..", root.join("v1/up")).unwrap();
        symlink("v1/x", root.join("file")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        let of = |pattern: &str| {
            let (files, problems) = found(&root, pattern);
            assert_eq!(problems, "", "{pattern}");
            files
        };
        assert_eq!(of("latest/x"), ["latest/x"]);
        assert_eq!(of("latest/*"), ["latest/x"]);
        assert_eq!(of("latest/**"), ["latest/deep/y", "latest/x"]);
        assert_eq!(of("la*/*"), ["latest/x"]);
        assert_eq!(of("v1/up/latest/deep/*"), ["v1/up/latest/deep/y"]);
        // Otherwise circles would be walked for ever.
        assert_eq!(of("**"), ["file", "v1/deep/y", "v1/x", "v2/z"]);
        assert_eq!(of("**/y"), ["v1/deep/y"]);
        assert!(of("dangling").is_empty() && of("circle/*").is_empty() && of("file/*").is_empty());
        symlink(base.path(), root.join("bazel-bin")).unwrap();
        for pattern in ["bazel-bin/secret", "bazel-bin/*", "bazel-*/**", "**/bazel-bin/*", "*/z"] {
            let (_, problems) = found(&root, pattern);
            assert!(problems.starts_with("the artifact \"bazel-bin"), "{pattern}: {problems}");
            assert!(problems.contains("is a link that leads out of"), "{pattern}: {problems}");
        }
    }

    #[test]
    fn what_is_no_file_is_told_when_it_is_named_and_never_matched() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("out")).unwrap();
        fs::write(path("out/file"), "x").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("out/socket")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("out/fifo"), rustix::fs::Mode::RWXU).unwrap();
        for pattern in ["out/*", "**"] {
            assert_eq!(found(root.path(), pattern), (vec!["out/file".to_owned()], String::new()));
        }
        for (name, wanted) in [
            ("out", "the artifact \"out\" is a directory; `out/**` matches all below it"),
            ("out/fifo", "the artifact \"out/fifo\" is not a file, but a socket, FIFO or device"),
        ] {
            assert_eq!(found(root.path(), name).1, wanted);
        }
    }

    #[test]
    fn a_tree_full_of_links_to_itself_is_given_up() {
        let root = tempfile::tempdir().unwrap();
        (0..40).for_each(|number| symlink(".", root.path().join(number.to_string())).unwrap());
        let (files, problems) = found(root.path(), "*/*/*/*/*/*/*/*/x");
        assert_eq!(files, [""; 0]);
        assert_eq!(problems, "a pattern leads through more than 10000 links to directories");
    }

    #[test]
    fn what_cannot_be_read_is_named_and_not_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(path("u/v")).unwrap();
        for file in ["u/y", "u/v/x", "u/z"] {
            fs::write(path(file), "x").unwrap();
        }
        fs::set_permissions(path("u/v"), Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(path("u/z"), Permissions::from_mode(0o0)).unwrap();
        let of = |pattern: &str| as_stranger(|| found(root.path(), pattern));
        let denied =
            |name: &str| format!("the artifact \"{name}\" cannot be read: Permission denied (os error 13)");
        let y = || vec!["u/y".to_owned()];
        assert_eq!(of("u/*"), (y(), denied("u/z")));
        assert_eq!(of("u/**"), (y(), format!("{}; {}", denied("u/z"), denied("u/v"))));
        assert_eq!(of("u/v/x"), (vec![], denied("u/v/x")));
        assert_eq!(of("u/v/*"), (vec![], denied("u/v")));
        // Nobody has asked for what is in it.
        assert_eq!(of("u/y"), (y(), String::new()));
        assert_eq!(of("*/y"), (y(), String::new()));
    }
}

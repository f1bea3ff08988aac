//! A short way to the directories of a session.
//!
//! The path of a Unix socket has at most 107 bytes, and build tools make theirs below `$HOME` or
//! `$TMPDIR`. An attempt lies deep, so a session has a directory with a short name, and in it a
//! link for each slot, which leads to the attempt that runs there. What is written goes to the work
//! directory all the same.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::storage::remove_tree;

/// Where such directories are made. Not what `TMPDIR` says, which may be as long as anything.
const PLACE: &str = "/tmp";

/// Begins their names.
const PREFIX: &str = "cb-";

/// Characters behind that.
const RANDOM: usize = 6;

/// Tries at a name that nobody has.
const TRIES: u32 = 16;

/// Finds a free name and makes the directory. The name goes on record first, by `record`: whatever
/// happens then, somebody knows whose it is. `None` if there is no place for one; then paths are
/// long.
///
/// # Errors
/// If the name cannot be recorded.
pub fn make(mut record: impl FnMut(Option<&Path>) -> io::Result<()>) -> io::Result<Option<PathBuf>> {
    let place = place();
    for _ in 0..TRIES {
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(RANDOM).collect();
        let path = place.join(format!("{PREFIX}{random}"));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        record(Some(&path))?;
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(Some(path)),
            // Somebody else was faster: it must not stay on record.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => record(None)?,
            Err(_) => break,
        }
    }
    record(None)?;
    Ok(None)
}

fn place() -> PathBuf {
    let may_write = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let place = PathBuf::from(PLACE);
    if may_write(&place) { place } else { runtime.filter(|path| may_write(path)).unwrap_or(place) }
}

/// Lets `way`, a link in the directory, lead to `target`.
///
/// # Errors
/// Whatever the file system says.
pub fn lead(way: &Path, target: &Path) -> io::Result<()> {
    match std::fs::remove_file(way) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(target, way),
    }
}

/// Removes a directory that a session has on record, if it is there and is one that [`make`] makes.
///
/// # Errors
/// Whatever the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
    let is_named_so = name.is_some_and(|random| {
        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    let own = rustix::process::geteuid().as_raw();
    match path.symlink_metadata() {
        Ok(found) if is_named_so && found.is_dir() && found.uid() == own => remove_tree(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_is_on_record_before_it_is_there_leaves_room_for_sockets_and_goes() {
        let attempt = tempfile::tempdir().unwrap();
        fs::create_dir(attempt.path().join("home")).unwrap();
        let mut recorded = Vec::new();
        let made = make(|path| {
            assert!(path.is_none_or(|path| !path.exists()));
            recorded.push(path.map(Path::to_owned));
            Ok(())
        });
        let directory = made.unwrap().unwrap();
        assert_eq!(recorded.last(), Some(&Some(directory.clone())));
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o700);
        let way = directory.join("127");
        for _ in 0..2 {
            lead(&way, attempt.path()).unwrap();
        }
        let home = way.join("home");
        assert!(107 - home.as_os_str().len() >= 80, "{}", home.display());
        let socket = home.join("s".repeat(79));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        remove(&directory).unwrap();
        assert!(!directory.exists() && attempt.path().join("home").join("s".repeat(79)).exists());
        remove(&directory).unwrap();
    }

    #[test]
    fn what_cannot_be_recorded_is_not_made_and_what_is_no_such_directory_stays() {
        let mut wanted = None;
        let refused = make(|path| {
            wanted = path.map(Path::to_owned);
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(refused.is_err() && !wanted.unwrap().exists());
        let base = tempfile::tempdir().unwrap();
        let (other, link) = (base.path().join("cb-other"), base.path().join("cb-abcdef"));
        fs::create_dir(&other).unwrap();
        symlink(&other, &link).unwrap();
        for path in [&other, &link] {
            remove(path).unwrap();
            assert!(path.symlink_metadata().is_ok(), "{}", path.display());
        }
    }
}

//! Directories of this process, for the sockets of its connections and the like: nobody else can
//! look in, and they go when it ends, however it ends.
//!
//! Each has a record in it: a file that says so in words, and is locked as long as its owner lives.
//! Whoever makes another removes those whose owner is dead, and with each the directory elsewhere
//! that it names, if any: so that one may lie on a disk with room, wherever that was. A name proves
//! nothing, since people call their directories what they like, and words alone prove nothing
//! either: a repository or an archive can bring a file with them. So the record also names what
//! only the system gives to a directory, and only once it is there.

use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crewboss_ground::{Directory, Held, Open};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::ssh::hang_up;

/// Longest path of a Unix socket, less what ssh appends while it makes it.
const SOCKET_PATH_MAX: usize = 108 - 17 - 1;

/// Begins the name of such a directory.
const PREFIX: &str = "crewboss-";

/// In that directory: its record.
const RECORD: &str = "lock";

/// What the record says for people, before what only this directory has. It is locked before it
/// says that, so that what says it and is not locked belongs to nobody any more.
const WORDS: &str =
    "This directory belongs to a running crewboss. Once that has ended, the next one removes it.";

/// Far longer than any record.
const RECORD_BYTES_MAX: u64 = 1024;

/// Nobody but its owner may even look into such a directory.
const MODE: u32 = 0o700;

/// In that directory: a link to the directory elsewhere that goes with it.
const ELSEWHERE: &str = "elsewhere";

/// Begins the name of a directory elsewhere.
const ELSEWHERE_PREFIX: &str = "crewboss-scratch-";

/// The directories that this process has.
static HELD: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// One of them. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Private {
    path: PathBuf,
    _lock: Held,
}

impl Private {
    /// Makes one, and removes what dead processes left.
    ///
    /// # Errors
    /// If there is no place for it, with the place.
    pub(crate) fn new() -> Result<Self, (PathBuf, io::Error)> {
        let places = places(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
        places.iter().for_each(|place| sweep(place));
        let place = &places[0];
        let (path, lock) = make(place).map_err(|error| (place.clone(), error))?;
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory elsewhere, which goes when this one goes. It is on record here before it
    /// is there.
    ///
    /// # Errors
    /// If it cannot be made, or there is one already.
    pub(crate) fn elsewhere(&self, base: &Path) -> io::Result<PathBuf> {
        let path = std::path::absolute(base)?.join(format!("{ELSEWHERE_PREFIX}{:016x}", fastrand::u64(..)));
        let link = self.path.join(ELSEWHERE);
        symlink(&path, &link)?;
        fs::DirBuilder::new().mode(MODE).create(&path)?;
        // Whatever the umask.
        fs::set_permissions(&path, Permissions::from_mode(MODE))?;
        if let Err(error) = Directory::fixed(&path).and_then(|made| made.check_above()) {
            fs::remove_dir(&path)?;
            fs::remove_file(&link)?;
            return Err(error.into());
        }
        Ok(path)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        clear(&self.path);
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|path| *path != self.path);
    }
}

/// Ends all connections of this process and removes its files, for a process that is about to end
/// and cannot drop what it has. Takes no longer than it takes to speak to local sockets and to
/// remove the files.
pub fn abandon() {
    let held = std::mem::take(&mut *HELD.lock().unwrap_or_else(PoisonError::into_inner));
    held.iter().for_each(|path| clear(path));
}

/// Where they may be, the place for a new one first: the user's runtime directory if its name is
/// short enough for a socket, and `/tmp`, where those are that were made without it.
fn places(runtime: Option<PathBuf>) -> Vec<PathBuf> {
    let longest = PREFIX.len() + "/XXXXXX/m4294967295".len();
    // After `su` it may be another user's, who could put other sockets and settings in the place of
    // ours.
    let is_own = |path: &Path| Directory::open(path).is_ok_and(|found| found.check_above().is_ok());
    let usable = |path: &PathBuf| {
        path.is_absolute()
            && path.as_os_str().len() + longest <= SOCKET_PATH_MAX
            && is_own(path)
            && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
    };
    runtime.into_iter().filter(usable).chain([PathBuf::from("/tmp")]).collect()
}

/// A directory of our own with a record that is held.
fn make(place: &Path) -> io::Result<(PathBuf, Held)> {
    let made = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(Permissions::from_mode(MODE))
        .tempdir_in(place)?;
    // Whatever the umask, here and below.
    fs::set_permissions(made.path(), Permissions::from_mode(MODE))?;
    let directory = Directory::fixed(made.path())?;
    let record = Open::lock().within(&directory, RECORD)?;
    record.set_permissions(Permissions::from_mode(0o600))?;
    record.lock()?;
    (&record).write_all(said_of(&directory)?.as_bytes())?;
    Ok((made.keep(), Held::new(record)))
}

/// The words, the directory's inode number, and the time of its making, where that is known.
fn said_of(directory: &Directory) -> io::Result<String> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = statx(directory.as_fd(), c"", AtFlags::EMPTY_PATH, wanted)?;
    let (number, born) = (found.stx_ino, found.stx_btime);
    Ok(format!("{WORDS}\n{number} {}.{:09}\n", born.tv_sec, born.tv_nsec))
}

/// Removes what processes left that were killed. The lock tells: a living one holds it.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if let Some(_record) = named.then(|| abandoned(&path)).flatten() {
            clear(&path);
        }
    }
}

/// The record of a directory of ours whose owner is dead.
fn abandoned(path: &Path) -> Option<Held> {
    let directory = Directory::fixed(path).ok().filter(|_| is_own_directory(path))?;
    let mut record = Open::read().within(&directory, RECORD).ok()?;
    let mut said = Vec::new();
    (&mut record).take(RECORD_BYTES_MAX).read_to_end(&mut said).ok()?;
    if said != said_of(&directory).ok()?.as_bytes() || record.try_lock().is_err() {
        return None;
    }
    let record = Held::new(record);
    // Another may have removed it meanwhile.
    record.is_at(&path.join(RECORD)).is_ok_and(|is| is).then_some(record)
}

fn is_own_directory(path: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    let mode = |found: &fs::Metadata| found.mode() & 0o7777;
    path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == me && mode(&found) == MODE)
}

/// Ends the masters of a run and removes its directory, and before it the one elsewhere: as long as
/// that is there, this one stays, for the next time.
fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            hang_up(&entry.path());
        }
    }
    let elsewhere = fs::read_link(directory.join(ELSEWHERE)).ok().filter(|path| may_remove(path));
    if elsewhere.is_none_or(|path| fs::remove_dir_all(path).is_ok()) {
        let _next_time = fs::remove_dir_all(directory);
    }
}

/// Whether this is a directory as [`Private::elsewhere`] makes it, and nobody else could have put
/// another in its place.
fn may_remove(elsewhere: &Path) -> bool {
    let Some((parent, name)) = elsewhere.parent().zip(elsewhere.file_name()) else { return false };
    // With a slash at the end, a link would be followed.
    let is_plain = elsewhere.is_absolute() && parent.join(name).as_os_str() == elsewhere.as_os_str();
    is_plain
        && name.to_string_lossy().starts_with(ELSEWHERE_PREFIX)
        && is_own_directory(elsewhere)
        && Directory::fixed(elsewhere).is_ok_and(|found| found.check_above().is_ok())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn nothing_of_ours_lies_where_another_user_could_put_something_else() {
        let runtime = tempfile::Builder::new().prefix("r").tempdir_in("/tmp").unwrap();
        let first = || places(Some(runtime.path().to_owned()))[0].clone();
        assert_eq!(first(), runtime.path());
        std::os::unix::fs::chown(runtime.path(), Some(987_654), None).unwrap();
        assert_eq!(first(), Path::new("/tmp"));
        for odd in ["", "run", "/dev/null", "/nonexistent"] {
            assert_eq!(places(Some(odd.into())), [Path::new("/tmp")], "{odd}");
        }
    }

    #[test]
    fn a_directory_that_is_being_made_is_swept_by_nobody() {
        let place = tempfile::tempdir().unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    sweep(place.path());
                }
            });
            let made = (0..2000).all(|_| {
                let made = make(place.path());
                made.is_ok_and(|(directory, _record)| directory.join(RECORD).exists())
            });
            done.store(true, Ordering::Relaxed);
            assert!(made);
        });
    }

    #[test]
    fn what_a_killed_boss_left_is_swept_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let (living, _record) = make(place.path()).unwrap();
        let (dead, record) = make(place.path()).unwrap();
        drop(record);
        // As a repository or an archive could bring it.
        let copied = place.path().join("crewboss-copied");
        let copy = std::process::Command::new("cp").arg("-a").args([&dead, &copied]).status();
        assert!(copy.unwrap().success());
        let said = fs::read_to_string(copied.join(RECORD)).unwrap();
        // What people call their own, with files in it that have the names of ours.
        let theirs = |name: &str, file: &str, content: &str| {
            let directory = place.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(&directory, Permissions::from_mode(MODE)).unwrap();
            fs::write(directory.join(file), content).unwrap();
            directory
        };
        let longer = format!("{said}\n");
        let mut kept = vec![
            living,
            copied,
            theirs("crewboss-thesis", RECORD, ""),
            theirs("crewboss-key", RECORD, "of the door"),
            theirs("crewboss-x", "lock.new", &said),
            theirs("crewboss-longer", RECORD, &longer),
            theirs("crewboss-notes", "precious", ""),
            theirs("thesis", RECORD, &said),
        ];
        // Nor is anything waited for, or followed.
        let odd = theirs("crewboss-odd", "precious", "");
        mknodat(CWD, odd.join(RECORD), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let linked = theirs("crewboss-linked", "precious", "");
        symlink(kept[7].join(RECORD), linked.join(RECORD)).unwrap();
        symlink(&kept[7], place.path().join("crewboss-link")).unwrap();
        let foreign = theirs("crewboss-foreign", RECORD, &said);
        std::os::unix::fs::chown(foreign.join(RECORD), Some(987_654), None).unwrap();
        kept.extend([odd, linked, foreign]);
        sweep(place.path());
        assert!(!dead.exists());
        for path in kept {
            assert!(fs::read_dir(&path).unwrap().next().is_some(), "{}", path.display());
        }
    }

    #[test]
    fn a_directory_elsewhere_goes_with_the_one_that_names_it() {
        let (place, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let private = |lock: Held, path: PathBuf| Private { path, _lock: lock };
        let made = || make(place.path()).map(|(path, lock)| private(lock, path)).unwrap();
        let scratch = |private: &Private| {
            let scratch = private.elsewhere(disk.path()).unwrap();
            fs::write(scratch.join("file"), "uncommitted").unwrap();
            scratch
        };
        let dropped = made();
        let one = scratch(&dropped);
        assert_eq!(one.metadata().unwrap().mode() & 0o777, 0o700);
        drop(dropped);
        assert!(!one.exists());
        let (killed, living) = (made(), made());
        let (dead, kept) = (scratch(&killed), scratch(&living));
        // As the kernel does with the lock of a process that is killed.
        let Private { path, _lock } = &*std::mem::ManuallyDrop::new(killed);
        _lock.unlock().unwrap();
        sweep(place.path());
        assert!(!dead.exists() && !path.exists());
        assert!(kept.join("file").exists() && living.path().exists());
    }

    #[test]
    fn a_record_never_has_anything_else_removed() {
        let (place, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let thesis = disk.path().join("thesis");
        let linked = disk.path().join("crewboss-scratch-link");
        fs::create_dir(&thesis).unwrap();
        fs::write(thesis.join("file"), "precious").unwrap();
        symlink(&thesis, &linked).unwrap();
        let followed = PathBuf::from(format!("{}/", linked.display()));
        let open_to_all = disk.path().join("crewboss-scratch-open");
        fs::create_dir(&open_to_all).unwrap();
        fs::set_permissions(&thesis, Permissions::from_mode(MODE)).unwrap();
        for target in [&thesis, &linked, &followed, &open_to_all] {
            let (path, lock) = make(place.path()).unwrap();
            symlink(target, path.join(ELSEWHERE)).unwrap();
            drop(lock);
            sweep(place.path());
            assert!(!path.exists());
        }
        assert!(thesis.join("file").exists() && open_to_all.exists());
        // Where others can put another in its place, none is made.
        fs::set_permissions(disk.path(), Permissions::from_mode(0o777)).unwrap();
        let (path, lock) = make(place.path()).unwrap();
        let private = Private { path, _lock: lock };
        let refused = private.elsewhere(disk.path()).unwrap_err();
        assert!(refused.to_string().contains("other users can write to it"), "{refused}");
        fs::set_permissions(disk.path(), Permissions::from_mode(MODE)).unwrap();
        assert!(private.elsewhere(disk.path()).unwrap().exists());
    }
}

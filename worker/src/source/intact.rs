//! Whether a source is still as it was checked out.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crewboss_ground::{Replace, read_record};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};

/// Longest note that is read.
const NOTE_BYTES_MAX: u64 = 4 << 10;

/// A moment in seconds and nanoseconds.
pub(super) type Time = (i64, i64);

/// What is noted when a source has been checked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// The file system's number of the last change.
    pub(super) transaction: u64,
    /// When it was checked out.
    pub(super) time: Time,
}

impl Note {
    /// The note of a source, if there is one.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let text = String::from_utf8(read_record(path, NOTE_BYTES_MAX).ok()??).ok()?;
        let mut words = text.split_whitespace();
        let transaction = words.next()?.parse().ok()?;
        Some(Self { transaction, time: (words.next()?.parse().ok()?, words.next()?.parse().ok()?) })
    }

    /// Writes it. If that fails, only a source that can be written counts as changed.
    pub(super) fn write(self, path: &Path) {
        let text = format!("{} {} {}\n", self.transaction, self.time.0, self.time.1);
        drop(Replace::with_mode(0o600).path(path, text.as_bytes()));
    }
}

/// When the last change of a tree was made: being renamed into place, which counts as a change of
/// its top.
pub(super) fn time_of(tree: &Path) -> io::Result<Time> {
    Ok(time(&statat(CWD, tree, AtFlags::SYMLINK_NOFOLLOW)?))
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether nothing in a tree has a change time after this. The kernel sets it at every change of
/// content, name or mode; only a change within a tick of its clock, some milliseconds, could go
/// unseen.
pub(super) fn is_unchanged_since(tree: &Path, time: Time) -> io::Result<bool> {
    let top = openat(CWD, tree, DIRECTORY, Mode::empty())?;
    Ok(is_older(&fstat(&top)?, time) && is_older_below(&top, time)?)
}

fn is_older_below(directory: &OwnedFd, time: Time) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let state = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_older(&state, time) {
            return Ok(false);
        }
        if FileType::from_raw_mode(state.st_mode).is_dir()
            && !is_older_below(&openat(directory, name, DIRECTORY, Mode::empty())?, time)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_older(state: &Stat, than: Time) -> bool {
    time(state) <= than
}

fn time(state: &Stat) -> Time {
    (state.st_ctime, i64::try_from(state.st_ctime_nsec).unwrap_or(0))
}

//! Copying a tree file by file, with or without sharing the data.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, fchmod, futimens, mkdirat, openat,
    readlinkat, seek, statat, symlinkat, utimensat,
};

use rustix::io::Errno;

/// Directories inside directories that are followed. Each holds two open files; Linux allows 1024
/// by default.
const DEPTH_MAX: usize = 400;

/// How a tree is copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Let the copy share data with the original. Fails where the file system cannot.
    pub reflink: bool,
    /// Make everything writable by the owner, for copies of trees that are kept read-only.
    pub add_write: bool,
}

/// Copies the directory `source` to `destination`, which must not exist, with modes, symbolic links
/// and times of modification. Files with several names become several files; sockets and devices
/// are left out.
///
/// # Errors
/// Whatever the file system says; the destination is then there in part.
pub fn copy_tree(source: &Path, destination: &Path, options: CopyOptions) -> io::Result<()> {
    let source = openat(CWD, source, DIRECTORY, Mode::empty())?;
    mkdirat(CWD, destination, Mode::RWXU)?;
    let destination = openat(CWD, destination, DIRECTORY, Mode::empty())?;
    copy_directory(&source, &destination, options, 0)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn copy_directory(
    source: &OwnedFd,
    destination: &OwnedFd,
    options: CopyOptions,
    depth: usize,
) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(format!("directories are nested more than {DEPTH_MAX} deep")));
    }
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(source.as_fd(), destination.as_fd(), name, options, depth)?;
    }
    // Last, since adding entries changes the time and a read-only mode would forbid adding them.
    let state = rustix::fs::fstat(source)?;
    futimens(destination, &modified(&state))?;
    fchmod(destination, mode_of(&state, options))?;
    Ok(())
}

fn copy_entry(
    source: BorrowedFd<'_>,
    destination: BorrowedFd<'_>,
    name: &CStr,
    options: CopyOptions,
    depth: usize,
) -> io::Result<()> {
    let state = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(state.st_mode) {
        FileType::Directory => {
            let from = openat(source, name, DIRECTORY, Mode::empty())?;
            mkdirat(destination, name, Mode::RWXU)?;
            let to = openat(destination, name, DIRECTORY, Mode::empty())?;
            copy_directory(&from, &to, options, depth + 1)
        }
        FileType::RegularFile => copy_file(source, destination, name, &state, options),
        FileType::Symlink => {
            symlinkat(readlinkat(source, name, Vec::new())?, destination, name)?;
            Ok(utimensat(destination, name, &modified(&state), AtFlags::SYMLINK_NOFOLLOW)?)
        }
        FileType::Fifo => {
            let mode = Mode::from_raw_mode(state.st_mode);
            Ok(rustix::fs::mknodat(destination, name, FileType::Fifo, mode, 0)?)
        }
        _ => Ok(()),
    }
}

fn copy_file(
    source: BorrowedFd<'_>,
    destination: BorrowedFd<'_>,
    name: &CStr,
    state: &Stat,
    options: CopyOptions,
) -> io::Result<()> {
    let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let writing = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = mode_of(state, options);
    let from = openat(source, name, reading, Mode::empty())?;
    let to = openat(destination, name, writing, Mode::RUSR | Mode::WUSR)?;
    if options.reflink {
        rustix::fs::ioctl_ficlone(&to, &from)?;
    } else if has_holes(state) {
        copy_data(&File::from(from), &File::from(to.try_clone()?))?;
    } else if state.st_size > 0 {
        io::copy(&mut File::from(from), &mut File::from(to.try_clone()?))?;
    }
    if mode != (Mode::RUSR | Mode::WUSR) {
        fchmod(&to, mode)?;
    }
    Ok(futimens(&to, &modified(state))?)
}

/// Copies what is data of a file, and gives the copy the same length.
pub(super) fn copy_data(mut source: &File, mut target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while let Some(data) = next_data(source, at, length)? {
        target.seek(io::SeekFrom::Start(data.start))?;
        io::copy(&mut Read::take(&mut source, data.end - data.start), &mut target)?;
        at = data.end;
    }
    Ok(())
}

/// Where a file has data next, from `at` on and before `end`; the file is to be read from there
/// then. `None` if all the rest is a hole.
///
/// # Errors
/// Whatever the file system says.
pub fn next_data(mut file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let start = match seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(start) if start < end => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // One that knows no holes.
        Err(Errno::INVAL) => at,
        Err(error) => return Err(error.into()),
    };
    let until = seek(file, rustix::fs::SeekFrom::Hole(start)).unwrap_or(end).min(end);
    file.seek(io::SeekFrom::Start(start))?;
    Ok(Some(start..until))
}

/// Whether a file takes less room than it is long.
fn has_holes(state: &Stat) -> bool {
    state.st_blocks.saturating_mul(512) < state.st_size
}

fn mode_of(state: &Stat, options: CopyOptions) -> Mode {
    let mode = Mode::from_raw_mode(state.st_mode);
    if options.add_write { mode | Mode::WUSR } else { mode }
}

fn modified(state: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: state.st_mtime,
        // Always under a thousand million.
        tv_nsec: i64::try_from(state.st_mtime_nsec).unwrap_or(0),
    };
    Timestamps { last_access: time, last_modification: time }
}

//! Unpacking the source of a task.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use crewboss_host::storage::remove_tree;
use crewboss_host::tar::{Entry, Kind, Reader};
use crewboss_protocol::guest::SOURCE_DISK;
use rustix::fs::{Timespec, Timestamps, futimens};

use super::error::AgentError;
use super::place::Place;

/// `BLKFLSBUF` of `linux/fs.h`, which is the same number on every architecture.
const FLUSH_BUFFERS: libc::Ioctl = 0x1261;

/// What is copied at once.
const COPY_BYTES: usize = 256 << 10;

/// Makes the directories of a task, empty, and unpacks its source.
pub(super) fn prepare(place: &Place) -> Result<(), AgentError> {
    fs::create_dir_all(place.work()).map_err(AgentError::at(&place.work()))?;
    for directory in [place.out(), place.home(), place.tmp()] {
        empty(&directory)?;
    }
    unpack(place)
}

/// Brings source and output back to how they were when the task began.
pub(super) fn renew(place: &Place) -> Result<(), AgentError> {
    empty(&place.out())?;
    unpack(place)
}

fn empty(directory: &Path) -> Result<(), AgentError> {
    remove_tree(directory).and_then(|()| fs::create_dir(directory)).map_err(AgentError::at(directory))
}

fn unpack(place: &Place) -> Result<(), AgentError> {
    let src = place.src();
    empty(&src)?;
    let disk = place.disk(SOURCE_DISK).ok_or(AgentError::NoDisk { serial: SOURCE_DISK })?;
    let (file, length) = open(&disk).map_err(AgentError::at(&disk))?;
    let damaged = |source| AgentError::Source { path: disk.clone(), source };
    let mut reader = Reader::new(file, length);
    let mut buffer = vec![0; COPY_BYTES];
    while let Some(entry) = reader.next_entry().map_err(damaged)? {
        let path = below(&src, &entry)?;
        let made = match &entry.kind {
            Kind::Directory => fs::create_dir_all(&path),
            Kind::Link(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), &path),
            Kind::File => write(&path, &entry, &mut reader, &mut buffer),
            Kind::Other(_) => Ok(()),
        };
        made.map_err(AgentError::at(&path))?;
    }
    Ok(())
}

fn open(disk: &Path) -> io::Result<(File, u64)> {
    let mut file = File::open(disk)?;
    // A guest that goes on from saved memory may remember the first blocks of the disk that was
    // there before. Only block devices have such buffers; for a file the call fails. SAFETY: the
    // call takes no argument and touches no memory of ours.
    unsafe { libc::ioctl(file.as_raw_fd(), FLUSH_BUFFERS, 0) };
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok((file, length))
}

/// The host made the archive of a tree that it checked; this is against mistakes.
fn below(src: &Path, entry: &Entry) -> Result<PathBuf, AgentError> {
    let name = Path::new(OsStr::from_bytes(&entry.name));
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !name.components().all(plain) {
        return Err(AgentError::Outside { name: name.to_string_lossy().into_owned() });
    }
    Ok(src.join(name))
}

fn write(path: &Path, entry: &Entry, reader: &mut Reader<File>, buffer: &mut [u8]) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(entry.mode & 0o777);
    let mut file = match options.open(path) {
        // An archive may leave directories out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            options.open(path)?
        }
        file => file?,
    };
    loop {
        let count = reader.read(buffer)?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count])?;
    }
    let time = Timespec { tv_sec: i64::try_from(entry.time).unwrap_or(0), tv_nsec: 0 };
    Ok(futimens(&file, &Timestamps { last_access: time, last_modification: time })?)
}

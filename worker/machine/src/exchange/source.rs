//! The source of a task as a disk for its guest, and what a machine is bootstrapped from.

use std::fs::File;
use std::io;
use std::path::Path;

use crewboss_ground::Open;
use crewboss_host::tar::{Attributes, Walk, Writer};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The size of the source's disk, whatever lies on it: a guest that goes on from saved memory must
/// find the disk that it knows. All but the archive is a hole.
pub const SOURCE_DISK_BYTES: u64 = 64 << 30;

/// How much of an archive of a source is there: all after it is one hole.
///
/// # Errors
/// If it cannot be read.
pub fn archive_length(archive: &Path) -> io::Result<u64> {
    let file = Open::read().path(archive)?;
    let mut end = 0;
    loop {
        match seek(&file, SeekFrom::Data(end)) {
            Ok(start) => end = seek(&file, SeekFrom::Hole(start))?,
            Err(Errno::NXIO) => return Ok(end),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes the archive that a machine is bootstrapped from: the agent, and the files of a toolchain
/// if there are any.
///
/// # Errors
/// If something cannot be read, or the archive not be written.
pub fn bootstrap_archive(archive: &Path, agent: &File, toolchain: Option<&Path>) -> io::Result<()> {
    let mut writer = Writer::new(Open::create().path(archive)?);
    let mut content = agent;
    let size = agent.metadata()?.len();
    writer.file(b"crewboss", Attributes { mode: 0o755, time: 0 }, size, &mut content)?;
    if let Some(toolchain) = toolchain {
        writer.directory(b"toolchain", Attributes { mode: 0o755, time: 0 })?;
        Walk::new(&mut writer, b"toolchain").all_below(toolchain)?;
    }
    writer.finish().map(drop)
}

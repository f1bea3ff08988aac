//! Writing a file so that it is there whole or not at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::directory::Directory;
use crate::error::{Error, Fault};

/// Names that are tried for the file before it has its own.
const TRIES: usize = 100;

/// How a file is written whole or not at all: under another name beside it, which begins with
/// `.tmp`, and then renamed. Whatever had the name before is replaced and not written into, unless
/// it is a directory.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Replace {
    mode: u32,
    sync: bool,
    new: bool,
}

impl Replace {
    /// With these permissions, whatever the umask is.
    pub const fn with_mode(mode: u32) -> Self {
        Self { mode, sync: false, new: false }
    }

    /// So that it is there after a loss of power as well.
    pub const fn synced(self) -> Self {
        Self { sync: true, ..self }
    }

    /// Only if the name is free; else the error is [`io::ErrorKind::AlreadyExists`].
    pub const fn new_only(self) -> Self {
        Self { new: true, ..self }
    }

    /// Writes the file at a path.
    ///
    /// # Errors
    /// If the system refuses. Then what was there is there still.
    pub fn path(self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = path.file_name().ok_or(Errno::INVAL);
        let written = rustix::fs::openat(CWD, parent, flags, Mode::empty())
            .map_err(Fault::from)
            .and_then(|directory| self.write(directory.as_fd(), name?, content));
        written.map_err(|fault| Error::new(path, fault))
    }

    /// Writes a file of an open directory.
    ///
    /// # Errors
    /// If the system refuses. Then what was there is there still.
    pub fn within(self, directory: &Directory, name: &str, content: &[u8]) -> Result<(), Error> {
        let written = self.write(directory.as_fd(), OsStr::new(name), content);
        written.map_err(|fault| Error::new(&directory.path().join(name), fault))
    }

    fn write(self, directory: BorrowedFd<'_>, name: &OsStr, content: &[u8]) -> Result<(), Fault> {
        let (file, temporary) = temporary(directory)?;
        let named = self.fill(file, content).and_then(|()| {
            if self.new {
                rustix::fs::linkat(directory, &temporary, directory, name, AtFlags::empty())?;
            } else {
                rustix::fs::renameat(directory, &temporary, directory, name)?;
            }
            Ok(())
        });
        if self.new || named.is_err() {
            let _a_sweep_takes_it = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
        }
        named?;
        if self.sync {
            rustix::fs::fsync(directory)?;
        }
        Ok(())
    }

    fn fill(self, mut file: File, content: &[u8]) -> Result<(), Fault> {
        file.write_all(content)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode))?;
        if self.sync {
            file.sync_all()?;
        }
        Ok(())
    }
}

fn temporary(directory: BorrowedFd<'_>) -> Result<(File, String), Fault> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        let name: String = ".tmp".chars().chain((0..8).map(|_| fastrand::alphanumeric())).collect();
        match rustix::fs::openat(directory, &name, flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::EXIST | Errno::INTR) => {}
            opened => return Ok((opened?.into(), name)),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists).into())
}

//! Opening one file.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::directory::Directory;
use crate::error::{Error, Fault};
use crate::owner;

/// What every file is opened with: a link in the last place is not followed, a FIFO or device is not waited for, and no
/// program that is started has it open.
const ALWAYS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// How a file is opened. It is one by the time that anybody gets it: of this user or root, writable by nobody else.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Open<'a> {
    flags: OFlags,
    mode: u32,
    /// Whether what is in it goes, once it is known to be what it should be.
    cut: bool,
    /// Whether it is to be closed to all other users.
    close: bool,
    also: &'a [u32],
}

impl<'a> Open<'a> {
    const fn with(flags: OFlags) -> Self {
        Self { flags, mode: 0o644, cut: false, close: false, also: &[] }
    }

    /// For reading.
    pub const fn read() -> Self {
        Self::with(OFlags::RDONLY)
    }

    /// For writing at its end; it is made if it is not there.
    pub const fn append() -> Self {
        Self::with(OFlags::WRONLY.union(OFlags::APPEND).union(OFlags::CREATE))
    }

    /// For writing it anew; it is made if it is not there.
    pub const fn create() -> Self {
        Self { cut: true, ..Self::with(OFlags::WRONLY.union(OFlags::CREATE)) }
    }

    /// For writing one that must not be there.
    pub const fn create_new() -> Self {
        Self::with(OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL))
    }

    /// For holding a lock on it, reading and writing; it is made if it is not there. Nobody else can open it, since whoever
    /// can could hold the lock for ever.
    pub const fn lock() -> Self {
        Self { mode: 0o600, close: true, ..Self::with(OFlags::RDWR.union(OFlags::CREATE)) }
    }

    /// The permissions of one that is made, of which the umask takes some away.
    pub const fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Takes it from these users, too.
    pub const fn also_of(self, also: &'a [u32]) -> Self {
        Self { also, ..self }
    }

    /// Opens the file at a path.
    ///
    /// # Errors
    /// If it is not what it should be, or the system refuses.
    pub fn path(self, path: &Path) -> Result<File, Error> {
        self.at(CWD, path).map_err(|fault| Error::new(path, fault))
    }

    /// Opens a file of an open directory.
    ///
    /// # Errors
    /// If it is not what it should be, or the system refuses.
    pub fn within(self, directory: &Directory, name: &str) -> Result<File, Error> {
        let found = self.at(directory.as_fd(), Path::new(name));
        found.map_err(|fault| Error::new(&directory.path().join(name), fault))
    }

    fn at(self, directory: BorrowedFd<'_>, name: &Path) -> Result<File, Fault> {
        let wanted = FileType::RegularFile;
        let file: OwnedFd = open_at(directory, name, self.flags | ALWAYS, self.mode, wanted)?;
        let mut found = rustix::fs::fstat(&file)?;
        is_of_kind(found.st_mode, wanted)?;
        if self.close && found.st_uid == rustix::process::geteuid().as_raw() && found.st_mode & 0o077 != 0 {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600))?;
            found = rustix::fs::fstat(&file)?;
        }
        owner::check(file.as_fd(), &found, self.also)?;
        if self.cut {
            rustix::fs::ftruncate(&file, 0)?;
        }
        Ok(file.into())
    }
}

/// Opens, and puts what the kernel says of other kinds of files into words.
pub(crate) fn open_at(
    directory: BorrowedFd<'_>,
    name: &Path,
    flags: OFlags,
    mode: u32,
    wanted: FileType,
) -> Result<OwnedFd, Fault> {
    loop {
        match rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode)) {
            Err(Errno::INTR) => {}
            // Of a link, a FIFO without a reader, a device on a disk that may have none: what it is says more.
            Err(error) if error != Errno::EXIST => {
                let found = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
                is_of_kind(found.map_err(|_| error)?.st_mode, wanted)?;
                return Err(error.into());
            }
            opened => return Ok(opened?),
        }
    }
}

pub(crate) fn is_of_kind(mode: u32, wanted: FileType) -> Result<(), Fault> {
    let found = FileType::from_raw_mode(mode);
    if found == wanted { Ok(()) } else { Err(Fault::Kind { found, wanted }) }
}

/// Reads a small file whole. `None` if it is not there: whatever else keeps it from being read is an error.
///
/// # Errors
/// If it is not what it should be, is longer than `max` bytes, or cannot be read.
pub fn read_record(path: &Path, max: u64) -> Result<Option<Vec<u8>>, Error> {
    match Open::read().path(path) {
        Ok(file) => read_whole(file, max).map(Some).map_err(|fault| Error::new(path, fault)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_whole(file: File, max: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(Fault::TooLong { max }) } else { Ok(bytes) }
}

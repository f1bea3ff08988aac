//! Opening one file.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::directory::Directory;
use crate::error::{Error, Fault};
use crate::owner;

/// What every file is opened with: a link in the last place is not followed, a FIFO or device is
/// not waited for, and no program that is started has it open.
const ALWAYS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// How a file is opened. It is one by the time that anybody gets it: of this user or root, writable
/// by nobody else.
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
    /// Whether its owner and permissions do not matter.
    anybody: bool,
}

impl<'a> Open<'a> {
    const fn with(flags: OFlags) -> Self {
        Self { flags, mode: 0o644, cut: false, close: false, also: &[], anybody: false }
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

    /// For holding a lock on it, reading and writing; it is made if it is not there. Nobody else
    /// can open it, since whoever can could hold the lock for ever.
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

    /// So that it can be read as well.
    pub const fn readable(self) -> Self {
        Self { flags: self.flags.difference(OFlags::WRONLY).union(OFlags::RDWR), ..self }
    }

    /// Takes it from anybody, whoever may write to it: for what a build or a person has made, and
    /// nothing of ours rests on.
    pub const fn of_anybody(self) -> Self {
        Self { anybody: true, ..self }
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
        if !self.anybody {
            owner::check(file.as_fd(), &found, self.also)?;
        }
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
            // Of a link, a FIFO without a reader, a device on a disk that may have none: what it is
            // says more.
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

/// Reads a small file whole. `None` if it is not there: whatever else keeps it from being read is
/// an error.
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

/// Opens a directory to make its names durable, to lock it or to speak to its file system: a link
/// is not followed, and whose it is does not matter.
///
/// # Errors
/// If it is none, or the system refuses.
pub fn open_directory(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | ALWAYS;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?.into())
}

/// What a file of the kernel says, below `/proc`, `/sys` or a control group.
///
/// # Errors
/// If it cannot be read, or is no text.
pub fn kernel_text(path: impl AsRef<Path>) -> std::io::Result<String> {
    String::from_utf8(kernel_bytes(path)?).map_err(std::io::Error::other)
}

/// As [`kernel_text`], for what need not be text.
///
/// # Errors
/// If it cannot be read.
pub fn kernel_bytes(path: impl AsRef<Path>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(kernel_file(path.as_ref(), OFlags::RDONLY)?).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes to a file of the kernel, which must be there.
///
/// # Errors
/// If the kernel refuses.
pub fn tell_kernel(path: impl AsRef<Path>, text: &str) -> std::io::Result<()> {
    File::from(kernel_file(path.as_ref(), OFlags::WRONLY)?).write_all(text.as_bytes())
}

fn kernel_file(path: &Path, flags: OFlags) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, flags | ALWAYS, Mode::empty())?)
}

/// The program that this process is, whatever has its name by now.
///
/// # Errors
/// If there is no `/proc`.
pub fn own_program() -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, "/proc/self/exe", flags, Mode::empty())?.into())
}

fn read_whole(file: File, max: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(Fault::TooLong { max }) } else { Ok(bytes) }
}

//! Directories: ours, or not used.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, stat};
use rustix::io::Errno;

use crate::error::{Error, Fault};
use crate::open::open_at;
use crate::owner;

/// The permissions of a directory that is made: what we keep is nobody else's business.
const MODE: u32 = 0o700;

/// An open directory that belongs to this user or root, and that no other user can write to: what
/// has a name in it was put there by this user. A sticky one such as `/tmp` is none: everybody can
/// put things there.
#[derive(Debug)]
pub struct Directory {
    open: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory that a person has named: it may be a link to one.
    ///
    /// # Errors
    /// If there is none, it is somebody else's, or others can write to it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::checked(CWD, path, path, OFlags::empty())
    }

    /// As [`Self::open`], and makes it with all that is missing above it. One that is there keeps
    /// its mode.
    ///
    /// # Errors
    /// As for [`Self::open`], and if it cannot be made.
    pub fn make(path: &Path) -> Result<Self, Error> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Error::new(parent, error))?;
        }
        make_at(CWD, path).map_err(|fault| Error::new(path, fault))?;
        Self::open(path)
    }

    /// Opens a directory whose name is fixed: a link to one is refused.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn fixed(path: &Path) -> Result<Self, Error> {
        Self::checked(CWD, path, path, OFlags::NOFOLLOW)
    }

    /// Opens a directory in this one. A link to one is refused.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn child(&self, name: &str) -> Result<Self, Error> {
        Self::checked(self.as_fd(), Path::new(name), &self.path.join(name), OFlags::NOFOLLOW)
    }

    /// As [`Self::child`], and makes it if it is missing.
    ///
    /// # Errors
    /// As for [`Self::make`].
    pub fn make_child(&self, name: &str) -> Result<Self, Error> {
        let made = make_at(self.as_fd(), Path::new(name));
        made.map_err(|fault| Error::new(&self.path.join(name), fault))?;
        self.child(name)
    }

    /// Makes sure that nobody else can put another directory in the place of this one, whose things
    /// are named by whole paths: each directory above it belongs to this user, to root or to
    /// whoever owns `/`, and others cannot write to it, or may not move what is not theirs there
    /// (it is sticky, as `/tmp`).
    ///
    /// # Errors
    /// With the first directory above of which that is not so.
    pub fn check_above(&self) -> Result<(), Error> {
        const STICKY: u32 = 0o1000;
        let path = self.path.canonicalize().map_err(|error| Error::new(&self.path, error))?;
        for above in path.ancestors().skip(1) {
            let checked = stat(above).map_err(Fault::from).and_then(|found| {
                let trusted = stat("/")?.st_uid;
                match look(above) {
                    Ok(open) => owner::check(open.as_fd(), &found, &[trusted]),
                    // One that may be passed and not listed: its mode has to do.
                    Err(_) => owner::check(self.as_fd(), &found, &[trusted]),
                }
                .or_else(|fault| match fault {
                    Fault::Writable { mode } if mode & STICKY != 0 => Ok(()),
                    fault => Err(fault),
                })
            });
            checked.map_err(|fault| Error::new(above, fault))?;
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn checked(at: BorrowedFd<'_>, name: &Path, path: &Path, follow: OFlags) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC | follow;
        let opened = open_at(at, name, flags, 0, FileType::Directory).and_then(|open| {
            owner::check(open.as_fd(), &rustix::fs::fstat(&open)?, &[])?;
            Ok(open)
        });
        let open = opened.map_err(|fault| Error::new(path, fault))?;
        Ok(Self { open, path: path.to_owned() })
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }
}

fn look(directory: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn make_at(at: BorrowedFd<'_>, name: &Path) -> Result<(), Fault> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(MODE)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

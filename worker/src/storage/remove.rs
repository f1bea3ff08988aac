//! Removing a tree whatever a build left in it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, StatxAttributes, StatxFlags, openat, unlinkat};
use rustix::io::Errno;

use super::btrfs;

/// Directories are followed this deep; what lies deeper is moved up first. A build can nest directories without limit,
/// but open files and stack have one.
const DEPTH_MAX: usize = 100;

/// How often a directory is read again because it was not empty after all its entries were removed.
const ROUNDS_MAX: usize = 8;

/// Removes a file, or a directory with everything in it: read-only files and directories, nested btrfs subvolumes
/// (emptied if the kernel does not let us destroy them). Symbolic links are removed, never followed. That the path does
/// not exist is fine, and so is that others remove the same at the same time.
///
/// # Errors
/// `EBUSY` if something below is a mount point: a mount is never entered. Whatever else the file system says.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let name = CString::new(name.as_bytes())?;
    let parent = match openat(CWD, parent, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        parent => parent?,
    };
    let mut removal = Removal { top: None, moved: 0 };
    removal.entry(parent.as_fd(), &name, 0).map_err(|error| at(error, path))
}

/// As [`remove_tree`], for an entry of an open directory.
///
/// # Errors
/// As for [`remove_tree`].
pub fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Removal { top: None, moved: 0 }.entry(parent, name, 0)
}

/// Adds the path, which the kernel's words lack.
fn at(error: io::Error, path: &Path) -> io::Error {
    match error.raw_os_error() {
        Some(_) if !super::is_no_space(&error) => {
            io::Error::new(error.kind(), format!("cannot remove {}: {error}", path.display()))
        }
        _ => error,
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Removal {
    /// The directory that all is removed from, once it is open: too deep directories are moved here.
    top: Option<OwnedFd>,
    moved: u32,
}

impl Removal {
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        // Most directories of a small task are empty, and most entries of all others are files.
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR) => unless_gone(unlinkat(parent, name, AtFlags::empty()).map_err(Into::into)),
            Err(Errno::BUSY) => Err(Errno::BUSY.into()),
            // Whatever is not found is the directory itself: for what is in it this was called as well.
            Err(_) => unless_gone(self.directory(parent, name, depth)),
        }
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX
            && let Some(top) = &self.top
        {
            loop {
                self.moved += 1;
                let up = CString::new(format!(".crewboss-deep-{}", self.moved))?;
                match rustix::fs::renameat(parent, name, top, &up) {
                    // Somebody else removes the same tree.
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                    renamed => return Ok(renamed?),
                }
            }
        }
        let directory = open_forced(parent, name)?;
        if refuse_mount(&directory)? && btrfs::is_btrfs(directory.as_fd())? {
            match btrfs::destroy_at(parent, name.to_bytes()) {
                Ok(()) => return Ok(()),
                // Not allowed to destroy it: then it is emptied, for which it has to be writable. A subvolume with
                // others inside is refused as not empty.
                Err(_) => btrfs::set_read_only_at(directory.as_fd(), false)?,
            }
        }
        if depth == 0 {
            self.top = Some(directory.try_clone()?);
        }
        for _ in 0..ROUNDS_MAX {
            self.content(&directory, depth)?;
            match unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                result => return Ok(result?),
            }
        }
        Err(Errno::NOTEMPTY.into())
    }

    fn content(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<()> {
        // Moved-up directories appear at the top: only there may further rounds be many.
        loop {
            let moved = self.moved;
            for entry in Dir::read_from(directory)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                if entry.file_type().is_dir() || entry.file_type() == rustix::fs::FileType::Unknown {
                    self.entry(directory.as_fd(), name, depth + 1)?;
                } else {
                    unless_gone(unlinkat(directory, name, AtFlags::empty()).map_err(Into::into))?;
                }
            }
            if depth > 0 || moved == self.moved {
                return Ok(());
            }
        }
    }
}

/// What is gone already is as good as removed.
fn unless_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Opens a directory, and makes it readable and writable by us if it is not.
fn open_forced(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let directory = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // It is known to be a directory, so no link is followed here.
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            openat(parent, name, DIRECTORY, Mode::empty())?
        }
        directory => directory?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // On a read-only subvolume this fails; it is made writable later, or destroyed as a whole.
        match rustix::fs::fchmod(&directory, Mode::RWXU) {
            Ok(()) | Err(Errno::ROFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(directory)
}

/// Refuses a mount point; otherwise says whether the inode number is that of a subvolume's top.
fn refuse_mount(directory: &OwnedFd) -> io::Result<bool> {
    let state = rustix::fs::statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    if state.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::BUSY.into());
    }
    Ok(state.stx_ino == btrfs::TOP_INODE)
}

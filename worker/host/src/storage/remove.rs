//! Removing a tree whatever a build left in it.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, IFlags, Mode, OFlags, StatxAttributes, StatxFlags, ioctl_getflags, ioctl_setflags,
    openat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::btrfs;

/// Directories are followed this deep; what lies deeper is moved up first. A build can nest
/// directories without limit, but open files and stack have one.
const DEPTH_MAX: usize = 100;

/// How often a directory is read again because it was not empty after all its entries were removed.
const ROUNDS_MAX: usize = 8;

/// Removes a file, or a directory with everything in it: read-only and immutable files and
/// directories, nested btrfs subvolumes (emptied if the kernel does not let us destroy them),
/// mounts. Symbolic links are removed, never followed. A mount is taken away where we may do that,
/// and never entered. That the path does not exist is fine, and so is that others remove the same
/// at the same time. What can be removed is removed, whatever else cannot.
///
/// # Errors
/// The first of what could not be removed, with its path: `EBUSY` if it is a mount point, else
/// whatever the file system says.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let name = CString::new(name.as_bytes())?;
    let parent_path = parent;
    let parent = match openat(CWD, parent, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        parent => parent?,
    };
    let mut removal = Removal::default();
    removal.entry(parent.as_fd(), &name, 0);
    removal.end().map_err(|(error, below)| at(error, &parent_path.join(below)))
}

/// As [`remove_tree`], for an entry of an open directory.
///
/// # Errors
/// As for [`remove_tree`].
pub fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut removal = Removal::default();
    removal.entry(parent, name, 0);
    removal.end().map_err(|(error, _)| error)
}

/// Adds the path, which the kernel's words lack, and what a person can do.
fn at(error: io::Error, path: &Path) -> io::Error {
    let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => {
            format!("; hint: it is a mount point: `umount {}`", crewboss_ground::in_shell(path))
        }
        Some(_) if !super::is_no_space(&error) => String::new(),
        _ => return error,
    };
    io::Error::new(error.kind(), format!("cannot remove {}: {error}{hint}", path.display()))
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Default)]
struct Removal {
    /// The directory that all is removed from, once it is open: too deep directories are moved
    /// here.
    top: Option<OwnedFd>,
    moved: u32,
    /// Names from the top to where we are.
    path: Vec<CString>,
    /// The first that could not be removed.
    failed: Option<(io::Error, PathBuf)>,
}

impl Removal {
    fn end(self) -> Result<(), (io::Error, PathBuf)> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Removes an entry, or notes why not.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) {
        self.path.push(name.to_owned());
        // Most directories of a small task are empty, and most entries of all others are files.
        let removed = match unlink(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR) => unlink(parent, name, AtFlags::empty()).map_err(Into::into),
            Err(Errno::BUSY) => Err(Errno::BUSY.into()),
            // Whatever is not found is the directory itself: for what is in it this was called as
            // well.
            Err(_) => self.directory(parent, name, depth),
        };
        self.note(unless_gone(removed));
        self.path.pop();
    }

    fn note(&mut self, removed: io::Result<()>) {
        if let Err(error) = removed {
            let path = || self.path.iter().map(|name| OsStr::from_bytes(name.to_bytes())).collect();
            self.failed.get_or_insert_with(|| (error, path()));
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
                // Not allowed to destroy it: then it is emptied, for which it has to be writable. A
                // subvolume with others inside is refused as not empty.
                Err(_) => btrfs::set_read_only_at(directory.as_fd(), false)?,
            }
        }
        if depth == 0 {
            self.top = Some(directory.try_clone()?);
        }
        for _ in 0..ROUNDS_MAX {
            self.content(&directory, depth)?;
            match unlink(parent, name, AtFlags::REMOVEDIR) {
                // What is in it has been told.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.failed.is_some() => return Ok(()),
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
                    self.entry(directory.as_fd(), name, depth + 1);
                } else {
                    self.path.push(name.to_owned());
                    self.note(unless_gone(
                        unlink(directory.as_fd(), name, AtFlags::empty()).map_err(Into::into),
                    ));
                    self.path.pop();
                }
            }
            if depth > 0 || moved == self.moved {
                return Ok(());
            }
        }
    }
}

/// Removes a name. What a build that is root may have put in the way is put aside first: a mount,
/// an attribute that lets nobody change a file or its directory.
fn unlink(parent: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> rustix::io::Result<()> {
    let removed = unlinkat(parent, name, flags);
    let again = match removed {
        Err(Errno::BUSY) => detach(parent, name),
        Err(Errno::PERM) => make_mutable(parent, name),
        _ => false,
    };
    if again { unlinkat(parent, name, flags) } else { removed }
}

/// Takes a mount away, with those on it.
fn detach(parent: BorrowedFd<'_>, name: &CStr) -> bool {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    let mut any = false;
    // One may lie on another.
    while unmount(path.as_slice(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {
        any = true;
    }
    any
}

/// Takes from a file and its directory what lets nobody change them.
fn make_mutable(parent: BorrowedFd<'_>, name: &CStr) -> bool {
    let file = openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let any = file.is_ok_and(|file| clear_flags(file.as_fd()));
    clear_flags(parent) || any
}

fn clear_flags(file: BorrowedFd<'_>) -> bool {
    const IN_THE_WAY: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
    let Ok(flags) = ioctl_getflags(file) else { return false };
    flags.intersects(IN_THE_WAY) && ioctl_setflags(file, flags.difference(IN_THE_WAY)).is_ok()
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
            match rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty()) {
                Err(Errno::PERM) if make_mutable(parent, name) => {
                    rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
                }
                changed => changed?,
            }
            openat(parent, name, DIRECTORY, Mode::empty())?
        }
        directory => directory?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // On a read-only subvolume this fails; it is made writable later, or destroyed as a whole.
        match rustix::fs::fchmod(&directory, Mode::RWXU) {
            Ok(()) | Err(Errno::ROFS) => {}
            Err(Errno::PERM) if clear_flags(directory.as_fd()) => {
                rustix::fs::fchmod(&directory, Mode::RWXU)?;
            }
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

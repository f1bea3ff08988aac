//! The few btrfs calls that are needed, straight to the kernel.

use crewboss_ground::open_directory;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use linux_raw_sys::btrfs::{btrfs_ioctl_get_subvol_info_args, btrfs_ioctl_vol_args, btrfs_ioctl_vol_args_v2};
use linux_raw_sys::general::BTRFS_SUPER_MAGIC;
use linux_raw_sys::ioctl as opcode;
use rustix::fs::OFlags;
use rustix::ioctl::{Getter, Setter, ioctl};

/// The inode number of every subvolume's top directory (`BTRFS_FIRST_FREE_OBJECTID`).
pub(super) const TOP_INODE: u64 = 256;
const READ_ONLY: u64 = linux_raw_sys::btrfs::BTRFS_SUBVOL_RDONLY as u64;
/// The same on the disk, where it has another place (`BTRFS_ROOT_SUBVOL_RDONLY`).
const ROOT_READ_ONLY: u64 = 1;
/// `BTRFS_VOL_NAME_MAX`.
const NAME_MAX: usize = 255;

/// Whether the path is the top of a btrfs subvolume. Symbolic links are not followed.
pub fn is_subvolume(path: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    Ok(found.is_dir() && found.ino() == TOP_INODE && is_btrfs(open_directory(path)?.as_fd())?)
}

/// Whether an open file lies on btrfs.
pub(super) fn is_btrfs(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(i128::from(rustix::fs::fstatfs(file)?.f_type) == i128::from(BTRFS_SUPER_MAGIC))
}

/// Makes an empty subvolume. Takes no transaction commit, so it is nearly as fast as `mkdir`.
pub fn create_subvolume(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let arguments = volume_arguments(0, name)?;
    // SAFETY: the opcode reads exactly this structure, and the kernel keeps no pointer to it.
    let result = unsafe {
        ioctl(&parent, Setter::<{ opcode::BTRFS_IOC_SUBVOL_CREATE }, btrfs_ioctl_vol_args>::new(arguments))
    };
    Ok(result?)
}

/// Makes `destination` a snapshot of the subvolume `source`.
///
/// Waits for a transaction commit. Several callers share one commit only if their destinations lie
/// in different directories: the kernel holds the lock of the parent directory for the whole time.
pub fn snapshot(source: &Path, destination: &Path, read_only: bool) -> io::Result<()> {
    let source = open_directory(source)?;
    let (parent, name) = split(destination)?;
    // SAFETY: the structure is made of integers and arrays of integers, for which all zeros are
    // valid.
    let mut arguments: btrfs_ioctl_vol_args_v2 = unsafe { std::mem::zeroed() };
    arguments.fd = source.as_raw_fd().into();
    arguments.flags = if read_only { READ_ONLY } else { 0 };
    // SAFETY: all fields of the union are plain bytes.
    fill_name(unsafe { &mut arguments.__bindgen_anon_2.name }, name)?;
    // SAFETY: the opcode reads exactly this structure; `source` stays open until the call has
    // returned.
    let result = unsafe {
        ioctl(
            &parent,
            Setter::<{ opcode::BTRFS_IOC_SNAP_CREATE_V2 }, btrfs_ioctl_vol_args_v2>::new(arguments),
        )
    };
    Ok(result?)
}

/// Makes a subvolume read-only or writable. The kernel then refuses every change in it, root's
/// included.
pub fn set_read_only(path: &Path, read_only: bool) -> io::Result<()> {
    let subvolume = open_directory(path)?;
    set_read_only_at(subvolume.as_fd(), read_only)
}

pub(super) fn set_read_only_at(subvolume: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let flags = if read_only { READ_ONLY } else { 0 };
    // SAFETY: the opcode reads one 64-bit integer.
    Ok(unsafe { ioctl(subvolume, Setter::<{ opcode::BTRFS_IOC_SUBVOL_SETFLAGS }, u64>::new(flags)) }?)
}

/// Whether a subvolume is read-only, and the number of the transaction that last changed anything
/// in it. A change counts at once, not only when it reaches the disk.
pub fn last_change(path: &Path) -> io::Result<(bool, u64)> {
    let info = info(path)?;
    Ok((info.flags & ROOT_READ_ONLY != 0, info.ctransid))
}

/// When a subvolume was made; for a snapshot that is when the snapshot was, whatever the times in
/// it say.
pub fn created(path: &Path) -> io::Result<SystemTime> {
    let time = info(path)?.otime;
    let since = Duration::new(time.sec, time.nsec.min(999_999_999));
    SystemTime::UNIX_EPOCH.checked_add(since).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn info(path: &Path) -> io::Result<btrfs_ioctl_get_subvol_info_args> {
    let subvolume = open_directory(path)?;
    // SAFETY: the kernel fills in exactly this structure, in which every pattern of bits is valid.
    let info = unsafe {
        ioctl(
            &subvolume,
            Getter::<{ opcode::BTRFS_IOC_GET_SUBVOL_INFO }, btrfs_ioctl_get_subvol_info_args>::new(),
        )
    }?;
    Ok(info)
}

/// Removes a subvolume with its content, read-only or not.
///
/// # Errors
/// `EPERM` for an ordinary user, unless the file system is mounted with `user_subvol_rm_allowed`.
pub fn destroy(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    destroy_at(parent.as_fd(), name.as_bytes())
}

pub(super) fn destroy_at(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let arguments = volume_arguments(0, OsStr::from_bytes(name))?;
    // SAFETY: the opcode reads exactly this structure, and the kernel keeps no pointer to it.
    let result = unsafe {
        ioctl(parent, Setter::<{ opcode::BTRFS_IOC_SNAP_DESTROY }, btrfs_ioctl_vol_args>::new(arguments))
    };
    Ok(result?)
}

/// The open parent directory and the name in it.
#[expect(
    clippy::disallowed_methods,
    reason = "the directory may be reached through a link; what is made in it is not"
)]
fn split(path: &Path) -> io::Result<(File, &OsStr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::DIRECTORY.bits().cast_signed();
    Ok((File::options().read(true).custom_flags(flags).open(parent)?, name))
}

fn volume_arguments(fd: i64, name: &OsStr) -> io::Result<btrfs_ioctl_vol_args> {
    // SAFETY: the structure is made of integers and an array of integers, for which all zeros are
    // valid.
    let mut arguments: btrfs_ioctl_vol_args = unsafe { std::mem::zeroed() };
    arguments.fd = fd;
    fill_name(&mut arguments.name, name)?;
    Ok(arguments)
}

/// Copies a name into a field of zeros, so that a NUL follows it.
fn fill_name(field: &mut [std::ffi::c_char], name: &OsStr) -> io::Result<()> {
    let name = name.as_bytes();
    if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in field.iter_mut().zip(name) {
        *to = std::ffi::c_char::from_ne_bytes([*from]);
    }
    Ok(())
}

//! Removing a tree whatever a build has made of it: unreadable directories, btrfs subvolumes, links to elsewhere.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use linux_raw_sys::btrfs::btrfs_ioctl_vol_args;
use rustix::ioctl;

/// Every subvolume's root directory has this inode number.
const SUBVOLUME_INODE: u64 = 256;

/// How many directories deep is recursed; Linux paths cannot name anything much deeper in one go.
const DEPTH_MAX: u32 = 4096;

/// What was removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// btrfs subvolumes, emptied or destroyed.
    pub subvolumes: u32,
}

/// Removes a tree. That it is not there is no error. Symbolic links are removed, never followed.
///
/// # Errors
/// The first thing that could not be removed; the rest is removed all the same.
pub fn remove_tree(path: &Path) -> io::Result<Removed> {
    let mut removed = Removed::default();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(removed),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => remove_directory(path, &meta, &mut removed, 0).map(|()| removed),
        Ok(_) => fs::remove_file(path).map(|()| removed),
    }
}

fn remove_directory(path: &Path, meta: &fs::Metadata, removed: &mut Removed, depth: u32) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories lie too deep in each other"));
    }
    let subvolume = meta.ino() == SUBVOLUME_INODE && is_btrfs(path);
    if subvolume {
        removed.subvolumes += 1;
        // Subvolumes within it would make this fail; then its content goes first.
        if destroy(path).is_ok() {
            return Ok(());
        }
    }
    let emptied = empty(path, meta, removed, depth);
    // A plain user may remove an emptied subvolume like a directory.
    let gone = fs::remove_dir(path).or_else(|error| if subvolume { destroy(path) } else { Err(error) });
    match gone {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => emptied.and(Err(error)),
        Ok(()) => Ok(()),
    }
}

fn empty(path: &Path, meta: &fs::Metadata, removed: &mut Removed, depth: u32) -> io::Result<()> {
    if meta.mode() & 0o700 != 0o700 {
        // A build may have taken away its own right to look.
        let _kept = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    }
    let mut first = Ok(());
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let result = match entry.metadata() {
            Ok(meta) if meta.is_dir() => remove_directory(&entry.path(), &meta, removed, depth + 1),
            Ok(_) => fs::remove_file(entry.path()),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound && first.is_ok() => first = Err(error),
            _ => {}
        }
    }
    first
}

fn is_btrfs(path: &Path) -> bool {
    let magic = i64::from(linux_raw_sys::general::BTRFS_SUPER_MAGIC);
    rustix::fs::statfs(path).is_ok_and(|stat| {
        #[allow(clippy::unnecessary_cast, reason = "the type differs between architectures")]
        let found = stat.f_type as i64;
        found == magic
    })
}

fn destroy(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let arguments = named(name).ok_or(io::ErrorKind::InvalidInput)?;
    let parent = File::open(parent)?;
    // SAFETY: BTRFS_IOC_SNAP_DESTROY reads one btrfs_ioctl_vol_args, whose name ends with a zero byte.
    unsafe {
        let call =
            ioctl::Setter::<{ linux_raw_sys::ioctl::BTRFS_IOC_SNAP_DESTROY as ioctl::Opcode }, _>::new(arguments);
        ioctl::ioctl(&parent, call)?;
    }
    Ok(())
}

fn named(name: &OsStr) -> Option<btrfs_ioctl_vol_args> {
    let mut arguments = btrfs_ioctl_vol_args { fd: 0, name: [0; 4088] };
    if name.len() >= arguments.name.len() {
        return None;
    }
    for (to, from) in arguments.name.iter_mut().zip(name.as_bytes()) {
        *to = from.cast_signed() as _;
    }
    Some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed_and_closed_directories_are_opened() {
        let base = tempfile::tempdir().unwrap();
        let (inside, outside) = (base.path().join("in"), base.path().join("out"));
        fs::create_dir_all(inside.join("closed/deep")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("keep"), "x").unwrap();
        fs::write(inside.join("closed/deep/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        fs::set_permissions(inside.join("closed"), fs::Permissions::from_mode(0)).unwrap();
        remove_tree(&inside).unwrap();
        remove_tree(&inside).unwrap();
        assert!(!inside.exists() && outside.join("keep").exists());
    }
}

//! Copying and removing directory trees, the fastest way that the file system allows.
//!
//! [`Way`] is found out by trying, in this order: a btrfs snapshot, files that share their data
//! (reflink), a plain copy.

pub mod btrfs;
pub mod copy;
pub mod remove;

use std::io::Write as _;

use crewboss_ground::Open;
use std::fs;
use std::io;
use std::path::Path;

pub use copy::{CopyOptions, copy_tree, next_data};
pub use remove::{remove_at, remove_tree};

/// How whole trees are copied below a work directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Snapshots of btrfs subvolumes.
    Snapshot,
    /// A new tree whose files share their data with the old one's until written.
    Reflink,
    /// A copy of every byte.
    Plain,
}

impl Way {
    /// Tries in `dir`, which must exist and be writable, what works there. Leaves nothing behind.
    pub fn find(dir: &Path) -> io::Result<Self> {
        let trial = tempfile::Builder::new().prefix(".try-").tempdir_in(dir)?;
        let way = if snapshots_work(trial.path()) {
            Self::Snapshot
        } else if reflinks_work(trial.path())? {
            Self::Reflink
        } else {
            Self::Plain
        };
        // tempfile cannot remove subvolumes.
        remove_tree(trial.path())?;
        Ok(way)
    }

    /// Copies `source` to `destination`, which must not exist. `source` is a tree made by this way:
    /// with snapshots, a subvolume. A copy in part is removed.
    pub fn copy(self, source: &Path, destination: &Path, add_write: bool) -> io::Result<()> {
        let reflink = match self {
            Self::Snapshot if btrfs::is_subvolume(source)? => {
                return btrfs::snapshot(source, destination, false);
            }
            Self::Snapshot | Self::Reflink => true,
            Self::Plain => false,
        };
        copy_tree(source, destination, CopyOptions { reflink, add_write }).inspect_err(|_| {
            // The first error is the one to report; what cannot be removed now is swept with the
            // session.
            drop(remove_tree(destination));
        })
    }

    /// Makes an empty directory that [`Self::copy`] can copy by this way.
    pub fn create(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Snapshot => btrfs::create_subvolume(path),
            Self::Reflink | Self::Plain => fs::create_dir(path),
        }
    }
}

/// Copies one file to `to`, which must not exist: data is shared where the file system can, and
/// holes stay holes.
///
/// # Errors
/// Whatever the file system says; a copy in part is removed.
pub fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let (source, target) = (Open::read().of_anybody().path(from)?, fs::File::create_new(to)?);
    let cloned = if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        Ok(())
    } else {
        copy::copy_data(&source, &target)
    };
    cloned.inspect_err(|_| {
        // The first error is the one to report.
        drop(fs::remove_file(to));
    })
}

fn snapshots_work(trial: &Path) -> bool {
    let (first, second) = (trial.join("first"), trial.join("second"));
    btrfs::create_subvolume(&first).and_then(|()| btrfs::snapshot(&first, &second, false)).is_ok()
}

fn reflinks_work(trial: &Path) -> io::Result<bool> {
    let mut from = Open::create_new().readable().path(&trial.join("from"))?;
    from.write_all(b"some data to share")?;
    let to = Open::create_new().path(&trial.join("to"))?;
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// What a plain user can still write on the disk of a directory or file.
///
/// # Errors
/// If it is not there.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether an error says that a disk or a quota is full.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests;

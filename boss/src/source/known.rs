//! The index as a record of file times: what has not changed since git looked at it need not be
//! read again.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use git2::{Index, IndexEntry, IndexTime, Odb, Oid};
use rustix::fs::Stat;

use super::git::as_path;

/// Files whose content in git is not that on disk.
pub(super) type Filtered = HashSet<Vec<u8>>;

/// The bits of an entry's flags that say that git is not to look at the file (`assume-unchanged`),
/// or that the entry is one side of a conflict.
const UNRELIABLE: u16 = 0x8000 | 0x3000;

/// What git knew when it wrote its index.
pub(super) struct Known {
    index: Option<Index>,
    /// When it was written.
    written: IndexTime,
    filtered: Filtered,
}

impl Known {
    /// Reads an index. One that libgit2 cannot read (git has kinds of its own) serves as none:
    /// every file is read then.
    pub(super) fn read(path: &Path, filtered: Filtered) -> Self {
        // The time first: an index that is written meanwhile is then taken for older than it is.
        let written = fs::metadata(path).map_or((0, 0), |found| (found.mtime(), found.mtime_nsec()));
        let index =
            Index::open(path).inspect_err(|error| tracing::debug!(%error, "the index is not read")).ok();
        let nanoseconds = u32::try_from(written.1).unwrap_or(0);
        Self { index, written: IndexTime::new(seconds(written.0), nanoseconds), filtered }
    }

    /// The id of a file's content if it is surely the one that the index has.
    ///
    /// That takes an entry without any flag, whose times, number and size are those of the file;
    /// that is older than the index, since a change within the same tick of the clock would not
    /// show; and an object of the same size, since conversions of line ends and of `$Id$` that git
    /// makes on the way in all change that.
    pub(super) fn unchanged(&self, path: &[u8], stat: &Stat, odb: &Odb<'_>) -> Option<Oid> {
        let entry = self.index.as_ref()?.get_path(&as_path(path), 0)?;
        let size = usize::try_from(stat.st_size).ok()?;
        let is_same = entry.flags & UNRELIABLE == 0
            && entry.flags_extended == 0
            && entry.mtime < self.written
            && same_file(&entry, stat)
            && !self.filtered.contains(path)
            && odb.read_header(entry.id).is_ok_and(|(bytes, _)| bytes == size);
        is_same.then_some(entry.id)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the index has the lower 32 bits"
)]
fn same_file(entry: &IndexEntry, stat: &Stat) -> bool {
    let modified = IndexTime::new(seconds(stat.st_mtime), stat.st_mtime_nsec as u32);
    let changed = IndexTime::new(seconds(stat.st_ctime), stat.st_ctime_nsec as u32);
    entry.mtime == modified
        && entry.ctime == changed
        && entry.ino == stat.st_ino as u32
        && entry.file_size == stat.st_size as u32
        && entry.mode & 0o170_000 == stat.st_mode & 0o170_000
}

#[expect(clippy::cast_possible_truncation, reason = "as the index has them")]
fn seconds(time: i64) -> i32 {
    time as i32
}

//! Writing a tree into a directory, or turning one tree into another there.
//!
//! Every step goes through open directories and follows no symbolic link, since the directory may
//! be one in which a build has been.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crewboss_host::storage::remove_at;
use crewboss_protocol::tree::DEPTH_MAX;
use git2::{ObjectType, Odb, Oid};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::SourceError;
use super::objects::{Entries, Entry, EntryKind, long_file, read, read_tree};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is written of a long file at once.
const PIECE_BYTES: usize = 256 << 10;

/// Writes trees.
pub(super) struct Update<'a> {
    pub(super) database: &'a Odb<'a>,
    /// Whether files may be written by their owner.
    pub(super) writable: bool,
}

impl Update<'_> {
    /// Turns what `old` left in `directory` into `new`. Files that are the same in both are not
    /// touched, nor is what neither names.
    pub(super) fn apply(&self, directory: &OwnedFd, old: Option<Oid>, new: Oid) -> Result<(), SourceError> {
        self.tree(directory.as_fd(), old, Some(new), 0)
    }

    fn entries(&self, tree: Option<Oid>) -> Result<Entries, SourceError> {
        tree.map_or(Ok(Entries::new()), |id| read_tree(self.database, id))
    }

    fn tree(
        &self,
        at: BorrowedFd<'_>,
        old: Option<Oid>,
        new: Option<Oid>,
        depth: usize,
    ) -> Result<(), SourceError> {
        if old == new {
            return Ok(());
        }
        if depth > DEPTH_MAX {
            let id = new.or(old).map(|id| id.to_string()).unwrap_or_default();
            return Err(SourceError::Content { id, why: format!("it lies more than {DEPTH_MAX} deep") });
        }
        let old = self.entries(old)?;
        let new = self.entries(new)?;
        for (name, entry) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
            self.delete(at, name, *entry, depth)?;
        }
        for (name, entry) in &new {
            let before = old.get(name);
            if before != Some(entry) {
                self.entry(at, name, before.copied(), *entry, depth).map_err(|error| error.below(name))?;
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        at: BorrowedFd<'_>,
        name: &CStr,
        old: Option<Entry>,
        new: Entry,
        depth: usize,
    ) -> Result<(), SourceError> {
        match new.kind {
            EntryKind::Tree => {
                let before = old.filter(|old| old.kind == EntryKind::Tree).map(|old| old.id);
                let inner = enter(at, name, before.is_none())?;
                self.tree(inner.as_fd(), before, Some(new.id), depth + 1)
            }
            EntryKind::File { executable } => {
                let mode = if executable { 0o755 } else { 0o644 };
                let mode = Mode::from_raw_mode(if self.writable { mode } else { mode & !0o222 });
                if let Some(mut content) = long_file(self.database, new.id) {
                    return Ok(write_long(create(at, name, mode)?, &mut content)?);
                }
                let object = read(self.database, new.id, ObjectType::Blob)?;
                Ok(create(at, name, mode)?.write_all(object.data())?)
            }
            EntryKind::Link => {
                let object = read(self.database, new.id, ObjectType::Blob)?;
                Ok(write_link(at, name, object.data())?)
            }
        }
    }

    /// Removes what the old tree had; a directory stays if something else is in it.
    fn delete(&self, at: BorrowedFd<'_>, name: &CStr, old: Entry, depth: usize) -> Result<(), SourceError> {
        if old.kind != EntryKind::Tree {
            return match unlinkat(at, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        let inner = match openat(at, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            inner => inner?,
        };
        self.tree(inner.as_fd(), Some(old.id), None, depth + 1)?;
        match unlinkat(at, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Opens a directory, and makes it if it is not there; whatever else has its name is removed.
fn enter(at: BorrowedFd<'_>, name: &CStr, probably_new: bool) -> io::Result<OwnedFd> {
    if probably_new {
        match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(at, name, AtFlags::empty())?,
        inner => return Ok(inner?),
    }
    mkdirat(at, name, Mode::from_raw_mode(0o755))?;
    Ok(openat(at, name, DIRECTORY, Mode::empty())?)
}

fn create(at: BorrowedFd<'_>, name: &CStr, mode: Mode) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(at, name, flags, mode) {
        Err(Errno::EXIST) => {
            remove_at(at, name)?;
            openat(at, name, flags, mode)?
        }
        file => file?,
    };
    Ok(File::from(file))
}

/// Writes piece by piece; where all is zero, a hole.
fn write_long(mut file: File, content: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut length = 0;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => return file.set_len(length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        length += count as u64;
        if buffer[..count].iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Start(length))?;
        } else {
            file.write_all(&buffer[..count])?;
        }
    }
}

fn write_link(at: BorrowedFd<'_>, name: &CStr, target: &[u8]) -> io::Result<()> {
    match symlinkat(target, at, name) {
        Err(Errno::EXIST) => {
            remove_at(at, name)?;
            Ok(symlinkat(target, at, name)?)
        }
        result => Ok(result?),
    }
}

//! The working tree as it is on disk, as a git tree.
//!
//! What belongs to it is what git would list: files that are tracked and there, and files that are
//! neither tracked nor ignored. Their bytes are those on disk, whatever git would make of them on
//! the way in. Nothing of the user's repository is written. Every step goes through open
//! directories and follows no symbolic link, so nothing from elsewhere gets in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crewboss_protocol::tree;
use git2::{ObjectType, Odb, OdbLookupFlags, Oid, Repository};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, Stat, fallocate, fstat, openat, readlinkat, statat,
};
use rustix::io::Errno;

use super::error::SourceError;
use super::git::as_path;
use super::known::Known;
use super::{Commit, Listed, tree_id};

/// Digits of an id that people see.
const SHORT_DIGITS: usize = 10;

/// What is read at once. Longer files go through it piece by piece.
const PIECE_BYTES: usize = 256 << 10;

/// How often a file is read that changes meanwhile.
const TRIES: u32 = 3;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A pipe that took a file's place in the meantime must not be waited for.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Takes the working tree. Its objects go into the repository beside the user's.
pub(super) fn take(
    beside: &Repository,
    top: &Path,
    mut listed: Vec<Listed>,
    known: Known,
    trust_modes: bool,
) -> Result<Commit, SourceError> {
    let odb = beside
        .odb()
        .map_err(|source| SourceError::Git { doing: "open the objects", source: source.into() })?;
    // A directory's files stand together then: only a file of the same name comes before them.
    listed.sort_by(|one, other| components(&one.path).cmp(components(&other.path)));
    listed.dedup_by(|one, other| one.path == other.path);
    let mut walk =
        Walk { odb, known, trust_modes, top, git_dir: beside.path(), buffer: vec![0; PIECE_BYTES] };
    let directory =
        openat(CWD, top, DIRECTORY, Mode::empty()).map_err(|error| walk.unreadable(b"", error))?;
    let tree = match walk.directory(directory.as_fd(), &listed, 0, 0)? {
        Some(tree) => tree,
        None => walk.keep(ObjectType::Tree, b"")?,
    };
    let id = tree_id(tree);
    let short = tree.to_string().chars().take(SHORT_DIGITS).collect();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Commit {
        id,
        tree: id,
        short,
        subject: "working tree".to_owned(),
        time: i64::try_from(time).unwrap_or(i64::MAX),
        working_tree: true,
    })
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

struct Walk<'a> {
    odb: Odb<'a>,
    known: Known,
    /// Whether the disk knows which files may be executed.
    trust_modes: bool,
    top: &'a Path,
    git_dir: &'a Path,
    buffer: Vec<u8>,
}

/// One entry of a tree.
struct Entry<'a> {
    mode: &'static str,
    name: &'a [u8],
    id: Oid,
}

/// What became of an attempt to read a file.
enum Attempt {
    Whole(Oid),
    Gone,
    Changed,
}

impl Walk<'_> {
    /// The tree of a directory, whose path takes the first `above` bytes of what is listed; `None`
    /// if nothing of it is there.
    fn directory(
        &mut self,
        at: BorrowedFd<'_>,
        listed: &[Listed],
        above: usize,
        depth: usize,
    ) -> Result<Option<Oid>, SourceError> {
        let name = |listed: &Listed| components(&listed.path[above..]).next().unwrap_or_default().to_owned();
        let mut entries = Vec::new();
        for group in listed.chunk_by(|one, other| name(one) == name(other)) {
            let name = components(&group[0].path[above..]).next().unwrap_or_default();
            if let Some((mode, id)) = self.entry(at, name, group, above, depth)? {
                entries.push(Entry { mode, name, id });
            }
        }
        if entries.is_empty() {
            return Ok(None);
        }
        self.keep(ObjectType::Tree, &tree_content(entries)).map(Some)
    }

    /// What has this name on disk: a file that is listed, or a directory with files that are.
    fn entry(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        group: &[Listed],
        above: usize,
        depth: usize,
    ) -> Result<Option<(&'static str, Oid)>, SourceError> {
        let end = above + name.len();
        let path = &group[0].path[..end];
        self.check(path, name, depth)?;
        let stat = match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            stat => stat.map_err(|error| self.unreadable(path, error))?,
        };
        let (own, below) = group.split_at(usize::from(group[0].path.len() == end));
        match (FileType::from_raw_mode(stat.st_mode), own.first()) {
            (FileType::Directory, Some(own)) if own.nested => {
                let path = String::from_utf8_lossy(path).into_owned();
                Err(match own.mode {
                    Some(_) => SourceError::Submodule { commit: "working tree".to_owned(), path },
                    None => SourceError::Nested { top: self.top.to_owned(), path },
                })
            }
            (FileType::Directory, _) if below.is_empty() => Ok(None),
            (FileType::Directory, _) => {
                let inner = openat(at, name, DIRECTORY, Mode::empty());
                let inner = inner.map_err(|error| self.unreadable(path, error))?;
                let tree = self.directory(inner.as_fd(), below, end + 1, depth + 1)?;
                Ok(tree.map(|id| ("40000", id)))
            }
            // What git tracks below it is gone: a link in place of a directory leads elsewhere.
            (_, None) => Ok(None),
            (FileType::Symlink, Some(_)) => {
                let target =
                    readlinkat(at, name, Vec::new()).map_err(|error| self.unreadable(path, error))?;
                Ok(Some(("120000", self.keep(ObjectType::Blob, target.as_bytes())?)))
            }
            (FileType::RegularFile, Some(own)) => {
                let executable =
                    if self.trust_modes { stat.st_mode & 0o100 != 0 } else { own.mode == Some(0o100_755) };
                let mode = if executable { "100755" } else { "100644" };
                Ok(self.file(at, name, path, &stat)?.map(|id| (mode, id)))
            }
            (_, Some(_)) => Err(SourceError::NoFile(self.top.join(as_path(path)))),
        }
    }

    fn check(&self, path: &[u8], name: &[u8], depth: usize) -> Result<(), SourceError> {
        let unfit = |why: String| SourceError::Unfit {
            commit: "working tree".to_owned(),
            // The whole path of what is too deep would fill many screens.
            path: String::from_utf8_lossy(path).chars().take(80).collect(),
            why,
        };
        if depth > tree::DEPTH_MAX {
            return Err(unfit(format!("it lies more than {} deep", tree::DEPTH_MAX)));
        }
        tree::check_name(name).map_err(unfit)
    }

    fn file(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<Option<Oid>, SourceError> {
        if let Some(id) = self.known.unchanged(path, stat, &self.odb) {
            return Ok(Some(id));
        }
        for _ in 0..TRIES {
            match self.read(at, name, path)? {
                Attempt::Whole(id) => return Ok(Some(id)),
                Attempt::Gone => return Ok(None),
                Attempt::Changed => {}
            }
        }
        Err(SourceError::Changing(self.top.join(as_path(path))))
    }

    /// Reads as much of a file as it has now. What is appended meanwhile came later; what is cut
    /// off is missed.
    fn read(&mut self, at: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Attempt, SourceError> {
        let file = match openat(at, name, FILE, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Attempt::Gone),
            Err(Errno::LOOP | Errno::NXIO) => return Ok(Attempt::Changed),
            file => file.map_err(|error| self.unreadable(path, error))?,
        };
        let stat = fstat(&file).map_err(|error| self.unreadable(path, error))?;
        let size = match usize::try_from(stat.st_size) {
            Ok(size) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => size,
            _ => return Ok(Attempt::Changed),
        };
        let mut file = File::from(file).take(size as u64);
        if size > PIECE_BYTES {
            return self.stream(&mut file, size, path);
        }
        let mut content = Vec::with_capacity(size);
        file.read_to_end(&mut content).map_err(|error| self.failed(path, error))?;
        if content.len() < size {
            return Ok(Attempt::Changed);
        }
        self.keep(ObjectType::Blob, &content).map(Attempt::Whole)
    }

    fn stream(&mut self, file: &mut impl Read, size: usize, path: &[u8]) -> Result<Attempt, SourceError> {
        let mut writer = self.odb.writer(size, ObjectType::Blob).map_err(|error| self.full(size, error))?;
        let mut left = size;
        while left > 0 {
            let count = match file.read(&mut self.buffer) {
                Ok(0) => return Ok(Attempt::Changed),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(path, error)),
            };
            // Only libgit2 says why, and only to itself.
            writer
                .write_all(&self.buffer[..count])
                .map_err(|_| self.full(size, git2::Error::last_error(-1)))?;
            left -= count;
        }
        writer.finalize().map(Attempt::Whole).map_err(|error| self.full(size, error))
    }

    /// Stores an object unless it is there already.
    fn keep(&self, kind: ObjectType, content: &[u8]) -> Result<Oid, SourceError> {
        let full = |error| self.full(content.len(), error);
        let id = Oid::hash_object(kind, content).map_err(full)?;
        if self.odb.exists_ext(id, OdbLookupFlags::NO_REFRESH) {
            return Ok(id);
        }
        self.odb.write(kind, content).map_err(full)
    }

    /// So many bytes could not be stored. Where the disk is full, libgit2 tells of anything else.
    fn full(&self, bytes: usize, source: git2::Error) -> SourceError {
        let room = File::create_new(self.git_dir.join("room"))
            .and_then(|file| Ok(fallocate(file, FallocateFlags::empty(), 0, (bytes as u64).max(1))?));
        let reason = match room {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                error.to_string().into()
            }
            _ => source.into(),
        };
        SourceError::Keep { path: self.git_dir.to_owned(), source: reason }
    }

    fn unreadable(&self, path: &[u8], error: Errno) -> SourceError {
        self.failed(path, error.into())
    }

    fn failed(&self, path: &[u8], source: io::Error) -> SourceError {
        SourceError::File { path: self.top.join(as_path(path)), source }
    }
}

/// The content of a tree object. A directory's place is that of its name with a slash behind it.
fn tree_content(mut entries: Vec<Entry<'_>>) -> Vec<u8> {
    let place = |entry: &Entry<'_>| {
        let slash: &[u8] = if entry.mode == "40000" { b"/" } else { b"" };
        [entry.name, slash].concat()
    };
    entries.sort_by_cached_key(place);
    let mut content = Vec::new();
    for Entry { mode, name, id } in entries {
        content.extend_from_slice(mode.as_bytes());
        content.push(b' ');
        content.extend_from_slice(name);
        content.push(0);
        content.extend_from_slice(id.as_bytes());
    }
    content
}

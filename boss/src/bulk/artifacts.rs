//! Artifacts as they arrive: into a directory, and nowhere else.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use crewboss_protocol::bulk::BulkAnswer;
use crewboss_protocol::{HostName, RelPath};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, statat};
use rustix::io::Errno;

use super::error::BulkError;
use super::wire::{Piece, Wire};

/// What the worker announced when the task was done. More is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactLimits {
    /// Files.
    pub files: u64,
    /// The directories that they need.
    pub directories: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Receives all artifacts of a request that was sent. Nothing is kept of them here: there may be a
/// million.
pub(super) fn receive(wire: &mut Wire, directory: &Path, limits: ArtifactLimits) -> Result<u64, BulkError> {
    let mut target = Target::open(directory, limits.directories)?;
    let mut stored = 0;
    let mut room = limits.bytes;
    loop {
        let (path, bytes, mode) = match wire.answer()? {
            BulkAnswer::Artifact { path, bytes, mode } => (path, bytes, mode),
            BulkAnswer::Complete => return Ok(stored),
            other => return Err(wire.unexpected(&other)),
        };
        if stored >= limits.files {
            return Err(wire.rule(format!("more artifacts than the {} that were announced", limits.files)));
        }
        room = room.checked_sub(bytes).ok_or_else(|| {
            wire.rule(format!(
                "artifact {path} has more bytes than were announced for all ({})",
                limits.bytes
            ))
        })?;
        one(wire, &mut target, path, bytes, mode)?;
        stored += 1;
    }
}

fn one(
    wire: &mut Wire,
    target: &mut Target<'_>,
    path: RelPath,
    announced: u64,
    mode: u32,
) -> Result<(), BulkError> {
    let mut file = target.create(&path, mode).map_err(|refusal| match refusal {
        Refusal::Double => wire.rule(format!("artifact {path} came twice, or is also a directory")),
        Refusal::Deep => {
            wire.rule(format!("artifact {path} needs more directories than were announced for all"))
        }
        Refusal::Io(errno) => cannot_store(wire.host(), target.path, &path, errno),
    })?;
    let mut hash = blake3::Hasher::new();
    let what = format!("artifact {path}");
    let host = wire.host().clone();
    // Each error of a file has a number.
    let number = |error: &io::Error| Errno::from_io_error(error).unwrap_or(Errno::IO);
    let failed = |error: io::Error| cannot_store(&host, target.path, &path, number(&error));
    let bytes = wire.frames(&what, announced, |piece| match piece {
        Piece::Data(data) => {
            hash.update(data);
            file.write_all(data).map_err(failed)
        }
        Piece::Hole(bytes) => {
            hash_zeros(&mut hash, bytes);
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            file.seek(SeekFrom::Current(bytes)).and_then(|end| file.set_len(end)).map_err(failed)
        }
    })?;
    let checksum = match wire.answer()? {
        BulkAnswer::Checksum { blake3 } => blake3,
        other => return Err(wire.unexpected(&other)),
    };
    if bytes != announced {
        return Err(BulkError::Length { host: wire.host().clone(), what, announced, bytes });
    }
    let blake3 = hash.finalize().to_hex().to_string();
    if !checksum.eq_ignore_ascii_case(&blake3) {
        return Err(BulkError::Checksum { host: wire.host().clone(), name: path.to_string() });
    }
    Ok(())
}

fn hash_zeros(hasher: &mut blake3::Hasher, mut count: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let piece = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
        hasher.update(&ZEROS[..piece]);
        count -= piece as u64;
    }
}

enum Refusal {
    Double,
    /// One directory more than there may be.
    Deep,
    Io(Errno),
}

/// Who is to blame that a file cannot be here: what its name or length alone can cause must not end
/// the run of everybody.
fn cannot_store(host: &HostName, directory: &Path, path: &RelPath, errno: Errno) -> BulkError {
    match errno {
        Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::ILSEQ
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::EXIST
        | Errno::LOOP
        | Errno::MLINK
        | Errno::FBIG => {
            BulkError::Unstorable { host: host.clone(), name: path.to_string(), source: errno.into() }
        }
        errno => BulkError::Local { path: directory.join(path.as_str()), source: errno.into() },
    }
}

/// The directory that artifacts go to. Every step down is made from an open directory and follows
/// no link, so that nothing can leave it even if somebody else changes it meanwhile.
struct Target<'a> {
    path: &'a Path,
    root: OwnedFd,
    /// Directories that may still be made.
    room: u64,
    /// The parent of the last file: files of one directory mostly come one after the other.
    last: Option<(String, OwnedFd)>,
}

impl<'a> Target<'a> {
    fn open(path: &'a Path, room: u64) -> Result<Self, BulkError> {
        let local = |error: Errno| BulkError::Local { path: path.to_owned(), source: error.into() };
        let root = openat(CWD, path, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty()).map_err(local)?;
        Ok(Self { path, root, room, last: None })
    }

    /// Its owner may read it, whatever the host says: who else could look at the result?
    fn create(&mut self, path: &RelPath, mode: u32) -> Result<File, Refusal> {
        let (parent, name) = match path.as_str().rsplit_once('/') {
            Some((parent, name)) => (Some(parent), name),
            None => (None, path.as_str()),
        };
        let mode = Mode::from_raw_mode(mode & 0o777) | Mode::RUSR;
        let parent = match parent {
            None => &self.root,
            Some(parent) => self.descend(parent)?,
        };
        match openat(parent, name, NEW_FILE, mode) {
            Ok(file) => Ok(File::from(file)),
            Err(Errno::EXIST | Errno::ISDIR) => Err(Refusal::Double),
            Err(error) => Err(Refusal::Io(error)),
        }
    }

    fn descend(&mut self, parent: &str) -> Result<&OwnedFd, Refusal> {
        if self.last.as_ref().is_none_or(|(known, _)| known != parent) {
            let mut at: Option<OwnedFd> = None;
            for name in parent.split('/') {
                at = Some(step(at.as_ref().unwrap_or(&self.root), name, &mut self.room)?);
            }
            self.last = at.map(|at| (parent.to_owned(), at));
        }
        Ok(self.last.as_ref().map_or(&self.root, |(_, parent)| parent))
    }
}

/// One directory further down, made if need be and there is room for it.
fn step(at: &OwnedFd, name: &str, room: &mut u64) -> Result<OwnedFd, Refusal> {
    let opened = openat(at, name, DIRECTORY, Mode::empty());
    let opened = match opened {
        Err(Errno::NOENT) => {
            *room = room.checked_sub(1).ok_or(Refusal::Deep)?;
            mkdirat(at, name, Mode::from_raw_mode(0o755))
                .and_then(|()| openat(at, name, DIRECTORY, Mode::empty()))
        }
        other => other,
    };
    opened.map_err(|error| match error {
        Errno::NOTDIR | Errno::LOOP if statat(at, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() => Refusal::Double,
        error => Refusal::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_a_name_or_a_length_can_cause_is_not_ours() {
        let (host, directory) = ("lab1".parse().unwrap(), Path::new("/results"));
        let stored = |errno| cannot_store(&host, directory, &"a/b".parse().unwrap(), errno);
        for errno in
            [Errno::NAMETOOLONG, Errno::INVAL, Errno::ILSEQ, Errno::NOTDIR, Errno::ISDIR, Errno::FBIG]
        {
            let error = stored(errno);
            assert!(matches!(error, BulkError::Unstorable { .. }), "{error:?}");
            assert!(error.spoils_the_channel() && crate::chain(&error).contains("artifact a/b cannot"));
        }
        for errno in [Errno::NOSPC, Errno::IO, Errno::ACCESS, Errno::ROFS] {
            assert!(matches!(stored(errno), BulkError::Local { .. }), "{errno}");
        }
    }
}

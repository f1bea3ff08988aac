//! Taking artifacts out of an archive that a guest wrote.
//!
//! The archive is read twice: first its headers, and what is wanted of it is decided; then the
//! contents of that. A file is written under a number of ours, so that no name of the guest ever
//! reaches the file system.

mod index;
mod select;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crewboss_ground::Open;
use crewboss_host::artifacts::Found;
use crewboss_host::tar::TarError;
use crewboss_protocol::limits::ARTIFACTS_MAX;

use index::Index;
use select::{Selected, select};

/// Below `out`: what a task wants to hand to somebody else than the boss's result directory.
pub const UPLOAD: &str = "upload/";

/// What is copied at once, and the size of a hole.
const PIECE_BYTES: usize = 64 << 10;

/// How much is taken from one archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Entries of the archive, whatever they are.
    pub entries: usize,
    /// Bytes of all files that are taken. Uploads count twice, since archives are made of them.
    pub bytes: u64,
}

impl ArchiveLimits {
    /// For a disk that has room for these many bytes.
    pub fn within(bytes: u64) -> Self {
        Self { entries: ARTIFACTS_MAX, bytes }
    }
}

/// Why nothing can be taken from an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is cut off or damaged.
    #[error("the guest's archive of artifacts cannot be read")]
    Tar(#[from] TarError),
    /// The guest says that it is longer than the file.
    #[error("the archive of artifacts is {length} bytes long as the guest says, and there are {there}")]
    Length {
        /// What the guest says.
        length: u64,
        /// What is there.
        there: u64,
    },
    /// More entries than allowed.
    #[error("the archive of artifacts has more than {limit} entries")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Names that are longer in all than any real ones.
    #[error("the names in the archive of artifacts take more than {limit} bytes")]
    Names {
        /// The limit.
        limit: usize,
    },
    /// More bytes than allowed.
    #[error("the artifacts are {} MiB in all, and the host has room for {}", bytes >> 20, limit >> 20)]
    TooBig {
        /// How much it would be.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The host's disk.
    #[error("cannot write the artifact {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ArchiveError {
    /// Whether the host's disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Write { source, .. } if crewboss_host::storage::is_no_space(source))
    }
}

/// What was taken from an archive.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// The artifacts, and what is wrong, as [`crewboss_host::artifacts::find`] says it.
    pub found: Found,
    /// What lies below `upload/` in the task's output, by its path there. What matches a glob too
    /// is in both.
    pub uploads: BTreeMap<String, PathBuf>,
}

/// Takes what matches the globs, and the uploads, from the first `length` bytes of `archive` (0:
/// there is none). `into` must not exist; it is made, with nothing in it but files that are named
/// by numbers.
///
/// A guest may write anything: a bad name is a problem in [`Found::problems`], a bad archive is an
/// error.
///
/// # Errors
/// If the archive is cut off, damaged or over a limit, or the host cannot write. `into` may be
/// there in part.
pub fn unpack(
    archive: &File,
    length: u64,
    into: &Path,
    globs: &[String],
    limits: ArchiveLimits,
) -> Result<Unpacked, ArchiveError> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| ArchiveError::Write { path, source }
    };
    fs::DirBuilder::new().mode(0o700).create(into).map_err(write(into))?;
    let index = if length == 0 { Index::default() } else { index(archive, length, limits)? };
    let Selected { files, uploads, problems } = select(&index, globs);
    let mut wanted: Vec<usize> = files.values().chain(uploads.values()).copied().collect();
    wanted.sort_unstable();
    wanted.dedup();
    let bytes = |numbers: &mut dyn Iterator<Item = usize>| {
        numbers.fold(0_u64, |sum, number| sum.saturating_add(index.files[number].size))
    };
    let all = bytes(&mut wanted.iter().chain(uploads.values()).copied());
    if all > limits.bytes {
        return Err(ArchiveError::TooBig { bytes: all, limit: limits.bytes });
    }
    for number in &wanted {
        let path = into.join(number.to_string());
        copy(archive, &index.files[*number], &path).map_err(write(&path))?;
    }
    let place = |numbers: BTreeMap<String, usize>| {
        numbers.into_iter().map(|(name, number)| (name, into.join(number.to_string()))).collect()
    };
    let bytes = bytes(&mut files.values().copied());
    let found = Found { files: place(files), bytes, problems, ..Found::default() };
    Ok(Unpacked { found, uploads: place(uploads) })
}

fn index(archive: &File, length: u64, limits: ArchiveLimits) -> Result<Index, ArchiveError> {
    let io = |source| TarError::Io { position: 0, source };
    // Of a block device the metadata knows no length.
    let there = (&mut &*archive).seek(SeekFrom::End(0)).map_err(io)?;
    if length > there {
        return Err(ArchiveError::Length { length, there });
    }
    (&mut &*archive).rewind().map_err(io)?;
    Index::read(archive, length, limits)
}

/// Zeros of the archive become holes, as they may have been in the guest: no archive that everybody
/// can read tells of holes.
fn copy(archive: &File, entry: &index::Entry, path: &Path) -> io::Result<()> {
    let mut file = Open::create_new().mode(0o600).path(path)?;
    (&mut &*archive).seek(SeekFrom::Start(entry.position))?;
    let mut content = archive.take(entry.size);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < entry.size {
        let count = content.read(&mut buffer)?;
        if count == 0 {
            // The guest may still run, but it cannot make the disk shorter.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += count as u64;
        if buffer[..count].iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Start(at))?;
        } else {
            file.write_all(&buffer[..count])?;
        }
    }
    file.set_len(entry.size)?;
    // Who runs the worker has to read it, too.
    file.set_permissions(Permissions::from_mode(entry.mode | 0o400))
}

#[cfg(test)]
mod tests;

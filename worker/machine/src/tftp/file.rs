//! The content of a transfer: what is read in large pieces, and what is written under a temporary
//! name first.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crewboss_host::storage::free_bytes;

use rustix::fs::{Mode, OFlags};
use tempfile::NamedTempFile;

use super::event::{Abort, Refusal};

/// Bytes that are read or written at once, about.
const PIECE: usize = 256 << 10;

/// After so many bytes, free space is looked at again.
const SPACE_EVERY: u64 = 16 << 20;

/// What a guest can get.
#[derive(Debug, Clone)]
pub enum Offer {
    /// A file of the host. A symbolic link is not followed, and only a regular file is sent.
    File(PathBuf),
    /// The beginning of such a file: these many bytes, or all if it has fewer.
    Part(PathBuf, u64),
    /// These bytes.
    Bytes(Arc<[u8]>),
}

#[derive(Debug)]
enum Source {
    File(File),
    Bytes(Arc<[u8]>),
}

/// Content on its way to the guest. Its size is that of the moment when it was opened.
#[derive(Debug)]
pub struct Reading {
    source: Source,
    size: u64,
    /// A piece of the file, which begins at `start`.
    piece: Vec<u8>,
    start: u64,
}

impl Reading {
    /// Opens what is offered.
    ///
    /// # Errors
    /// If it is no regular file, or cannot be opened.
    pub fn open(offer: &Offer) -> io::Result<Self> {
        let (source, size) = match offer {
            Offer::Bytes(bytes) => (Source::Bytes(Arc::clone(bytes)), bytes.len() as u64),
            Offer::File(path) | Offer::Part(path, _) => {
                // Non-blocking: nobody may make the host wait by putting a FIFO there.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::other("it is no regular file"));
                }
                let most = if let Offer::Part(_, bytes) = offer { *bytes } else { u64::MAX };
                (Source::File(file), metadata.len().min(most))
            }
        };
        Ok(Self { source, size, piece: Vec::new(), start: 0 })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A block: `len` bytes, or less at the end.
    ///
    /// # Errors
    /// If it cannot be read, or is not as long as it was.
    pub fn block(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let len = usize::try_from(self.size.saturating_sub(offset)).map_or(len, |left| left.min(len));
        let file = match &self.source {
            Source::Bytes(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                return Ok(bytes.get(start..start.saturating_add(len)).unwrap_or_default());
            }
            Source::File(file) => file,
        };
        let here = |start: u64, piece: &[u8]| {
            let at = usize::try_from(offset.checked_sub(start)?).ok()?;
            (at.checked_add(len)? <= piece.len()).then_some(at)
        };
        let at = match here(self.start, &self.piece) {
            Some(at) => at,
            None => {
                let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
                self.piece.resize(left.min(PIECE.max(len)), 0);
                self.start = offset;
                file.read_exact_at(&mut self.piece, offset)?;
                0
            }
        };
        Ok(&self.piece[at..at + len])
    }
}

/// Content on its way from the guest. Dropped before the end, it leaves nothing.
#[derive(Debug)]
pub struct Writing {
    temporary: NamedTempFile,
    path: PathBuf,
    /// Received and not yet written: `piece[..used]`. There is always room for a block and a byte
    /// behind.
    piece: Vec<u8>,
    used: usize,
    written: u64,
    max: u64,
    reserve: u64,
    /// What there was when it began. A file system counts what is written only some time later.
    free: u64,
    /// How much may be written before free space is looked at.
    until_check: u64,
}

impl Writing {
    /// Begins a file that gets the name `path` in the end, replacing what is there. Blocks have
    /// `block` bytes.
    ///
    /// # Errors
    /// If it may be too large for the disk, or cannot be made.
    pub fn begin(path: &Path, announced: u64, max: u64, reserve: u64, block: usize) -> Result<Self, Refusal> {
        let host = |error: io::Error| Refusal::Host(format!("{}: {error}", path.display()));
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Refusal::Host(format!("{} is no name of a file", path.display())));
        };
        let free = free_bytes(directory).map_err(host)?;
        if free < reserve.saturating_add(announced) {
            return Err(Refusal::NoRoom { free, reserve });
        }
        // Created exclusively, so that no symbolic link is followed, under a name that nobody can
        // guess.
        let prefix = format!(".{}.", name.to_string_lossy());
        let temporary = tempfile::Builder::new().prefix(&prefix).suffix(".part").tempfile_in(directory);
        Ok(Self {
            temporary: temporary.map_err(host)?,
            path: path.to_owned(),
            piece: vec![0; PIECE + block + 1],
            used: 0,
            written: 0,
            max,
            reserve,
            free,
            until_check: SPACE_EVERY,
        })
    }

    /// Where the next block is to be received: room for it and one byte more.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.piece[self.used..]
    }

    /// Keeps the first `len` bytes of [`Self::room`].
    ///
    /// # Errors
    /// If it is more than allowed.
    pub fn keep(&mut self, len: usize) -> Result<(), Abort> {
        if self.size().saturating_add(len as u64) > self.max {
            return Err(Abort::TooLarge { max: self.max });
        }
        self.used += len;
        Ok(())
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.written + self.used as u64
    }

    /// Writes what was kept if it is a large piece. To be called after every [`Self::keep`].
    ///
    /// # Errors
    /// If the disk is full, or cannot be written.
    pub fn drain(&mut self) -> Result<(), Abort> {
        if self.used < PIECE { Ok(()) } else { self.write() }
    }

    /// Writes the rest, and gives the file its name.
    ///
    /// # Errors
    /// If the disk is full or cannot be written, or something else has the name.
    pub fn finish(mut self) -> Result<u64, Abort> {
        self.write()?;
        let path = self.path;
        self.temporary.persist(&path).map_err(|error| failed(&path, &error.error))?;
        Ok(self.written)
    }

    fn write(&mut self) -> Result<(), Abort> {
        let len = self.used as u64;
        if len > self.until_check {
            let directory = self.path.parent().unwrap_or(&self.path);
            let free = free_bytes(directory).map_err(|error| failed(directory, &error))?;
            let free = free.min(self.free.saturating_sub(self.written));
            if free < self.reserve.saturating_add(len) {
                return Err(Abort::NoRoom);
            }
            self.until_check = SPACE_EVERY;
        }
        let written = self.temporary.as_file_mut().write_all(&self.piece[..self.used]);
        written.map_err(|error| failed(&self.path, &error))?;
        self.until_check = self.until_check.saturating_sub(len);
        self.written += len;
        self.used = 0;
        Ok(())
    }
}

fn failed(path: &Path, error: &io::Error) -> Abort {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Abort::NoRoom,
        _ => Abort::Host(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn blocks_are_read_in_any_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let content: Vec<u8> = (0..PIECE * 2 + 77).map(|index| (index % 251).to_le_bytes()[0]).collect();
        fs::write(&path, &content).unwrap();
        for offer in [Offer::File(path), Offer::Bytes(content.clone().into())] {
            let mut reading = Reading::open(&offer).unwrap();
            assert_eq!(reading.size(), content.len() as u64);
            for start in (0..=content.len()).step_by(1000).chain([0, 5, PIECE - 1, content.len()]) {
                let expected = &content[start..content.len().min(start + 1000)];
                assert!(reading.block(start as u64, 1000).unwrap() == expected, "{start}");
            }
            assert!(reading.block(u64::MAX, 1000).unwrap().is_empty());
        }
    }

    #[test]
    fn only_regular_files_that_stay_as_they_are_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, [7; 100]).unwrap();
        std::os::unix::fs::symlink(&path, directory.path().join("link")).unwrap();
        for bad in [directory.path().to_owned(), directory.path().join("link"), directory.path().join("none")]
        {
            assert!(Reading::open(&Offer::File(bad)).is_err());
        }
        let mut reading = Reading::open(&Offer::File(path.clone())).unwrap();
        fs::write(&path, [7; 10]).unwrap();
        assert!(reading.block(0, 50).is_err(), "it is shorter now");
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let put = |content: &[u8]| {
            let mut writing = Writing::begin(&path, 0, 10, 0, 512).unwrap();
            writing.room()[..content.len()].copy_from_slice(content);
            writing.keep(content.len()).and_then(|()| writing.drain()).map(|()| writing)
        };
        drop(put(b"half").unwrap());
        assert!(matches!(put(b"more than ten"), Err(Abort::TooLarge { max: 10 })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(put(b"whole").unwrap().finish().unwrap(), 5);
        assert_eq!(put(b"again").unwrap().finish().unwrap(), 5);
        assert_eq!(fs::read(&path).unwrap(), b"again");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_said_before_and_during() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let refused = Writing::begin(&path, 0, u64::MAX, u64::MAX, 512);
        assert!(matches!(refused, Err(Refusal::NoRoom { .. })), "{refused:?}");
        let refused = Writing::begin(&path, u64::MAX - 1, u64::MAX, 1, 512);
        assert!(matches!(refused, Err(Refusal::NoRoom { .. })), "{refused:?}");

        let disk = crewboss_host::testing::Mount::tmpfs(2);
        let mut writing = Writing::begin(&disk.path().join("log"), 0, u64::MAX, 0, 65464).unwrap();
        let full = loop {
            match writing.keep(65464).and_then(|()| writing.drain()) {
                Ok(()) => assert!(writing.size() < 3 << 20),
                Err(error) => break error,
            }
        };
        assert_eq!(full, Abort::NoRoom);
        drop(writing);
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    }
}

//! Everything below a directory as entries of an archive.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};

use super::write::{Attributes, Writer};

/// Directories inside directories that are followed, as for check-outs.
const DEPTH_MAX: usize = 400;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Adds what lies below directories to an archive.
#[derive(Debug)]
pub struct Walk<'a> {
    writer: &'a mut Writer<File>,
    /// The entry being added, so that an error can name it.
    pub name: Vec<u8>,
    /// Whether it was the archive that failed.
    pub failed: bool,
}

impl<'a> Walk<'a> {
    /// The entries get the name of what they lie in before their own, unless that is empty.
    pub fn new(writer: &'a mut Writer<File>, name: &[u8]) -> Self {
        Self { writer, name: name.to_vec(), failed: false }
    }

    /// Adds everything below a directory, in the order of names.
    ///
    /// # Errors
    /// If something cannot be read, or the archive not be written.
    pub fn all_below(&mut self, top: &Path) -> io::Result<()> {
        let top = openat(CWD, top, DIRECTORY, Mode::empty())?;
        self.directory(&top, 0)
    }

    /// Adds everything in a directory, in the order of names.
    fn directory(&mut self, directory: &rustix::fd::OwnedFd, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::other(format!("directories are nested more than {DEPTH_MAX} deep")));
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        let length = self.name.len();
        for name in names {
            if length > 0 {
                self.name.push(b'/');
            }
            self.name.extend_from_slice(name.to_bytes());
            self.entry(directory, &name, depth)?;
            self.name.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: &rustix::fd::OwnedFd,
        name: &std::ffi::CStr,
        depth: usize,
    ) -> io::Result<()> {
        let state = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(state.st_mode) {
            FileType::Directory => {
                let written = self.writer.directory(&self.name, attributes(&state));
                self.written(written)?;
                self.directory(&openat(directory, name, DIRECTORY, Mode::empty())?, depth + 1)
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(directory, name, flags, Mode::empty())?);
                let state = fstat(&file)?;
                let size = u64::try_from(state.st_size).unwrap_or(0);
                let written = self.writer.file(&self.name, attributes(&state), size, &mut file);
                self.written(written)
            }
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new())?;
                let written = self.writer.link(&self.name, target.to_bytes(), attributes(&state));
                self.written(written)
            }
            // Git stores nothing else.
            _ => Ok(()),
        }
    }

    /// Reading happens into the archive's buffer, so an error there may be of either; a full disk
    /// is what matters.
    fn written(&mut self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.failed = true;
        }
        result
    }
}

fn attributes(state: &Stat) -> Attributes {
    Attributes { mode: state.st_mode & 0o7777, time: u64::try_from(state.st_mtime).unwrap_or(0) }
}

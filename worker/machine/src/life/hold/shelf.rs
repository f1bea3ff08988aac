//! What of a held guest lies on the disk, and in which order it is written.
//!
//! ```text
//! <guest>/held          link to the current one of
//! <guest>/held-<n>/     restore.json: how it is started; state: its memory; its disks, from the
//!                       second one on
//! ```
//!
//! A guest whose memory was saved must find its disks exactly as they were then. So nothing that
//! was saved is ever written to again: whoever enters the guest works on clones of its disks in the
//! next directory, and the link is switched when all that is to be saved is safe on the disk.
//! Whatever ends it before that, the guest is what it was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crewboss_ground::{Open, Replace, open_directory, read_record};
use crewboss_host::storage::{clone_file, remove_tree};

use crate::guest::kept::Kept;

use crate::qemu::command::{Access, Backing, Boot, Disk, GuestConfig};

/// The link.
const LINK: &str = "held";

/// How a guest is started.
const RESTORE: &str = "restore.json";

/// Longest file of that kind that is read; ours have some kilobytes and a task's document.
const RESTORE_BYTES_MAX: u64 = 16 << 20;

/// Its memory.
const STATE: &str = "state";

/// Its source, of its own: the host's may be gone when somebody wants it.
const SOURCE: &str = "source.img";

/// Why what is kept cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else lies there.
    #[error("{} is not what a guest is restored from", path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl ShelfError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

impl Kept {
    /// Makes everything the guest's own that it has from elsewhere: its source is cloned into
    /// `directory`.
    ///
    /// # Errors
    /// If there is no place even for an empty disk.
    pub(super) fn own_disks(&mut self, directory: &Path) -> Result<(), ShelfError> {
        // What lay in a file that several guests share is in the saved state.
        self.config.backing = Backing::Anonymous;
        self.config.incoming = false;
        for disk in &mut self.config.disks {
            if disk.access == Access::ReadOnly && !disk.path.starts_with(directory) {
                let own = directory.join(SOURCE);
                // A disk without content is better than no disk: the rest of the guest goes on with
                // it.
                let made = clone_file(&disk.path, &own).or_else(|_| empty_like(&disk.path, &own));
                made.map_err(ShelfError::io("make", &own))?;
                disk.path = own;
            }
        }
        Ok(())
    }

    /// The files that it writes to.
    fn written(config: &mut GuestConfig) -> impl Iterator<Item = &mut PathBuf> {
        let variables = match &mut config.boot {
            Boot::Uefi(uefi) => Some(&mut uefi.variables),
            Boot::Kernel { .. } | Boot::Bios => None,
        };
        let writes = |disk: &&mut Disk| disk.access != Access::ReadOnly;
        config.disks.iter_mut().filter(writes).map(|disk| &mut disk.path).chain(variables)
    }
}

fn empty_like(model: &Path, path: &Path) -> io::Result<()> {
    let length = fs::metadata(model).map_or(crate::exchange::SOURCE_DISK_BYTES, |found| found.len());
    Open::create().mode(0o600).path(path)?.set_len(length)
}

/// The files of one held guest.
#[derive(Debug)]
pub struct Shelf {
    guest: PathBuf,
}

/// What is to be kept next. Removed when dropped, unless it was committed.
#[derive(Debug)]
pub struct Draft {
    guest: PathBuf,
    number: u32,
    directory: PathBuf,
    committed: bool,
}

impl Shelf {
    /// In the guest's directory.
    pub fn new(guest: &Path) -> Self {
        Self { guest: guest.to_owned() }
    }

    /// What is kept, its number and its memory's file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn load(&self) -> Result<(u32, Kept, PathBuf), ShelfError> {
        let link = self.guest.join(LINK);
        let target = fs::read_link(&link).map_err(ShelfError::io("read", &link))?;
        let number = target.to_str().and_then(number).ok_or_else(|| {
            ShelfError::io("use", &link)(io::Error::other(format!("it leads to {}", target.display())))
        })?;
        let directory = directory(&self.guest, number);
        let path = directory.join(RESTORE);
        let text = read_record(&path, RESTORE_BYTES_MAX)
            .map_err(io::Error::from)
            .and_then(|text| text.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(ShelfError::io("read", &path))?;
        let kept = serde_json::from_slice(&text)
            .map_err(|source| ShelfError::Unreadable { path: path.clone(), source })?;
        Ok((number, kept, directory.join(STATE)))
    }

    /// Begins the one with this number. What others left who did not finish is removed.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn begin(&self, number: u32) -> Result<Draft, ShelfError> {
        remove_others(&self.guest, number.checked_sub(1));
        let directory = directory(&self.guest, number);
        fs::create_dir(&directory).map_err(ShelfError::io("make", &directory))?;
        Ok(Draft { guest: self.guest.clone(), number, directory, committed: false })
    }
}

impl Draft {
    /// Where its memory goes.
    pub fn state(&self) -> PathBuf {
        self.directory.join(STATE)
    }

    /// The same guest on clones of all that it writes to.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn clone_disks(&self, config: &GuestConfig) -> Result<GuestConfig, ShelfError> {
        let mut config = config.clone();
        for (index, path) in Kept::written(&mut config).enumerate() {
            let own = self.directory.join(format!("disk-{index}"));
            clone_file(path, &own).map_err(ShelfError::io("clone a disk to", &own))?;
            *path = own;
        }
        Ok(config)
    }

    /// Makes it what is kept. QEMU must have ended. It survives the loss of power.
    ///
    /// # Errors
    /// If it cannot be written; then what was kept before still is.
    pub fn commit(mut self, kept: &Kept) -> Result<(), ShelfError> {
        let mut config = kept.config.clone();
        for path in Kept::written(&mut config) {
            let synced = Open::read().path(path).map_err(io::Error::from).and_then(|disk| disk.sync_all());
            synced.map_err(ShelfError::io("sync", path))?;
        }
        let path = self.directory.join(RESTORE);
        let written = serde_json::to_vec(kept)
            .map_err(io::Error::from)
            .and_then(|text| Ok(Replace::with_mode(0o600).synced().path(&path, &text)?));
        written.and_then(|()| sync(&self.directory)).map_err(ShelfError::io("write", &path))?;
        self.switch().map_err(ShelfError::io("switch", &self.guest.join(LINK)))?;
        self.committed = true;
        remove_others(&self.guest, Some(self.number));
        Ok(())
    }

    fn switch(&self) -> io::Result<()> {
        let new = self.guest.join(format!("{LINK}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(name(self.number), &new)?;
        fs::rename(&new, self.guest.join(LINK))?;
        sync(&self.guest)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.committed {
            // What stays is removed by whoever enters next, or with the guest.
            let _stays = remove_tree(&self.directory);
        }
    }
}

fn sync(path: &Path) -> io::Result<()> {
    open_directory(path)?.sync_all()
}

fn name(number: u32) -> String {
    format!("{LINK}-{number}")
}

fn number(name: &str) -> Option<u32> {
    name.strip_prefix(LINK)?.strip_prefix('-')?.parse().ok()
}

fn directory(guest: &Path, number: u32) -> PathBuf {
    guest.join(name(number))
}

/// Removes all but one. What cannot be removed takes space and nothing else, until the guest goes.
fn remove_others(guest: &Path, kept: Option<u32>) {
    for entry in fs::read_dir(guest).into_iter().flatten().flatten() {
        let found = entry.file_name().to_str().and_then(number);
        if found.is_some() && found != kept {
            let _stays = remove_tree(&entry.path());
        }
    }
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;

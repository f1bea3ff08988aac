//! A file under an flock that is there only as long as it is locked.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crewboss_ground::{Held, Open, read_record};

/// How often a file that was removed under our hands is opened again. Each time somebody else has
/// just let go of it.
const TRIES: usize = 16;

/// Longest text of a lock file that is read; ours have some hundred bytes.
const TEXT_BYTES_MAX: u64 = 16 << 10;

/// A locked file. Dropping it removes the file and lets go of the lock, in this order, so that
/// nobody can lock a file that is about to be removed and take it for the lock.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    held: Held,
}

impl LockFile {
    /// Locks the file, which is made if it is not there. `None` if somebody else holds it. Never
    /// waits.
    pub(crate) fn try_lock(path: &Path) -> io::Result<Option<Self>> {
        for _ in 0..TRIES {
            let file = Open::lock().path(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let held = Held::new(file);
            // Between opening and locking its holder may have removed it, and another may lock the
            // next one by now.
            if held.is_at(path)? {
                return Ok(Some(Self { path: path.to_owned(), held }));
            }
        }
        Ok(None)
    }

    /// Says in the file who holds it.
    pub(crate) fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut file: &File = &self.held;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text)
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // If it cannot be removed it stays without a lock, and counts for nobody.
        let _stays = fs::remove_file(&self.path);
    }
}

/// What a lock file says. Takes no lock, so it disturbs nobody.
pub(crate) fn read(path: &Path) -> Option<Vec<u8>> {
    read_record(path, TEXT_BYTES_MAX).ok().flatten()
}

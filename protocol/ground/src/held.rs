//! A file under an flock that is let go of at once.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Holds the lock of a file; lets go of it when dropped.
///
/// Closing the file is not enough: a process that another thread is just starting has a copy of the
/// descriptor until it executes its program, and the lock would live on in it for that moment.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Of a file that was locked just now.
    pub fn new(locked: File) -> Self {
        Self(locked)
    }

    /// Whether the path still leads to this file. Between opening and locking somebody may have
    /// removed it, and another may hold the next one of that name by now.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let own = self.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Deref for Held {
    type Target = File;
    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // If it fails, closing does it.
        let _closing = self.0.unlock();
    }
}

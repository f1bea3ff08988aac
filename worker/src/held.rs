//! A file under an flock that is let go of at once.

use std::fs::File;
use std::ops::Deref;

/// Holds the lock of a file; lets go of it when dropped.
///
/// Closing the file is not enough: a process that another thread is just starting has a copy of the descriptor until it
/// executes its program, and the lock would live on in it for that moment.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Of a file that was locked just now.
    pub fn new(locked: File) -> Self {
        Self(locked)
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

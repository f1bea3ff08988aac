//! A guest before it runs: its record and its snapshot.

use std::path::PathBuf;

use crate::books::record::{GuestRecord, RecordError, Step};
use crate::halt;
use crate::images::directory::Machines;

/// A guest that is being made. Dropped before it runs, it is removed with whatever there is of it.
#[derive(Debug)]
pub struct NewGuest {
    machines: Machines,
    record: GuestRecord,
    runs: bool,
}

impl NewGuest {
    /// One of which there is the record so far.
    pub fn of(machines: &Machines, record: GuestRecord) -> Self {
        let new = Self { machines: machines.clone(), record, runs: false };
        halt::at(new.record.step);
        new
    }

    /// Its record.
    pub fn record(&self) -> &GuestRecord {
        &self.record
    }

    /// Where its snapshot is, or will be.
    pub fn snapshot(&self) -> PathBuf {
        self.record.snapshot(&self.machines)
    }

    /// Notes that its snapshot is there.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn is_copied(&mut self) -> Result<(), RecordError> {
        self.record.advance(&self.machines, Step::Copied)?;
        halt::at(Step::Copied);
        Ok(())
    }

    /// It runs: whoever runs it removes it.
    pub fn run(mut self) -> GuestRecord {
        self.runs = true;
        self.record.clone()
    }
}

impl Drop for NewGuest {
    fn drop(&mut self) {
        if !self.runs {
            // Why it does not run is what counts; what stays has a record, and is swept.
            let _swept = self.record.remove(&self.machines);
        }
    }
}

//! The output of one attempt: into its logs, into the live view, and looked through for warnings.

use std::io;
use std::path::Path;
use std::time::Instant;

use crewboss_host::program::run::Stream;
use crewboss_machine::guest::Listener;
use crewboss_protocol::message::{LogEnd, TaskLimits};
use crewboss_protocol::{FromWorker, TaskRef};

use super::log::{Log, WarningScan};

/// Where the output of an attempt goes.
#[derive(Debug)]
pub struct Output {
    at: TaskRef,
    log: Log,
    err: Log,
    warnings: WarningScan,
    announced: bool,
    lost: Option<io::Error>,
    limits: TaskLimits,
    stored: u64,
}

/// A log that is longer than it may be: that is the task's failure, and not the host's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TooLong(String);

/// Whether output could not be stored for that alone.
pub fn is_too_long(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<TooLong>())
}

impl Output {
    /// Empty logs in the attempt's directory.
    pub fn new(at: TaskRef, directory: &Path, limits: TaskLimits) -> Self {
        let log = |name| Log::new(directory.join(name));
        let warnings = WarningScan::default();
        Self {
            at,
            log: log("log"),
            err: log("err"),
            warnings,
            announced: false,
            lost: None,
            limits,
            stored: 0,
        }
    }

    /// Whether a warning was written.
    pub fn has_warnings(&self) -> bool {
        self.warnings.found()
    }

    /// A piece of output as it comes.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub fn take(&mut self, link: &mut dyn Listener, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.store(link, stream, bytes)?;
        link.live(bytes);
        link.flush_live(self.at, Instant::now());
        Ok(())
    }

    /// A piece of output that the live view has had already, or is not to have.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub fn store(&mut self, link: &mut dyn Listener, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.stored += bytes.len() as u64;
        if self.stored > self.limits.log_bytes {
            return Err(io::Error::other(TooLong(self.limits.refuse_log())));
        }
        self.log.write(bytes)?;
        if stream == Stream::Err {
            self.note_err(bytes)?;
        }
        if !self.announced && self.log.is_long() {
            self.announced = true;
            link.forward(&FromWorker::LongLog { at: self.at });
        }
        Ok(())
    }

    /// A piece of standard error that is in the log already.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub fn note_err(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.err.write(bytes)?;
        self.warnings.push(bytes);
        Ok(())
    }

    /// A line of our own in both logs.
    pub fn say(&mut self, link: &mut dyn Listener, text: &str) {
        let line = format!("crewboss: {text}\n");
        if let Err(error) = self.take(link, Stream::Err, line.as_bytes()) {
            self.lost = Some(error);
        }
    }

    /// What the result says about log and standard error, and what went wrong with storing them.
    pub fn end(&mut self) -> (LogEnd, LogEnd, Option<io::Error>) {
        let mut lost = self.lost.take();
        let mut end = |log: &mut Log| {
            log.end().unwrap_or_else(|error| {
                lost = Some(error);
                LogEnd { bytes: 0, text: Some(String::new()) }
            })
        };
        let (log, err) = (end(&mut self.log), end(&mut self.err));
        (log, err, lost)
    }
}

//! The event stream as JSON lines in a file, for programs.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crewboss_boss::event::{Event, EventKind, EventSink};

/// Lines are collected for at most so long, in the events' time, so that whoever follows the file is not far behind.
const FLUSH_MS: u64 = 100;

/// Lines that are collected before they are written in any case.
const BUFFER_BYTES: usize = 64 << 10;

/// Why the stream is not complete.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The file cannot be made.
    #[error("cannot create {} for the events", path.display())]
    Create {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Writing failed; the stream ends there.
    #[error("the events in {} are not complete: {written} were kept", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Events that went before.
        written: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Writes events. When writing fails it stops; [`EventsEnd`] tells so at the end.
#[derive(Debug)]
pub struct Events<W: Write> {
    out: BufWriter<W>,
    path: PathBuf,
    written: u64,
    flushed_ms: u64,
    broken: bool,
    failure: Arc<Mutex<Option<EventsError>>>,
}

/// What became of the stream, once its writer is gone.
#[derive(Debug)]
pub struct EventsEnd(Arc<Mutex<Option<EventsError>>>);

impl EventsEnd {
    /// The error that ended the stream early, if one did.
    pub fn result(&self) -> Result<(), EventsError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl Events<File> {
    /// Creates the file, or empties it.
    pub fn create(path: &Path) -> Result<(Self, EventsEnd), EventsError> {
        let file =
            File::create(path).map_err(|source| EventsError::Create { path: path.to_owned(), source })?;
        Ok(Self::new(file, path))
    }
}

impl<W: Write> Events<W> {
    fn new(out: W, path: &Path) -> (Self, EventsEnd) {
        let failure = Arc::new(Mutex::new(None));
        let end = EventsEnd(Arc::clone(&failure));
        let out = BufWriter::with_capacity(BUFFER_BYTES, out);
        (Self { out, path: path.to_owned(), written: 0, flushed_ms: 0, broken: false, failure }, end)
    }

    fn write(&mut self, event: &Event) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.out, event)?;
        self.out.write_all(b"\n")?;
        self.written += 1;
        let due = event.time_ms.saturating_sub(self.flushed_ms) >= FLUSH_MS;
        if due || matches!(event.kind, EventKind::RunFinished(_)) {
            self.flushed_ms = event.time_ms;
            self.out.flush()?;
        }
        Ok(())
    }

    fn keep(&mut self, result: std::io::Result<()>) {
        if let Err(source) = result {
            self.broken = true;
            let error = EventsError::Write { path: self.path.clone(), written: self.written, source };
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }
}

impl<W: Write> EventSink for Events<W> {
    fn event(&mut self, event: &Event) {
        if !self.broken {
            let result = self.write(event);
            self.keep(result);
        }
    }
}

impl<W: Write> Drop for Events<W> {
    fn drop(&mut self) {
        if !self.broken {
            let result = self.out.flush();
            self.keep(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::run;
    use crewboss_boss::event::EVENT_SCHEMA;

    #[test]
    fn every_event_is_a_line_that_says_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let (mut events, end) = Events::create(&path).unwrap();
        run().iter().for_each(|event| events.event(event));
        drop(events);
        end.result().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), run().len());
        assert_eq!(lines[0]["event"], "run_started");
        assert_eq!(lines[0]["schema"], EVENT_SCHEMA);
        assert!(lines.iter().all(|line| line["time_ms"].is_u64() && line["event"].is_string()));
        assert_eq!(lines[lines.len() - 1]["event"], "run_finished");
    }

    #[test]
    fn a_full_disk_is_told_once_at_the_end() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (mut events, end) = Events::new(full, Path::new("/dev/full"));
        run().iter().for_each(|event| events.event(event));
        drop(events);
        let error = end.result().unwrap_err();
        assert!(
            matches!(&error, EventsError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
        );
        end.result().unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_made_is_told_before_the_run() {
        let error = Events::create(Path::new("/nonexistent/events")).unwrap_err();
        assert_eq!(error.to_string(), "cannot create /nonexistent/events for the events");
    }
}

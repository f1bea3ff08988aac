//! The event stream as JSON lines in a file, for programs.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crewboss_boss::event::{Event, EventKind, EventSink};
use crewboss_boss::outlet::{Kind, Outlet, Trouble, Weight};
use crewboss_protocol::json;
use rustix::fs::OFlags;

/// What may wait for whoever follows the events, and the event that stands for what was left out.
const WAITING: Kind = Kind { room: 64 << 20, gap };

fn gap(events: u64) -> String {
    format!("{{\"time_ms\":{},\"event\":\"left_out\",\"events\":{events}}}\n", now_ms())
}

fn now_ms() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_millis()
}

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
        source: io::Error,
    },
    /// Writing failed, or whoever reads was too slow.
    #[error("the events in {} are not complete", path.display())]
    Incomplete {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Trouble,
    },
    /// There can be no further thread.
    #[error("cannot start a thread for the events")]
    Thread(#[source] io::Error),
}

/// Writes events, as far as whoever reads them lets it. [`EventsEnd`] tells at the end what is
/// missing.
#[derive(Debug)]
pub struct Events {
    out: Outlet,
}

/// What became of the stream, to be asked when nothing more comes.
#[derive(Debug)]
pub struct EventsEnd {
    out: Outlet,
    path: PathBuf,
}

impl EventsEnd {
    /// Waits for whoever reads, with the patience that is given.
    ///
    /// # Errors
    /// If something is missing.
    pub fn result(self, mut patience: impl FnMut(std::time::Duration) -> bool) -> Result<(), EventsError> {
        match self.out.settle(&mut patience) {
            None => Ok(()),
            Some(source) => Err(EventsError::Incomplete { path: self.path, source }),
        }
    }
}

impl Events {
    /// Creates the file, or empties it. A FIFO is opened when somebody reads it; what happens
    /// before waits for that.
    pub fn create(path: &Path) -> Result<(Self, EventsEnd), EventsError> {
        let failed = |source| EventsError::Create { path: path.to_owned(), source };
        let file = open(path, OFlags::NONBLOCK);
        let is_fifo = || path.metadata().is_ok_and(|found| found.file_type().is_fifo());
        let file = match file {
            Err(error) if error.raw_os_error() == Some(NOBODY_READS) && is_fifo() => None,
            file => Some(file.map_err(failed)?),
        };
        let later = path.to_owned();
        let out = Outlet::start("the event stream", WAITING, move || match file {
            None => open(&later, OFlags::empty()),
            // Its thread may wait.
            Some(file) => rustix::io::ioctl_fionbio(&file, false).map(|()| file).map_err(io::Error::from),
        });
        let out = out.map_err(EventsError::Thread)?;
        Ok((Self { out: out.clone() }, EventsEnd { out, path: path.to_owned() }))
    }
}

/// What the system says of a FIFO that nobody reads.
const NOBODY_READS: i32 = rustix::io::Errno::NXIO.raw_os_error();

#[expect(
    clippy::disallowed_methods,
    reason = "a person has named it: it may be a link, a FIFO, or a terminal"
)]
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    File::options().write(true).create(true).truncate(true).custom_flags(flags).open(path)
}

impl EventSink for Events {
    fn event(&mut self, event: &Event) {
        let weight = match event.kind {
            EventKind::TaskOutput { .. } | EventKind::HostLoad { .. } | EventKind::GuestLoad { .. } => {
                Weight::Live
            }
            EventKind::RunFinished(_) => Weight::Last,
            _ => Weight::News,
        };
        // What cannot be written as JSON is not in an event.
        let Ok(mut line) = json::line(event) else { return };
        line.push('\n');
        self.out.put(weight, line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::with_causes;
    use crate::terminal::samples::run;
    use crewboss_boss::event::EVENT_SCHEMA;

    fn patient(still: std::time::Duration) -> bool {
        still.as_secs() > 60
    }

    #[test]
    fn every_event_is_a_line_that_says_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let (mut events, end) = Events::create(&path).unwrap();
        run().iter().for_each(|event| events.event(event));
        end.result(patient).unwrap();
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
    fn a_full_disk_is_told_at_the_end() {
        let (mut events, end) = Events::create(Path::new("/dev/full")).unwrap();
        run().iter().for_each(|event| events.event(event));
        let error = end.result(patient).unwrap_err();
        assert_eq!(
            with_causes(&error),
            "the events in /dev/full are not complete: cannot write the event stream: No space left on device (os error 28)"
        );
    }

    #[test]
    fn a_fifo_that_nobody_reads_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let made = rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU);
        made.unwrap();
        let (mut events, end) = Events::create(&path).unwrap();
        run().iter().for_each(|event| events.event(event));
        let error = end.result(|still| still.as_millis() > 50).unwrap_err();
        assert!(with_causes(&error).contains("the event stream stood still"), "{error:?}");
        // One who comes late gets everything.
        let (mut events, end) = Events::create(&path).unwrap();
        run().iter().for_each(|event| events.event(event));
        let reader = std::thread::spawn(move || std::fs::read_to_string(path).unwrap());
        end.result(patient).unwrap();
        drop(events);
        assert_eq!(reader.join().unwrap().lines().count(), run().len());
    }

    #[test]
    fn a_gap_is_an_event() {
        let line: serde_json::Value = serde_json::from_str(&gap(7)).unwrap();
        assert_eq!((line["event"].as_str(), line["events"].as_u64()), (Some("left_out"), Some(7)));
        assert!(line["time_ms"].is_u64());
    }

    #[test]
    fn a_file_that_cannot_be_made_is_told_before_the_run() {
        let error = Events::create(Path::new("/nonexistent/events")).unwrap_err();
        assert_eq!(error.to_string(), "cannot create /nonexistent/events for the events");
    }
}

//! QMP, the monitor protocol, as far as it is needed.
//!
//! A [`Qmp`] never waits unless told until when: its descriptor is polled, [`Qmp::handle_readable`]
//! takes what came, and [`Qmp::take`] hands it out. [`Qmp::call`] waits for one answer and keeps
//! what else comes meanwhile, so whoever polls takes everything with [`Qmp::take`] before polling
//! again.

mod message;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crewboss_host::sys;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use super::version::Version;
pub use message::{CommandError, Event, Garbage, LINE_BYTES_MAX, Lines, Message, Migration, parse};

/// What is read at once, and how often before others get their turn.
const READ_BYTES: usize = 16 << 10;
const READS_MAX: usize = 16;

/// Messages that wait to be taken. Only a guest that makes events in a loop comes near it, or a
/// QEMU that is none.
const INBOX_MAX: usize = 4096;

/// Bytes of commands that QEMU has not read yet. It reads at once unless it hangs.
const OUTBOX_BYTES_MAX: usize = 64 << 10;

/// What a command is known by.
pub type CallId = u64;

/// The answer to this one, which [`Qmp::new`] sends, says that QEMU has taken its options and the
/// guest is about to run. Its greeting comes earlier.
pub const NEGOTIATED: CallId = 1;

/// Why the monitor cannot be used any more. Only [`QmpError::Refused`] leaves it usable.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU has closed it: it has ended, or is about to.
    #[error("it is closed")]
    Closed,
    /// No answer in time: QEMU hangs.
    #[error("{command} was not answered in time")]
    Deadline {
        /// The command.
        command: &'static str,
    },
    /// What came is not QMP.
    #[error("it does not speak QMP")]
    Garbage(#[from] Garbage),
    /// More came than anybody takes.
    #[error("more than {INBOX_MAX} messages came at once")]
    Flood,
    /// QEMU does not read.
    #[error("it does not read its commands")]
    Stuck,
    /// The socket failed.
    #[error("its socket failed")]
    Socket(#[source] io::Error),
    /// A command failed.
    #[error("{command} failed")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's answer.
        #[source]
        source: CommandError,
    },
}

/// What came from the monitor.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// QEMU is there, in this version.
    Greeting(Version),
    /// The answer to a command.
    Answer(CallId, Result<Value, CommandError>),
    /// Something happened.
    Event(Event),
    /// Nothing more will come.
    Closed,
}

/// Whether the processors of a guest run, by `query-status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// They do.
    pub running: bool,
    /// As `running`, `paused`, `inmigrate`, `internal-error`, `io-error`, `guest-panicked`.
    pub status: String,
}

/// One end of a monitor.
#[derive(Debug)]
pub struct Qmp {
    socket: OwnedFd,
    lines: Lines,
    inbox: VecDeque<Incoming>,
    outbox: Vec<u8>,
    next: CallId,
    closed: bool,
}

impl Qmp {
    /// Takes a connected stream socket and leaves QEMU's negotiation mode, for which nobody has to
    /// wait.
    ///
    /// # Errors
    /// If the socket cannot be used.
    pub fn new(socket: OwnedFd) -> Result<Self, QmpError> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(socket_failed)?;
        let mut qmp = Self {
            socket,
            lines: Lines::default(),
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            next: 0,
            closed: false,
        };
        qmp.execute("qmp_capabilities", &Value::Null)?;
        Ok(qmp)
    }

    /// To be polled for reading, and for writing if [`Self::wants_write`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether commands wait to be written.
    pub fn wants_write(&self) -> bool {
        !self.outbox.is_empty() && !self.closed
    }

    /// Whether QEMU has closed it.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Sends a command. Its answer comes as [`Incoming::Answer`] with this id.
    ///
    /// # Errors
    /// If it cannot be sent, nor kept to be sent.
    pub fn execute(&mut self, name: &str, arguments: &Value) -> Result<CallId, QmpError> {
        let line = self.line(name, arguments);
        if self.outbox.len() + line.len() > OUTBOX_BYTES_MAX {
            return Err(QmpError::Stuck);
        }
        self.outbox.extend(line);
        self.handle_writable()?;
        Ok(self.next)
    }

    fn line(&mut self, name: &str, arguments: &Value) -> Vec<u8> {
        self.next += 1;
        message::command(self.next, name, arguments)
    }

    /// Writes what waits to be written, as far as it goes.
    ///
    /// # Errors
    /// If the socket failed.
    pub fn handle_writable(&mut self) -> Result<(), QmpError> {
        while self.wants_write() {
            match rustix::net::send(&self.socket, &self.outbox, SendFlags::NOSIGNAL) {
                Ok(len) => drop(self.outbox.drain(..len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // What it said before it closed is still to be read.
                Err(Errno::PIPE | Errno::CONNRESET) => break,
                Err(error) => return Err(socket_failed(error)),
            }
        }
        Ok(())
    }

    /// Reads what has come, without waiting; [`Self::take`] hands it out.
    ///
    /// # Errors
    /// If it is not QMP, or too much.
    pub fn handle_readable(&mut self) -> Result<(), QmpError> {
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..READS_MAX {
            if self.closed {
                break;
            }
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    self.closed = true;
                    self.inbox.push_back(Incoming::Closed);
                }
                Ok((len, _)) => {
                    let messages = self.lines.push(&buffer[..len])?;
                    self.inbox.extend(messages.into_iter().map(|message| match message {
                        Message::Greeting(version) => Incoming::Greeting(version),
                        Message::Return(id, value) => Incoming::Answer(id, Ok(value)),
                        Message::Error(id, error) => Incoming::Answer(id, Err(error)),
                        Message::Event(event) => Incoming::Event(event),
                    }));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(socket_failed(error)),
            }
            if self.inbox.len() > INBOX_MAX {
                return Err(QmpError::Flood);
            }
        }
        Ok(())
    }

    /// The next thing that came.
    pub fn take(&mut self) -> Option<Incoming> {
        self.inbox.pop_front()
    }

    /// Sends a command and waits for its answer. Whatever else comes meanwhile is kept for
    /// [`Self::take`].
    ///
    /// # Errors
    /// If it fails or is not answered until then.
    pub fn call(
        &mut self,
        command: &'static str,
        arguments: &Value,
        until: Instant,
    ) -> Result<Value, QmpError> {
        let id = self.execute(command, arguments)?;
        self.answer(command, id, until)
    }

    fn answer(&mut self, command: &'static str, id: CallId, until: Instant) -> Result<Value, QmpError> {
        let answers = |incoming: &Incoming| matches!(incoming, Incoming::Answer(of, _) if *of == id);
        self.wait(command, until, answers).and_then(|found| match found {
            Incoming::Answer(_, Ok(value)) => Ok(value),
            Incoming::Answer(_, Err(source)) => Err(QmpError::Refused { command, source }),
            Incoming::Greeting(_) | Incoming::Event(_) | Incoming::Closed => Err(QmpError::Closed),
        })
    }

    /// Waits for something and takes it out; what else is there stays in its order.
    ///
    /// # Errors
    /// If it does not come until then, or cannot come any more. `command` is named as what was not
    /// answered.
    pub fn wait(
        &mut self,
        command: &'static str,
        until: Instant,
        wanted: impl Fn(&Incoming) -> bool,
    ) -> Result<Incoming, QmpError> {
        loop {
            if let Some(found) = self.inbox.iter().position(&wanted).and_then(|at| self.inbox.remove(at)) {
                return Ok(found);
            }
            if self.closed {
                return Err(QmpError::Closed);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::Deadline { command });
            }
            let write = if self.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN | write)];
            sys::poll(&mut fds, Some(left)).map_err(QmpError::Socket)?;
            self.handle_writable()?;
            self.handle_readable()?;
        }
    }

    /// Gives QEMU an open file under a name, with which `fd:NAME` means it.
    ///
    /// # Errors
    /// If QEMU does not take it until then.
    pub fn pass(&mut self, name: &str, file: BorrowedFd<'_>, until: Instant) -> Result<(), QmpError> {
        // A descriptor belongs to the bytes that it is sent with: nothing may be before them.
        if self.wants_write() {
            return Err(QmpError::Stuck);
        }
        let line = self.line("getfd", &json!({ "fdname": name }));
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(QmpError::Stuck);
        }
        let parts = [io::IoSlice::new(&line)];
        let sent = rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL);
        match sent {
            Ok(len) => self.outbox.extend_from_slice(&line[len..]),
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(QmpError::Closed),
            Err(Errno::AGAIN) => return Err(QmpError::Stuck),
            Err(error) => return Err(socket_failed(error)),
        }
        self.answer("getfd", self.next, until).map(drop)
    }

    /// Whether the guest runs.
    ///
    /// # Errors
    /// If QEMU does not say until then.
    pub fn status(&mut self, until: Instant) -> Result<Status, QmpError> {
        let value = self.call("query-status", &Value::Null, until)?;
        let running = value.get("running").and_then(Value::as_bool).unwrap_or(false);
        let status = value.get("status").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Status { running, status })
    }

    /// Stops the guest's processors.
    ///
    /// # Errors
    /// If QEMU does not answer until then.
    pub fn stop(&mut self, until: Instant) -> Result<(), QmpError> {
        self.call("stop", &Value::Null, until).map(drop)
    }

    /// Lets the guest's processors run.
    ///
    /// # Errors
    /// If they cannot run, or QEMU does not answer until then.
    pub fn cont(&mut self, until: Instant) -> Result<(), QmpError> {
        self.call("cont", &Value::Null, until).map(drop)
    }

    /// Tells QEMU to end, without asking the guest. What the guest wrote to its disks is on them
    /// then.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn quit(&mut self) -> Result<CallId, QmpError> {
        self.execute("quit", &Value::Null)
    }

    /// Presses the guest's power button. A guest that does not listen to it (ACPI) does nothing,
    /// and QEMU says so to nobody.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn power_down(&mut self) -> Result<CallId, QmpError> {
        self.execute("system_powerdown", &Value::Null)
    }
}

fn socket_failed(error: Errno) -> QmpError {
    QmpError::Socket(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn pair() -> (Qmp, UnixStream) {
        let (own, other) = UnixStream::pair().unwrap();
        (Qmp::new(own.into()).unwrap(), other)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn an_answer_is_found_among_events_and_the_events_are_kept() {
        let (mut qmp, mut qemu) = pair();
        qemu.write_all(b"{\"event\": \"STOP\"}\n{\"return\": {}, \"id\": 1}\n").unwrap();
        qemu.write_all(b"{\"id\": 2, \"return\": {\"running\": true, \"status\": \"running\"}}\n").unwrap();
        let status = qmp.status(soon()).unwrap();
        assert_eq!(status, Status { running: true, status: "running".to_owned() });
        assert_eq!(qmp.take(), Some(Incoming::Event(Event::Stop)));
        assert_eq!(qmp.take(), Some(Incoming::Answer(1, Ok(json!({})))));
        assert_eq!(qmp.take(), None);
        let mut lines = BufReader::new(qemu).lines().map(Result::unwrap);
        assert!(lines.next().unwrap().contains("qmp_capabilities"));
        assert!(lines.next().unwrap().contains("query-status"));
    }

    #[test]
    fn silence_garbage_a_flood_and_an_end_are_told_apart() {
        let (mut qmp, _qemu) = pair();
        let error = qmp.stop(Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, QmpError::Deadline { command: "stop" }), "{error:?}");
        let (mut qmp, mut qemu) = pair();
        qemu.write_all(b"sh: 1: qemu: not found\n").unwrap();
        assert!(matches!(qmp.stop(soon()).unwrap_err(), QmpError::Garbage(_)));
        let (mut qmp, mut qemu) = pair();
        let flood = b"{\"event\": \"RESET\"}\n".repeat(INBOX_MAX + 1);
        let writer = std::thread::spawn(move || qemu.write_all(&flood));
        assert!(matches!(qmp.stop(soon()).unwrap_err(), QmpError::Flood));
        drop(qmp);
        drop(writer.join().unwrap());
        let (mut qmp, qemu) = pair();
        drop(qemu);
        assert!(matches!(qmp.cont(soon()).unwrap_err(), QmpError::Closed));
    }

    #[test]
    fn a_monitor_that_does_not_read_costs_bounded_memory() {
        let (mut qmp, _qemu) = pair();
        let long = json!({ "x": "y".repeat(4000) });
        let error = (0..10_000).find_map(|_| qmp.execute("x", &long).err()).unwrap();
        assert!(matches!(error, QmpError::Stuck), "{error:?}");
        assert!(qmp.outbox.len() <= OUTBOX_BYTES_MAX);
    }

    #[test]
    fn a_refusal_says_what_qemu_said() {
        let (mut qmp, mut qemu) = pair();
        qemu.write_all(b"{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no way\"}}\n")
            .unwrap();
        let error = qmp.cont(soon()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!((error.to_string().as_str(), source.as_str()), ("cont failed", "no way (GenericError)"));
        let mut sent = vec![0; 1024];
        let len = qemu.read(&mut sent).unwrap();
        assert!(sent[..len].ends_with(b"{\"execute\":\"cont\",\"id\":2}\n"));
    }
}

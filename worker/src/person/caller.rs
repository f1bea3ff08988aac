//! The person's crewboss, as the process beside the guest sees it: over standard input and output.
//!
//! Both ends say all the time that they are there. A link that was cut, and a process that was
//! killed or stopped, look alike from here: nothing is heard any more, and then nobody is there for
//! whom a guest should run.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crewboss_host::sys::{self, Signals};
use crewboss_protocol::codec::{self, Line, LineDecoder};
use crewboss_protocol::guest::GuestStream;
use crewboss_protocol::visit::{Bytes, FromPerson, PIECE_MAX, ToPerson};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::PersonError;
use super::bridge::SIGNALS;

/// What waits for a person who does not read. Then the guest waits, too.
const WAITING_MAX: usize = 256 << 10;

/// How often each end says that it is there, and after which silence the other is taken for gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// Between two beats.
    pub heartbeat: Duration,
    /// The limit.
    pub silence: Duration,
}

/// Why nobody is there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// The input has ended: the person left, or his crewboss has ended.
    Left,
    /// Nothing was heard for too long.
    Silent,
}

/// The person.
#[derive(Debug)]
pub struct Caller {
    input: LineDecoder,
    output: Arc<Output>,
    /// What others ask of a visit.
    signals: Signals,
    pulse: Pulse,
    heard: Instant,
    gone: Option<Gone>,
    /// What a stage is to have besides.
    variables: BTreeMap<String, String>,
    /// Lines and characters in a line of the person's terminal.
    pub(super) size: Option<(u16, u16)>,
    /// Ends the beats when it is dropped.
    _beats: Sender<()>,
}

/// What was said and not written yet.
#[derive(Debug, Default)]
struct Output(Mutex<Vec<u8>>);

impl Output {
    fn waiting(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: &ToPerson) {
        let mut waiting = self.waiting();
        codec::encode(message, &mut waiting);
        write(&mut waiting);
    }

    /// Says that we are there, unless there is enough to be read that says so.
    fn beat(&self) {
        if self.waiting().len() < WAITING_MAX {
            self.say(&ToPerson::Here);
        }
    }
}

/// Writes what goes.
fn write(waiting: &mut Vec<u8>) {
    while !waiting.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), waiting) {
            Ok(count) => drop(waiting.drain(..count)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            // Nobody reads any more. That somebody has gone shows by the input.
            Err(_) => waiting.clear(),
        }
    }
}

impl Caller {
    /// Says that we are there, and goes on saying so.
    ///
    /// # Errors
    /// If standard input and output cannot be used.
    pub fn greet(pulse: Pulse) -> io::Result<Self> {
        // Before there is a second thread, which would be interrupted by them otherwise, and the
        // process with it.
        let signals = Signals::block(&SIGNALS)?;
        for fd in [rustix::stdio::stdin(), rustix::stdio::stdout()] {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        let output = Arc::new(Output::default());
        let (beats, stop) = mpsc::channel();
        let beating = output.clone();
        let beat = move || {
            while stop.recv_timeout(pulse.heartbeat) == Err(RecvTimeoutError::Timeout) {
                beating.beat();
            }
        };
        std::thread::Builder::new().name("beats".to_owned()).spawn(beat)?;
        output.say(&ToPerson::Here);
        let (input, heard) = (LineDecoder::new(), Instant::now());
        Ok(Self {
            input,
            output,
            signals,
            pulse,
            heard,
            gone: None,
            variables: BTreeMap::new(),
            size: None,
            _beats: beats,
        })
    }

    /// What is to be polled besides standard input, which is always: standard output, if something
    /// waits.
    pub(super) fn fds<'a>(&self) -> Vec<PollFd<'a>> {
        let input: BorrowedFd<'a> = rustix::stdio::stdin();
        // One that has ended is always readable.
        let mut fds: Vec<PollFd<'a>> = match self.gone {
            Some(Gone::Left) => Vec::new(),
            _ => vec![PollFd::from_borrowed_fd(input, PollFlags::IN)],
        };
        if !self.output.waiting().is_empty() {
            fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT));
        }
        fds
    }

    /// A descriptor that is readable when somebody asks for something by a signal.
    pub(super) fn signals_fd(&self) -> &OwnedFd {
        self.signals.fd()
    }

    /// What somebody asks for by a signal.
    pub(super) fn signal(&self) -> Option<i32> {
        self.signals.take()
    }

    /// For how long nobody need be heard.
    pub(super) fn patience(&self) -> Duration {
        (self.heard + self.pulse.silence).saturating_duration_since(Instant::now())
    }

    /// Writes and reads what goes. Returns what was typed.
    pub(super) fn look(&mut self) -> Vec<u8> {
        write(&mut self.output.waiting());
        let mut buffer = vec![0; 64 << 10];
        while self.gone.is_none() {
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) => self.gone = Some(Gone::Left),
                Ok(count) => {
                    self.heard = Instant::now();
                    self.input.push(&buffer[..count]);
                    break;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.gone = Some(Gone::Left),
            }
        }
        if self.gone.is_none() && self.patience().is_zero() {
            self.gone = Some(Gone::Silent);
        }
        self.typed()
    }

    fn typed(&mut self) -> Vec<u8> {
        let mut typed = Vec::new();
        while let Some(line) = self.input.next_line() {
            // Both ends are the same build; what makes no sense is dropped.
            let Line::Ours(text) = line else { continue };
            match codec::parse(text) {
                Ok(FromPerson::Typed(bytes)) => typed.extend(bytes.0),
                Ok(FromPerson::Size { rows, columns }) => self.size = Some((rows, columns)),
                Ok(FromPerson::Variable { name, value }) => drop(self.variables.insert(name, value)),
                Ok(FromPerson::Here) | Err(_) => {}
            }
        }
        typed
    }

    /// The variables that the person has announced so many of, once all are there.
    ///
    /// # Errors
    /// If nobody is there before that.
    pub(super) fn variables(&mut self, count: usize) -> Result<BTreeMap<String, String>, PersonError> {
        while self.variables.len() < count {
            if self.gone.is_some() {
                return Err(PersonError::Alone);
            }
            let mut fds = self.fds();
            sys::poll(&mut fds, Some(self.patience())).map_err(PersonError::system("wait"))?;
            drop(fds);
            self.look();
        }
        Ok(std::mem::take(&mut self.variables))
    }

    /// Whether nobody is there any more, as of the last look.
    pub(super) fn gone(&self) -> Option<Gone> {
        self.gone
    }

    /// Whether so much waits for the person that a guest should wait, too.
    pub(super) fn is_full(&self) -> bool {
        self.output.waiting().len() >= WAITING_MAX
    }

    /// Gives the keyboard to the guest, or takes it back.
    pub(super) fn inside(&self, inside: bool) {
        self.output.say(&ToPerson::Inside(inside));
    }

    /// Shows what a guest printed.
    pub fn show(&self, stream: GuestStream, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_MAX) {
            self.output.say(&ToPerson::Shown { stream, bytes: Bytes(piece.to_vec()) });
        }
    }

    /// Says something, in a line.
    pub(super) fn say(&self, text: &str) {
        self.output.say(&ToPerson::Said(text.to_owned()));
    }

    /// Shows a command that the person may take as it stands.
    pub(super) fn command(&self, line: &str) {
        self.output.say(&ToPerson::Command(line.to_owned()));
    }

    /// Says why it cannot be done.
    pub fn fail(&self, text: &str) {
        self.output.say(&ToPerson::Failed(text.to_owned()));
    }

    /// Waits until all was written that somebody may still read.
    pub fn finish(self) {
        let end = Instant::now() + self.pulse.silence;
        loop {
            let mut waiting = self.output.waiting();
            write(&mut waiting);
            let done = waiting.is_empty();
            drop(waiting);
            let left = end.saturating_duration_since(Instant::now());
            let out = rustix::stdio::stdout();
            let mut fds = [PollFd::from_borrowed_fd(out, PollFlags::OUT)];
            if done || left.is_zero() || sys::poll(&mut fds, Some(left)).is_err() {
                return;
            }
        }
    }
}

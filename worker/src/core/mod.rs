//! The worker proper: hears the boss, decides ([`state`]), has environments made ([`pool`]) and
//! tasks run ([`runners`]).
//!
//! One thread waits for everything at once: the boss, the runners, the pool, signals and time.

pub mod machine;
pub mod output;
pub mod pool;
pub mod queue;
pub mod runners;
pub mod session;
pub mod shell;
pub mod state;
pub mod variables;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crewboss_host::layout::Layout;
use crewboss_host::sys::{self, Signals};
use crewboss_protocol::codec::{self, Line, LineDecoder};
use crewboss_protocol::limits::STANDSTILL;
use crewboss_protocol::message::{Hello, Ready, WorkerErrorKind};
use crewboss_protocol::{FromWorker, PROTOCOL_VERSION, ToWorker, chain};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use crate::pulse::Pulse;
use output::Output;
use session::{CannotBegin, Session};
use shell::Shell;

/// A boss says hello at once; who does not is no boss.
const HELLO_WITHIN: Duration = Duration::from_secs(30);

/// The last words wait this long for somebody to hear them.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(500);

/// The worker's end of the control channel.
#[derive(Debug)]
pub struct Channel {
    /// Lines from the boss.
    pub decoder: LineDecoder,
    /// Lines to the boss.
    pub output: Output,
    /// Signals that ask for an end.
    pub signals: Signals,
    /// Whether the boss has closed its end.
    pub ended: bool,
    /// Tells the guardian that we go on.
    pub pulse: Pulse,
}

impl Channel {
    fn open(pulse: Pulse) -> io::Result<Self> {
        let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        rustix::io::ioctl_fionbio(io::stdout(), true)?;
        Ok(Self { decoder: LineDecoder::new(), output: Output::default(), signals, ended: false, pulse })
    }

    /// Reads once from the boss; waits if there is nothing.
    pub fn read(&mut self) {
        let mut buffer = [0; 64 << 10];
        match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) => self.ended = true,
            Ok(len) => self.decoder.push(&buffer[..len]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.ended = true,
        }
    }

    /// The next message that has been read, or why there is none to be had.
    pub fn next_message(&mut self) -> Option<Result<ToWorker, String>> {
        let text = match self.decoder.next_line()? {
            Line::Ours(text) => codec::parse(text).map_err(|error| chain(&error)),
            Line::Stray(text) => {
                let start = String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
                Err(format!("not a line of ours: {start:?}"))
            }
            Line::TooLong => Err("a line is too long".to_owned()),
        };
        Some(text)
    }

    /// Writes what goes without waiting.
    pub fn write(&mut self) {
        self.output.write(io::stdout().as_fd());
    }

    /// Writes everything, but waits for a limited time only.
    fn flush(&mut self) {
        let end = Instant::now() + LAST_WORDS_WITHIN;
        while self.output.is_waiting() && Instant::now() < end {
            let stdout = io::stdout();
            let mut fds = [PollFd::new(&stdout, PollFlags::OUT)];
            let _ready = sys::poll(&mut fds, Some(LAST_WORDS_WITHIN));
            self.write();
        }
    }

    fn hello(&mut self) -> Result<Option<Hello>, CannotBegin> {
        let end = Instant::now() + HELLO_WITHIN;
        let protocol = |text| CannotBegin { kind: WorkerErrorKind::Protocol, text };
        loop {
            match self.next_message() {
                Some(Ok(ToWorker::Hello(hello))) => return Ok(Some(hello)),
                Some(Ok(_)) => return Err(protocol("the first message is not hello".to_owned())),
                Some(Err(text)) => return Err(protocol(text)),
                None => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if self.ended || left.is_zero() {
                return Ok(None);
            }
            let stdin = io::stdin();
            let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(self.signals.fd(), PollFlags::IN)];
            let _ready = sys::poll(&mut fds, Some(left));
            let [heard, signal] = fds.map(|fd| !fd.revents().is_empty());
            if signal {
                return Ok(None);
            }
            if heard {
                self.read();
            }
        }
    }
}

/// `crewboss worker --proper`, which only the guardian starts.
pub fn main(work: Option<PathBuf>, pulse: Option<PathBuf>) -> ExitCode {
    let pulse = Pulse::open(pulse, rustix::process::getppid());
    let guardian = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let own = rustix::process::getpid();
    let Ok(mut channel) = Channel::open(pulse) else { return ExitCode::FAILURE };
    // An orderly end when the guardian dies: then nobody else would clean up.
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .and_then(|()| rustix::process::set_child_subreaper(Some(own)));
    let orphan = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get()) != guardian;
    if bound.is_err() || orphan {
        return ExitCode::FAILURE;
    }
    let result = serve(&mut channel, work, u32::try_from(guardian).unwrap_or(1));
    if let Err(error) = &result {
        channel.output.send(&FromWorker::Error { kind: error.kind, text: error.text.clone() });
    }
    channel.flush();
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn serve(channel: &mut Channel, work: Option<PathBuf>, guardian: u32) -> Result<(), CannotBegin> {
    let refuse = |kind| move |text: String| CannotBegin { kind, text };
    let layout = Layout::resolve(work).map_err(refuse(WorkerErrorKind::WorkDirectory))?;
    let Some(hello) = channel.hello()? else { return Ok(()) };
    let build = crate::verify::build();
    check_version(&hello, &build)?;
    let mut session = None;
    if !hello.probe_only {
        let (begun, swept) = Session::begin(&layout, &hello, guardian)?;
        session = Some(begun);
        for text in swept.errors {
            channel.output.send(&FromWorker::Notice { text });
        }
    }
    let facts = crate::probe::probe(&layout, &hello)
        .map_err(|error| CannotBegin { kind: WorkerErrorKind::WorkDirectory, text: chain(&error) })?;
    let ready = Ready { protocol: PROTOCOL_VERSION, build, pid: std::process::id(), facts: facts.clone() };
    channel.output.send(&FromWorker::Ready(Box::new(ready)));
    channel.write();
    let mut shell = Shell::new(&layout, &hello, facts, session)
        .map_err(|error| CannotBegin { kind: WorkerErrorKind::WorkDirectory, text: error })?;
    shell.run(channel);
    // What was made may take as long to be removed as it took to be made.
    channel.pulse.promise(STANDSTILL);
    for text in shell.end() {
        channel.output.send(&FromWorker::Notice { text });
    }
    channel.output.send(&FromWorker::Finished);
    Ok(())
}

fn check_version(hello: &Hello, build: &str) -> Result<(), CannotBegin> {
    let kind = WorkerErrorKind::Version;
    if hello.protocol != PROTOCOL_VERSION {
        let text = format!("the boss speaks version {}, this worker {PROTOCOL_VERSION}", hello.protocol);
        return Err(CannotBegin { kind, text });
    }
    if !hello.build.is_empty() && !build.is_empty() && hello.build != build {
        let text = format!("the boss is build {}, this worker {build}", hello.build);
        return Err(CannotBegin { kind, text });
    }
    Ok(())
}

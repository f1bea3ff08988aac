//! One piece of work, in a child of the agent.
//!
//! The child is a copy of the agent that never becomes another program, so nothing has to be handed
//! over. It reports over a socket that keeps packets apart, and is stopped by closing the other
//! direction of it.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::{Duration, Instant};

use crewboss_ground::begin_anew;
use crewboss_host::process::{KILL_WITHIN, kill_all_descendants};
use crewboss_host::program::Control;
use crewboss_host::program::run::{self, Ended, Sink, Stream};
use crewboss_host::sys;
use crewboss_protocol::TaskRef;
use crewboss_protocol::guest::{FromGuest, GuestStream};
use crewboss_protocol::limits::{GUEST_LOG_BYTES_MAX, KILL_GRACE};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal};

use super::error::AgentError;

/// What goes into one packet; small, so that the kernel of a small guest always finds the room for
/// it.
const PIECE: usize = 16 << 10;

/// The kinds of packets: output, a part of a message, its last part, and the last part of the last
/// message.
const OUT: u8 = b'o';
const ERR: u8 = b'e';
const PART: u8 = b'p';
const SAY: u8 = b's';
const END: u8 = b'x';

/// How long the stage's time limit is for us. The real one is the host's, which cancels.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

const _: () = assert!(PIECE <= GUEST_LOG_BYTES_MAX);

/// The agent's view of a job.
pub(super) struct Job {
    pid: Pid,
    socket: OwnedFd,
    message: Vec<u8>,
    /// What it does, after "to".
    pub(super) what: &'static str,
    /// Whether it starts no programs, so that it can be killed at once.
    alone: bool,
    /// Set once it was asked to stop.
    kill_at: Option<Instant>,
}

/// News of a job.
pub(super) enum News<'a> {
    /// Output.
    Output(GuestStream, &'a [u8]),
    /// A message on the way.
    Say(FromGuest),
    /// The last message.
    End(FromGuest),
    /// It died without one.
    Died,
}

/// Takes the output of a program: returns what to say because of it, and what is output of the
/// guest all the same.
pub(super) type Take<'a> = dyn FnMut(Stream, &[u8]) -> (Option<FromGuest>, Vec<u8>) + 'a;

/// Starts a job.
///
/// # Errors
/// If there is no memory or process left for it.
pub(super) fn start(
    what: &'static str,
    work: impl FnOnce(&mut Reporter) -> Result<FromGuest, AgentError>,
) -> Result<Job, AgentError> {
    let failed = |source| AgentError::System { what: "start a job", source };
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|error| failed(error.into()))?;
    // SAFETY: the agent has one thread, so its copy can do whatever it could do itself.
    match unsafe { libc::fork() } {
        0 => child(theirs, work),
        pid => {
            let pid = Pid::from_raw(pid).filter(|_| pid > 0);
            let pid = pid.ok_or_else(|| failed(io::Error::last_os_error()))?;
            Ok(Job { pid, socket: ours, message: Vec::new(), what, alone: false, kill_at: None })
        }
    }
}

impl Job {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Says that it starts no programs.
    pub(super) fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(&self.socket, PollFlags::IN)
    }

    /// Asks it to stop. A job that has processes stops those first; after a while it is killed.
    pub(super) fn cancel(&mut self) {
        if self.kill_at.is_none() {
            let _gone = rustix::net::shutdown(&self.socket, Shutdown::Write);
            let grace = if self.alone { Duration::ZERO } else { KILL_GRACE + KILL_WITHIN + KILL_GRACE };
            self.kill_at = Some(Instant::now() + grace);
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.kill_at.is_some()
    }

    /// Kills it if its time is up; otherwise says how long until then.
    pub(super) fn kill_if_due(&self, now: Instant) -> Option<Duration> {
        let rest = self.kill_at?.saturating_duration_since(now);
        if !rest.is_zero() {
            return Some(rest);
        }
        let _gone = rustix::process::kill_process(self.pid, Signal::KILL);
        None
    }

    /// What it has reported; `None` if there is nothing.
    pub(super) fn receive<'a>(&mut self, buffer: &'a mut Vec<u8>) -> Option<News<'a>> {
        loop {
            buffer.resize(PIECE + 1, 0);
            let count = match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, count)) if count > 0 => count,
                Err(Errno::AGAIN | Errno::INTR) => return None,
                _ => return Some(News::Died),
            };
            buffer.truncate(count);
            match buffer[0] {
                OUT => return Some(News::Output(GuestStream::Out, &buffer[1..])),
                ERR => return Some(News::Output(GuestStream::Err, &buffer[1..])),
                kind => {
                    self.message.extend_from_slice(&buffer[1..]);
                    if kind != PART {
                        let text = std::mem::take(&mut self.message);
                        return Some(match serde_json::from_slice(&text) {
                            Ok(message) if kind == SAY => News::Say(message),
                            Ok(message) => News::End(message),
                            Err(_) => News::Died,
                        });
                    }
                }
            }
        }
    }
}

/// The life of the child.
fn child(socket: OwnedFd, work: impl FnOnce(&mut Reporter) -> Result<FromGuest, AgentError>) -> ! {
    close_others(&socket);
    // What it starts begins as it does; in a guest there may be a terminal, and who knows what the
    // loader has done to signals.
    let begun = begin_anew();
    set_killable(true);
    let own = rustix::process::getpid();
    let reporter = rustix::process::set_child_subreaper(Some(own)).ok();
    let reporter = reporter.filter(|_| begun.is_ok()).and_then(|()| Reporter::new(socket));
    if let Some(mut reporter) = reporter {
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| work(&mut reporter)));
        kill_all_descendants(|_| ());
        let message = match done {
            Ok(done) => done.unwrap_or_else(|error| error.told()),
            Err(_) => FromGuest::Failed { text: "the agent has panicked".to_owned(), full: false },
        };
        reporter.message(END, &message);
    }
    // SAFETY: ends this process at once; what belongs to the agent is not touched.
    unsafe { libc::_exit(0) }
}

/// Closes what is the agent's alone: ports and terminals must not stay open because a job runs.
fn close_others(socket: &OwnedFd) {
    let Ok(own) = u32::try_from(socket.as_raw_fd()) else { return };
    for (first, last) in [(3, own.saturating_sub(1)), (own + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this copy of the agent uses none of those descriptors, and ends without
            // dropping their owners.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
        }
    }
}

/// Sets whether the kernel may kill this process, and what it starts, when memory runs out. Of all
/// in a guest the agent is to go last, since nobody else could tell.
pub(super) fn set_killable(killable: bool) {
    let text = if killable { "0" } else { "-1000" };
    // Forbidden to users other than root: then the chance is the same for all.
    let _stays = crewboss_ground::tell_kernel("/proc/self/oom_score_adj", text);
}

/// The job's end of the socket.
pub(super) struct Reporter {
    output: Output,
    end: AgentEnd,
    buffer: Vec<u8>,
}

struct Output {
    socket: OwnedFd,
    packet: Vec<u8>,
    cancelled: Option<Instant>,
}

/// The agent, as far as its job hears of it: it says nothing, and closes its direction of the
/// socket when the job is to stop.
struct AgentEnd {
    socket: OwnedFd,
    closed: bool,
}

impl Control for AgentEnd {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.closed).then(|| self.socket.as_fd())
    }

    fn fill(&mut self) {
        // Whatever comes, and be it an error, is an end.
        self.closed |= rustix::io::read(&self.socket, &mut [0_u8; 1]) != Err(Errno::INTR);
    }

    fn is_cancelled(&mut self, _: TaskRef) -> bool {
        self.closed
    }

    /// The host has the live view.
    fn flush_live(&mut self, _: TaskRef, _: Instant) -> Option<Duration> {
        None
    }
}

impl Reporter {
    fn new(socket: OwnedFd) -> Option<Self> {
        let end = AgentEnd { socket: socket.try_clone().ok()?, closed: false };
        let output = Output { socket, packet: Vec::new(), cancelled: None };
        Some(Self { output, end, buffer: Vec::new() })
    }

    /// Runs a program with its output as the guest's output, until it ends or the job is cancelled.
    pub(super) fn run(&mut self, command: Command, at: TaskRef) -> io::Result<Ended> {
        let output = &mut self.output;
        let mut sink = |agent: &mut AgentEnd, stream, bytes: &[u8]| output.send(agent, stream, bytes);
        let end = Instant::now() + NO_LIMIT;
        run::run(command, at, end, &mut self.end, &mut self.buffer, &mut sink)
    }

    /// As [`Self::run`], with a time limit, and with a function that takes the output.
    pub(super) fn run_with(
        &mut self,
        command: Command,
        at: TaskRef,
        within: Option<Duration>,
        take: &mut Take<'_>,
    ) -> io::Result<Ended> {
        let output = &mut self.output;
        let mut sink = |agent: &mut AgentEnd, stream, bytes: &[u8]| {
            let (message, rest) = take(stream, bytes);
            if let Some(message) = message {
                output.message(SAY, &message);
            }
            output.send(agent, stream, &rest)
        };
        let sink: &mut Sink<'_, AgentEnd> = &mut sink;
        let end = Instant::now() + within.unwrap_or(NO_LIMIT);
        run::run(command, at, end, &mut self.end, &mut self.buffer, sink)
    }

    /// A line of our own in the output.
    pub(super) fn tell(&mut self, text: &str) {
        let line = format!("crewboss: {text}\n");
        // Only fails if the agent is gone, or does not want it any more.
        let _lost = self.output.send(&mut self.end, Stream::Err, line.as_bytes());
    }

    /// Whether the host, or the agent's end, has asked to stop.
    pub(super) fn is_cancelled(&self) -> bool {
        self.end.closed
    }

    fn message(&mut self, kind: u8, message: &FromGuest) {
        self.output.message(kind, message);
    }
}

impl Output {
    /// Sends output; waits while the host is slow, but not for long once the job is cancelled.
    fn send(&mut self, agent: &mut AgentEnd, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let kind = if stream == Stream::Out { OUT } else { ERR };
        for piece in bytes.chunks(PIECE) {
            while !self.try_send(kind, piece)? {
                let wants = if agent.closed { PollFlags::OUT } else { PollFlags::OUT | PollFlags::IN };
                let mut fds = [PollFd::new(&self.socket, wants)];
                sys::poll(&mut fds, Some(KILL_GRACE))?;
                if fds[0].revents().contains(PollFlags::IN) && !agent.closed {
                    agent.fill();
                }
                if agent.closed {
                    let since = *self.cancelled.get_or_insert_with(Instant::now);
                    if since.elapsed() >= KILL_GRACE {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a message however long that takes. If the agent is gone, nobody wants it.
    fn message(&mut self, kind: u8, message: &FromGuest) {
        let text = serde_json::to_vec(message).unwrap_or_default();
        let mut pieces = text.chunks(PIECE).peekable();
        while let Some(piece) = pieces.next() {
            let kind = if pieces.peek().is_some() { PART } else { kind };
            loop {
                match self.try_send(kind, piece) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(_) => return,
                }
                let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
                if sys::poll(&mut fds, None).is_err() {
                    return;
                }
            }
        }
    }

    fn try_send(&mut self, kind: u8, piece: &[u8]) -> io::Result<bool> {
        self.packet.clear();
        self.packet.push(kind);
        self.packet.extend_from_slice(piece);
        match rustix::net::send(&self.socket, &self.packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

//! The agent's end of its port: never waits, and keeps a bounded amount for a slow host.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use crewboss_host::sys;
use crewboss_protocol::codec::{self, DecodeError, Line, LineDecoder};
use crewboss_protocol::guest::{FromGuest, GuestStream, ToGuest};
use crewboss_protocol::machine::AGENT_VERSION;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FileType;
use rustix::io::Errno;

/// With this much waiting for the host a stage gets no further.
const OUTPUT_HIGH: usize = 256 << 10;

/// Answers are kept up to here, and dropped beyond it: a host that asks and does not listen gets
/// none.
const QUEUE_MAX: usize = 4 << 20;

/// A port without a host is looked at this often; it cannot be polled for one.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The port.
pub(super) struct Port {
    fd: OwnedFd,
    lines: LineDecoder,
    queue: Vec<u8>,
    sent: usize,
    /// Whether the host may come back: a virtio-serial port, not a socket.
    stays: bool,
    connected: bool,
    look_at: Instant,
}

/// What became of reading or writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// The host has gone and may come back.
    Away,
    /// The host has gone for ever.
    Closed,
}

impl Port {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        Ok(Self {
            fd,
            lines: LineDecoder::new(),
            queue: Vec::new(),
            sent: 0,
            stays: kind == FileType::CharacterDevice,
            connected: false,
            look_at: Instant::now(),
        })
    }

    /// What to poll for; `None` while there is no host.
    pub(super) fn poll_fd(&self) -> Option<PollFd<'_>> {
        let wants = if self.queue.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        self.connected.then(|| PollFd::from_borrowed_fd(self.fd.as_fd(), wants))
    }

    /// Looks for a host if there is none and it is time to; greets it. Returns how long until the
    /// next look.
    pub(super) fn look(&mut self) -> Option<Duration> {
        if self.connected {
            return None;
        }
        let now = Instant::now();
        if now < self.look_at {
            return Some(self.look_at - now);
        }
        self.look_at = now + LOOK_EVERY;
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let polled = sys::poll(&mut fds, Some(Duration::ZERO));
        if self.stays && (polled.is_err() || fds[0].revents().contains(PollFlags::HUP)) {
            return Some(LOOK_EVERY);
        }
        self.connected = true;
        self.say(&FromGuest::Ready { agent: AGENT_VERSION });
        None
    }

    /// Whether output of a stage has to wait. Without a host nothing waits, and all is lost.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() - self.sent >= OUTPUT_HIGH
    }

    /// Adds a message.
    pub(super) fn say(&mut self, message: &FromGuest) {
        if self.connected && self.queue.len() - self.sent < QUEUE_MAX {
            codec::encode(message, &mut self.queue);
        }
    }

    /// Adds output.
    pub(super) fn log(&mut self, stream: GuestStream, output: &[u8]) {
        if self.connected && self.queue.len() - self.sent < QUEUE_MAX {
            let bytes = u32::try_from(output.len()).unwrap_or(0);
            codec::encode(&FromGuest::Log { stream, bytes }, &mut self.queue);
            self.queue.extend_from_slice(output);
        }
    }

    /// Reads once.
    pub(super) fn fill(&mut self) -> State {
        let mut buffer = [0; 32 << 10];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(0) => self.lost(),
            Ok(count) => {
                self.lines.push(&buffer[..count]);
                State::Open
            }
            Err(Errno::AGAIN | Errno::INTR) => State::Open,
            Err(_) => self.lost(),
        }
    }

    /// The next message that has been read.
    pub(super) fn next(&mut self) -> Option<Result<ToGuest, DecodeError>> {
        loop {
            return match self.lines.next_line()? {
                Line::Ours(text) => Some(codec::parse(text)),
                Line::TooLong => Some(Err(DecodeError::TooLong)),
                // The rest of what was meant for an agent before this one.
                Line::Stray(_) => continue,
            };
        }
    }

    /// Writes as much as the host takes.
    pub(super) fn flush(&mut self) -> State {
        while self.sent < self.queue.len() {
            match rustix::io::write(&self.fd, &self.queue[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.lost(),
            }
        }
        if self.sent == self.queue.len() {
            self.queue.clear();
            self.sent = 0;
        } else if self.sent >= OUTPUT_HIGH {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
        State::Open
    }

    /// Writes everything, for at most this long.
    pub(super) fn finish(&mut self, within: Duration) {
        let end = Instant::now() + within;
        while self.flush() == State::Open && !self.queue.is_empty() {
            let rest = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            if rest.is_zero() || sys::poll(&mut fds, Some(rest)).is_err() {
                return;
            }
        }
    }

    fn lost(&mut self) -> State {
        if !self.stays {
            return State::Closed;
        }
        self.connected = false;
        self.lines = LineDecoder::new();
        self.queue.clear();
        self.sent = 0;
        self.look_at = Instant::now() + LOOK_EVERY;
        State::Away
    }
}

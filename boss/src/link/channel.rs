//! Channels: one process on a host and three pipes to it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// How a process on a host ended, as far as it can be known from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal (only known of child processes of ours).
    Signal(i32),
    /// By a signal, or the connection ended; ssh does not tell which. [`super::Link::is_alive`]
    /// does.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Unknown => f.write_str("a signal or the end of the connection"),
        }
    }
}

/// Tells the end of a process; asking for it can be given up and taken up again.
pub(super) struct ExitWatch {
    wait: Pin<Box<dyn Future<Output = Exit> + Send>>,
    known: Option<Exit>,
    child: Option<ChildGroup>,
}

/// A child process of ours that leads a process group, and all that it started there.
#[derive(Debug)]
pub(super) struct ChildGroup {
    leader: Pid,
    pidfd: OwnedFd,
}

impl ChildGroup {
    /// The group of a child that was just started, and leads one.
    pub(super) fn of(child: &Child) -> Option<Self> {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)?;
        Some(Self { leader, pidfd: pidfd_open(leader, PidfdFlags::empty()).ok()? })
    }

    /// Waits until the leader has ended, and leaves it to be reaped.
    pub(super) async fn ended(&self) {
        // Without the news of ends it is not known before it is reaped.
        let Ok(mut ends) = signal(SignalKind::child()) else { return };
        let has_ended = || {
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
        };
        while !has_ended() {
            ends.recv().await;
        }
    }

    /// Whether the leader has ended well, as far as it is not reaped.
    pub(super) fn is_good(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
        ended.is_ok_and(|ended| ended.and_then(|ended| ended.exit_status()) == Some(0))
    }

    /// Kills all of it, unless the leader is reaped.
    pub(super) fn kill(&self) {
        if pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            let _gone_already = kill_process_group(self.leader, Signal::KILL);
        }
    }

    /// Asks all of it to end, unless the leader is reaped: as long as it is not, its number, which
    /// is also the group's, can be nobody else's. To be called by the thread that reaps.
    pub(super) fn end(&self) {
        if pidfd_send_signal(&self.pidfd, Signal::TERM).is_ok() {
            let _gone_already = kill_process_group(self.leader, Signal::TERM);
            // Who was stopped hears that only when it goes on.
            let _gone_already = kill_process_group(self.leader, Signal::CONT);
        }
    }
}

impl ExitWatch {
    /// `wait` does not begin before somebody asks. ssh's answer may overtake the last of the
    /// output, and whoever has it hangs up on the master, which then throws away what it has not
    /// written into our pipes yet.
    pub(super) fn remote(wait: impl Future<Output = Exit> + Send + 'static) -> Self {
        Self { wait: Box::pin(wait), known: None, child: None }
    }

    /// It is reaped also if nobody asks.
    pub(super) fn child(
        wait: impl Future<Output = Exit> + Send + 'static,
        child: Option<ChildGroup>,
    ) -> Self {
        let reaped = tokio::spawn(wait);
        Self { wait: Box::pin(async { reaped.await.unwrap_or(Exit::Unknown) }), known: None, child }
    }

    async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.known {
            return exit;
        }
        let exit = self.wait.as_mut().await;
        self.known = Some(exit);
        exit
    }
}

impl fmt::Debug for ExitWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExitWatch").field("known", &self.known).field("child", &self.child).finish()
    }
}

impl Drop for ExitWatch {
    /// A remote process loses its pipes. A child of ours is asked to end, with what it has started,
    /// and then still waited for, so that it does not stay as a zombie; it is not killed, since
    /// only it can clean up after itself.
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            child.end();
        }
    }
}

/// A channel as raw pipes in blocking mode, for a thread of its own. See [`Channel::into_raw`].
#[derive(Debug)]
pub struct RawChannel {
    /// The process's standard input.
    pub stdin: OwnedFd,
    /// What was read of its output but not used.
    pub unread: Vec<u8>,
    /// The process's standard output.
    pub stdout: OwnedFd,
    /// Keeps the process. Dropping it ends the streams, so a thread that reads or writes them ends,
    /// too.
    pub guard: ChannelGuard,
}

/// What keeps the process of a [`RawChannel`].
#[derive(Debug)]
pub struct ChannelGuard {
    exit: ExitWatch,
    /// Standard error, until somebody reads it.
    pub stderr: Option<pipe::Receiver>,
}

impl ChannelGuard {
    /// Waits until the process has ended. May be called again. What is not read yet may be lost.
    pub async fn wait(&mut self) -> Exit {
        self.exit.wait().await
    }
}

/// One process on a host.
///
/// Dropping it ends the streams, and asks a child process of ours to end (SIGTERM). Nothing can be
/// sent to a process behind ssh: that one must take the end of its input as the end.
#[derive(Debug)]
pub struct Channel {
    /// The process's standard input.
    pub stdin: pipe::Sender,
    /// The process's standard output.
    pub stdout: ChannelReader,
    /// The process's standard error.
    pub stderr: pipe::Receiver,
    exit: ExitWatch,
}

/// Our ends of the pipes, and the far ends, which go to whatever carries the channel.
pub(super) struct Pipes {
    pub(super) near: [OwnedFd; 3],
    pub(super) far: [OwnedFd; 3],
}

/// As large as a user without privileges may ask for. A pipe of 64 KiB makes reader and ssh take
/// turns.
const PIPE_BYTES: usize = 1 << 20;

impl Pipes {
    pub(super) fn new() -> io::Result<Self> {
        let (stdin_far, stdin) = io::pipe()?;
        let (stdout, stdout_far) = io::pipe()?;
        let (stderr, stderr_far) = io::pipe()?;
        let near: [OwnedFd; 3] = [stdin.into(), stdout.into(), stderr.into()];
        // Only speed is lost if the system-wide limit is reached.
        let _enlarged = near[..2].iter().all(|fd| rustix::pipe::fcntl_setpipe_size(fd, PIPE_BYTES).is_ok());
        Ok(Self { near, far: [stdin_far.into(), stdout_far.into(), stderr_far.into()] })
    }
}

impl Channel {
    pub(super) fn new(near: [OwnedFd; 3], exit: ExitWatch) -> io::Result<Self> {
        let [stdin, stdout, stderr] = near;
        Ok(Self {
            stdin: pipe::Sender::from_owned_fd(stdin)?,
            stdout: ChannelReader { unread: Vec::new(), pipe: pipe::Receiver::from_owned_fd(stdout)? },
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
            exit,
        })
    }

    /// Waits until the process has ended. Can be given up and called again.
    ///
    /// Neither closes its input nor reads its output: drop or read them first, or it may wait for
    /// us for ever, and what is not read yet may be lost.
    pub async fn wait(&mut self) -> Exit {
        self.exit.wait().await
    }

    /// The parts: input, output, error, and what keeps the process (drop it last).
    pub fn into_parts(self) -> (pipe::Sender, ChannelReader, ChannelGuard) {
        (self.stdin, self.stdout, ChannelGuard { exit: self.exit, stderr: Some(self.stderr) })
    }

    /// For a thread that reads and writes without the runtime, which is the fast way for bulk data.
    ///
    /// # Errors
    /// If the pipes cannot be put into blocking mode.
    pub fn into_raw(self) -> io::Result<RawChannel> {
        Ok(RawChannel {
            stdin: self.stdin.into_blocking_fd()?,
            unread: self.stdout.unread,
            stdout: self.stdout.pipe.into_blocking_fd()?,
            guard: ChannelGuard { exit: self.exit, stderr: Some(self.stderr) },
        })
    }
}

/// The output of a process. Bytes can be given back.
#[derive(Debug)]
pub struct ChannelReader {
    unread: Vec<u8>,
    pipe: pipe::Receiver,
}

impl ChannelReader {
    /// Puts bytes back, to be read again before anything else.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.unread.splice(0..0, bytes.iter().copied());
    }
}

impl AsyncRead for ChannelReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.pipe).poll_read(cx, buffer);
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Poll::Ready(Ok(()))
    }
}

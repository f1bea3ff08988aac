//! One program and everything that comes from it: started, listened to, ended, and proven to be
//! gone.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crewboss_protocol::limits::KILL_GRACE;
use crewboss_protocol::{StageExit, TaskRef};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::control::Control;
use crate::process::{kill_all_descendants, reap_ended, signal_descendants};
use crate::sys::{self, Reaped};

/// What is read at once. A pipe holds 64 KiB at first; a stream that fills it gets a bigger one.
const READ_BYTES: usize = 256 << 10;

/// The size of the pipe of a stream that prints much.
const BIG_PIPE_BYTES: usize = 1 << 20;

/// Between two looks whether processes that were asked to end have ended, once the first one has.
const TERM_POLL: Duration = Duration::from_millis(2);

/// Between two looks whether the first process has ended, where the kernel cannot tell.
const END_POLL: Duration = Duration::from_millis(20);

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Takes the output as it comes. An error ends the program.
pub type Sink<'a, C> = dyn FnMut(&mut C, Stream, &[u8]) -> io::Result<()> + 'a;

/// Why a program was not left to end by itself.
#[derive(Debug)]
pub enum Stopped {
    /// Its time was up.
    Timeout,
    /// The worker proper asked for it, or is gone.
    Cancelled,
    /// Its output could not be stored.
    Output(io::Error),
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// The end of the first process.
    pub exit: StageExit,
    /// Why it was stopped, if it was.
    pub stopped: Option<Stopped>,
    /// Processes that lived on after SIGKILL.
    pub unkillable: bool,
    /// Wall time.
    pub wall: Duration,
    /// Processor time of all its processes.
    pub cpu: Duration,
    /// Largest resident size of one of them in KiB.
    pub rss_kib: u64,
}

struct Run<'a, C: Control> {
    pid: i32,
    /// A kernel before 5.3, as old guests have it, knows none.
    pidfd: Option<OwnedFd>,
    pipes: [Option<OwnedFd>; 2],
    big: [bool; 2],
    status: Option<i32>,
    childless: bool,
    cpu: Duration,
    rss_kib: u64,
    stopped: Option<Stopped>,
    kill_at: Option<Instant>,
    deadline: Instant,
    at: TaskRef,
    control: &'a mut C,
}

/// A command for [`run`]. This process has begun anew itself, as what [`crewboss_ground::program`]
/// starts, or by [`crewboss_ground::begin_anew`]. So nothing is left to prepare between fork and
/// exec, and the fast way of starting can be taken.
pub fn program(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    command
}

/// Runs a program to its end. When this returns, no process that came from it is left.
///
/// # Errors
/// If it cannot be started.
pub fn run<C: Control>(
    mut command: Command,
    at: TaskRef,
    deadline: Instant,
    control: &mut C,
    buffer: &mut Vec<u8>,
    sink: &mut Sink<'_, C>,
) -> io::Result<Ended> {
    let begin = Instant::now();
    // Standard input is /dev/null already, see `sys::take_stdin`.
    command.stdin(Stdio::inherit()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        Err(rustix::io::Errno::NOSYS) => None,
        Err(error) => {
            kill_all_descendants(|_| ());
            return Err(error.into());
        }
    };
    buffer.resize(READ_BYTES, 0);
    let mut run = Run {
        pid,
        pidfd,
        pipes,
        big: [false; 2],
        status: None,
        childless: false,
        cpu: Duration::ZERO,
        rss_kib: 0,
        stopped: None,
        kill_at: None,
        deadline,
        at,
        control,
    };
    run.until_first_ended(buffer, sink)?;
    run.until_stopped(buffer, sink)?;
    let unkillable = !run.childless && !run.kill_all();
    run.drain(buffer, sink)?;
    Ok(Ended {
        exit: exit_of(run.status.unwrap_or(libc::SIGKILL)),
        stopped: run.stopped,
        unkillable,
        wall: begin.elapsed(),
        cpu: run.cpu,
        rss_kib: run.rss_kib,
    })
}

fn exit_of(status: i32) -> StageExit {
    let number = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
    if libc::WIFEXITED(status) {
        StageExit::Code(number(libc::WEXITSTATUS(status)))
    } else {
        StageExit::Signal(number(libc::WTERMSIG(status)))
    }
}

impl<C: Control> Run<'_, C> {
    fn note(pid: i32, status: &mut Option<i32>, cpu: &mut Duration, rss: &mut u64, reaped: Reaped) {
        *cpu += reaped.cpu;
        *rss = (*rss).max(reaped.rss_kib);
        if reaped.pid == pid {
            *status = Some(reaped.status);
        }
    }

    fn reap(&mut self) {
        let (pid, status, cpu, rss) = (self.pid, &mut self.status, &mut self.cpu, &mut self.rss_kib);
        self.childless = !reap_ended(|reaped| Self::note(pid, status, cpu, rss, reaped));
    }

    fn kill_all(&mut self) -> bool {
        let (pid, status, cpu, rss) = (self.pid, &mut self.status, &mut self.cpu, &mut self.rss_kib);
        self.childless = kill_all_descendants(|reaped| Self::note(pid, status, cpu, rss, reaped));
        self.childless
    }

    /// Asks all processes to end; what has not when the grace is over is killed.
    fn stop(&mut self, why: Stopped) {
        if self.stopped.is_none() {
            signal_descendants(Signal::TERM, &std::collections::BTreeSet::new());
            self.stopped = Some(why);
            self.kill_at = Some(Instant::now() + KILL_GRACE);
        }
    }

    fn until_first_ended(&mut self, buffer: &mut [u8], sink: &mut Sink<'_, C>) -> io::Result<()> {
        // What came together with the job has been read with it, and no poll tells of it.
        self.heed();
        while self.status.is_none() {
            let now = Instant::now();
            if self.stopped.is_none() && now >= self.deadline {
                self.stop(Stopped::Timeout);
            }
            if self.kill_at.is_some_and(|at| now >= at) {
                self.kill_all();
                return Ok(());
            }
            let due = self.control.flush_live(self.at, now);
            let until = self.kill_at.unwrap_or(self.deadline).saturating_duration_since(now);
            let wait = due.map_or(until, |due| due.min(until));
            self.poll_once(wait, buffer, sink)?;
        }
        Ok(())
    }

    /// After the first process of a stopped program has ended the others get the rest of the grace.
    fn until_stopped(&mut self, buffer: &mut [u8], sink: &mut Sink<'_, C>) -> io::Result<()> {
        while self.kill_at.is_some_and(|at| Instant::now() < at) && !self.childless {
            self.poll_once(TERM_POLL, buffer, sink)?;
            self.reap();
        }
        Ok(())
    }

    fn poll_once(&mut self, wait: Duration, buffer: &mut [u8], sink: &mut Sink<'_, C>) -> io::Result<()> {
        let ready = {
            let mut fds = Vec::with_capacity(4);
            let mut roles = [None; 4];
            let mut add = |fds: &mut Vec<_>, role: usize, fd| {
                roles[role] = Some(fds.len());
                fds.push(fd);
            };
            for index in 0..2 {
                if let Some(pipe) = &self.pipes[index] {
                    add(&mut fds, index, PollFd::new(pipe, PollFlags::IN));
                }
            }
            if let Some(pidfd) = self.pidfd.as_ref().filter(|_| self.status.is_none()) {
                add(&mut fds, 2, PollFd::new(pidfd, PollFlags::IN));
            }
            if let Some(fd) = self.control.fd() {
                add(&mut fds, 3, PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
            let wait = if self.pidfd.is_some() { wait } else { wait.min(END_POLL) };
            sys::poll(&mut fds, Some(wait))?;
            roles.map(|role| role.is_some_and(|index| !fds[index].revents().is_empty()))
        };
        for (index, _) in ready[..2].iter().enumerate().filter(|(_, ready)| **ready) {
            self.read(index, buffer, sink);
        }
        if ready[2] || self.pidfd.is_none() {
            self.reap();
        }
        if ready[3] {
            self.hear();
        }
        Ok(())
    }

    fn hear(&mut self) {
        self.control.fill();
        self.heed();
    }

    fn heed(&mut self) {
        if self.control.is_cancelled(self.at) {
            self.stop(Stopped::Cancelled);
        }
    }

    /// Reads once from a pipe that has something. Returns whether there may be more.
    fn read(&mut self, index: usize, buffer: &mut [u8], sink: &mut Sink<'_, C>) -> bool {
        let Some(pipe) = &self.pipes[index] else { return false };
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => self.pipes[index] = None,
            Ok(len) => {
                if len >= 64 << 10 && !self.big[index] {
                    self.big[index] = true;
                    // An unprivileged user may be over a limit; then it stays small.
                    let _stays = rustix::pipe::fcntl_setpipe_size(pipe, BIG_PIPE_BYTES);
                }
                let stream = if index == 0 { Stream::Out } else { Stream::Err };
                if matches!(self.stopped, Some(Stopped::Output(_))) {
                    return true;
                }
                if let Err(error) = sink(self.control, stream, &buffer[..len]) {
                    self.stop(Stopped::Output(error));
                }
                return true;
            }
            Err(rustix::io::Errno::INTR) => return true,
            Err(_) => self.pipes[index] = None,
        }
        false
    }

    /// Takes what is still in the pipes. All processes are gone, so nobody writes any more; who got
    /// hold of the pipe by being handed it from elsewhere is not waited for.
    fn drain(&mut self, buffer: &mut [u8], sink: &mut Sink<'_, C>) -> io::Result<()> {
        for index in 0..2 {
            while let Some(pipe) = &self.pipes[index] {
                let mut fds = [PollFd::new(pipe, PollFlags::IN)];
                if sys::poll(&mut fds, Some(Duration::ZERO))? == 0 || !self.read(index, buffer, sink) {
                    break;
                }
            }
        }
        self.pipes = [None, None];
        Ok(())
    }
}

//! One child process: started with the descriptors that it is meant to have, heard, and ended,
//! without touching any other child of this process.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crewboss_ground::pass;
use crewboss_host::process::KILL_WITHIN;
use crewboss_host::sys::{self, Reap, Reaped};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};

/// What is kept of its messages: the end of them.
const SAID_BYTES_MAX: usize = 16 << 10;

/// What a pipe holds if nobody has changed it.
const PIPE_BYTES_MAX: usize = 64 << 10;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Somebody else in this process reaped it.
    Unknown,
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Code(code) => write!(out, "exit code {code}"),
            Ended::Signal(signal) => write!(out, "signal {signal}"),
            Ended::Unknown => out.write_str("an unknown way"),
        }
    }
}

/// A child in a process group of its own: its command must be one of [`crewboss_ground::program`].
/// Killed and reaped when dropped, and killed by the kernel when the thread ends that started it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    words: Option<OwnedFd>,
    said: Vec<u8>,
    ended: Option<Ended>,
    usage: Option<Reaped>,
}

impl Child {
    /// Starts it with `passed` open under the same numbers, besides its standard streams: nothing
    /// in, nothing out, and its messages are kept.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(mut command: Command, passed: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let (words, tongue) = pipe()?;
        command.stdout(Stdio::null()).stderr(tongue);
        Self::launch(command, words, passed)
    }

    /// Starts it so that its output is kept together with its messages.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_telling(mut command: Command) -> io::Result<Self> {
        let (words, tongue) = pipe()?;
        command.stdout(tongue.try_clone()?).stderr(tongue);
        Self::launch(command, words, &[])
    }

    fn launch(mut command: Command, words: OwnedFd, passed: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let numbers: Vec<i32> = passed.iter().map(AsRawFd::as_raw_fd).collect();
        // Messages are looked through, and told to a person together with ours.
        command.env("LC_ALL", "C").stdin(Stdio::null());
        let parent = rustix::process::getpid();
        let open = move || {
            // Whatever ends this process ends the child, too: nobody else could take care of it.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            pass(&numbers)
        };
        // SAFETY: the closure makes system calls alone, with memory that was allocated before the
        // fork.
        unsafe { command.pre_exec(open) };
        let mut child = command.spawn()?;
        // The child alone may now hold the other ends of what it was passed and writes to.
        drop(command);
        let pid = Pid::from_child(&child);
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                child.kill().and_then(|()| child.wait()).ok();
                return Err(error.into());
            }
        };
        Ok(Self { pid, pidfd, words: Some(words), said: Vec::new(), ended: None, usage: None })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable once it has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when it has said something, until it has closed that stream: [`Self::hear`] takes
    /// it.
    pub fn words_fd(&self) -> Option<BorrowedFd<'_>> {
        self.words.as_ref().map(AsFd::as_fd)
    }

    /// Takes what it has said, without waiting.
    pub fn hear(&mut self) {
        let mut buffer = [0; 4096];
        // As much as a pipe can hold: who writes without end must not hold up the reader.
        for _ in 0..PIPE_BYTES_MAX / buffer.len() {
            let Some(words) = &self.words else { return };
            match rustix::io::read(words, &mut buffer) {
                Ok(len) if len > 0 => self.said.extend_from_slice(&buffer[..len]),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => self.words = None,
            }
            let excess = self.said.len().saturating_sub(SAID_BYTES_MAX);
            self.said.drain(..excess);
        }
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Processor time and memory that it took, once it has ended.
    pub fn usage(&self) -> Option<Reaped> {
        self.usage
    }

    /// How it ended, if it has. Reaps it and hears its last words.
    pub fn try_ended(&mut self) -> Option<Ended> {
        if self.ended.is_none() {
            // Looks by the descriptor, which can mean no other process, and leaves it to be reaped
            // with its usage.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), look) {
                Ok(None) | Err(rustix::io::Errno::INTR) => return None,
                Ok(Some(_)) => {
                    // Of the same group, and without its leader nobody would miss them.
                    let _none_left = rustix::process::kill_process_group(self.pid, Signal::KILL);
                    self.ended = Some(self.reap());
                }
                Err(_) => self.ended = Some(Ended::Unknown),
            }
            self.hear();
        }
        self.ended
    }

    fn reap(&mut self) -> Ended {
        let Reap::Ended(reaped) = sys::reap(Some(self.pid.as_raw_nonzero().get())) else {
            return Ended::Unknown;
        };
        self.usage = Some(reaped);
        if libc::WIFEXITED(reaped.status) {
            Ended::Code(libc::WEXITSTATUS(reaped.status))
        } else {
            Ended::Signal(libc::WTERMSIG(reaped.status))
        }
    }

    /// Waits for its end and hears it meanwhile. `None` if it lives on at that time.
    pub fn wait(&mut self, until: Instant) -> Option<Ended> {
        loop {
            if let Some(ended) = self.try_ended() {
                return Some(ended);
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            fds.extend(self.words.as_ref().map(|words| PollFd::new(words, PollFlags::IN)));
            if sys::poll(&mut fds, Some(left)).is_err() || left == Duration::ZERO {
                return self.try_ended();
            }
            self.hear();
        }
    }

    /// Kills it and all of its group, and reaps it. Returns false if it lives on.
    pub fn kill(&mut self) -> bool {
        if self.try_ended().is_none() && pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            // Not reaped yet, so that the number is still its own.
            let _none_left = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
        self.wait(Instant::now() + KILL_WITHIN).is_some()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pipe of which the reading end does not wait.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = crewboss_ground::program("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn the_end_of_what_it_said_is_kept() {
        let script = "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done >&2; exit 3";
        let mut child = Child::start(shell(script), &[]).unwrap();
        assert_eq!(child.wait(soon()), Some(Ended::Code(3)));
        let said = child.said();
        assert!(said.len() <= SAID_BYTES_MAX && said.ends_with("line 8999\n"), "{} bytes", said.len());
        assert!(child.usage().is_some());
    }

    #[test]
    fn it_gets_the_descriptors_that_it_is_meant_to_have_and_no_other() {
        let (kept, _other) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (passed, _other) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let script = format!(
            "[ -e /proc/self/fd/{} ] && [ ! -e /proc/self/fd/{} ]",
            passed.as_raw_fd(),
            kept.as_raw_fd()
        );
        let mut child = Child::start(shell(&script), &[passed.as_fd()]).unwrap();
        assert_eq!(child.wait(soon()), Some(Ended::Code(0)));
        let flags = rustix::io::fcntl_getfd(&passed).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "later children would get it too");
    }

    #[test]
    fn killing_it_takes_its_group_and_no_other_child() {
        let mut other = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let mut child = Child::start(shell("sleep 1000 & echo $! >&2; wait"), &[]).unwrap();
        let end = soon();
        while child.said().is_empty() {
            assert!(Instant::now() < end, "the shell said nothing");
            child.wait(Instant::now() + Duration::from_millis(1));
        }
        let grandchild = crewboss_host::process::ProcessId::of(child.said().trim().parse().unwrap()).unwrap();
        assert!(child.kill());
        assert_eq!(child.try_ended(), Some(Ended::Signal(libc::SIGKILL)));
        while grandchild.is_alive() {
            assert!(Instant::now() < end, "the group lives on");
            std::thread::yield_now();
        }
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_child_that_somebody_else_reaped_has_ended() {
        let mut child = Child::start(shell("exit 0"), &[]).unwrap();
        let pid = i32::try_from(child.pid()).unwrap();
        let end = soon();
        while !matches!(sys::reap(Some(pid)), Reap::Ended(_)) {
            assert!(Instant::now() < end, "it did not end");
            std::thread::yield_now();
        }
        assert_eq!(child.try_ended(), Some(Ended::Unknown));
        assert!(child.kill());
    }
}

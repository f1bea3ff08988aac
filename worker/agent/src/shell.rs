//! A person's shell: a terminal on a port of its own, raw bytes both ways.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crewboss_ground::program;
use crewboss_host::sys;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// What may wait in one direction.
const BUFFER_MAX: usize = 64 << 10;

/// A port without anybody at the other end is left alone this long; it cannot be polled for
/// somebody.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a person sees when the shell is gone.
const ENDED: &[u8] = b"\r\n[the shell has ended; press Enter for another]\r\n";

/// The port and the session on it.
pub(super) struct Shell {
    port: OwnedFd,
    session: Option<Session>,
    to_port: Vec<u8>,
    look_at: Option<Instant>,
}

struct Session {
    pid: Pid,
    terminal: OwnedFd,
    to_shell: Vec<u8>,
}

/// What a shell is started with.
pub(super) struct Start {
    pub(super) directory: std::path::PathBuf,
    pub(super) variables: Vec<(String, String)>,
    /// Whether the guest's own profile is read; it would replace variables of a task.
    pub(super) login: bool,
}

impl Shell {
    pub(super) fn new(port: OwnedFd) -> Self {
        Self { port, session: None, to_port: Vec::new(), look_at: None }
    }

    /// The shell's process.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.session.as_ref().map(|session| session.pid)
    }

    /// What to poll for: port, then terminal.
    pub(super) fn poll_fds(&self) -> [Option<PollFd<'_>>; 2] {
        let mut port = PollFlags::empty();
        let mut terminal = PollFlags::empty();
        let waiting = self.session.as_ref().map_or(0, |session| session.to_shell.len());
        port.set(PollFlags::IN, waiting < BUFFER_MAX);
        port.set(PollFlags::OUT, !self.to_port.is_empty());
        terminal.set(PollFlags::IN, self.to_port.len() < BUFFER_MAX);
        terminal.set(PollFlags::OUT, waiting > 0);
        let is_due = self.look_at.is_none_or(|at| Instant::now() >= at);
        [
            is_due.then(|| PollFd::from_borrowed_fd(self.port.as_fd(), port)),
            self.session.as_ref().map(|one| PollFd::from_borrowed_fd(one.terminal.as_fd(), terminal)),
        ]
    }

    /// How long until the port is to be looked at again.
    pub(super) fn look_in(&self) -> Option<Duration> {
        self.look_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Serves the port after a poll.
    pub(super) fn serve_port(&mut self, ready: PollFlags, start: impl FnOnce() -> Start) {
        self.look_at = None;
        if ready.contains(PollFlags::HUP) && !ready.contains(PollFlags::IN) {
            return self.away();
        }
        if ready.contains(PollFlags::OUT) {
            match rustix::io::write(&self.port, &self.to_port) {
                Ok(count) => drop(self.to_port.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return self.away(),
            }
        }
        if ready.contains(PollFlags::IN) {
            let mut buffer = [0; 16 << 10];
            match rustix::io::read(&self.port, &mut buffer) {
                Ok(0) => self.away(),
                Ok(count) => self.hear(&buffer[..count], start),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.away(),
            }
        }
    }

    fn hear(&mut self, bytes: &[u8], start: impl FnOnce() -> Start) {
        let (size, bytes) = split_sizes(bytes);
        if self.session.is_none() {
            match Session::start(&start()) {
                Ok(session) => self.session = Some(session),
                Err(error) => {
                    self.to_port.extend_from_slice(format!("crewboss: no shell: {error}\r\n").as_bytes());
                    return;
                }
            }
        }
        let Some(session) = &mut self.session else { return };
        if let Some(size) = size {
            // A terminal without a size works, too.
            let _stays = tcsetwinsize(&session.terminal, size);
        }
        session.to_shell.extend_from_slice(&bytes);
    }

    /// Serves the terminal after a poll.
    pub(super) fn serve_terminal(&mut self, ready: PollFlags) {
        let Some(session) = &mut self.session else { return };
        if ready.contains(PollFlags::OUT)
            && let Ok(count) = rustix::io::write(&session.terminal, &session.to_shell)
        {
            session.to_shell.drain(..count);
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !self.read_terminal() {
            self.end();
        }
    }

    /// The shell's process is gone.
    pub(super) fn ended(&mut self) {
        while self.session.is_some() && self.to_port.len() < BUFFER_MAX {
            let Some(session) = &self.session else { return };
            let mut fds = [PollFd::new(&session.terminal, PollFlags::IN)];
            let there = sys::poll(&mut fds, Some(Duration::ZERO)).is_ok_and(|ready| ready > 0);
            if !there || !self.read_terminal() {
                break;
            }
        }
        self.end();
    }

    /// Reads once. False at the end.
    fn read_terminal(&mut self) -> bool {
        let Some(session) = &self.session else { return false };
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(&session.terminal, &mut buffer) {
            Ok(count) if count > 0 => self.to_port.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => return false,
        }
        true
    }

    fn end(&mut self) {
        if let Some(session) = self.session.take() {
            session.hang_up();
            self.to_port.extend_from_slice(ENDED);
        }
    }

    /// Nobody is at the other end any more.
    fn away(&mut self) {
        self.look_at = Some(Instant::now() + LOOK_EVERY);
        self.to_port.clear();
        if let Some(session) = self.session.take() {
            session.hang_up();
        }
    }
}

impl Session {
    fn start(start: &Start) -> io::Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        unlockpt(&terminal)?;
        rustix::io::ioctl_fionbio(&terminal, true)?;
        let side =
            ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let mut command = program("/bin/sh");
        super::variables::set(&mut command, &start.variables);
        command.arg("-i").args(start.login.then_some("-l")).env("TERM", "xterm");
        let there = if start.directory.is_dir() { start.directory.as_path() } else { Path::new("/") };
        command.current_dir(there).stdin(side.try_clone()?).stdout(side.try_clone()?).stderr(side);
        let own = || Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?);
        // SAFETY: makes one system call between fork and exec, and allocates nothing.
        unsafe { command.pre_exec(own) };
        let child = command.spawn()?;
        // What a person starts may be ended when memory runs out, unlike the agent.
        let _stays = crewboss_ground::tell_kernel(format!("/proc/{}/oom_score_adj", child.id()), "0");
        Ok(Self { pid: Pid::from_child(&child), terminal, to_shell: Vec::new() })
    }

    /// As when a person closes the window.
    fn hang_up(self) {
        let _gone = rustix::process::kill_process_group(self.pid, Signal::HUP);
        drop(self.terminal);
    }
}

/// Takes the sizes of the window out of what is typed, of which the last one counts: a NUL,
/// `ROWS COLUMNS`, a newline. No keyboard sends that.
fn split_sizes(bytes: &[u8]) -> (Option<Winsize>, Vec<u8>) {
    let (mut found, mut typed, mut rest) = (None, Vec::with_capacity(bytes.len()), bytes);
    while let Some(at) = rest.iter().position(|byte| *byte == 0) {
        typed.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        match size(rest) {
            Some((size, after)) => (found, rest) = (Some(size), after),
            None => {
                typed.push(0);
                rest = &rest[1..];
            }
        }
    }
    typed.extend_from_slice(rest);
    (found, typed)
}

/// A size at the beginning, and what comes after it.
fn size(bytes: &[u8]) -> Option<(Winsize, &[u8])> {
    let rest = bytes.strip_prefix(b"\0")?;
    let end = rest.iter().take(16).position(|byte| *byte == b'\n')?;
    let (rows, columns) = std::str::from_utf8(&rest[..end]).ok()?.split_once(' ')?;
    let (ws_row, ws_col) = (rows.parse().ok()?, columns.parse().ok()?);
    Some((Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }, &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves the port until the other end has got a text.
    fn until(shell: &mut Shell, person: &OwnedFd, wanted: &str) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        let mut seen = String::new();
        while !seen.contains(wanted) {
            assert!(Instant::now() < end, "waited in vain for {wanted:?}, saw {seen:?}");
            let ready: Vec<PollFlags> = {
                let fds = shell.poll_fds();
                let mut open: Vec<PollFd<'_>> = fds.into_iter().flatten().collect();
                sys::poll(&mut open, Some(Duration::from_millis(20))).unwrap();
                open.iter().map(PollFd::revents).collect()
            };
            let start = || Start {
                directory: "/usr".into(),
                variables: vec![
                    ("PATH".to_owned(), "/bin:/usr/bin".to_owned()),
                    ("PS1".to_owned(), "> ".to_owned()),
                ],
                login: false,
            };
            shell.serve_port(ready[0], start);
            if let Some(ready) = ready.get(1) {
                shell.serve_terminal(*ready);
            }
            let mut buffer = [0; 4096];
            if let Ok(count) = rustix::io::read(person, &mut buffer) {
                seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        }
        seen
    }

    fn reap(pid: Pid) {
        let end = Instant::now() + Duration::from_secs(20);
        while matches!(sys::reap(Some(pid.as_raw_nonzero().get())), sys::Reap::Running) {
            assert!(Instant::now() < end, "the shell lives on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_person_gets_a_terminal_and_another_one_after_it() {
        let (ours, person) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        person.set_nonblocking(true).unwrap();
        let (mut shell, person) = (Shell::new(ours.into()), OwnedFd::from(person));
        let say = |text: &str| assert_eq!(rustix::io::write(&person, text.as_bytes()).unwrap(), text.len());
        for round in 0..2 {
            say("\x0033 132\nstty size; pwd; echo me$((40+2))\n");
            let seen = until(&mut shell, &person, "me42");
            assert!(seen.contains("33 132") && seen.contains("/usr"), "round {round}: {seen:?}");
            let pid = shell.pid().unwrap();
            say("exit\n");
            until(&mut shell, &person, "the shell has ended");
            reap(pid);
        }
        say("\n");
        until(&mut shell, &person, "> ");
        let pid = shell.pid().unwrap();
        drop(person);
        // Nobody is there any more: the shell is hung up on.
        shell.serve_port(PollFlags::HUP, || unreachable!("no shell is started for nobody"));
        reap(pid);
    }

    #[test]
    fn a_size_may_stand_anywhere_in_what_is_typed() {
        let of = |bytes: &[u8]| {
            let (size, typed) = split_sizes(bytes);
            (size.map(|size| (size.ws_row, size.ws_col)), typed)
        };
        assert_eq!(of(b"\x0050 132\nls\n"), (Some((50, 132)), b"ls\n".to_vec()));
        assert_eq!(of(b"l\x0050 132\ns\n\x0024 80\n"), (Some((24, 80)), b"ls\n".to_vec()));
        for plain in [b"ls\n".as_slice(), b"\0", b"\0x y\n", b"\x0050\n", b"a\0\0b", b""] {
            assert_eq!(of(plain), (None, plain.to_vec()));
        }
    }
}

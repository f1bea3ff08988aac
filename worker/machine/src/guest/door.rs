//! The way into the guest of a task that waits for a person: a socket in the guest's directory.
//!
//! Whoever may connect gets a descriptor of the guest's shell or console, and talks to the guest
//! without us; while a console is lent nobody else reads it. A line each way, as JSON: what is
//! wanted, and what comes of it. The connection stays open as long as the task waits, so whoever is
//! inside notices the end of that.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::PollFlags;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

/// The socket's name in the guest's directory.
const SOCKET: &str = "door";

/// People at the door at once: one inside, one who releases, and some who are refused.
const CLIENTS_MAX: usize = 8;

/// Longest line.
const LINE_MAX: usize = 4096;

/// What somebody at the door wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knock {
    /// The shell's port.
    Shell,
    /// The console.
    Console,
    /// That the task goes on.
    Release,
    /// Only to hear when the task goes on.
    Stay,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done; a descriptor comes with it if one was asked for.
    Done,
    /// It is not.
    Refused(String),
}

/// The door, from inside.
#[derive(Debug)]
pub struct Door {
    listener: OwnedFd,
    directory: OwnedFd,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    input: Vec<u8>,
    has_console: bool,
}

/// The directory and the address of its socket: short, however long the directory's path is.
fn place(directory: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, directory, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    Ok((directory, SocketAddrUnix::new(path)?))
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

impl Door {
    /// Opens it in the guest's directory.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let (directory, address) = place(directory)?;
        let listener = socket()?;
        rustix::net::bind(&listener, &address)?;
        let door = Self { listener, directory, clients: Vec::new() };
        rustix::net::listen(&door.listener, 8)?;
        Ok(door)
    }

    /// What is to be polled.
    pub fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let clients = self.clients.iter().map(|client| client.socket.as_fd());
        clients.chain([self.listener.as_fd()]).map(|fd| (fd, PollFlags::IN))
    }

    /// Whether somebody else reads the console.
    pub fn lends_console(&self) -> bool {
        self.clients.iter().any(|client| client.has_console)
    }

    /// Serves who is at the door. Says whether somebody wants the task to go on.
    pub fn look(&mut self, shell: Option<BorrowedFd<'_>>, console: BorrowedFd<'_>) -> bool {
        while let Ok(socket) =
            rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            if self.clients.len() < CLIENTS_MAX {
                self.clients.push(Client { socket, input: Vec::new(), has_console: false });
            }
        }
        let mut released = false;
        self.clients.retain_mut(|client| match client.hear() {
            Heard::Nothing => true,
            Heard::Gone => false,
            Heard::Line(line) => match serde_json::from_slice(&line) {
                Ok(knock) => {
                    released |= knock == Knock::Release;
                    client.serve(knock, shell, console)
                }
                Err(_) => false,
            },
        });
        released
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // It goes with the guest at the latest.
        let _stays = unlinkat(&self.directory, SOCKET, AtFlags::empty());
    }
}

enum Heard {
    Nothing,
    Line(Vec<u8>),
    Gone,
}

impl Client {
    fn hear(&mut self) -> Heard {
        let mut buffer = [0; 512];
        match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, count)) if count > 0 && self.input.len() + count <= LINE_MAX => {
                self.input.extend_from_slice(&buffer[..count]);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => return Heard::Gone,
        }
        match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) => Heard::Line(self.input.drain(..=end).collect()),
            None => Heard::Nothing,
        }
    }

    /// Answers. Returns whether the connection stays.
    fn serve(&mut self, knock: Knock, shell: Option<BorrowedFd<'_>>, console: BorrowedFd<'_>) -> bool {
        let (answer, passed) = match knock {
            Knock::Release | Knock::Stay => (Answer::Done, None),
            Knock::Console => (Answer::Done, Some(console)),
            Knock::Shell if shell.is_none() => (Answer::Refused("it has no shell".to_owned()), None),
            Knock::Shell => (Answer::Done, shell),
        };
        self.has_console = knock == Knock::Console;
        send(&self.socket, &answer, passed).is_ok()
    }
}

/// Sends a line, and a descriptor with it. The line is short, so it goes out whole.
fn send(socket: &OwnedFd, message: &impl Serialize, passed: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let passed: Vec<BorrowedFd<'_>> = passed.into_iter().collect();
    if !passed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&passed)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let parts = [IoSlice::new(&line)];
    let sent = rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// What somebody got who knocked.
#[derive(Debug)]
pub struct Knocked {
    /// Readable when the task does not wait any more.
    pub socket: OwnedFd,
    /// The answer.
    pub answer: Answer,
    /// What was asked for.
    pub passed: Option<OwnedFd>,
}

/// Knocks at the door of the guest in this directory, and waits a while for the answer.
///
/// # Errors
/// If there is no door, or nobody answers.
pub fn knock(directory: &Path, knock: Knock, within: std::time::Duration) -> io::Result<Knocked> {
    let (_directory, address) = place(directory)?;
    let socket = socket()?;
    rustix::net::connect(&socket, &address)?;
    send(&socket, &knock, None)?;
    let until = std::time::Instant::now() + within;
    let (mut line, mut passed) = (Vec::new(), None);
    while !line.ends_with(b"\n") {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let mut fds = [rustix::event::PollFd::new(&socket, PollFlags::IN)];
        if left.is_zero() || crewboss_host::sys::poll(&mut fds, Some(left))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        receive(&socket, &mut line, &mut passed)?;
    }
    Ok(Knocked { socket, answer: serde_json::from_slice(&line)?, passed })
}

fn receive(socket: &OwnedFd, line: &mut Vec<u8>, passed: &mut Option<OwnedFd>) -> io::Result<()> {
    let mut buffer = [0; LINE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let count = match received {
        Ok(received) => received.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            *passed = descriptors.next();
        }
    }
    if count == 0 || line.len() + count > LINE_MAX {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.extend_from_slice(&buffer[..count]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    const SOON: Duration = Duration::from_secs(20);

    /// Serves until a condition holds.
    fn serve(door: &mut Door, shell: &UnixStream, console: &UnixStream, done: impl Fn(&Door, bool) -> bool) {
        let end = Instant::now() + SOON;
        let mut released = false;
        loop {
            released |= door.look(Some(shell.as_fd()), console.as_fd());
            if done(door, released) {
                return;
            }
            assert!(Instant::now() < end, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_person_gets_what_was_asked_for_and_hears_of_the_end() {
        // Longer than any address of a socket.
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("x".repeat(150));
        std::fs::create_dir(&directory).unwrap();
        let (shell, mut behind) = UnixStream::pair().unwrap();
        let (console, _) = UnixStream::pair().unwrap();
        let mut door = Door::open(&directory).unwrap();
        let visitor = std::thread::spawn({
            let directory = directory.clone();
            move || {
                let inside = knock(&directory, Knock::Shell, SOON).unwrap();
                assert_eq!(inside.answer, Answer::Done);
                let mut port = UnixStream::from(inside.passed.unwrap());
                port.write_all(b"ls").unwrap();
                let watching = knock(&directory, Knock::Console, SOON).unwrap();
                assert!(watching.passed.is_some());
                drop(watching);
                let other = knock(&directory, Knock::Release, SOON).unwrap();
                assert_eq!((other.answer, other.passed.is_none()), (Answer::Done, true));
                inside.socket
            }
        });
        let lent = std::cell::Cell::new(false);
        serve(&mut door, &shell, &console, |door, released| {
            lent.set(lent.get() || door.lends_console());
            released
        });
        assert!(lent.get(), "the console was not lent");
        serve(&mut door, &shell, &console, |door, _| !door.lends_console());
        let inside = visitor.join().unwrap();
        let mut typed = [0; 2];
        behind.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"ls");
        drop(door);
        let mut fds = [rustix::event::PollFd::new(&inside, PollFlags::IN)];
        assert_eq!(crewboss_host::sys::poll(&mut fds, Some(SOON)).unwrap(), 1, "the end is not heard");
        assert!(knock(&directory, Knock::Stay, SOON).is_err(), "there is no door any more");
    }

    #[test]
    fn nonsense_at_the_door_costs_the_connection_only() {
        let base = tempfile::tempdir().unwrap();
        let (shell, _behind) = UnixStream::pair().unwrap();
        let (console, _) = UnixStream::pair().unwrap();
        let mut door = Door::open(base.path()).unwrap();
        for bad in [b"\n".to_vec(), b"\"open\"\n".to_vec(), vec![b'x'; LINE_MAX + 1], Vec::new()] {
            let mut client = UnixStream::connect(base.path().join(SOCKET)).unwrap();
            serve(&mut door, &shell, &console, |door, _| door.clients.len() == 1);
            client.write_all(&bad).unwrap();
            drop(client);
            serve(&mut door, &shell, &console, |door, _| door.clients.is_empty());
        }
    }
}

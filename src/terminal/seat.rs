//! The person's keyboard and screen during a visit to a guest. Both may stand still at any time,
//! and have threads of their own, so that the host hears all the while that somebody is there.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crewboss_protocol::guest::GuestStream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::text::harmless;

/// Ctrl-] leaves, as with telnet.
const LEAVE: u8 = 0x1d;

/// What is read at once.
const PIECE: usize = 4096;

/// Pieces on their way from the keyboard, or to the screen.
const PIECES: usize = 64;

/// What is kept of a line that does not end.
const LINE_BYTES_MAX: usize = 16 << 10;

/// What came from the keyboard.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These, and then the key that leaves.
    Leave(Vec<u8>),
    /// Nothing will come any more.
    End,
}

/// Reads standard input, in a thread that goes with the process.
///
/// # Errors
/// If there can be no thread.
pub fn keyboard() -> io::Result<mpsc::Receiver<Typed>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let read = move || {
        let mut buffer = [0; PIECE];
        loop {
            let typed = match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(count) if count > 0 => typed(&buffer[..count]),
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    // Whoever left it so wants to be waited for all the same.
                    let stdin = rustix::stdio::stdin();
                    let _ready = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None);
                    continue;
                }
                _ => Typed::End,
            };
            let end = typed == Typed::End;
            if sender.blocking_send(typed).is_err() || end {
                return;
            }
        }
    };
    std::thread::Builder::new().name("keyboard".to_owned()).spawn(read)?;
    Ok(receiver)
}

fn typed(bytes: &[u8]) -> Typed {
    match bytes.iter().position(|byte| *byte == LEAVE) {
        Some(at) => Typed::Leave(bytes[..at].to_vec()),
        None => Typed::Bytes(bytes.to_vec()),
    }
}

/// Lines and characters in a line of the terminal, if it is one and knows.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// How the terminal was before it became raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// A raw terminal, if standard input is one; as before when it is dropped.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Takes over.
    ///
    /// # Errors
    /// If it is a terminal that cannot be made raw.
    pub fn begin() -> io::Result<Self> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            let before = tcgetattr(&stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        }
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was; also for a process that ends at once.
pub fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs nothing.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Something for the screen.
#[derive(Debug)]
pub enum Shown {
    /// As it is: the person asked for this very terminal.
    Raw(Vec<u8>),
    /// Output of a stage, of which nothing may drive the terminal.
    Text(GuestStream, Vec<u8>),
    /// A line of ours.
    Line(String),
}

/// The screen. What is shown comes out in its order, in a thread of its own.
#[derive(Debug)]
pub struct Screen {
    sender: Option<mpsc::Sender<Shown>>,
    thread: Option<JoinHandle<()>>,
}

impl Screen {
    /// Begins.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn begin() -> io::Result<Self> {
        let (sender, mut receiver) = mpsc::channel(PIECES);
        let write = move || {
            let mut lines = Lines::default();
            while let Some(shown) = receiver.blocking_recv() {
                lines.show(shown);
            }
            lines.finish();
        };
        let thread = std::thread::Builder::new().name("screen".to_owned()).spawn(write)?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    /// Waits until something more can be shown, and shows it. Nothing happens if that is given up.
    pub async fn show(&self, shown: &mut Option<Shown>) {
        if let Some(sender) = &self.sender
            && let Ok(permit) = sender.reserve().await
            && let Some(shown) = shown.take()
        {
            permit.send(shown);
        }
    }
}

impl Drop for Screen {
    /// All that was shown comes out.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Both outputs of a stage, a line at a time: a sequence that drives a terminal may come in two
/// pieces.
#[derive(Debug, Default)]
struct Lines {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Lines {
    fn show(&mut self, shown: Shown) {
        match shown {
            Shown::Raw(bytes) => write(GuestStream::Out, &bytes),
            Shown::Line(line) => {
                // A raw terminal does not go to the line's beginning by itself.
                let raw = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                let end = if raw { "\r\n" } else { "\n" };
                write(GuestStream::Err, format!("{}{end}", harmless(&line)).as_bytes());
            }
            Shown::Text(stream, bytes) => {
                let line = match stream {
                    GuestStream::Out => &mut self.out,
                    GuestStream::Err => &mut self.err,
                };
                line.extend_from_slice(&bytes);
                let whole = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let whole = if line.len() - whole > LINE_BYTES_MAX { line.len() } else { whole };
                let whole: Vec<u8> = line.drain(..whole).collect();
                write(stream, harmless(&String::from_utf8_lossy(&whole)).as_bytes());
            }
        }
    }

    fn finish(self) {
        for (stream, rest) in [(GuestStream::Out, self.out), (GuestStream::Err, self.err)] {
            write(stream, harmless(&String::from_utf8_lossy(&rest)).as_bytes());
        }
    }
}

fn write(stream: GuestStream, bytes: &[u8]) {
    // That nobody reads it is no reason to end a visit; whoever is gone shows by the keyboard, or
    // by a signal.
    drop(match stream {
        GuestStream::Out => {
            let mut out = io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        GuestStream::Err => io::stderr().write_all(bytes),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_leaves() {
        assert_eq!(typed(b"ls\n"), Typed::Bytes(b"ls\n".to_vec()));
        assert_eq!(typed(b"ls\x1dignored"), Typed::Leave(b"ls".to_vec()));
        assert_eq!(typed(b"\x1d"), Typed::Leave(Vec::new()));
    }
}

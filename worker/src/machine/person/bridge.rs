//! The way of bytes between a person and a channel of a guest.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::terminal::{Terminal, Typed};
use crate::machine::qemu::child::Ended;
use crate::sys::{self, Signals};

/// Typed bytes that a guest does not take; what is more is lost, but the key that leaves is heard.
const TYPED_MAX: usize = 64 << 10;

/// What is shown between two looks at the keyboard, so that a flood does not hold it up.
const PIECES_MAX: usize = 4;

/// The signals that a visit listens to.
pub(super) const SIGNALS: [i32; 5] =
    [libc::SIGHUP, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGWINCH];

/// Why a visit is over, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// The person pressed the key, closed the input, or the link dropped.
    Person,
    /// Somebody who ends guests wants this process to go at once.
    Terminated,
    /// The guest is gone.
    Ended(Ended),
    /// Its task does not wait any more.
    GoesOn,
    /// Its agent is up.
    Up,
}

/// What is to be watched besides person and channel.
pub(super) trait Behind {
    /// What is to be polled for reading.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Takes what has come; says whether that ends the visit.
    fn look(&mut self) -> Option<Left>;
}

/// Connects the person with a channel until one of them, or what is behind, ends it. Without a channel only the key that
/// leaves is heard. With `sizes` the size of the window is told.
pub(super) fn run(
    terminal: &Terminal,
    signals: &Signals,
    channel: Option<&OwnedFd>,
    sizes: bool,
    behind: &mut dyn Behind,
) -> io::Result<Left> {
    let mut typed = if sizes { terminal.size() } else { Vec::new() };
    let mut open = true;
    loop {
        let ready = wait(signals, channel.filter(|_| open), &typed, behind)?;
        if ready.signal
            && let Some(left) = take_signals(terminal, signals, sizes, &mut typed)
        {
            return Ok(left);
        }
        if let Some(left) = behind.look() {
            // What it printed last is still to be seen.
            if let Some(channel) = channel {
                // Of a guest that is gone no flood is to be feared.
                let most = if matches!(left, Left::Ended(_)) { usize::MAX } else { PIECES_MAX };
                show(channel, most, Terminal::show);
            }
            return Ok(left);
        }
        if let Some(channel) = channel.filter(|_| open) {
            open = show(channel, PIECES_MAX, Terminal::show);
            open &= write(channel, &mut typed);
        }
        if ready.keyboard && !take_keys(terminal, channel.filter(|_| open), &mut typed) {
            return Ok(Left::Person);
        }
    }
}

struct Ready {
    signal: bool,
    keyboard: bool,
}

fn wait(
    signals: &Signals,
    channel: Option<&OwnedFd>,
    typed: &[u8],
    behind: &dyn Behind,
) -> io::Result<Ready> {
    let flags = |writes: bool| if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let mut fds = vec![
        PollFd::new(signals.fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(Terminal::keyboard(), PollFlags::IN),
    ];
    fds.extend(channel.map(|channel| PollFd::new(channel, flags(!typed.is_empty()))));
    fds.extend(behind.fds().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    sys::poll(&mut fds, None)?;
    Ok(Ready { signal: !fds[0].revents().is_empty(), keyboard: !fds[1].revents().is_empty() })
}

fn take_signals(terminal: &Terminal, signals: &Signals, sizes: bool, typed: &mut Vec<u8>) -> Option<Left> {
    while let Some(signal) = signals.take() {
        match signal {
            libc::SIGWINCH if sizes => typed.extend(terminal.size()),
            libc::SIGWINCH => {}
            libc::SIGTERM => return Some(Left::Terminated),
            _ => return Some(Left::Person),
        }
    }
    None
}

/// Returns whether the person is still there.
fn take_keys(terminal: &Terminal, channel: Option<&OwnedFd>, typed: &mut Vec<u8>) -> bool {
    let (bytes, stays) = match terminal.read() {
        Typed::Bytes(bytes) => (bytes, true),
        Typed::Leave(bytes) => (bytes, false),
        Typed::End => (Vec::new(), false),
    };
    if let Some(channel) = channel {
        let room = TYPED_MAX.saturating_sub(typed.len());
        typed.extend(bytes.into_iter().take(room));
        write(channel, typed);
    }
    stays
}

/// Shows what the channel holds, `most` pieces of it. Returns whether more may come.
fn show(channel: &OwnedFd, most: usize, shows: impl Fn(&[u8]) -> bool) -> bool {
    let mut buffer = [0; 16 << 10];
    for _ in 0..most {
        match rustix::io::read(channel.as_fd(), &mut buffer) {
            Ok(count) if count > 0 => {
                // Whoever is gone shows by the keyboard, or by a signal.
                let _seen = shows(&buffer[..count]);
            }
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            _ => return false,
        }
    }
    true
}

/// Writes what the channel takes. Returns whether it may take more later.
fn write(channel: &OwnedFd, typed: &mut Vec<u8>) -> bool {
    while !typed.is_empty() {
        match rustix::io::write(channel, typed) {
            Ok(count) => drop(typed.drain(..count)),
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_flood_is_shown_in_parts_and_to_its_end_if_there_is_no_more_of_it() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (&theirs).write_all(&[b'x'; 150 << 10]).unwrap();
        let (ours, shown) = (OwnedFd::from(ours), std::cell::Cell::new(0));
        let count = |bytes: &[u8]| {
            shown.set(shown.get() + bytes.len());
            true
        };
        assert!(show(&ours, PIECES_MAX, count));
        assert_eq!(shown.get(), 64 << 10);
        assert!(show(&ours, usize::MAX, count), "who wrote is still there");
        drop(theirs);
        assert!(!show(&ours, usize::MAX, count));
        assert_eq!(shown.get(), 150 << 10);
    }
}

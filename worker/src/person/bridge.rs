//! The way of bytes between a person and a channel of a guest.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crewboss_host::sys;
use crewboss_machine::qemu::child::Ended;
use crewboss_protocol::guest::GuestStream;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use super::caller::Caller;

/// Typed bytes that a guest does not take; what is more is lost, but the key that leaves is heard.
const TYPED_MAX: usize = 64 << 10;

/// What is shown between two looks at the person, so that a flood does not hold up what is typed.
const PIECES_MAX: usize = 4;

/// Asks a visit to end, since somebody else is to be let in.
pub(super) const MAKE_ROOM: Signal = Signal::USR1;

/// The signals that a visit listens to.
pub(super) const SIGNALS: [i32; 5] =
    [libc::SIGHUP, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, MAKE_ROOM.as_raw()];

/// Why a visit is over, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// The person has gone, or the link dropped.
    Person,
    /// Somebody else is to be let in.
    Displaced,
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

/// Connects the person with a channel until one of them, or what is behind, ends it. With `sizes`
/// the size of the window is told.
pub(super) fn run(
    caller: &mut Caller,
    channel: Option<&OwnedFd>,
    sizes: bool,
    behind: &mut dyn Behind,
) -> io::Result<Left> {
    let mut size = caller.size;
    let mut typed = if sizes { size_bytes(size) } else { Vec::new() };
    let mut open = true;
    loop {
        wait(caller, channel.filter(|_| open), &typed, behind)?;
        if let Some(left) = take_signals(caller) {
            return Ok(left);
        }
        if let Some(left) = behind.look() {
            // What it printed last is still to be seen.
            if let Some(channel) = channel {
                // Of a guest that is gone no flood is to be feared.
                let most = if matches!(left, Left::Ended(_)) { usize::MAX } else { PIECES_MAX };
                show(channel, most, |bytes| caller.show(GuestStream::Out, bytes));
            }
            return Ok(left);
        }
        let new = caller.look();
        if sizes && caller.size != size {
            size = caller.size;
            typed.extend(size_bytes(size));
        }
        let room = TYPED_MAX.saturating_sub(typed.len());
        typed.extend(new.into_iter().take(room));
        if let Some(channel) = channel.filter(|_| open) {
            if !caller.is_full() {
                open = show(channel, PIECES_MAX, |bytes| caller.show(GuestStream::Out, bytes));
            }
            open &= write(channel, &mut typed);
        }
        if caller.gone().is_some() {
            return Ok(Left::Person);
        }
    }
}

/// The size of a window, as the shell in a guest is told. One that is no terminal, or does not
/// know: what terminals had for decades.
fn size_bytes(size: Option<(u16, u16)>) -> Vec<u8> {
    let (rows, columns) = size.unwrap_or((24, 80));
    format!("\0{rows} {columns}\n").into_bytes()
}

fn wait(caller: &Caller, channel: Option<&OwnedFd>, typed: &[u8], behind: &dyn Behind) -> io::Result<()> {
    let mut fds = caller.fds();
    fds.push(PollFd::new(caller.signals_fd(), PollFlags::IN));
    if let Some(channel) = channel {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !caller.is_full());
        flags.set(PollFlags::OUT, !typed.is_empty());
        // Its end would be told also unasked, again and again.
        fds.extend((!flags.is_empty()).then(|| PollFd::new(channel, flags)));
    }
    fds.extend(behind.fds().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    sys::poll(&mut fds, Some(caller.patience())).map(drop)
}

/// What a signal asks for.
pub(super) fn take_signals(caller: &Caller) -> Option<Left> {
    caller.signal().map(|signal| match signal {
        libc::SIGTERM => Left::Terminated,
        signal if signal == MAKE_ROOM.as_raw() => Left::Displaced,
        _ => Left::Person,
    })
}

/// Shows what the channel holds, `most` pieces of it. Returns whether more may come.
fn show(channel: &OwnedFd, most: usize, shows: impl Fn(&[u8])) -> bool {
    let mut buffer = [0; 16 << 10];
    for _ in 0..most {
        match rustix::io::read(channel.as_fd(), &mut buffer) {
            Ok(count) if count > 0 => shows(&buffer[..count]),
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
        let count = |bytes: &[u8]| shown.set(shown.get() + bytes.len());
        assert!(show(&ours, PIECES_MAX, count));
        assert_eq!(shown.get(), 64 << 10);
        assert!(show(&ours, usize::MAX, count), "who wrote is still there");
        drop(theirs);
        assert!(!show(&ours, usize::MAX, count));
        assert_eq!(shown.get(), 150 << 10);
    }
}

//! Talking to the agent of a guest that was stopped in the middle of a sentence.
//!
//! When its memory was saved the agent may have had half a line for us, or we half a line for it;
//! what comes first after that is the rest. So a question is asked that only its own answer fits,
//! and everything before the answer is thrown away.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crewboss_host::sys;
use crewboss_machine::exchange::{PortDecoder, PortEvent, encode};
use crewboss_protocol::codec;
use crewboss_protocol::guest::{FromGuest, GuestStream, ToGuest};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// Longest answer to a question.
const ANSWER_MAX: usize = 4096;

/// Something that the agent said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Said(FromGuest),
    Output(GuestStream, Vec<u8>),
    /// What no agent says.
    Nonsense(String),
}

/// The host's end of the agent's port, as a person's visit uses it.
#[derive(Debug)]
pub(super) struct Line {
    port: OwnedFd,
    output: Vec<u8>,
    input: Input,
}

#[derive(Debug)]
enum Input {
    /// Looking for the answer to the question with this mark.
    Seeks {
        mark: Vec<u8>,
        seen: Vec<u8>,
    },
    Follows(PortDecoder),
}

/// The beginning of the answer to a ping.
fn mark(number: u64) -> Vec<u8> {
    let mut mark = codec::PREFIX.to_vec();
    mark.extend_from_slice(format!("{{\"alive\":{{\"number\":{number},").as_bytes());
    mark
}

/// A number that nothing in a guest knows.
fn unknown_number() -> u64 {
    // JSON numbers of this size are read alike everywhere.
    RandomState::new().hash_one(std::process::id()) >> 11
}

impl Line {
    /// To an agent that has just booted, and has yet to greet.
    pub(super) fn fresh(port: OwnedFd) -> Self {
        Self { port, output: Vec::new(), input: Input::Follows(PortDecoder::new()) }
    }

    /// To one that goes on with what it did. Its first message is the answer to a ping.
    pub(super) fn resumed(port: OwnedFd) -> Self {
        let number = unknown_number();
        let mut output = b"\n".to_vec();
        codec::encode(&ToGuest::Ping { number }, &mut output);
        Self { port, output, input: Input::Seeks { mark: mark(number), seen: Vec::new() } }
    }

    /// Adds a message.
    ///
    /// # Errors
    /// If the agent would not take it.
    pub(super) fn tell(&mut self, message: &ToGuest) -> io::Result<()> {
        encode(message, &mut self.output).map_err(io::Error::other)
    }

    /// Asks whether it is busy; the answer is an `alive`.
    pub(super) fn ask(&mut self) {
        codec::encode(&ToGuest::Ping { number: 1 }, &mut self.output);
    }

    pub(super) fn poll_fd(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if self.output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        (self.port.as_fd(), flags)
    }

    /// Writes and reads what goes, and returns what was said.
    pub(super) fn look(&mut self) -> Vec<Heard> {
        self.write();
        let mut heard = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        // Its end shows by the end of QEMU.
        if let Ok(count) = rustix::io::read(&self.port, &mut buffer) {
            self.input.push(&buffer[..count], &mut heard);
        }
        heard
    }

    /// Reads what it said last, once it is gone.
    pub(super) fn rest(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match rustix::io::read(&self.port, &mut buffer) {
                Ok(count) if count > 0 => self.input.push(&buffer[..count], &mut heard),
                Err(Errno::INTR) => {}
                _ => return heard,
            }
        }
    }

    fn write(&mut self) {
        while !self.output.is_empty() {
            match rustix::io::write(&self.port, &self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits for the port to be ready, for no longer than this.
    pub(super) fn wait(&self, others: &[BorrowedFd<'_>], within: Duration) -> io::Result<()> {
        let (port, flags) = self.poll_fd();
        let mut fds = vec![PollFd::from_borrowed_fd(port, flags)];
        fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        sys::poll(&mut fds, Some(within)).map(drop)
    }
}

impl Input {
    fn push(&mut self, bytes: &[u8], heard: &mut Vec<Heard>) {
        match self {
            Input::Follows(decoder) => {
                decoder.push(bytes);
                drain(decoder, heard);
            }
            Input::Seeks { mark, seen } => {
                seen.extend_from_slice(bytes);
                let Some(at) = seen.windows(mark.len()).position(|window| window == mark) else {
                    // The beginning of the answer may be there already.
                    let excess = seen.len().saturating_sub(mark.len());
                    seen.drain(..excess);
                    return;
                };
                seen.drain(..at);
                if !seen.contains(&b'\n') && seen.len() < ANSWER_MAX {
                    return;
                }
                let mut decoder = PortDecoder::new();
                decoder.push(seen);
                drain(&mut decoder, heard);
                *self = Input::Follows(decoder);
            }
        }
    }
}

fn drain(decoder: &mut PortDecoder, heard: &mut Vec<Heard>) {
    while let Some(event) = decoder.next_event() {
        heard.push(match event {
            PortEvent::Message(message) => Heard::Said(message),
            PortEvent::Output(stream, bytes) => Heard::Output(stream, bytes.to_vec()),
            PortEvent::Bad(why) => Heard::Nonsense(why),
        });
    }
}

/// When something is over that began now.
pub(super) fn end_of(within: Duration) -> Instant {
    Instant::now() + within
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_protocol::guest::GuestLoad;
    use proptest::prelude::*;

    fn alive(number: u64) -> FromGuest {
        let load = GuestLoad { load_percent: 1, memory_available: 2, disk_free: 3 };
        FromGuest::Alive { number, load, busy: true }
    }

    #[test]
    fn all_that_was_said_before_the_end_is_heard() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let mut line = Line::fresh(ours.into());
        let mut said = Vec::new();
        for _ in 0..4 {
            codec::encode(&FromGuest::Log { stream: GuestStream::Out, bytes: 30_000 }, &mut said);
            said.extend_from_slice(&[b'x'; 30_000]);
        }
        codec::encode(&FromGuest::Prepared, &mut said);
        io::Write::write_all(&mut &theirs, &said).unwrap();
        drop(theirs);
        assert_eq!(line.rest().last(), Some(&Heard::Said(FromGuest::Prepared)));
    }

    proptest! {
        /// Whatever the agent was saying when it was stopped, and however it arrives.
        #[test]
        fn the_rest_of_a_sentence_is_thrown_away(
            before in prop::collection::vec(any::<u8>(), 0..300),
            early in 0_u64..1000,
            pieces in 1_usize..50,
        ) {
            let number = 1_234_567;
            let mut stream = before;
            codec::encode(&alive(early), &mut stream);
            stream.extend_from_slice(b"rest of output");
            codec::encode(&alive(number), &mut stream);
            codec::encode(&FromGuest::Log { stream: GuestStream::Out, bytes: 4 }, &mut stream);
            stream.extend_from_slice(b"more");
            codec::encode(&FromGuest::Prepared, &mut stream);
            let mut input = Input::Seeks { mark: mark(number), seen: Vec::new() };
            let mut heard = Vec::new();
            for piece in stream.chunks(pieces) {
                input.push(piece, &mut heard);
            }
            let mut output = Vec::new();
            heard.retain(|one| match one {
                Heard::Output(GuestStream::Out, bytes) => { output.extend_from_slice(bytes); false }
                _ => true,
            });
            prop_assert_eq!(output, b"more");
            prop_assert_eq!(heard, [Heard::Said(alive(number)), Heard::Said(FromGuest::Prepared)]);
        }
    }
}

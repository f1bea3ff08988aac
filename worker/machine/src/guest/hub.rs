//! The private network of the guests of one task: what one of them sends, all others get.
//!
//! It is a hub of datagram sockets, a frame each, and lives in the runner: so it can be reached by
//! nobody else, needs no right on the host, and is gone with the task. Nothing is kept: a frame for
//! a guest that does not take it is lost, as on a wire that is too slow, and whoever sent it sends
//! it again.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Frames that are taken from one guest at one look, so that a flood does not hold up what else the
/// runner watches.
const FRAMES_AT_ONCE: usize = 256;

/// Longer than any frame that QEMU sends: its guests have no segments to be cut up.
const FRAME_BYTES: usize = 68 << 10;

/// What may wait for a guest to take it, in bytes; the kernel may allow less.
const WAITING_BYTES: usize = 1 << 20;

/// The hub. Without guests it is nothing.
#[derive(Debug, Default)]
pub struct Hub {
    /// By the place of the guest.
    ports: BTreeMap<u8, OwnedFd>,
    frame: Vec<u8>,
}

impl Hub {
    /// Connects the guest with this place. What was connected there before is not any more. Returns
    /// the end for QEMU.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn plug(&mut self, place: u8) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = pair()?;
        self.ports.insert(place, ours);
        Ok(theirs)
    }

    /// What is to be polled for reading.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ports.values().map(|port| port.as_fd())
    }

    /// Passes on what has come, without waiting.
    pub fn forward(&mut self) {
        let Self { ports, frame } = self;
        if ports.is_empty() {
            return;
        }
        frame.resize(FRAME_BYTES, 0);
        let mut broken = Vec::new();
        for (place, port) in ports.iter() {
            for _ in 0..FRAMES_AT_ONCE {
                match rustix::net::recv(port, frame.as_mut_slice(), RecvFlags::DONTWAIT) {
                    Ok((length, _)) => send_to_others(ports, *place, &frame[..length.min(FRAME_BYTES)]),
                    // Its QEMU has ended with frames unread; that it has ended shows elsewhere.
                    Err(Errno::INTR | Errno::CONNRESET) => {}
                    Err(Errno::AGAIN) => break,
                    Err(_) => {
                        broken.push(*place);
                        break;
                    }
                }
            }
        }
        // One that can never be read again would be ready for ever.
        for place in broken {
            ports.remove(&place);
        }
    }
}

fn send_to_others(ports: &BTreeMap<u8, OwnedFd>, from: u8, frame: &[u8]) {
    for (_, port) in ports.iter().filter(|(place, _)| **place != from) {
        // A guest that has ended, or takes nothing, misses it.
        let _lost = rustix::net::send(port, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// The end of a network of which nothing else is there any more: for a guest that was alone kept of
/// its task.
///
/// # Errors
/// If the system has no descriptors left.
pub fn loose_end() -> std::io::Result<OwnedFd> {
    pair().map(|(_, theirs)| theirs)
}

fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    for end in [&ours, &theirs] {
        // Smaller ones only lose more.
        let _as_it_is = rustix::net::sockopt::set_socket_send_buffer_size(end, WAITING_BYTES);
    }
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(end: &OwnedFd) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_BYTES];
        let (length, _) = rustix::net::recv(end, frame.as_mut_slice(), RecvFlags::DONTWAIT).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    fn send(end: &OwnedFd, frame: &[u8]) -> bool {
        rustix::net::send(end, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
    }

    #[test]
    fn a_frame_reaches_all_others_and_whole() {
        let mut hub = Hub::default();
        hub.forward();
        let ends: Vec<OwnedFd> = (0..3).map(|place| hub.plug(place).unwrap()).collect();
        let long = vec![7; 65_000];
        assert!(send(&ends[0], b"one") && send(&ends[0], &long) && send(&ends[2], b"two"));
        hub.forward();
        assert_eq!([receive(&ends[1]), receive(&ends[1])], [Some(b"one".to_vec()), Some(long.clone())]);
        assert_eq!(receive(&ends[1]), Some(b"two".to_vec()));
        assert_eq!([receive(&ends[2]), receive(&ends[2])], [Some(b"one".to_vec()), Some(long)]);
        assert_eq!([receive(&ends[0]), receive(&ends[0])], [Some(b"two".to_vec()), None]);
    }

    #[test]
    fn nobody_waits_for_a_guest_that_takes_nothing_or_is_gone() {
        let mut hub = Hub::default();
        let (sender, deaf) = (hub.plug(0).unwrap(), hub.plug(1).unwrap());
        drop(hub.plug(2).unwrap());
        let mut sent = 0;
        // More than the queues of the kernel hold.
        for _ in 0..20_000 {
            sent += usize::from(send(&sender, &[1; 1500]));
            hub.forward();
        }
        assert_eq!(sent, 20_000, "the sender was held up");
        assert!(receive(&deaf).is_some());
        let heard = std::iter::from_fn(|| receive(&deaf)).count();
        assert!(heard < sent, "everything was kept");
        assert!(send(&deaf, b"back"));
        hub.forward();
        assert_eq!(receive(&sender), Some(b"back".to_vec()));
    }

    #[test]
    fn a_guest_that_is_started_again_takes_the_place_of_the_one_before() {
        let mut hub = Hub::default();
        let (first, other) = (hub.plug(0).unwrap(), hub.plug(1).unwrap());
        let second = hub.plug(0).unwrap();
        assert!(!send(&first, b"old"), "it is connected still");
        assert!(send(&second, b"new"));
        hub.forward();
        assert_eq!([receive(&other), receive(&other)], [Some(b"new".to_vec()), None]);
        assert_eq!(hub.fds().count(), 2);
        let end = loose_end().unwrap();
        assert!(!send(&end, b"nobody"));
    }
}

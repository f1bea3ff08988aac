//! One transfer that runs: its socket, its protocol and its file.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny,
    SocketFlags, SocketType,
};

use super::event::{Abort, shown};
use super::file::{Reading, Writing};
use super::packet::{self, Code, HEADER, Packet, Way};
use super::transfer::{ReceiveStep, Receiving, SendStep, Sending, Terms};

/// Packets that are taken from one socket before the others have their turn.
const TURN: u16 = 64;

/// How a transfer stands.
#[derive(Debug)]
pub(super) enum Standing {
    /// It goes on.
    Running,
    /// The guest has got all.
    Got(u64),
    /// The guest has put all. The transfer stays for a while, to answer repetitions.
    Put(u64),
    /// It is over, and was over before as far as anybody is concerned.
    Over,
    /// It ended before its end.
    Aborted(Abort),
}

#[derive(Debug)]
enum Job {
    Send { protocol: Sending, content: Reading, block: u16 },
    // There is no file any more when it was finished, which may have failed.
    Receive { protocol: Receiving, file: Option<Writing>, block: u16, complete: bool },
}

/// A transfer.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) socket: OwnedFd,
    pub(super) peer: SocketAddrV4,
    pub(super) name: String,
    /// The packet that grants the options.
    grant: Vec<u8>,
    patience: Duration,
    window: u16,
    heard: Instant,
    job: Job,
}

/// Where a packet came from and how long it was, or why there is none.
enum Got {
    Packet(usize),
    Nothing,
    Stranger,
    Failed(Abort),
}

impl Live {
    fn new(
        peer: SocketAddrV4,
        name: &str,
        grant: Vec<u8>,
        terms: Terms,
        now: Instant,
        job: Job,
    ) -> io::Result<Self> {
        let socket = loopback()?;
        // The kernel drops whatever comes from elsewhere from now on.
        rustix::net::connect(&socket, &peer)?;
        let (name, patience, window) = (name.to_owned(), terms.pace.patience, terms.window);
        Ok(Self { socket, peer, name, grant, patience, window, heard: now, job })
    }

    /// Starts to send.
    pub(super) fn send(
        peer: SocketAddrV4,
        name: &str,
        content: Reading,
        grant: Vec<u8>,
        terms: Terms,
        now: Instant,
    ) -> io::Result<(Self, Standing)> {
        let (protocol, step) = Sending::start(terms, content.size(), now);
        let job = Job::Send { protocol, content, block: terms.block };
        let mut new = Self::new(peer, name, grant, terms, now, job)?;
        let standing = new.act_send(step);
        Ok((new, standing))
    }

    /// Starts to receive.
    pub(super) fn receive(
        peer: SocketAddrV4,
        name: &str,
        file: Writing,
        grant: Vec<u8>,
        terms: Terms,
        now: Instant,
    ) -> io::Result<(Self, Standing)> {
        let (protocol, step) = Receiving::start(terms, now);
        let job = Job::Receive { protocol, file: Some(file), block: terms.block, complete: false };
        let mut new = Self::new(peer, name, grant, terms, now, job)?;
        let standing = new.act_receive(step, 0);
        Ok((new, standing))
    }

    pub(super) fn way(&self) -> Way {
        match &self.job {
            Job::Send { .. } => Way::Get,
            Job::Receive { .. } => Way::Put,
        }
    }

    /// Whether everything was received, so that it only waits for repetitions.
    pub(super) fn complete(&self) -> bool {
        matches!(&self.job, Job::Receive { complete: true, .. })
    }

    /// Whether a request for the same from the same port is a repetition of the one that started
    /// this.
    pub(super) fn repeats(&self, now: Instant, within: Duration) -> bool {
        let heard = match &self.job {
            Job::Send { protocol, .. } => protocol.heard(),
            Job::Receive { protocol, .. } => protocol.heard(),
        };
        !heard || now.saturating_duration_since(self.heard) < within
    }

    pub(super) fn deadline(&self) -> Instant {
        match &self.job {
            Job::Send { protocol, .. } => protocol.deadline(),
            Job::Receive { protocol, .. } => protocol.deadline(),
        }
    }

    /// Its socket can be read.
    pub(super) fn readable(&mut self, now: Instant) -> Standing {
        // Without windows there is one packet, and asking for another would cost a call for
        // nothing.
        let turn = if self.window == 1 { 1 } else { TURN };
        for _ in 0..turn {
            let standing = match &self.job {
                Job::Send { .. } => self.hear_receiver(now),
                Job::Receive { .. } => self.hear_sender(now),
            };
            match standing {
                Some(Standing::Running) => {}
                Some(standing) => return self.settle(standing),
                None => break,
            }
        }
        Standing::Running
    }

    /// Its deadline may be over.
    pub(super) fn on_time(&mut self, now: Instant) -> Standing {
        let standing = match &mut self.job {
            Job::Send { protocol, .. } => {
                let step = protocol.on_time(now);
                self.act_send(step)
            }
            Job::Receive { protocol, .. } => {
                let step = protocol.on_time(now);
                self.act_receive(step, 0)
            }
        };
        self.settle(standing)
    }

    /// Ends it from our side.
    pub(super) fn end(&self, why: &Abort) {
        if let Some(code) = why.code() {
            let mut error = Vec::new();
            Packet::Error { code: code.number(), message: told(why).as_bytes() }.write(&mut error);
            // The guest may be gone, and is on its own then.
            let _sent = transmit(&self.socket, &[IoSlice::new(&error)]);
        }
    }

    /// An abort of what is complete is none.
    fn settle(&self, standing: Standing) -> Standing {
        match standing {
            Standing::Aborted(_) if self.complete() => Standing::Over,
            standing => standing,
        }
    }

    /// Takes one packet of who receives; `None` if there is none.
    fn hear_receiver(&mut self, now: Instant) -> Option<Standing> {
        let mut bytes = [0_u8; packet::REQUEST_MAX + HEADER];
        let len = match receive(&self.socket, self.peer, &mut [IoSliceMut::new(&mut bytes)]) {
            Got::Packet(len) => len,
            Got::Nothing => return None,
            Got::Stranger => return Some(Standing::Running),
            Got::Failed(why) => return Some(Standing::Aborted(why)),
        };
        self.heard = now;
        let Job::Send { protocol, .. } = &mut self.job else { return None };
        let step = match Packet::parse(&bytes[..len.min(bytes.len())]) {
            Ok(Packet::Ack { block }) => protocol.on_ack(block, now),
            Ok(Packet::Error { code, message }) => return Some(Standing::Aborted(guest(code, message))),
            _ => return Some(Standing::Aborted(Abort::Protocol("no acknowledgement"))),
        };
        Some(self.act_send(step))
    }

    /// Takes one packet of who sends; `None` if there is none.
    fn hear_sender(&mut self, now: Instant) -> Option<Standing> {
        let Job::Receive { protocol, file, block, .. } = &mut self.job else { return None };
        let mut header = [0_u8; HEADER];
        // The data goes to its place at once. When the file is complete, only repetitions come.
        let mut rest = [0_u8; packet::REQUEST_MAX];
        let room = file.as_mut().map_or(&mut rest[..], Writing::room);
        let room_len = room.len();
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(room)];
        let len = match receive(&self.socket, self.peer, &mut parts) {
            Got::Packet(len) => len,
            Got::Nothing => return None,
            Got::Stranger => return Some(Standing::Running),
            Got::Failed(why) => return Some(Standing::Aborted(why)),
        };
        self.heard = now;
        let data = len.saturating_sub(HEADER);
        let step = match Packet::parse(&header[..len.min(HEADER)]) {
            Ok(Packet::Data { .. }) if data > usize::from(*block) && file.is_some() => {
                return Some(Standing::Aborted(Abort::Protocol("a block is larger than agreed on")));
            }
            Ok(Packet::Data { block, .. }) => protocol.on_data(block, data, now),
            Ok(Packet::Error { code, .. }) => {
                let room = file.as_mut().map_or(&mut rest[..], Writing::room);
                let message = &room[..data.min(room_len)];
                let end = message.iter().position(|byte| *byte == 0).unwrap_or(message.len());
                return Some(Standing::Aborted(guest(code, &message[..end])));
            }
            _ => return Some(Standing::Aborted(Abort::Protocol("no data"))),
        };
        Some(self.act_receive(step, data))
    }

    fn act_send(&mut self, step: SendStep) -> Standing {
        let Job::Send { content, block, .. } = &mut self.job else { return Standing::Over };
        let sent = match step {
            SendStep::Nothing => Ok(()),
            SendStep::Options => transmit(&self.socket, &[IoSlice::new(&self.grant)]),
            SendStep::Blocks { first, count } => send_blocks(&self.socket, content, *block, first, count),
            SendStep::Done => return Standing::Got(content.size()),
            SendStep::GiveUp => return Standing::Aborted(Abort::Silent(self.patience)),
        };
        sent.map_or_else(Standing::Aborted, |()| Standing::Running)
    }

    fn act_receive(&mut self, step: ReceiveStep, len: usize) -> Standing {
        let sent = match step {
            ReceiveStep::Nothing => Ok(()),
            ReceiveStep::Options => transmit(&self.socket, &[IoSlice::new(&self.grant)]),
            ReceiveStep::Ack(block) => transmit(&self.socket, &[IoSlice::new(&packet::ack(block))]),
            ReceiveStep::Store { ack, last } => {
                return self.store(len, ack, last).unwrap_or_else(Standing::Aborted);
            }
            ReceiveStep::Done => return Standing::Over,
            ReceiveStep::GiveUp => return Standing::Aborted(Abort::Silent(self.patience)),
        };
        sent.map_or_else(Standing::Aborted, |()| Standing::Running)
    }

    fn store(&mut self, len: usize, ack: Option<u16>, last: bool) -> Result<Standing, Abort> {
        let Job::Receive { file, complete, .. } = &mut self.job else { return Ok(Standing::Over) };
        let Some(writing) = file.as_mut() else { return Ok(Standing::Over) };
        writing.keep(len)?;
        let done = if last { file.take().map(Writing::finish).transpose()? } else { None };
        *complete = done.is_some();
        if let Some(block) = ack {
            match transmit(&self.socket, &[IoSlice::new(&packet::ack(block))]) {
                // Whoever has sent everything may leave without waiting.
                Err(_) if last => {}
                sent => sent?,
            }
        }
        // After the acknowledgement, so that the guest makes its next block meanwhile.
        if let Some(writing) = file.as_mut() {
            writing.drain()?;
        }
        Ok(done.map_or(Standing::Running, Standing::Put))
    }
}

fn guest(code: u16, message: &[u8]) -> Abort {
    Abort::Guest { code, message: shown(message) }
}

/// What the guest is told: paths of the host are none of its business.
fn told(why: &Abort) -> String {
    match why {
        Abort::Host(_) => "the host cannot go on with it".to_owned(),
        why => why.to_string(),
    }
}

/// A socket on a new port of the loopback device.
pub(super) fn loopback() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    Ok(socket)
}

/// Tells a client that has no transfer that there will be none.
pub(super) fn refuse(socket: &OwnedFd, to: SocketAddrV4, code: Code, message: &str) {
    let mut error = Vec::new();
    Packet::Error { code: code.number(), message: message.as_bytes() }.write(&mut error);
    // If it is lost, the client asks again.
    let _sent = rustix::net::sendto(socket, &error, SendFlags::NOSIGNAL, &to);
}

fn send_blocks(
    socket: &OwnedFd,
    content: &mut Reading,
    block: u16,
    first: u64,
    count: u16,
) -> Result<(), Abort> {
    for number in first..first.saturating_add(count.into()) {
        let offset = number.saturating_sub(1).saturating_mul(block.into());
        let data = content.block(offset, block.into()).map_err(|error| Abort::Host(error.to_string()))?;
        let header = packet::data_header(super::transfer::low(number));
        transmit(socket, &[IoSlice::new(&header), IoSlice::new(data)])?;
    }
    Ok(())
}

fn transmit(socket: &OwnedFd, parts: &[IoSlice<'_>]) -> Result<(), Abort> {
    match rustix::net::sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
        // No room: as if it were lost on the way, so it is sent again after a while.
        Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(()),
        Err(Errno::CONNREFUSED) => Err(Abort::PortClosed),
        Err(error) => Err(Abort::Host(format!("cannot send: {error}"))),
    }
}

fn receive(socket: &OwnedFd, peer: SocketAddrV4, parts: &mut [IoSliceMut<'_>]) -> Got {
    let mut none = RecvAncillaryBuffer::default();
    match rustix::net::recvmsg(socket, parts, &mut none, RecvFlags::empty()) {
        // A packet that came before the socket was connected can be anybody's.
        Ok(got) if got.address != Some(SocketAddrAny::from(peer)) => Got::Stranger,
        Ok(got) => Got::Packet(got.bytes),
        Err(Errno::AGAIN | Errno::INTR) => Got::Nothing,
        Err(Errno::CONNREFUSED) => Got::Failed(Abort::PortClosed),
        Err(error) => Got::Failed(Abort::Host(format!("cannot receive: {error}"))),
    }
}

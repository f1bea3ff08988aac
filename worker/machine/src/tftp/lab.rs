//! What tests of a server share: one that is driven by hand, busybox, and clients that do as they
//! are told.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::event::{Abort, Event};
use super::packet::{Options, Packet, Way};
use super::server::{Limits, Offer, PutRule, Server};

/// Nothing here takes nearly as long, even on a busy machine.
pub(super) const LONG: Duration = Duration::from_secs(120);

pub(super) struct Lab {
    pub(super) directory: tempfile::TempDir,
    pub(super) server: Server,
    pub(super) events: Vec<Event>,
}

impl Lab {
    pub(super) fn new(offers: &[(&str, &[u8])], puts: &[(&str, u64)]) -> Self {
        let limits = Limits { reserve: 0, ..Limits::default() };
        Self::with(offers, puts, limits, None)
    }

    /// What is put lies in `below`, or a directory of its own. A name that ends in `*` may be put
    /// again, and `result` closes.
    pub(super) fn with(
        offers: &[(&str, &[u8])],
        puts: &[(&str, u64)],
        limits: Limits,
        below: Option<PathBuf>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let below = below.unwrap_or_else(|| directory.path().to_owned());
        let offers = offers.iter().map(|(name, bytes)| ((*name).to_owned(), Offer::Bytes((*bytes).into())));
        let put = |(name, max): &(&str, u64)| {
            let plain = name.trim_end_matches('*');
            let (path, closes) = (below.join(plain), plain == "result");
            let rule = PutRule { path, max: *max, replaceable: name.ends_with('*'), closes };
            (plain.to_owned(), rule)
        };
        let puts: BTreeMap<_, _> = puts.iter().map(put).collect();
        let mut server = Server::start(offers.collect(), puts, limits).unwrap();
        server.admit(Box::new(|_| Ok(())));
        Self { directory, server, events: Vec::new() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        names(self.directory.path())
    }

    /// Runs the server until something is so.
    pub(super) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + LONG;
        while !done(self) {
            assert!(Instant::now() < end, "it did not happen; events: {:?}", self.events);
            turn(&mut self.server, &mut self.events);
        }
    }

    pub(super) fn client(&self) -> Client {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Client { socket, server: SocketAddr::from(([127, 0, 0, 1], self.server.port())) }
    }

    /// The next packet that a client gets.
    pub(super) fn answer(&mut self, client: &Client) -> (Vec<u8>, SocketAddr) {
        let mut got = None;
        self.until(|_| {
            got = client.take();
            got.is_some()
        });
        got.unwrap()
    }

    /// Asks, and expects an error; answers its code and message.
    pub(super) fn refused(&mut self, way: Way, name: &str) -> (u16, String) {
        let client = self.client();
        client.ask(way, name, Options::default());
        error(&self.answer(&client).0)
    }

    /// Puts a file as long as it is let; answers the last packet of the server.
    pub(super) fn put(&mut self, name: &str, tsize: Option<u64>, block: u16, content: &[u8]) -> Vec<u8> {
        let client = self.client();
        client.ask(Way::Put, name, Options { tsize, blksize: Some(block), ..Options::default() });
        let (mut answer, port) = self.answer(&client);
        for (number, data) in (1_u16..).zip(content.chunks(block.into())) {
            client.send(port, &Packet::Data { block: number, data });
            answer = self.answer(&client).0;
            if Packet::parse(&answer) != Ok(Packet::Ack { block: number }) {
                break;
            }
        }
        answer
    }

    /// Runs everything to the end of a program.
    pub(super) fn busybox(&mut self, arguments: &[&str]) -> bool {
        let mut child = Process::busybox(self.server.port(), arguments, self.directory.path());
        let mut status = None;
        self.until(|_| {
            status = child.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().success()
    }

    pub(super) fn aborted(&self) -> Vec<&Abort> {
        let aborted = self.events.iter().filter_map(|event| match event {
            Event::Aborted { why, .. } => Some(why),
            _ => None,
        });
        aborted.collect()
    }
}

pub(super) fn turn(server: &mut Server, events: &mut Vec<Event>) {
    let [fd] = server.fds();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = Instant::now();
    let left = server.deadline().map(|deadline| deadline.saturating_duration_since(now));
    // Whoever drives this looks at other things too.
    let wait = left.map_or(Duration::from_millis(5), |left| left.min(Duration::from_millis(5)));
    crewboss_host::sys::poll(&mut fds, Some(wait)).unwrap();
    server.handle(Instant::now());
    events.extend(std::iter::from_fn(|| server.event()));
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

pub(super) struct Process(pub(super) Child);

impl Process {
    pub(super) fn busybox(port: u16, arguments: &[&str], directory: &Path) -> Self {
        let mut command = Command::new("busybox");
        command.arg("tftp").args(arguments).args(["127.0.0.1", &port.to_string()]).current_dir(directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("busybox is needed (the package busybox-static)"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub(super) struct Client {
    pub(super) socket: UdpSocket,
    pub(super) server: SocketAddr,
}

impl Client {
    pub(super) fn ask(&self, way: Way, name: &str, options: Options) {
        self.send(self.server, &Packet::Request { way, name: name.as_bytes(), mode: b"octet", options });
    }

    pub(super) fn send(&self, to: SocketAddr, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.write(&mut bytes);
        self.socket.send_to(&bytes, to).unwrap();
    }

    pub(super) fn take(&self) -> Option<(Vec<u8>, SocketAddr)> {
        let mut bytes = vec![0; 70_000];
        let (len, from) = self.socket.recv_from(&mut bytes).ok()?;
        bytes.truncate(len);
        Some((bytes, from))
    }
}

pub(super) fn error(bytes: &[u8]) -> (u16, String) {
    match Packet::parse(bytes) {
        Ok(Packet::Error { code, message }) => (code, String::from_utf8(message.to_vec()).unwrap()),
        other => panic!("no error, but {other:?}"),
    }
}

pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[2]
    })
    .take(len)
    .collect()
}

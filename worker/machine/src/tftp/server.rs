//! The sockets of a server, and what it may touch.
//!
//! A request is answered from a new port, and the transfer goes on between that port and the
//! guest's. Only plain names are known, exactly as they were put out: `task`, but neither `/task`
//! nor `./task`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crewboss_protocol::chain;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::RecvFlags;

use super::event::{Abort, Bucket, Counts, Event, Refusal, Reporter};
pub use super::file::Offer;
use super::file::{Reading, Writing};
use super::live::{self, Live, Standing};
use super::packet::{BLOCK_DEFAULT, Options, Packet, REQUEST_MAX, Way};
use super::source::{Check, Stranger, owned_by};
use super::transfer::{Pace, Terms};
use crate::books::room::RESERVE;

/// Bytes that are under way at once in a window, at most: sockets hold about three times as much.
const WINDOW_BYTES: u16 = u16::MAX;
/// Blocks in a window, at most.
const WINDOW_MAX: u16 = 64;
/// Longest interval that a client may ask for, in seconds.
const TIMEOUT_MAX: u8 = 60;
/// Requests that are looked at before transfers have their turn.
const TURN: usize = 16;
/// Requests that are looked at without delay, and how fast they may come after that.
const REQUESTS_AT_ONCE: u32 = 128;
const REQUEST_EVERY: Duration = Duration::from_millis(10);
/// A client that has moved within this time does not start again from the same port: a request is a
/// late copy.
const COPY_WITHIN: Duration = Duration::from_secs(1);

/// What a server may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Transfers at once.
    pub transfers: usize,
    /// Bytes that are kept free on the disk, but for files that cannot be larger.
    pub reserve: u64,
    /// When a silent client is asked again, and given up.
    pub pace: Pace,
}

impl Default for Limits {
    fn default() -> Self {
        let pace = Pace {
            first: Duration::from_millis(250),
            most: Duration::from_secs(4),
            patience: Duration::from_secs(30),
            dally: Duration::from_secs(5),
        };
        Self { transfers: 8, reserve: RESERVE, pace }
    }
}

/// What a guest may put under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutRule {
    /// Where it lies when it is complete.
    pub path: PathBuf,
    /// Its size in bytes, at most.
    pub max: u64,
    /// Whether it may be put again when it is complete.
    pub replaceable: bool,
    /// Whether nothing at all is taken after it.
    pub closes: bool,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a port on 127.0.0.1 for TFTP")]
pub struct ServerError {
    #[source]
    source: io::Error,
}

impl From<io::Error> for ServerError {
    fn from(source: io::Error) -> Self {
        Self { source }
    }
}

impl From<rustix::io::Errno> for ServerError {
    fn from(source: rustix::io::Errno) -> Self {
        Self { source: source.into() }
    }
}

#[derive(Debug)]
struct Expected {
    rule: PutRule,
    complete: bool,
}

/// A server for one guest. To be polled for reading; dropped, it leaves no half-written file.
pub struct Server {
    port: u16,
    listener: OwnedFd,
    epoll: OwnedFd,
    check: Check,
    offers: BTreeMap<String, Offer>,
    puts: BTreeMap<String, Expected>,
    limits: Limits,
    closed: bool,
    lives: BTreeMap<u64, Live>,
    last_id: u64,
    requests: Bucket,
    /// Until when no request is looked at.
    paused: Option<Instant>,
    reporter: Reporter,
    ready: Vec<epoll::Event>,
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = out.debug_struct("Server");
        shown.field("port", &self.port).field("lives", &self.lives).field("puts", &self.puts);
        shown.finish_non_exhaustive()
    }
}

impl Server {
    /// Opens a port. Every request is dropped until [`Self::guest_is`] says who the guest is.
    ///
    /// # Errors
    /// If no socket can be had.
    pub fn start(
        offers: BTreeMap<String, Offer>,
        puts: BTreeMap<String, PutRule>,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        let listener = live::loopback()?;
        let port = SocketAddrV4::try_from(rustix::net::getsockname(&listener)?)?.port();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let expected = |(name, rule)| (name, Expected { rule, complete: false });
        Ok(Self {
            port,
            listener,
            epoll,
            check: Box::new(|_| Err(Stranger::NoGuest)),
            offers,
            puts: puts.into_iter().map(expected).collect(),
            limits,
            closed: false,
            lives: BTreeMap::new(),
            last_id: 0,
            requests: Bucket::new(REQUESTS_AT_ONCE, REQUEST_EVERY),
            paused: None,
            reporter: Reporter::new(),
            ready: Vec::with_capacity(TURN),
        })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The guest is in this process; packets of all others are dropped.
    pub fn guest_is(&mut self, pid: u32) {
        self.check = owned_by(pid);
    }

    /// Decides in another way whose packets are looked at.
    pub fn admit(&mut self, check: Check) {
        self.check = check;
    }

    /// Puts something out, or something else under the same name. Transfers that run go on with the
    /// old.
    pub fn offer(&mut self, name: impl Into<String>, offer: Offer) {
        self.offers.insert(name.into(), offer);
    }

    /// Takes a name back. Transfers that run go on.
    pub fn withdraw(&mut self, name: &str) {
        self.offers.remove(name);
    }

    /// Takes nothing any more. What is being put is aborted.
    pub fn close(&mut self) {
        self.closed = true;
        let open = |live: &Live| live.way() == Way::Put && !live.complete();
        let ids: Vec<u64> = self.lives.iter().filter(|(_, live)| open(live)).map(|(id, _)| *id).collect();
        for id in ids {
            self.settle(id, Standing::Aborted(Abort::Closed));
        }
    }

    /// Transfers that are under way.
    pub fn running(&self) -> usize {
        self.lives.values().filter(|live| !live.complete()).count()
    }

    /// Takes the oldest event.
    pub fn event(&mut self) -> Option<Event> {
        self.reporter.take()
    }

    /// How often what happened.
    pub fn counts(&self) -> Counts {
        self.reporter.counts()
    }

    /// What is to be polled for reading: one descriptor, whatever goes on.
    pub fn fds(&self) -> [BorrowedFd<'_>; 1] {
        [self.epoll.as_fd()]
    }

    /// When [`Self::handle`] is to be called even if nothing can be read.
    pub fn deadline(&self) -> Option<Instant> {
        self.lives.values().map(Live::deadline).chain(self.paused).min()
    }

    /// Does whatever can be done now. Never waits.
    pub fn handle(&mut self, now: Instant) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // It fails only when interrupted, and then what is ready still is so the next time.
        if epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&at_once)).is_ok() {
            for event in &ready {
                let id = event.data.u64();
                if id == 0 {
                    self.listen(now);
                } else if let Some(live) = self.lives.get_mut(&id) {
                    let standing = live.readable(now);
                    self.settle(id, standing);
                }
            }
        }
        self.ready = ready;
        self.on_time(now);
    }

    fn on_time(&mut self, now: Instant) {
        let due = |live: &Live| live.deadline() <= now;
        let due: Vec<u64> = self.lives.iter().filter(|(_, live)| due(live)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(live) = self.lives.get_mut(&id) else { continue };
            let standing = live.on_time(now);
            self.settle(id, standing);
        }
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            self.hear_requests(epoll::EventFlags::IN);
        }
    }

    fn hear_requests(&self, flags: epoll::EventFlags) {
        // It cannot fail for a descriptor that is there; if it did, requests would be heard too
        // often or not at all.
        let _changed = epoll::modify(&self.epoll, &self.listener, epoll::EventData::new_u64(0), flags);
    }

    /// Acts on how a transfer stands.
    fn settle(&mut self, id: u64, standing: Standing) {
        let Some(live) = self.lives.get(&id) else { return };
        let name = live.name.clone();
        match standing {
            Standing::Running => return,
            Standing::Put(bytes) => {
                self.reporter.tell(Event::PutDone { name: name.clone(), bytes });
                self.complete(&name);
                return;
            }
            Standing::Got(bytes) => self.reporter.tell(Event::GetDone { name, bytes }),
            Standing::Over => {}
            Standing::Aborted(why) => {
                live.end(&why);
                self.reporter.tell(Event::Aborted { name, why });
            }
        }
        self.remove(id);
    }

    /// A file that was put is there.
    fn complete(&mut self, name: &str) {
        let Some(expected) = self.puts.get_mut(name) else { return };
        expected.complete = true;
        if expected.rule.closes {
            self.close();
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(live) = self.lives.remove(&id) {
            // Closing it would do, but for a child that has it for the moment before its program
            // starts.
            let _gone = epoll::delete(&self.epoll, &live.socket);
        }
    }

    /// Takes requests.
    fn listen(&mut self, now: Instant) {
        // A byte more than allowed, to see that it is too long.
        let mut bytes = [0_u8; REQUEST_MAX + 1];
        for _ in 0..TURN {
            let got = rustix::net::recvfrom(&self.listener, &mut bytes[..], RecvFlags::empty());
            let Ok((len, _, Some(from))) = got else { return };
            if let Ok(from) = SocketAddrV4::try_from(from) {
                match (self.check)(from) {
                    Ok(()) => self.request(&bytes[..len], from, now),
                    Err(why) => self.reporter.foreign(from, chain(&why), now),
                }
            }
            if !self.requests.take(now) {
                self.paused = self.requests.next();
                self.hear_requests(epoll::EventFlags::empty());
                return;
            }
        }
    }

    fn request(&mut self, bytes: &[u8], from: SocketAddrV4, now: Instant) {
        let refused = match Packet::parse(bytes) {
            _ if bytes.len() > REQUEST_MAX => {
                (&b""[..], Refusal::Malformed("the request is too long".to_owned()))
            }
            Err(why) => (&b""[..], Refusal::Malformed(why.to_string())),
            Ok(Packet::Request { way, name, mode, options }) => {
                if self.is_copy(from, way, name, now) {
                    return;
                }
                let begun = if mode.eq_ignore_ascii_case(b"octet") {
                    self.begin(way, name, options, from, now)
                } else {
                    Err(Refusal::Mode)
                };
                match begun {
                    Ok(()) => return,
                    Err(why) => (name, why),
                }
            }
            // Never answered: two programs could go on for ever.
            Ok(_) => {
                let why = Refusal::Malformed("it is no request".to_owned());
                return self.reporter.refused(b"", why, now);
            }
        };
        let (what, why) = refused;
        let told = match &why {
            // Paths of the host are none of the guest's business.
            Refusal::Host(_) => "the host cannot open it".to_owned(),
            why => why.to_string(),
        };
        live::refuse(&self.listener, from, why.code(), &told);
        self.reporter.refused(what, why, now);
    }

    /// Whether a request only repeats one that was heard. If the client starts again, its old
    /// transfer ends.
    fn is_copy(&mut self, from: SocketAddrV4, way: Way, name: &[u8], now: Instant) -> bool {
        let same = |live: &Live| live.peer == from && live.way() == way && live.name.as_bytes() == name;
        let Some((id, live)) = self.lives.iter().find(|(_, live)| same(live)) else { return false };
        if live.repeats(now, COPY_WITHIN) {
            return true;
        }
        let (id, standing) =
            (*id, if live.complete() { Standing::Over } else { Standing::Aborted(Abort::Again) });
        self.settle(id, standing);
        false
    }

    fn begin(
        &mut self,
        way: Way,
        name: &[u8],
        wanted: Options,
        from: SocketAddrV4,
        now: Instant,
    ) -> Result<(), Refusal> {
        let name = plain(name)?;
        match way {
            Way::Get => {
                let Some(offer) = self.offers.get(name) else {
                    return Err(if self.puts.contains_key(name) {
                        Refusal::WriteOnly
                    } else {
                        Refusal::Unknown
                    });
                };
                self.has_place()?;
                let content = Reading::open(offer).map_err(|error| Refusal::Host(error.to_string()))?;
                let granted = grant(Options { tsize: wanted.tsize.map(|_| content.size()), ..wanted });
                let terms = self.terms(&granted);
                let begun = Live::send(from, name, content, written(granted), terms, now);
                self.add(begun, Event::GetStarted { name: name.to_owned() })
            }
            Way::Put => {
                let granted = grant(wanted);
                let terms = self.terms(&granted);
                let file = self.open_put(name, &granted, terms)?;
                let begun = Live::receive(from, name, file, written(granted), terms, now);
                self.add(begun, Event::PutStarted { name: name.to_owned() })
            }
        }
    }

    fn open_put(&mut self, name: &str, granted: &Options, terms: Terms) -> Result<Writing, Refusal> {
        let Some(Expected { rule, complete }) = self.puts.get(name) else {
            return Err(if self.offers.contains_key(name) { Refusal::ReadOnly } else { Refusal::Unknown });
        };
        if self.closed {
            return Err(Refusal::Closed);
        }
        if *complete && !rule.replaceable {
            return Err(Refusal::Complete);
        }
        let announced = granted.tsize.unwrap_or(0);
        if announced > rule.max {
            return Err(Refusal::TooLarge { bytes: announced, max: rule.max });
        }
        // A client that was killed and started again has another port; the old transfer will not go
        // on.
        let same = |live: &Live| live.way() == Way::Put && live.name == name && !live.complete();
        let old = self.lives.iter().find(|(_, live)| same(live)).map(|(id, _)| *id);
        let (path, max) = (rule.path.clone(), rule.max);
        if let Some(id) = old {
            self.settle(id, Standing::Aborted(Abort::Again));
        }
        self.has_place()?;
        // What is kept free is for whatever is small: the result of a guest whose log has filled
        // the disk.
        let reserve = if max < self.limits.reserve { 0 } else { self.limits.reserve };
        Writing::begin(&path, announced, max, reserve, terms.block.into())
    }

    fn has_place(&self) -> Result<(), Refusal> {
        let running = self.running();
        if running < self.limits.transfers { Ok(()) } else { Err(Refusal::Busy(running)) }
    }

    fn terms(&self, granted: &Options) -> Terms {
        let pace = self.limits.pace;
        Terms {
            block: granted.blksize.unwrap_or(BLOCK_DEFAULT),
            window: granted.windowsize.unwrap_or(1),
            options: !granted.is_empty(),
            pace: granted.timeout.map_or(pace, |seconds| pace.every(seconds)),
        }
    }

    fn add(&mut self, begun: io::Result<(Live, Standing)>, event: Event) -> Result<(), Refusal> {
        let (live, standing) = begun.map_err(|error| Refusal::Host(error.to_string()))?;
        self.last_id += 1;
        let id = self.last_id;
        epoll::add(&self.epoll, &live.socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN)
            .map_err(|error| Refusal::Host(error.to_string()))?;
        self.lives.insert(id, live);
        self.reporter.tell(event);
        self.settle(id, standing);
        // Those that only wait for repetitions take no place from others, but there is an end.
        let mut waiting = self.lives.iter().filter(|(_, live)| live.complete());
        if let (Some((oldest, _)), true) = (waiting.next(), waiting.count() >= self.limits.transfers) {
            let oldest = *oldest;
            self.remove(oldest);
        }
        Ok(())
    }
}

/// The name, if it is a plain one.
fn plain(name: &[u8]) -> Result<&str, Refusal> {
    let separator = |byte: &u8| matches!(byte, b'/' | b'\\');
    if name.split(separator).any(|part| part == b"..") {
        return Err(Refusal::Upwards);
    }
    if name.first().is_some_and(separator) || name.get(1) == Some(&b':') {
        return Err(Refusal::Absolute);
    }
    if name.iter().any(separator) {
        return Err(Refusal::Directory);
    }
    std::str::from_utf8(name).map_err(|_| Refusal::Unknown)
}

/// What is granted of what was asked for.
fn grant(wanted: Options) -> Options {
    let block = wanted.blksize.unwrap_or(BLOCK_DEFAULT);
    let most = (WINDOW_BYTES / block).clamp(1, WINDOW_MAX);
    Options {
        timeout: wanted.timeout.filter(|seconds| *seconds <= TIMEOUT_MAX),
        windowsize: wanted.windowsize.map(|blocks| blocks.min(most)),
        ..wanted
    }
}

fn written(options: Options) -> Vec<u8> {
    let mut bytes = Vec::new();
    Packet::Oack { options }.write(&mut bytes);
    bytes
}

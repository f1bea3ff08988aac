//! One guest under control: QEMU, its channels, and what comes through them, as one thing that can
//! be polled.

use std::io;

use crewboss_ground::read_record;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_protocol::guest::{FromGuest, GuestLoad, GuestStream, ToGuest};
use crewboss_protocol::{Name, chain};
use rustix::event::PollFlags;
use rustix::io::Errno;

use super::console::Console;
use super::door::Door;
use super::kept::Kept;
use super::kills::KillCounts;
use super::verdict::Stop;
use crate::books::record::{GuestRecord, Step};
use crate::exchange::{PortDecoder, PortEvent, encode};
use crate::images::directory::Machines;
use crate::images::files;
use crate::qemu::child::Ended;
use crate::qemu::process::Qemu;
use crate::qemu::qmp::{Event as MonitorEvent, Incoming};
use crate::tftp;
use crate::tftp::server::Server;

/// How often a guest with our agent is asked how it is.
const PING_EVERY: Duration = Duration::from_secs(5);

/// After this long without a byte from its agent a guest counts as hung. A host that is short of
/// processors lets a guest wait for long, so it is generous.
pub const SILENCE: Duration = Duration::from_secs(120);

/// A document is a few lines.
pub(super) const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// What is read from one channel at one look, so that a flood on it does not hold up the others.
const READ_BYTES: usize = 256 << 10;

/// What may wait for an agent that does not read. What we say is little: an agent that lets this
/// much pile up hangs.
const UNREAD_BYTES_MAX: usize = 4 << 20;

/// What a guest did.
#[derive(Debug)]
pub enum GuestEvent {
    /// It printed this on its console.
    Console(Vec<u8>),
    /// Its agent said this.
    Said(FromGuest),
    /// It is there, and how.
    Alive(GuestLoad),
    /// A stage in it printed this.
    Output(GuestStream, Vec<u8>),
    /// What came from its agent makes no sense.
    Nonsense(String),
    /// It asked for its task by TFTP.
    Got,
    /// It gets its source by TFTP, or has got it.
    Source(Way),
    /// It begins to put this file by TFTP.
    Putting(String),
    /// It has put this file by TFTP.
    Put(String),
    /// It asked for what it may not have.
    Refused(String),
    /// A person lets its task go on.
    Released,
    /// Its agent has not said a word for this long.
    Silent(Duration),
    /// The host's disk is full or broken, and it felt that.
    DiskFailed(String),
    /// Its QEMU was killed from outside, as the kernel does for want of memory. It is gone, and not
    /// by its own doing.
    Killed(String),
    /// It is gone.
    Ended(String),
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// At its beginning.
    Begun,
    /// At its end.
    Ended,
}

/// What somebody else ends a process with. The other signals are of QEMU's own making, to which a
/// guest may drive it.
const FROM_OUTSIDE: [i32; 5] = [libc::SIGKILL, libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT];

/// Of what a service or a bootstrap printed before it failed, so many lines stand in the message.
const PRINTED_LINES: usize = 5;

/// What QEMU says of an operation that failed since the host's disk is broken, or its owner may
/// have no more of it.
const BROKEN_DISK: [&str; 3] = ["Input/output error", "Disk quota exceeded", "Read-only file system"];

/// A guest that runs. Killed and removed when dropped.
#[derive(Debug)]
pub struct Guest {
    /// Its machine.
    pub machine: Name,
    /// What the task calls it, if it serves.
    pub auxiliary: Option<Name>,
    /// How it was when its agent said so last.
    pub load: Option<GuestLoad>,
    /// The device and address that it has in the private network of its task.
    pub private: Option<(String, Ipv4Addr)>,
    /// What it has printed on its console.
    pub console: Console,
    /// What its agent brought of the output of what it runs.
    pub printed: Console,
    /// Whether its console belongs into the live view.
    pub shows_console: bool,
    /// Its record.
    pub record: GuestRecord,
    /// When QEMU was started.
    pub started: Instant,
    machines: Machines,
    directory: PathBuf,
    qemu: Qemu,
    kept: Kept,
    door: Option<Door>,
    talk: Talk,
    farewell: Option<String>,
    /// Whether somebody has asked QEMU to end.
    asked_to_end: bool,
    /// What the kernel had killed when it was started.
    kills: KillCounts,
    off: bool,
    ended: bool,
    removed: bool,
}

#[derive(Debug)]
enum Talk {
    Agent(Box<Port>),
    Tftp(Box<Server>),
}

#[derive(Debug)]
struct Port {
    decoder: PortDecoder,
    output: Vec<u8>,
    /// When it was heard last; `None` until it is up.
    heard: Option<Instant>,
    pinged: Instant,
    pings: u64,
    told_silent: bool,
}

impl Guest {
    pub(super) fn new(plan: Parts) -> Self {
        let talk = match plan.server {
            Some(server) => Talk::Tftp(Box::new(server)),
            None => Talk::Agent(Box::new(Port {
                decoder: PortDecoder::new(),
                output: Vec::new(),
                heard: None,
                pinged: Instant::now(),
                pings: 0,
                told_silent: false,
            })),
        };
        Self {
            machine: plan.record.machine.clone(),
            auxiliary: None,
            load: None,
            private: plan.private,
            console: Console::default(),
            printed: Console::default(),
            shows_console: plan.shows_console,
            directory: plan.record.snapshot(&plan.machines),
            record: plan.record,
            started: plan.started,
            machines: plan.machines,
            qemu: plan.qemu,
            kept: plan.kept,
            door: None,
            talk,
            farewell: None,
            asked_to_end: false,
            kills: KillCounts::now(),
            off: false,
            ended: false,
            removed: false,
        }
    }

    /// What a task calls it: by its service, or by its machine.
    pub fn called(&self) -> &Name {
        self.auxiliary.as_ref().unwrap_or(&self.machine)
    }

    /// The machine directory that it lies in.
    pub fn machines(&self) -> &Machines {
        &self.machines
    }

    /// How it was started.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Its agent knows its task.
    pub fn is_prepared(&mut self) {
        self.kept.prepared = true;
    }

    /// Lets people in who knock, until the door is closed by dropping what was opened before.
    ///
    /// # Errors
    /// If there can be no door.
    pub fn open_door(&mut self) -> io::Result<()> {
        self.door = Some(Door::open(&self.directory)?);
        Ok(())
    }

    /// Lets nobody in any more; whoever is inside hears of it.
    pub fn close_door(&mut self) {
        self.door = None;
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Notes how far it has come.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn advance(&mut self, step: Step) -> Result<(), Stop> {
        self.record.advance(&self.machines, step).map_err(|error| Stop::host(&error))?;
        crate::halt::at(step);
        Ok(())
    }

    /// Tells its agent something. A guest without an agent hears nothing.
    pub fn tell(&mut self, message: &ToGuest) -> Result<(), Stop> {
        let Talk::Agent(port) = &mut self.talk else { return Ok(()) };
        encode(message, &mut port.output).map_err(|error| Stop::Host(chain(&error)))?;
        self.write();
        Ok(())
    }

    /// Whether its agent has to be told an address, which it is with that; it answers that it has
    /// it.
    pub fn tell_address(&mut self) -> Result<bool, Stop> {
        let Talk::Agent(_) = &self.talk else { return Ok(false) };
        let Some((mac, address)) = self.private.clone() else { return Ok(false) };
        self.tell(&ToGuest::Network { mac, address }).map(|()| true)
    }

    /// What it puts under this name by TFTP lies here.
    pub fn put_file(&self, name: &str) -> PathBuf {
        files::put_file(&self.directory, name)
    }

    /// What it has put under this name, which is short.
    ///
    /// # Errors
    /// If it cannot be read, or is no text.
    pub fn put_text(&self, name: &str) -> io::Result<String> {
        let found = read_record(&self.put_file(name), DOCUMENT_BYTES_MAX)?;
        String::from_utf8(found.ok_or(io::ErrorKind::NotFound)?).map_err(io::Error::other)
    }

    /// What an event means while this guest serves: that it is missing, or nothing.
    ///
    /// # Errors
    /// If the task cannot go on without it.
    pub fn as_auxiliary(&self, event: GuestEvent) -> Result<(), Stop> {
        let why = match event {
            GuestEvent::Ended(how) => {
                format!("it {how}; its console ended with: {}", self.console.last_words(3))
            }
            GuestEvent::Silent(silence) => format!("it has not answered for {} s", silence.as_secs()),
            GuestEvent::Nonsense(why) => format!("what it sent cannot be read: {why}"),
            GuestEvent::Said(FromGuest::Failed { text, .. }) => text,
            _ => return Ok(()),
        };
        Err(Stop::Auxiliary { name: self.called().clone(), why: self.explained(why) })
    }

    /// Why something came to nothing, and what that printed last: it mostly says more.
    pub fn explained(&self, why: String) -> String {
        let words = self.printed.last_words(PRINTED_LINES);
        if words.is_empty() { why } else { format!("{why}; it printed last: {words}") }
    }

    /// Its monitor, and all else of QEMU.
    pub fn qemu(&mut self) -> &mut Qemu {
        &mut self.qemu
    }

    /// Whether it has switched itself off, in order: what it wrote to its disks is there.
    pub fn is_off(&self) -> bool {
        self.off
    }

    /// When it has to be looked at even if nothing can be read.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.talk {
            Talk::Agent(port) => port.deadline(),
            Talk::Tftp(server) => server.deadline(),
        }
        .filter(|_| !self.ended)
    }

    /// Adds what is to be polled.
    pub fn add_fds<'a>(&'a self, fds: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        if self.ended {
            return;
        }
        let flags = |writes: bool| if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        fds.push((self.qemu.child.fd(), PollFlags::IN));
        fds.push((self.qemu.qmp.fd(), flags(self.qemu.qmp.wants_write())));
        if !self.lends_console() {
            fds.push((self.qemu.console.as_fd(), PollFlags::IN));
        }
        fds.extend(self.door.iter().flat_map(Door::fds));
        fds.extend(self.qemu.child.words_fd().map(|fd| (fd, PollFlags::IN)));
        match &self.talk {
            Talk::Agent(port) => {
                fds.extend(self.qemu.agent.as_ref().map(|fd| (fd.as_fd(), flags(!port.output.is_empty()))));
            }
            Talk::Tftp(server) => fds.extend(server.fds().map(|fd| (fd, PollFlags::IN))),
        }
    }

    /// Takes whatever has come, without waiting.
    pub fn look(&mut self, now: Instant) -> Vec<GuestEvent> {
        let mut events = Vec::new();
        if self.ended {
            return events;
        }
        // First whether it has ended, then what it said: so nothing that was said before is missed.
        let ended = self.qemu.child.try_ended();
        self.qemu.child.hear();
        self.look_at_monitor(&mut events);
        self.look_at_door(&mut events);
        self.read_console(&mut events);
        self.write();
        match &mut self.talk {
            Talk::Agent(port) => port.look(&self.qemu, now, &mut events),
            Talk::Tftp(server) => look_at_server(server, now, &mut events),
        }
        for event in &events {
            if let GuestEvent::Output(_, bytes) = event {
                self.printed.push(bytes);
            }
        }
        if let Some(ended) = ended {
            self.ended = true;
            events.push(match self.killed_by(ended) {
                Some(signal) => GuestEvent::Killed(format!("{signal}{}", self.kills.since())),
                None => GuestEvent::Ended(self.how_it_ended(ended)),
            });
        }
        events
    }

    fn look_at_monitor(&mut self, events: &mut Vec<GuestEvent>) {
        // A monitor that fails means that QEMU is about to end, which shows by itself, or that it
        // makes no sense any more, which matters only to those who want something of it.
        let _silent = self.qemu.qmp.handle_writable().and_then(|()| self.qemu.qmp.handle_readable());
        while let Some(incoming) = self.qemu.qmp.take() {
            match incoming {
                Incoming::Event(MonitorEvent::Shutdown { guest: true, reason }) => {
                    self.off |= reason == "guest-shutdown";
                    self.farewell.get_or_insert(match reason.as_str() {
                        "guest-shutdown" => "switched itself off".to_owned(),
                        "guest-reset" => "reset itself".to_owned(),
                        "guest-panic" => "panicked".to_owned(),
                        other => format!("ended ({other})"),
                    });
                }
                Incoming::Event(MonitorEvent::Shutdown { guest: false, reason }) => {
                    self.asked_to_end |= reason == "host-signal";
                }
                Incoming::Event(MonitorEvent::GuestPanicked { .. }) => {
                    self.farewell = Some("panicked".to_owned());
                }
                // QEMU stops a guest whose disk finds no room, and would wait for somebody to make
                // some.
                Incoming::Event(MonitorEvent::BlockIoError { operation, reason, action, .. })
                    if action == "stop" =>
                {
                    events.push(GuestEvent::DiskFailed(format!(
                        "the host has no room for what a guest writes to its disk ({operation}: {reason})"
                    )));
                }
                // What a guest can bring about itself, as by writing to a disk that is read-only,
                // is none of these.
                Incoming::Event(MonitorEvent::BlockIoError { operation, reason, .. })
                    if BROKEN_DISK.contains(&reason.as_str()) =>
                {
                    events.push(GuestEvent::DiskFailed(format!(
                        "the host's disk fails a guest ({operation}: {reason})"
                    )));
                }
                _ => {}
            }
        }
    }

    /// What somebody else has ended it with, if it was somebody else.
    fn killed_by(&self, ended: Ended) -> Option<String> {
        match ended {
            Ended::Signal(signal) if FROM_OUTSIDE.contains(&signal) => Some(format!("signal {signal}")),
            // QEMU ends in order when it is asked to.
            Ended::Code(_) if self.asked_to_end => Some("a signal that asked it to end".to_owned()),
            _ => None,
        }
    }

    fn how_it_ended(&self, ended: Ended) -> String {
        if let Some(farewell) = &self.farewell {
            return farewell.clone();
        }
        let said = self.qemu.child.said();
        let said = said.lines().last().unwrap_or_default();
        let colon = if said.is_empty() { "" } else { ": " };
        format!("ended: QEMU left with {ended}{colon}{said}")
    }

    fn lends_console(&self) -> bool {
        self.door.as_ref().is_some_and(Door::lends_console)
    }

    fn look_at_door(&mut self, events: &mut Vec<GuestEvent>) {
        let Some(door) = &mut self.door else { return };
        if door.look(self.qemu.shell.as_ref().map(AsFd::as_fd), self.qemu.console.as_fd()) {
            events.push(GuestEvent::Released);
        }
    }

    fn read_console(&mut self, events: &mut Vec<GuestEvent>) {
        if self.lends_console() {
            return;
        }
        let mut bytes = Vec::new();
        read_some(self.qemu.console.as_fd(), &mut bytes);
        if !bytes.is_empty() {
            self.console.push(&bytes);
            events.push(GuestEvent::Console(bytes));
        }
    }

    fn write(&mut self) {
        let (Talk::Agent(port), Some(fd)) = (&mut self.talk, &self.qemu.agent) else { return };
        while !port.output.is_empty() {
            match rustix::io::write(fd, &port.output) {
                Ok(len) => drop(port.output.drain(..len)),
                Err(Errno::INTR) => {}
                // Later, or never: that it is gone shows elsewhere.
                Err(_) => return,
            }
        }
    }

    /// Ends it, whatever it does, and removes everything of it. Returns what could not be done.
    pub fn end(mut self) -> Vec<String> {
        self.take_down()
    }

    /// Gives it up as a running guest, but keeps what lies on the disk, for its record says that it
    /// is held.
    pub fn leave(mut self) -> Vec<String> {
        self.removed = true;
        self.take_down()
    }

    fn take_down(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.qemu.kill() {
            problems.push(format!("QEMU of the guest {} lives on after SIGKILL", self.record.id));
            // Its record must stay as long as it does, so that it is found again.
            self.removed = true;
        }
        if !std::mem::replace(&mut self.removed, true) {
            problems.extend(self.record.remove(&self.machines).err().map(|error| chain(&error)));
        }
        problems
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Whoever wants to know what could not be done calls `end`; what stays has a record, and is
        // swept.
        let _swept = self.take_down();
    }
}

/// What a guest is made of.
pub(super) struct Parts {
    pub machines: Machines,
    pub record: GuestRecord,
    pub qemu: Qemu,
    pub started: Instant,
    pub kept: Kept,
    pub server: Option<Server>,
    pub private: Option<(String, Ipv4Addr)>,
    pub shows_console: bool,
}

impl Port {
    fn deadline(&self) -> Option<Instant> {
        let silent = self.heard.filter(|_| !self.told_silent).map(|heard| heard + SILENCE);
        self.heard.map(|_| self.pinged + PING_EVERY).into_iter().chain(silent).min()
    }

    fn look(&mut self, qemu: &Qemu, now: Instant, events: &mut Vec<GuestEvent>) {
        let Some(fd) = &qemu.agent else { return };
        let mut bytes = Vec::new();
        read_some(fd.as_fd(), &mut bytes);
        if !bytes.is_empty() {
            self.heard = Some(now);
            self.told_silent = false;
            self.decoder.push(&bytes);
        }
        while let Some(event) = self.decoder.next_event() {
            match event {
                PortEvent::Message(FromGuest::Alive { load, .. }) => events.push(GuestEvent::Alive(load)),
                PortEvent::Message(message) => events.push(GuestEvent::Said(message)),
                PortEvent::Output(stream, bytes) => events.push(GuestEvent::Output(stream, bytes.to_vec())),
                PortEvent::Bad(why) => events.push(GuestEvent::Nonsense(why)),
            }
        }
        self.ping(now, events);
    }

    fn ping(&mut self, now: Instant, events: &mut Vec<GuestEvent>) {
        let Some(heard) = self.heard else { return };
        let silence = now.saturating_duration_since(heard);
        if silence >= SILENCE && !self.told_silent {
            self.told_silent = true;
            events.push(GuestEvent::Silent(silence));
        }
        if now >= self.pinged + PING_EVERY && self.output.len() < UNREAD_BYTES_MAX {
            self.pinged = now;
            self.pings += 1;
            // A ping is always short enough.
            let _encoded = encode(&ToGuest::Ping { number: self.pings }, &mut self.output);
        }
    }
}

fn look_at_server(server: &mut Server, now: Instant, events: &mut Vec<GuestEvent>) {
    server.handle(now);
    while let Some(event) = server.event() {
        match event {
            tftp::Event::GetStarted { name } if name == files::SOURCE => {
                events.push(GuestEvent::Source(Way::Begun));
            }
            tftp::Event::GetStarted { .. } => events.push(GuestEvent::Got),
            tftp::Event::GetDone { name, .. } if name == files::SOURCE => {
                events.push(GuestEvent::Source(Way::Ended));
            }
            tftp::Event::GetDone { .. } => {}
            tftp::Event::PutStarted { name } => events.push(GuestEvent::Putting(name)),
            tftp::Event::PutDone { name, .. } => events.push(GuestEvent::Put(name)),
            tftp::Event::Aborted { name, why } => events.push(GuestEvent::Refused(format!("{name}: {why}"))),
            tftp::Event::Refused { what, why, .. } => {
                events.push(GuestEvent::Refused(format!("{what}: {why}")));
            }
            tftp::Event::Foreign { from, why, .. } => {
                events.push(GuestEvent::Refused(format!(
                    "a packet from {from}, which is not the guest: {why}"
                )));
            }
        }
    }
}

/// Reads what is there, up to a limit.
fn read_some(fd: BorrowedFd<'_>, bytes: &mut Vec<u8>) {
    let mut piece = [0; 32 << 10];
    while bytes.len() < READ_BYTES {
        match rustix::io::read(fd, &mut piece) {
            Ok(len) if len > 0 => bytes.extend_from_slice(&piece[..len]),
            Err(Errno::INTR) => {}
            // Nothing there now, or never again: then QEMU has ended, which shows by its process.
            _ => return,
        }
    }
}

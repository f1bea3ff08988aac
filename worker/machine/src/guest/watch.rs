//! Waiting for several guests and the worker proper at once.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crewboss_host::sys;
use crewboss_protocol::{FromWorker, Millis, Phase, PhaseClock, Phases, TaskRef};
use rustix::event::{PollFd, PollFlags};

use super::hub::Hub;
use super::listener::Listener;
use super::running::{Guest, GuestEvent};
use super::verdict::Stop;

/// What there was to see.
#[derive(Debug)]
pub enum Seen {
    /// A guest did something; its place among those watched.
    Guest(usize, GuestEvent),
    /// It is over, whatever was being done: the host's disk fails a guest, or somebody has killed
    /// one.
    Stop(Stop),
    /// The worker proper wants an end, or is gone.
    Cancelled,
    /// The time is up.
    TimeUp,
}

/// Watches over the guests of one attempt.
#[derive(Debug)]
pub struct Watch<'a> {
    /// The line to the worker proper.
    pub link: &'a mut dyn Listener,
    /// What the guest of a bootstrap that failed has printed.
    pub console: Option<Vec<u8>>,
    /// The network between the guests, if they have one.
    pub hub: Hub,
    /// What the attempt is at, and has been at.
    pub clock: PhaseClock,
    at: TaskRef,
    seen: VecDeque<Seen>,
    cancelled: bool,
}

impl<'a> Watch<'a> {
    /// For an attempt that has just got its slot, and came so far before.
    pub fn new(link: &'a mut dyn Listener, at: TaskRef, before: Phases) -> Self {
        let mut clock = PhaseClock::after(before);
        // The worker proper has said so.
        clock.begin(Phase::Machine, Millis::now());
        link.note(&Phase::Machine);
        Self { link, console: None, hub: Hub::default(), clock, at, seen: VecDeque::new(), cancelled: false }
    }

    /// What the attempt is at.
    pub fn phase(&self) -> Phase {
        self.clock.current().cloned().unwrap_or(Phase::Machine)
    }

    /// The attempt comes to its next phase.
    pub fn begin(&mut self, phase: Phase) {
        if self.clock.current() != Some(&phase) {
            self.link.note(&phase);
            self.clock.begin(phase, Millis::now());
            self.step("");
        }
    }

    /// Tells a person what goes on in this phase.
    pub fn step(&mut self, text: impl Into<String>) {
        self.link.promise(Instant::now());
        let text = crewboss_host::text::shortened(text.into());
        self.link.forward(&FromWorker::Phase { at: self.at, phase: self.phase(), text });
    }

    /// Waits until something happens that its caller has to know, for no longer than `until`.
    /// Consoles are kept, and shown live if they are the build machine's; pings are sent and
    /// answered.
    pub fn next(&mut self, guests: &mut [Guest], until: Instant) -> Seen {
        self.link.promise(until);
        loop {
            // Before the first wait too: what came together with the job has been read with it, and
            // no poll tells of it.
            self.hear();
            if self.cancelled {
                return Seen::Cancelled;
            }
            if let Some(seen) = self.seen.pop_front() {
                return seen;
            }
            let now = Instant::now();
            if now >= until {
                return Seen::TimeUp;
            }
            let live = self.link.flush_live(self.at, now);
            self.wait(guests, now, live.map_or(until, |due| until.min(now + due)));
            self.look(guests, Instant::now());
        }
    }

    /// Ends the guest that was started last, with all that it did and nobody has seen: its place
    /// may be another's soon.
    pub fn end_last(&mut self, guests: &mut Vec<Guest>) {
        let Some(guest) = guests.pop() else { return };
        let gone = guests.len();
        self.seen.retain(|seen| !matches!(seen, Seen::Guest(index, _) if *index == gone));
        for problem in guest.end() {
            self.step(problem);
        }
    }

    /// Whether the worker proper wants an end, or is gone: for work that cannot wait in
    /// [`Self::next`].
    pub fn is_cancelled(&mut self) -> bool {
        let heard = self.link.fd().is_some_and(|fd| {
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            sys::poll(&mut fds, Some(Duration::ZERO)).is_ok_and(|ready| ready > 0)
        });
        if heard {
            self.link.fill();
        }
        self.hear();
        self.cancelled
    }

    /// Waits for a moment, watching nothing but the worker proper. Returns false when it wants an
    /// end.
    pub fn pause(&mut self, duration: Duration) -> bool {
        matches!(self.next(&mut [], Instant::now() + duration), Seen::TimeUp)
    }

    fn wait(&mut self, guests: &[Guest], now: Instant, until: Instant) {
        let until = guests.iter().filter_map(Guest::deadline).fold(until, Instant::min);
        let mut fds: Vec<(BorrowedFd<'_>, PollFlags)> = Vec::with_capacity(8);
        // Without the worker proper nothing is waited for.
        let Some(link) = self.link.fd() else { return };
        fds.push((link, PollFlags::IN));
        guests.iter().for_each(|guest| guest.add_fds(&mut fds));
        fds.extend(self.hub.fds().map(|fd| (fd, PollFlags::IN)));
        let mut polled: Vec<PollFd<'_>> =
            fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        // Whatever poll has against it, every descriptor is looked at afterwards anyway.
        let _ready = sys::poll(&mut polled, Some(until.saturating_duration_since(now)));
        let heard = !polled[0].revents().is_empty();
        drop(polled);
        drop(fds);
        if heard {
            self.link.fill();
        }
    }

    fn hear(&mut self) {
        self.cancelled |= self.link.is_cancelled(self.at);
    }

    fn look(&mut self, guests: &mut [Guest], now: Instant) {
        self.hub.forward();
        for (index, guest) in guests.iter_mut().enumerate() {
            for event in guest.look(now) {
                match event {
                    GuestEvent::Console(bytes) => {
                        if guest.shows_console {
                            self.link.live(&bytes);
                        }
                    }
                    GuestEvent::Alive(load) => {
                        let machine = guest.called().clone();
                        self.link.forward(&FromWorker::GuestLoad { at: self.at, machine, load });
                        guest.load = Some(load);
                    }
                    GuestEvent::DiskFailed(why) => self.seen.push_back(Seen::Stop(Stop::Host(why))),
                    GuestEvent::Killed(how) => {
                        let machine = guest.machine.clone();
                        self.seen.push_back(Seen::Stop(Stop::Killed { machine, how }));
                    }
                    event => self.seen.push_back(Seen::Guest(index, event)),
                }
            }
        }
    }
}

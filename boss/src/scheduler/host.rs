//! What the scheduler knows of a host.

use std::collections::{BTreeMap, BTreeSet};

use crewboss_protocol::TaskId;

use super::requirement::{MachineNeed, Offer};
use super::types::ChainId;
use crewboss_protocol::Millis;

/// Added to the round trip when work is sent ahead: covers the scheduling jitter of both sides and
/// lets the estimate grow while the link, and not the host, is what limits the rate.
pub const JITTER_COVER_MICROS: u64 = 25_000;
/// Most tasks sent ahead to one host: enough for 5,000 tasks a second over 50 ms, and little to ask
/// back at the tail.
pub const AHEAD_MAX: u32 = 256;
/// Failures in a row after which a host is paused.
pub const STRIKES_MAX: u32 = 3;
/// The first pause; every further one in a row is twice as long.
pub const PAUSE_FIRST_MS: u64 = 10_000;
/// The longest pause.
pub const PAUSE_MAX_MS: u64 = 300_000;
/// Pauses in a row after which the host is out: about five minutes in all with the values above.
pub const PAUSES_MAX: u32 = 5;
/// More than the protocol lets a worker claim; keeps sums within their types.
const SLOTS_MAX: u32 = 65_536;
/// A thousand times the reference machine; what the protocol lets a worker claim.
const SPEED_MAX: u32 = 1_000_000;
/// A longer round trip is an outage, not a property of the link.
const ROUND_TRIP_MAX_MICROS: u64 = 10_000_000;
/// A longer run says nothing more for the estimates (100 days), and sums of it do not overflow.
const RUN_MAX_MS: u64 = 100 * 24 * 3_600_000;
/// Completions are counted over at least this long for one estimate of the rate.
const RATE_WINDOW_MS: u64 = 20;
/// Shorter runs say more about the link than about the host's speed.
const SPEED_SAMPLE_MIN_MS: u64 = 100;

/// The session with a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// Not yet up for the first time.
    Connecting,
    /// Up.
    Up,
    /// Lost; being made again if `returns`.
    Down { reason: String, returns: bool },
}

/// Whether a host can be trusted with work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    Paused {
        until: Millis,
        reason: String,
    },
    /// After a pause: one task at a time until there is a result.
    Trial,
}

#[derive(Debug)]
pub(super) struct Host {
    pub link: Link,
    pub health: Health,
    /// Out of the run for good.
    pub out: bool,
    /// The last offer; none before the first session.
    pub offer: Option<Offer>,
    pub slots: u32,
    /// Slots that it can use now; other bosses may hold the rest.
    pub usable: u32,
    pub speed: u32,
    /// Not started, by the number of the hand-out.
    pub sent: BTreeMap<u64, TaskId>,
    /// How many of `sent` have been asked back.
    pub recalled: u32,
    pub running: BTreeSet<TaskId>,
    /// When something should have started, if anything could.
    pub start_due: Option<Millis>,
    /// Trees that are being brought there: what was sent may wait for them.
    pub sources_under_way: u32,
    /// Its session is to be ended.
    pub stuck: bool,
    /// Tasks asked back from elsewhere for this host, and not yet answered.
    pub expecting: u32,
    /// Chains of which a task is held.
    pub chains: BTreeSet<ChainId>,
    /// Chains of which a task has had a result here.
    pub warm: BTreeSet<ChainId>,
    /// Held tasks on their last attempt.
    pub last_attempts: u32,
    pub strikes: u32,
    /// The same of what its machines are to blame for, by the machines of a task.
    pub machine_strikes: BTreeMap<Vec<MachineNeed>, u32>,
    pub pauses: u32,
    round_trip_micros: u64,
    /// Completions per 1,000 seconds, smoothed.
    rate: u64,
    window_start: Millis,
    window_count: u64,
    /// Run time of a task, smoothed; 0 if none has ended.
    pub mean_ms: u64,
    /// When a task last started or ended here.
    pub progress: Millis,
}

impl Host {
    pub fn new() -> Self {
        Self {
            link: Link::Connecting,
            health: Health::Well,
            out: false,
            offer: None,
            slots: 1,
            usable: 1,
            speed: 1,
            sent: BTreeMap::new(),
            recalled: 0,
            running: BTreeSet::new(),
            start_due: None,
            sources_under_way: 0,
            stuck: false,
            expecting: 0,
            chains: BTreeSet::new(),
            warm: BTreeSet::new(),
            last_attempts: 0,
            strikes: 0,
            machine_strikes: BTreeMap::new(),
            pauses: 0,
            round_trip_micros: 0,
            rate: 0,
            window_start: Millis(0),
            window_count: 0,
            mean_ms: 0,
            progress: Millis(0),
        }
    }

    /// A new session begins.
    pub fn come_up(&mut self, offer: Offer, now: Millis) {
        self.link = Link::Up;
        (self.stuck, self.sources_under_way) = (false, 0);
        self.slots = offer.slots.clamp(1, SLOTS_MAX);
        self.usable = self.slots;
        self.speed = offer.speed.clamp(1, SPEED_MAX);
        self.offer = Some(offer);
        self.progress = now;
        self.window_start = now;
        self.window_count = 0;
        self.rate = 0;
    }

    pub fn is_active(&self) -> bool {
        self.link == Link::Up && !self.out && !matches!(self.health, Health::Paused { .. })
    }

    pub fn held(&self) -> u32 {
        let held = self.sent.len() + self.running.len();
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// Tasks it may run at once.
    pub fn capacity(&self) -> u32 {
        match self.health {
            _ if !self.is_active() => 0,
            Health::Trial => 1,
            _ => self.usable,
        }
    }

    /// Tasks it may hold beyond its capacity.
    pub fn ahead(&self) -> u32 {
        if !self.is_active() || self.health != Health::Well {
            return 0;
        }
        let cover = self.round_trip_micros.saturating_add(JITTER_COVER_MICROS);
        let tasks = self.rate.saturating_mul(cover).div_ceil(1_000_000_000);
        u32::try_from(tasks).unwrap_or(AHEAD_MAX).clamp(1, AHEAD_MAX)
    }

    pub fn free(&self) -> u32 {
        self.capacity().saturating_sub(self.held())
    }

    pub fn room(&self) -> u32 {
        (self.capacity() + self.ahead()).saturating_sub(self.held())
    }

    /// How loaded it would be with one more task, relative to what it can do.
    pub fn load_with_one_more(&self) -> u64 {
        (u64::from(self.held()) + 1) * 1_000_000_000 / self.weight()
    }

    pub fn weight(&self) -> u64 {
        u64::from(self.slots) * u64::from(self.speed)
    }

    /// Speeds within about an eighth count as equal, so that noise does not decide who gets
    /// everything.
    pub fn speed_class(&self) -> u32 {
        let octave = self.speed.ilog2();
        let within = (u64::from(self.speed) * 8) >> octave;
        octave * 8 + u32::try_from(within.saturating_sub(8)).unwrap_or(0)
    }

    /// Tasks that will wait for a slot and have not been asked back.
    pub fn excess(&self) -> u32 {
        // What already runs keeps its slot, whatever was told of the others.
        let unstarted = u32::try_from(self.sent.len()).unwrap_or(u32::MAX) - self.recalled;
        (self.held() - self.recalled).saturating_sub(self.usable).min(unstarted)
    }

    pub fn note_round_trip(&mut self, micros: u64) {
        let micros = micros.min(ROUND_TRIP_MAX_MICROS);
        self.round_trip_micros = match self.round_trip_micros {
            0 => micros,
            // A sudden delay counts at once, a shorter one slowly: sending too little ahead costs
            // more.
            old if micros > old => micros,
            old => (old * 7 + micros) / 8,
        };
    }

    pub fn round_trip_ms(&self) -> u64 {
        self.round_trip_micros / 1000
    }

    /// An attempt ended after running for so long, if its start was seen.
    pub fn note_end(&mut self, now: Millis, ran_ms: Option<u64>, expected_ms: Option<u64>) {
        self.progress = now;
        self.window_count += 1;
        let elapsed = now.0.saturating_sub(self.window_start.0);
        if elapsed >= RATE_WINDOW_MS {
            let rate = self.window_count.saturating_mul(1_000_000) / elapsed;
            self.rate = if self.rate == 0 { rate } else { rate.midpoint(self.rate) };
            self.window_start = now;
            self.window_count = 0;
        }
        let Some(ran) = ran_ms.map(|ran| ran.min(RUN_MAX_MS)) else { return };
        self.mean_ms = if self.mean_ms == 0 { ran.max(1) } else { ((self.mean_ms * 7 + ran) / 8).max(1) };
        if let Some(expected) = expected_ms.filter(|_| ran >= SPEED_SAMPLE_MIN_MS) {
            let offered = u64::from(self.offer.as_ref().map_or(1, |offer| offer.speed.max(1)));
            // One odd task must not make a host look ten times as fast or slow as it was measured.
            let seen = (expected.saturating_mul(1000) / ran).clamp(offered / 4, offered.saturating_mul(4));
            let speed = (u64::from(self.speed) * 15 + seen) / 16;
            self.speed = u32::try_from(speed).unwrap_or(SPEED_MAX).clamp(1, SPEED_MAX);
        }
    }

    pub fn pause_ms(&self) -> u64 {
        let doublings = self.pauses.saturating_sub(1).min(16);
        (PAUSE_FIRST_MS << doublings).min(PAUSE_MAX_MS)
    }
}

//! What a server tells: few events, whatever a guest does.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::packet::Code;

/// Events that wait to be taken. What comes when so many wait is only counted, except completed
/// files.
const WAITING_MAX: usize = 256;

/// Refusals that are told at once, before the rate below holds.
const REFUSALS_AT_ONCE: u32 = 32;

/// One more refusal may be told after this time.
const REFUSAL_EVERY: Duration = Duration::from_secs(5);

/// Bytes of a foreign name or message that are shown.
const SHOWN_MAX: usize = 64;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest gets this. A repeated request for it is a new event.
    GetStarted {
        /// The name.
        name: String,
    },
    /// The guest has got all of it.
    GetDone {
        /// The name.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// The guest puts this.
    PutStarted {
        /// The name.
        name: String,
    },
    /// It is complete, and lies under its final name.
    PutDone {
        /// The name.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// A transfer ended before its end. What had come of a file is removed.
    Aborted {
        /// The name.
        name: String,
        /// Why.
        why: Abort,
    },
    /// A request was refused, and the guest was told so.
    Refused {
        /// What was asked for: shortened, without control characters.
        what: String,
        /// Why.
        why: Refusal,
        /// Refusals before it that were not told, since there were too many.
        untold: u64,
    },
    /// A packet that does not come from the guest was dropped without an answer.
    Foreign {
        /// Where it came from.
        from: SocketAddrV4,
        /// How that was found out.
        why: String,
        /// Such packets before it that were not told, since there were too many.
        untold: u64,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no request.
    #[error("{0}")]
    Malformed(String),
    /// Another mode than `octet`.
    #[error("only the mode octet is known; the client must send files as they are (binary)")]
    Mode,
    /// A name that leads upwards.
    #[error("the name has `..`")]
    Upwards,
    /// A name from the root.
    #[error("the name is absolute; only the plain name is known")]
    Absolute,
    /// Another name with directories, such as `./x`.
    #[error("the name has a directory; only the plain name is known")]
    Directory,
    /// Nothing of this name was put out or is expected.
    #[error("there is no such file here")]
    Unknown,
    /// It can be got, but not put.
    #[error("it can only be read")]
    ReadOnly,
    /// It can be put, but not got.
    #[error("it can only be written")]
    WriteOnly,
    /// It was put before.
    #[error("it is complete, and is taken once")]
    Complete,
    /// Nothing is taken any more.
    #[error("the result is complete; nothing is taken after it")]
    Closed,
    /// It says that it is larger than allowed.
    #[error("{bytes} bytes are announced; {max} is the most")]
    TooLarge {
        /// What it says.
        bytes: u64,
        /// What is allowed.
        max: u64,
    },
    /// There is no room on the host's disk.
    #[error(
        "the disk of the host has no room for it: {free} bytes are free, of which {reserve} are kept free"
    )]
    NoRoom {
        /// Free bytes.
        free: u64,
        /// Bytes that are kept free.
        reserve: u64,
    },
    /// There are too many transfers.
    #[error("{0} transfers are running, more are not allowed")]
    Busy(usize),
    /// The host cannot read or write it.
    #[error("the host cannot open it: {0}")]
    Host(String),
}

impl Refusal {
    /// How the protocol calls it.
    pub fn code(&self) -> Code {
        match self {
            Refusal::Malformed(_) | Refusal::Mode => Code::Illegal,
            Refusal::Unknown => Code::NotFound,
            Refusal::Upwards
            | Refusal::Absolute
            | Refusal::Directory
            | Refusal::ReadOnly
            | Refusal::WriteOnly
            | Refusal::Closed => Code::Access,
            Refusal::Complete => Code::Exists,
            Refusal::TooLarge { .. } | Refusal::NoRoom { .. } => Code::Full,
            Refusal::Busy(_) | Refusal::Host(_) => Code::Undefined,
        }
    }
}

/// Why a transfer ended before its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Abort {
    /// The guest ended it.
    #[error("the guest ended it: error {code}, {message:?}")]
    Guest {
        /// The code of its error.
        code: u16,
        /// What it said, shortened.
        message: String,
    },
    /// The guest went silent.
    #[error("the guest brought it no further for {} s", .0.as_secs())]
    Silent(Duration),
    /// The guest's port was closed: its client or its machine has ended.
    #[error("the port of the guest is closed")]
    PortClosed,
    /// The guest started it again.
    #[error("the guest started it again")]
    Again,
    /// More data than allowed.
    #[error("it is larger than {max} bytes")]
    TooLarge {
        /// What is allowed.
        max: u64,
    },
    /// There is no room on the host's disk.
    #[error("the disk of the host has no more room for it")]
    NoRoom,
    /// The result was complete before it was.
    #[error("the result was complete before it")]
    Closed,
    /// A packet that makes no sense.
    #[error("the guest sent what makes no sense: {0}")]
    Protocol(&'static str),
    /// The host cannot read or write it.
    #[error("the host cannot go on with it: {0}")]
    Host(String),
}

impl Abort {
    /// How the protocol calls it, if the guest is to be told.
    pub fn code(&self) -> Option<Code> {
        match self {
            Abort::Guest { .. } | Abort::PortClosed => None,
            Abort::TooLarge { .. } | Abort::NoRoom => Some(Code::Full),
            Abort::Closed => Some(Code::Access),
            Abort::Protocol(_) => Some(Code::Illegal),
            Abort::Silent(_) | Abort::Again | Abort::Host(_) => Some(Code::Undefined),
        }
    }
}

/// How often what happened, also as far as it was not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files that the guest got.
    pub got: u64,
    /// Files that the guest put.
    pub put: u64,
    /// Bytes of both, as far as they were complete.
    pub bytes: u64,
    /// Transfers that ended before their end.
    pub aborted: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Packets from elsewhere.
    pub foreign: u64,
    /// Events that nobody was told.
    pub untold: u64,
}

/// A text of a guest, to be shown to a person: shortened, without control characters.
pub fn shown(text: &[u8]) -> String {
    let cut = text.len().min(SHOWN_MAX);
    let mut shown: String =
        String::from_utf8_lossy(&text[..cut]).chars().flat_map(char::escape_debug).collect();
    if cut < text.len() {
        shown.push_str("...");
    }
    shown
}

/// Allows a number of things at once, and a rate after it.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    left: u32,
    size: u32,
    every: Duration,
    since: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(size: u32, every: Duration) -> Self {
        Self { left: size, size, every, since: None }
    }

    /// Whether one more is allowed.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        let whole = u32::try_from(passed.as_nanos() / self.every.as_nanos().max(1)).unwrap_or(u32::MAX);
        if whole > 0 {
            self.left = self.left.saturating_add(whole).min(self.size);
            // What is left of a step counts for the next one, unless the bucket was full long ago.
            let steps = self.every.checked_mul(whole).unwrap_or(passed);
            self.since = Some(since + steps);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }

    /// When there is one again, if there is none now.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.left > 0 { None } else { self.since.map(|since| since + self.every) }
    }
}

/// The events that wait, and the counts.
#[derive(Debug)]
pub(super) struct Reporter {
    waiting: VecDeque<Event>,
    counts: Counts,
    refusals: Bucket,
    foreign: Bucket,
    untold_refusals: u64,
    untold_foreign: u64,
}

impl Reporter {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            counts: Counts::default(),
            refusals: Bucket::new(REFUSALS_AT_ONCE, REFUSAL_EVERY),
            foreign: Bucket::new(REFUSALS_AT_ONCE, REFUSAL_EVERY),
            untold_refusals: 0,
            untold_foreign: 0,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn take(&mut self) -> Option<Event> {
        self.waiting.pop_front()
    }

    /// Tells a thing that happened to a transfer.
    pub(super) fn tell(&mut self, event: Event) {
        match &event {
            Event::GetDone { bytes, .. } => {
                self.counts.got += 1;
                self.counts.bytes = self.counts.bytes.saturating_add(*bytes);
            }
            Event::PutDone { bytes, .. } => {
                self.counts.put += 1;
                self.counts.bytes = self.counts.bytes.saturating_add(*bytes);
            }
            Event::Aborted { .. } => self.counts.aborted += 1,
            _ => {}
        }
        if self.waiting.len() < WAITING_MAX || matches!(event, Event::PutDone { .. }) {
            self.waiting.push_back(event);
        } else {
            self.counts.untold += 1;
        }
    }

    pub(super) fn refused(&mut self, what: &[u8], why: Refusal, now: Instant) {
        self.counts.refused += 1;
        if self.waiting.len() >= WAITING_MAX || !self.refusals.take(now) {
            self.untold_refusals += 1;
            self.counts.untold += 1;
            return;
        }
        let untold = std::mem::take(&mut self.untold_refusals);
        self.waiting.push_back(Event::Refused { what: shown(what), why, untold });
    }

    pub(super) fn foreign(&mut self, from: SocketAddrV4, why: String, now: Instant) {
        self.counts.foreign += 1;
        if self.waiting.len() >= WAITING_MAX || !self.foreign.take(now) {
            self.untold_foreign += 1;
            self.counts.untold += 1;
            return;
        }
        let untold = std::mem::take(&mut self.untold_foreign);
        self.waiting.push_back(Event::Foreign { from, why, untold });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_guest_is_short_and_harmless() {
        assert_eq!(shown(b"task"), "task");
        assert_eq!(shown(b"\x1b[2J\n\"\xff"), "\\u{1b}[2J\\n\\\"\u{fffd}");
        let long = shown(&[b'a'; 500]);
        assert_eq!(long.len(), SHOWN_MAX + 3);
        assert!(long.ends_with("a..."));
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_told_now_and_then() {
        let start = Instant::now();
        let mut reporter = Reporter::new();
        for index in 0..10_000 {
            let now = start + Duration::from_millis(index);
            reporter.refused(b"x", Refusal::Unknown, now);
            reporter.foreign("127.0.0.1:1".parse().unwrap(), "test".to_owned(), now);
        }
        let told: Vec<_> = std::iter::from_fn(|| reporter.take()).collect();
        assert_eq!(told.len(), 2 * (REFUSALS_AT_ONCE as usize + 1));
        assert!(matches!(told[told.len() - 1], Event::Foreign { untold, .. } if untold > 4000), "{told:?}");
        let counts = reporter.counts();
        assert_eq!((counts.refused, counts.foreign), (10_000, 10_000));
        assert_eq!(counts.untold, 20_000 - told.len() as u64);
    }

    #[test]
    fn a_bucket_fills_again_with_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2, Duration::from_secs(1));
        assert!(bucket.take(start) && bucket.take(start) && !bucket.take(start));
        let next = bucket.next().unwrap();
        assert_eq!(next, start + Duration::from_secs(1));
        assert!(bucket.take(next) && !bucket.take(next));
        let late = next + Duration::from_secs(100);
        assert!(bucket.take(late) && bucket.take(late) && !bucket.take(late));
    }
}

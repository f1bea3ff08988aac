//! What the run loop and the hosts' sessions say to each other inside the boss.

use super::collect::{Missing, Seen};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crewboss_protocol::message::Ready;
use crewboss_protocol::{FromWorker, TaskRef, ToWorker, TreeId};

use crate::scheduler::HostIndex;

/// From a host's session to the run loop.
#[derive(Debug)]
pub struct Report {
    /// Which host.
    pub host: HostIndex,
    /// What happened.
    pub news: News,
}

/// What happened at a host.
#[derive(Debug)]
pub enum News {
    /// Connecting begins.
    Connecting,
    /// The binary was sent.
    Shipped {
        /// Its size.
        bytes: u64,
    },
    /// A worker takes tasks. A new session begins: nothing of an earlier one is left there.
    Ready {
        /// The session's number. Orders name it, since one for an earlier session must not reach a
        /// later one.
        session: u32,
        /// What the host is.
        ready: Box<Ready>,
    },
    /// Messages in the order in which they came.
    Messages(Vec<FromWorker>),
    /// A line went there and back.
    RoundTrip {
        /// How long it took.
        micros: u64,
    },
    /// A tree's source is checked out.
    SourceSent {
        /// The tree.
        tree: TreeId,
        /// Git objects that travelled.
        objects: u64,
        /// Bytes that travelled.
        bytes: u64,
        /// How long sending took.
        wall_ms: u64,
        /// How long checking out took.
        check_out_ms: u64,
    },
    /// Everything of a result that had to be fetched is in its directory.
    Fetched {
        /// Whose.
        at: TaskRef,
        /// What is to be known of it.
        seen: Seen,
    },
    /// It could not be fetched.
    FetchFailed {
        /// Whose.
        at: TaskRef,
        /// Why.
        reason: String,
        /// It is the boss's own disk that failed.
        at_boss: bool,
    },
    /// The boss itself cannot go on, for example since a git object cannot be read.
    Broken {
        /// Why.
        reason: String,
    },
    /// The session is over.
    Lost {
        /// Why.
        reason: String,
        /// When the next one is tried.
        retry_ms: u64,
        /// It is this boss that stood still.
        ours: bool,
    },
    /// There will be no further session.
    Failed {
        /// Why, with a hint.
        reason: String,
    },
    /// The session ended since we asked for it; the host is clean.
    Quit,
}

/// From the run loop to a host's session.
#[derive(Debug)]
pub enum Order {
    /// Send a message.
    Send(ToWorker),
    /// Bring a tree's source to the host.
    Source(TreeId),
    /// Begin to fetch a log that is growing.
    Follow {
        /// Whose.
        at: TaskRef,
        /// Where its files are gathered.
        part: PathBuf,
    },
    /// Nothing of this attempt is wanted: stop following, remove what is there.
    Abandon {
        /// Whose.
        at: TaskRef,
        /// Where its files are gathered.
        part: PathBuf,
    },
    /// The attempt has ended: fetch what is not here yet, then report `Fetched`.
    Fetch(Fetch),
    /// End the session as one that is lost: its worker stands still.
    End {
        /// What it should have done.
        reason: String,
    },
    /// End the session in order. What runs there is stopped and removed.
    Quit,
}

/// What to fetch.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Whose.
    pub at: TaskRef,
    /// Where to.
    pub part: PathBuf,
    /// What the message did not hold.
    pub missing: Missing,
}

/// Bytes to and from a host, over all its channels.
#[derive(Debug, Default)]
pub struct Traffic {
    /// To the host.
    pub sent: AtomicU64,
    /// From the host.
    pub received: AtomicU64,
}

impl Traffic {
    /// Counts bytes to the host.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes from the host.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }
}

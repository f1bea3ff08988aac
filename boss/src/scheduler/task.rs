//! What the scheduler knows of a task.

use super::types::{AttemptStory, HostIndex};
use crewboss_protocol::Millis;

/// Failed attempts after which a task is given up.
pub const ATTEMPTS_MAX: u8 = 3;
/// Hand-outs lost before they started after which a task is given up: far more than bad luck
/// brings.
pub const LOST_MAX: u8 = 10;
/// Refusals by different hosts after which a task is given up.
pub const REFUSALS_MAX: usize = 10;

/// A time that is not limited, in milliseconds.
pub(super) const NEVER: u64 = u64::MAX;

/// No segment.
pub(super) const NO_SEGMENT: u32 = u32::MAX;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Never added.
    Absent,
    /// In its class's queue.
    Waiting,
    /// Behind another task of its chain.
    Blocked,
    /// Handed out, under this number.
    Sent {
        host: HostIndex,
        number: u64,
        recall: Recall,
    },
    /// Started.
    Running {
        host: HostIndex,
        since: Millis,
    },
    Done,
    GivenUp,
    Withdrawn,
}

/// Whether a task that was sent has been asked back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recall {
    No,
    /// Since its host is paused.
    Asked,
    /// Since that host is idle.
    For(HostIndex),
}

#[derive(Debug, Clone)]
pub(super) struct Task {
    pub phase: Phase,
    pub class: u32,
    pub priority: u32,
    /// `u64::MAX` if not known.
    pub expected_ms: u64,
    /// How long an attempt may run; [`NEVER`] if it is not watched.
    pub limit_ms: u64,
    /// When the one that runs should have ended.
    pub due: Millis,
    pub tree: u32,
    /// The chain by its place in the list of chains, or [`NO_SEGMENT`].
    pub chain: u32,
    /// The segment, once the task is the first of one.
    pub segment: u32,
    /// The number of the last hand-out.
    pub attempt: u32,
    pub failures: u8,
    pub lost: u8,
    /// Whether something is noted in the table of troubles.
    pub troubled: bool,
    /// Withdrawn while it was out on a host.
    pub unwanted: bool,
}

impl Task {
    pub fn absent() -> Self {
        Self {
            phase: Phase::Absent,
            class: 0,
            priority: 0,
            expected_ms: u64::MAX,
            limit_ms: NEVER,
            due: Millis(NEVER),
            tree: 0,
            chain: NO_SEGMENT,
            segment: NO_SEGMENT,
            attempt: 0,
            failures: 0,
            lost: 0,
            troubled: false,
            unwanted: false,
        }
    }

    pub fn expected(&self) -> Option<u64> {
        (self.expected_ms != u64::MAX).then_some(self.expected_ms)
    }

    pub fn is_last_attempt(&self) -> bool {
        self.failures + 1 >= ATTEMPTS_MAX
    }
}

/// What went wrong with a task so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    pub story: Vec<AttemptStory>,
    pub failed_on: Vec<HostIndex>,
    pub refused_by: Vec<HostIndex>,
    /// Whether what ran it was killed from outside once.
    pub killed: bool,
}

//! What goes into the scheduler and what comes out.

use std::fmt;
use std::sync::Arc;

use crewboss_protocol::message::{Cause, Done, Refusal};
use crewboss_protocol::{Attempt, Outcome, TaskId, TaskRef};

use super::requirement::{Offer, Unfit};

/// A host's place in the crew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostIndex(pub u32);

/// A set of needs that some tasks share; made by [`super::Scheduler::intern`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequirementId(pub u32);

/// The tasks of one incremental target, in commit order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub u32);

/// A task that is to be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEntry {
    /// Its index in the plan. Memory is taken for all indexes up to the largest.
    pub task: TaskId,
    /// What a host must have.
    pub requirement: RequirementId,
    /// Higher goes first; 0 is ordinary.
    pub priority: u32,
    /// How long it takes on a host of speed 1000, in milliseconds, if that is known.
    pub expected_ms: Option<u64>,
    /// How long an attempt may run at most, with all that comes after its stages, in milliseconds;
    /// whoever takes longer stands still.
    pub limit_ms: Option<u64>,
    /// Index of its commit's tree.
    pub tree: u32,
    /// For an incremental target: tasks of a chain are given in commit order.
    pub chain: Option<ChainId>,
}

/// How an attempt ended, as far as handing out is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With a result, good or bad. The task is over.
    Result,
    /// It could not be run, for this reason. It is tried again, and the host's record suffers.
    Infrastructure(String),
    /// As above, but the machines that it was to run in are to blame, and the host is not.
    Machines(String),
    /// What it asks for is not to be had on this host, for this reason, and trying again would not
    /// change that. It is tried elsewhere if it can be, and nobody is to blame.
    Lasting(String),
    /// Somebody on the host has killed what ran it, as the kernel does for want of memory. It is
    /// tried once more; the second time this is its result, for nothing else is common to both.
    Killed(String),
    /// Work of a higher priority took its place. It is tried again, and the host is not to blame.
    Interrupted,
    /// It was stopped. If nobody here wanted that, its worker is ending: the session counts as
    /// lost, and the task is tried again.
    Cancelled {
        /// Why the worker ends.
        why: String,
        /// It is this boss that stood still: neither host nor task is to blame.
        ours: bool,
    },
}

impl Ended {
    /// What a worker's word means here.
    pub fn of(done: &Done) -> Self {
        match done.outcome {
            Outcome::Infrastructure => match done.cause {
                Cause::Host => Ended::Infrastructure(done.message.clone()),
                Cause::Machine => Ended::Machines(done.message.clone()),
                Cause::Lasting => Ended::Lasting(done.message.clone()),
                Cause::Killed => Ended::Killed(done.message.clone()),
            },
            Outcome::Interrupted => Ended::Interrupted,
            Outcome::Cancelled => {
                Ended::Cancelled { why: "the worker there was ended".to_owned(), ours: false }
            }
            _ => Ended::Result,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Tasks of the plan. A task that is there already is ignored and counted as stale.
    AddTasks(Vec<TaskEntry>),
    /// A session is ready. If the host was up, its old session counts as lost.
    HostUp {
        /// Which host.
        host: HostIndex,
        /// What it offers.
        offer: Offer,
    },
    /// A session is lost, or could not be made.
    HostDown {
        /// Which host.
        host: HostIndex,
        /// What failed.
        reason: String,
        /// Whether connecting goes on. If not, no task waits for the host any more.
        returns: bool,
        /// It is this boss that stood still: neither host nor tasks are to blame.
        ours: bool,
    },
    /// An attempt's first stage runs.
    Started {
        /// Where.
        host: HostIndex,
        /// Which.
        at: TaskRef,
    },
    /// An attempt has ended.
    Ended {
        /// Where.
        host: HostIndex,
        /// Which.
        at: TaskRef,
        /// How.
        ended: Ended,
    },
    /// A worker did not take an order.
    Refused {
        /// Where.
        host: HostIndex,
        /// Which.
        at: TaskRef,
        /// Why.
        reason: Refusal,
        /// Details for a person.
        text: String,
    },
    /// A worker gives back what has not started.
    Returned {
        /// Where.
        host: HostIndex,
        /// Which.
        tasks: Vec<TaskRef>,
    },
    /// An accepted result could not be fetched or stored: the attempt counts as failed after all.
    ResultLost {
        /// Where it was.
        host: HostIndex,
        /// Which.
        at: TaskRef,
        /// What failed.
        reason: String,
    },
    /// The time for a line to a host and back.
    RoundTrip {
        /// Which host.
        host: HostIndex,
        /// In microseconds.
        micros: u64,
    },
    /// Other bosses have taken slots of a host, or given them back.
    Slots {
        /// Which host.
        host: HostIndex,
        /// How many tasks of ours it can run at once now; more than its slots counts as all of
        /// them.
        usable: u32,
    },
    /// A host's free space.
    Disk {
        /// Which host.
        host: HostIndex,
        /// In bytes.
        free: u64,
    },
    /// Time has passed; due at [`super::Scheduler::next_wake`].
    Tick,
    /// These need not be built: their results were found. One that is out on a host is cancelled
    /// there.
    Withdraw {
        /// Which.
        tasks: Vec<TaskId>,
    },
    /// Nothing is handed out any more; what ends is still taken.
    Stop,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Order this attempt.
    Send {
        /// Where.
        host: HostIndex,
        /// Which.
        at: TaskRef,
    },
    /// Ask for these back, unless they have started.
    Recall {
        /// From where.
        host: HostIndex,
        /// Which; not empty and at most [`crewboss_protocol::limits::TASKS_PER_MESSAGE_MAX`].
        tasks: Vec<TaskRef>,
    },
    /// Stop a withdrawn attempt.
    Cancel {
        /// Where.
        host: HostIndex,
        /// Which.
        at: TaskRef,
    },
    /// This result counts: fetch and store it. Any result without an `Accept` is to be thrown away.
    Accept {
        /// Where it is.
        host: HostIndex,
        /// Which.
        at: TaskRef,
    },
    /// An attempt failed; the task is queued again.
    Retry {
        /// Where it was.
        host: HostIndex,
        /// Which.
        at: TaskRef,
        /// Why.
        reason: String,
    },
    /// The task cannot be run: its outcome is `infrastructure`.
    GiveUp {
        /// Which.
        task: TaskId,
        /// Why no further host is tried.
        why: GiveUp,
        /// What happened to each attempt that failed.
        story: Vec<AttemptStory>,
    },
    /// Too much failed on a host: it gets nothing for a while, then one task to prove itself.
    Pause {
        /// Which host.
        host: HostIndex,
        /// For how long, in milliseconds.
        for_ms: u64,
        /// The last failure.
        reason: String,
    },
    /// A host answers and stands still all the same: end its session, as one that is lost.
    EndSession {
        /// Which host.
        host: HostIndex,
        /// What it should have done.
        reason: String,
    },
    /// A host has failed every trial: end its session; it gets nothing any more in this run.
    Out {
        /// Which host.
        host: HostIndex,
        /// The last failure.
        reason: String,
    },
}

/// Why a task is not tried any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GiveUp {
    /// As many attempts failed as there may be.
    Attempts,
    /// It was handed out many times and each time lost before it started.
    NeverStarted,
    /// Every host that could take it has refused it.
    Refused,
    /// No host of the crew can take it: why, host by host.
    Impossible(Arc<[Unfit]>),
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GiveUp::Attempts => f.write_str("every attempt failed"),
            GiveUp::NeverStarted => f.write_str("it was handed out again and again and never started"),
            GiveUp::Refused => f.write_str("every host that could take it refused it"),
            GiveUp::Impossible(_) => f.write_str("no host can take it"),
        }
    }
}

/// What happened to an attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptStory {
    /// Which attempt.
    pub attempt: Attempt,
    /// Where.
    pub host: HostIndex,
    /// Why it failed.
    pub reason: String,
}

/// How many tasks are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that were added.
    pub total: u32,
    /// Not on any host.
    pub waiting: u32,
    /// Handed out, not started.
    pub sent: u32,
    /// Running.
    pub running: u32,
    /// With an accepted result.
    pub done: u32,
    /// Given up.
    pub given_up: u32,
    /// Withdrawn.
    pub withdrawn: u32,
    /// Inputs that were ignored: an old attempt, the wrong host, something unknown or said twice.
    pub stale: u64,
}

/// What a host does right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostView {
    /// Tasks it may run at once now: the slots that it can use, 1 on trial, 0 while it is paused or
    /// not connected.
    pub capacity: u32,
    /// Tasks it may hold beyond that.
    pub ahead: u32,
    /// Running there.
    pub running: u32,
    /// Sent and not started.
    pub sent: u32,
}

//! What happens in a run, in one ordered stream. Terminal, JSON lines, journal and logs are all
//! made from it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crewboss_protocol::guest::GuestLoad;
use crewboss_protocol::machine::HeldGuest;
use crewboss_protocol::{
    Attempt, HostName, Load, Name, Outcome, Phase, Phases, RunId, TaskId, TaskRef, TreeId,
};
use serde::{Deserialize, Serialize};

use crate::store::{MachineInputs, TaskKey};

/// Version of the event stream. It is raised when a field is removed or changes its meaning; fields
/// and events may be added without.
pub const EVENT_SCHEMA: u32 = 2;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Milliseconds since the start of 1970, UTC, by the boss's clock.
    pub time_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The plan is made; hosts are being connected.
    RunStarted {
        /// [`EVENT_SCHEMA`].
        schema: u32,
        /// The run.
        run: RunId,
        /// How many tasks the plan has, those already done included.
        tasks: u32,
        /// How many targets.
        targets: u32,
        /// How many commits.
        commits: u32,
        /// The hosts that are asked.
        hosts: Vec<HostName>,
        /// The result directory.
        out: String,
    },
    /// Connecting begins.
    HostConnecting {
        /// Which host.
        host: HostName,
    },
    /// The binary was not on the host and has been sent.
    HostShipped {
        /// Which host.
        host: HostName,
        /// Its size.
        bytes: u64,
    },
    /// The worker runs and takes tasks.
    HostReady {
        /// Which host.
        host: HostName,
        /// Its slots.
        slots: u32,
        /// Hardware threads.
        threads: u32,
        /// Speed of a thread in thousandths of the reference machine's.
        speed: u32,
        /// Toolchains by name.
        toolchains: Vec<Name>,
    },
    /// The session ended unexpectedly. What ran there goes elsewhere.
    HostLost {
        /// Which host.
        host: HostName,
        /// What failed, where, why; and a hint.
        reason: String,
        /// When it is tried again, if it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_ms: Option<u64>,
    },
    /// The host is out of this run for good.
    HostFailed {
        /// Which host.
        host: HostName,
        /// What failed, where, why; and a hint.
        reason: String,
    },
    /// Too many tasks could not be run there: it gets nothing for a while, then one task to prove
    /// itself.
    HostPaused {
        /// Which host.
        host: HostName,
        /// Why.
        reason: String,
        /// For how long.
        pause_ms: u64,
    },
    /// Something a person should know about a host.
    HostNotice {
        /// Which host.
        host: HostName,
        /// What.
        text: String,
    },
    /// Something a person should know about what is here, and about no host.
    Notice {
        /// What.
        text: String,
    },
    /// The host is there; its state.
    HostLoad {
        /// Which host.
        host: HostName,
        /// Its state.
        load: Load,
        /// Time for a line there and back, in microseconds.
        round_trip_us: u64,
    },
    /// Source has arrived at a host.
    SourceSent {
        /// Which host.
        host: HostName,
        /// The tree.
        tree: TreeId,
        /// Git objects that travelled.
        objects: u64,
        /// Bytes that travelled.
        bytes: u64,
        /// How long finding out what the host lacks and sending it took.
        wall_ms: u64,
        /// How long the host then took to check it out.
        check_out_ms: u64,
    },
    /// No host of the crew can take these tasks.
    TasksImpossible {
        /// Their target.
        target: Name,
        /// How many tasks of it.
        tasks: u32,
        /// Why, per host.
        reasons: BTreeMap<HostName, String>,
    },
    /// An attempt has its slot. What it is at there follows.
    TaskStarted {
        /// Where.
        host: HostName,
        /// Which attempt.
        at: TaskRef,
        /// The task's target.
        target: Name,
        /// The short id of its commit.
        commit: Arc<str>,
    },
    /// What an attempt is at from now on: every stage, and whatever else takes its time.
    TaskPhase {
        /// Where.
        host: HostName,
        /// Which attempt.
        at: TaskRef,
        /// What it is at.
        phase: Phase,
        /// More about that for a person, as why a machine boots once more.
        #[serde(skip_serializing_if = "String::is_empty")]
        text: String,
    },
    /// How a guest of an attempt is.
    GuestLoad {
        /// Where.
        host: HostName,
        /// Which attempt.
        at: TaskRef,
        /// Its machine, or what the task calls it if it serves.
        machine: Name,
        /// Its state.
        load: GuestLoad,
    },
    /// An attempt waits for a person in its guest.
    TaskWaiting {
        /// Where.
        host: HostName,
        /// Which attempt.
        at: TaskRef,
        /// The task's target.
        target: Name,
        /// The short id of its commit.
        commit: Arc<str>,
        /// What the guest is called there. `crewboss enter HOST/GUEST` gets in.
        guest: Name,
        /// The stage that comes next, or that has failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        stage: Option<Name>,
        /// Until when, in seconds since 1970.
        until: u64,
    },
    /// Live output. May be shortened, which the stored log never is.
    TaskOutput {
        /// Where.
        host: HostName,
        /// Which attempt.
        at: TaskRef,
        /// The output.
        text: String,
        /// Bytes left out before it.
        #[serde(skip_serializing_if = "is_zero")]
        lost: u64,
    },
    /// An attempt could not be completed; the task is queued again.
    TaskRetried {
        /// Where it was.
        host: HostName,
        /// Which attempt.
        at: TaskRef,
        /// The task's target.
        target: Name,
        /// The short id of its commit.
        commit: Arc<str>,
        /// Why.
        reason: String,
    },
    /// A task has its result, and the result is stored.
    TaskDone(Box<TaskDone>),
    /// The run is being stopped.
    Stopping {
        /// Why.
        reason: String,
    },
    /// The last event.
    RunFinished(Box<Summary>),
}

/// A task's end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskDone {
    /// Which.
    pub task: TaskId,
    /// Its target.
    pub target: Name,
    /// The short id of its commit.
    pub commit: Arc<str>,
    /// The attempt that made the result; 0 if none ever ran.
    pub attempt: Attempt,
    /// Where it ran last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// The outcome.
    pub outcome: Outcome,
    /// For a skipped task: the recorded outcome that stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Outcome>,
    /// For a skipped task: what is as it was when it was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<Box<Matched>>,
    /// The guest, if it was kept for a person. `crewboss enter HOST/GUEST` gets in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Box<HeldGuest>>,
    /// The time that it has taken itself, see [`Phases::own_ms`].
    pub wall_ms: u64,
    /// Where all of its time went, from the start of the run, or from the end of the attempt
    /// before.
    #[serde(skip_serializing_if = "Phases::is_empty")]
    pub phases: Phases,
    /// Bytes of logs and artifacts that were brought back.
    pub bytes: u64,
    /// What a person should know.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The last lines of output, unless it went well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tail: String,
    /// The task's directory below the result directory.
    pub path: Arc<str>,
}

/// What decides that a recorded result stands: all of it is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// The tree.
    pub tree: TreeId,
    /// The hash over tree and target definition.
    pub key: TaskKey,
    /// The version of the toolchain, if the target names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
    /// The machine, if the target runs in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineInputs>,
}

impl fmt::Display for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tree {:.12}, target definition", self.tree)?;
        if let Some(toolchain) = &self.toolchain {
            write!(f, ", toolchain {toolchain}")?;
        }
        if let Some(MachineInputs { name, id, toolchain_id, agent, auxiliary }) = &self.machine {
            write!(f, ", machine {name} ({id}), toolchain id {toolchain_id}, guest agent {agent}")?;
            for one in auxiliary {
                write!(f, ", auxiliary machine {} ({})", one.name, one.id)?;
            }
        }
        Ok(())
    }
}

/// A guest that was kept for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldSummary {
    /// Where it is.
    pub host: HostName,
    /// The guest.
    pub guest: HeldGuest,
    /// The short id of the task's commit.
    pub commit: Arc<str>,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Tasks by outcome; skipped ones are counted as `skipped`.
    pub outcomes: BTreeMap<Outcome, u32>,
    /// Skipped tasks by the outcome that stands recorded for them.
    pub recorded: BTreeMap<Outcome, u32>,
    /// Tasks of the plan without a result, since the run was stopped.
    pub unfinished: u32,
    /// From start to end.
    pub wall_ms: u64,
    /// The tasks that took longest: label and milliseconds, longest first, at most ten.
    pub slowest: Vec<(String, u64)>,
    /// Per host: what it did.
    pub hosts: BTreeMap<HostName, HostSummary>,
    /// Guests that were kept for a person.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldSummary>,
    /// What ended the run early, if anything did: a person, or an error at the boss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// What ended a run early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// The boss itself could not go on, for example since its disk is full.
    Error(String),
}

/// What a host did in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostSummary {
    /// Results that came from it.
    pub tasks: u32,
    /// Bytes sent to it, protocol and source.
    pub bytes_sent: u64,
    /// Bytes received from it: protocol, logs, artifacts.
    pub bytes_received: u64,
    /// Times its session was lost.
    pub lost: u32,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where events go. Called in order, from one thread.
pub trait EventSink {
    /// Takes note of an event. Must not block for long, and must not fail: a sink that cannot go on
    /// says so in its own way at the end.
    fn event(&mut self, event: &Event);
}

//! The messages of the control channel, one enum per direction.
//!
//! Unknown fields are ignored, so that a field can be added without a new version. An unknown
//! message is an error: ignoring it would leave the other side waiting.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::guest::GuestLoad;
use crate::host::{HostFacts, Load};
use crate::id::{HostName, Name, RunId, SessionId, TaskRef, TreeId};
use crate::limits::{
    ARTIFACT_BYTES, ARTIFACTS_MAX, DIRECTORY_BYTES, INLINE_LOG_BYTES_MAX, LIVE_CHUNK_BYTES_MAX, LOG_BYTES,
    MACHINES_MAX, NUMBER_MAX, STAGES_MAX, TARGET_BYTES_MAX, TARGETS_MAX, TASKS_PER_MESSAGE_MAX,
    TEXT_BYTES_MAX, VERSIONS_MAX, WORD_BYTES_MAX,
};
use crate::machine::{AccelChoice, HeldGuest, MachineResult};
use crate::outcome::{Outcome, StageResult};
use crate::phase::{Phase, Phases};
use crate::target::{Command, Environment, Target};

/// Why a message that could be parsed is refused all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Invalid {
    /// The offending field.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Invalid {
    fn check(holds: bool, field: &'static str, why: impl FnOnce() -> String) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { field, why: why() }) }
    }

    fn at_most(field: &'static str, len: usize, max: usize) -> Result<(), Self> {
        Self::check(len <= max, field, || format!("{len} is over the limit of {max}"))
    }
}

/// What every received message must pass, after its types have accepted it.
pub trait Validate {
    /// Refuses content that no honest sender would send.
    fn validate(&self) -> Result<(), Invalid>;
}

/// From the boss to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// The first line: who calls, and how the session is to be.
    Hello(Hello),
    /// Defines targets, which tasks then name by number. Comes as often as there are targets to
    /// define.
    Configure {
        /// The number of the first target of this message.
        first: u32,
        /// The targets.
        targets: Vec<Target>,
    },
    /// A tree's source has arrived and is checked out.
    SourceReady {
        /// The tree.
        tree: TreeId,
    },
    /// Run this as soon as a slot is free.
    Task(TaskOrder),
    /// Make the copy of a machine that tasks start from, as soon as a slot is free. Answered by
    /// `bootstrapped`, or by `refused`.
    Bootstrap(BootstrapOrder),
    /// Stop an attempt or a bootstrap, wherever it stands.
    Cancel {
        /// Which.
        at: TaskRef,
    },
    /// Give back what has not started of these.
    Recall {
        /// Which.
        tasks: Vec<TaskRef>,
    },
    /// The result is stored at the boss: everything of the attempt may be removed.
    Collected {
        /// Which.
        at: TaskRef,
    },
    /// The boss is there. The worker answers with `alive` and the same number.
    Ping {
        /// Counted by the boss.
        number: u64,
    },
    /// Stop everything, clean up, say `finished`, exit.
    Quit,
}

/// The first line from the boss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the boss.
    pub protocol: u32,
    /// SHA-256 of the boss's binary.
    pub build: String,
    /// Who started the boss, as `user@computer`.
    pub boss: String,
    /// The run.
    pub run: RunId,
    /// This connection.
    pub session: SessionId,
    /// What the boss calls this host.
    pub host: HostName,
    /// Priority of the boss's work; 0 is ordinary.
    #[serde(default)]
    pub priority: u32,
    /// How often each side says that it is there, in milliseconds.
    pub heartbeat_ms: u64,
    /// After how much silence the other side counts as gone, in milliseconds.
    pub silence_ms: u64,
    /// How long a process on the host may do one thing without a sign of life before it stands
    /// still, in milliseconds.
    #[serde(default = "standstill_ms")]
    pub standstill_ms: u64,
    /// What one task may leave, from `crew.toml`.
    #[serde(default)]
    pub limits: TaskLimits,
    /// Cap on the slots, from `crew.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Compilers named in `crew.toml`, besides those found on `PATH`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub toolchains: BTreeMap<Name, String>,
    /// Where the host's virtual machines lie, from `crew.toml`; by default `machines` below the
    /// work directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<String>,
    /// What guests are to run with, from `crew.toml`.
    #[serde(default)]
    pub accel: AccelChoice,
    /// Only look: answer `ready`, take no tasks, make nothing that has to be removed.
    #[serde(default)]
    pub probe_only: bool,
    /// Measure and try everything anew instead of trusting what an earlier worker found.
    #[serde(default)]
    pub refresh: bool,
}

/// How much one task may leave. More is a failure of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLimits {
    /// Bytes of its log.
    pub log_bytes: u64,
    /// Its artifacts, and the directories that they lie in.
    pub artifacts: u32,
    /// Bytes of all of them, holes included, and [`DIRECTORY_BYTES`] for each of these directories.
    pub artifact_bytes: u64,
}

impl Default for TaskLimits {
    fn default() -> Self {
        Self {
            log_bytes: LOG_BYTES,
            artifacts: u32::try_from(ARTIFACTS_MAX).unwrap_or(u32::MAX),
            artifact_bytes: ARTIFACT_BYTES,
        }
    }
}

impl TaskLimits {
    /// What is wrong with so many artifacts, if anything is.
    pub fn refuse(&self, count: ArtifactCount) -> Option<String> {
        let ArtifactCount { files, directories, bytes } = count;
        let whole = bytes.saturating_add(u64::from(directories) * DIRECTORY_BYTES);
        let below = match directories {
            0 => String::new(),
            _ => format!(" in {directories} directories"),
        };
        if files > self.artifacts {
            Some(self.refuse_artifacts())
        } else if files.saturating_add(directories) > self.artifacts {
            let limit = self.artifacts;
            Some(format!(
                "it has left {files} artifacts{below}; the limit of all is {limit} (`artifacts` in [limits] of crew.toml)"
            ))
        } else if whole > self.artifact_bytes {
            let limit = self.artifact_bytes;
            Some(format!(
                "it has left artifacts of {bytes} bytes{below}; the limit is {limit} (`artifact_bytes` in [limits] of crew.toml)"
            ))
        } else {
            None
        }
    }

    /// What is said of too many artifacts.
    pub fn refuse_artifacts(&self) -> String {
        format!("it has left more than {} artifacts (`artifacts` in [limits] of crew.toml)", self.artifacts)
    }

    /// What is said of a log that gets longer than it may.
    pub fn refuse_log(&self) -> String {
        format!("its log has more than {} bytes (`log` in [limits] of crew.toml)", self.log_bytes)
    }
}

/// One attempt at one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOrder {
    /// Which.
    pub at: TaskRef,
    /// The number of its target, from `configure`.
    pub target: u32,
    /// The tree to build.
    pub tree: TreeId,
    /// The commit's id for `$CREWBOSS_COMMIT`; for the working tree the id of its tree.
    pub commit: TreeId,
    /// Do not start from, nor leave, a warm build directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// When the guest is kept for a person afterwards, if it runs in one.
    #[serde(default)]
    pub hold: Hold,
    /// Let a person into the guest, if it runs in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

/// A machine to be bootstrapped ahead of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapOrder {
    /// What the order is called; among those of tasks and bootstraps of this session it is not used
    /// twice at once.
    pub at: TaskRef,
    /// The machine.
    pub machine: Name,
    /// What it is given.
    pub toolchain: Name,
    /// Although its copy is good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// How a bootstrap ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootstrapEnd {
    /// The copy was made.
    Made {
        /// The versions that it reported.
        #[serde(default)]
        versions: BTreeMap<String, String>,
        /// How long it took, in milliseconds.
        took_ms: u64,
    },
    /// There was nothing to do.
    Ready {
        /// The versions that its bootstrap reported.
        #[serde(default)]
        versions: BTreeMap<String, String>,
    },
    /// It cannot be made: the machine is suspended now.
    Suspended {
        /// Why, for a person.
        why: String,
    },
    /// Its guest was killed from outside each time that it was tried; the machine is as it was.
    Abnormal {
        /// The story of each time, for a person.
        why: String,
    },
    /// It was not made, for a reason that is not the machine's.
    Failed {
        /// Why, for a person.
        why: String,
    },
    /// It was stopped.
    Cancelled,
}

/// After which ends a guest is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// For how long, in milliseconds; 0 for never.
    pub for_ms: u64,
    /// After a failure too, not only after a timeout or an abnormal end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failure: bool,
}

impl Default for Hold {
    fn default() -> Self {
        Self { for_ms: u64::try_from(crate::limits::HOLD.as_millis()).unwrap_or(u64::MAX), failure: false }
    }
}

/// Where a task waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Before this stage; before the first one if it names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Name>,
    /// Only when a stage has failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_failure: bool,
    /// For how long, in milliseconds.
    pub limit_ms: u64,
}

/// From a worker to the boss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The answer to `hello`.
    Ready(Box<Ready>),
    /// What an attempt, or a bootstrap, is at from now on. The first of these says that it has its
    /// slot.
    Phase {
        /// Which.
        at: TaskRef,
        /// What it is at.
        phase: Phase,
        /// More about that for a person: which machine boots, and why once more. Said again with
        /// the same phase, it is news of that.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        text: String,
    },
    /// An attempt waits for a person to enter its guest and to let it go on.
    Waiting {
        /// Which.
        at: TaskRef,
        /// What the guest is called on its host.
        guest: Name,
        /// The stage that comes next, or that has failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<Name>,
        /// Until when, in seconds since 1970.
        until: u64,
    },
    /// How a guest of an attempt is, as its agent says every few seconds.
    GuestLoad {
        /// Which attempt.
        at: TaskRef,
        /// Its machine, or what the task calls it if it serves.
        machine: Name,
        /// Its state.
        load: GuestLoad,
    },
    /// A piece of output, for the live view only: bytes that are not UTF-8 are replaced.
    Log {
        /// Which.
        at: TaskRef,
        /// Counts the pieces of this attempt from 0.
        seq: u64,
        /// The output.
        text: String,
        /// Bytes left out of the live view before this piece, since the boss was slow.
        #[serde(default, skip_serializing_if = "is_zero")]
        lost: u64,
    },
    /// The log is getting long: fetch it over a bulk channel while it grows.
    LongLog {
        /// Which.
        at: TaskRef,
    },
    /// The answer to `ping`, and the state of the host.
    Alive {
        /// The number of the last `ping`.
        number: u64,
        /// The host's state.
        load: Load,
    },
    /// Other bosses have taken slots, or given them back: how many tasks of this boss can run at
    /// once now. Until this is said, all slots can be used.
    Slots {
        /// From 0 to the number of slots.
        usable: u32,
    },
    /// An attempt has ended.
    Done(Box<Done>),
    /// A bootstrap has ended.
    Bootstrapped {
        /// Which.
        at: TaskRef,
        /// How.
        end: BootstrapEnd,
    },
    /// An order cannot be taken or carried out here.
    Refused {
        /// Which.
        at: TaskRef,
        /// Why.
        reason: Refusal,
        /// Details for a person.
        text: String,
    },
    /// These had not started and are given back: the answer to `recall`.
    Returned {
        /// Which.
        tasks: Vec<TaskRef>,
    },
    /// Something a person should know, said once.
    Notice {
        /// What.
        text: String,
    },
    /// The session cannot go on.
    Error {
        /// What kind of error.
        kind: WorkerErrorKind,
        /// Details for a person: what failed, where and why.
        text: String,
    },
    /// The worker stops what runs and ends, and the boss has not asked for it.
    Ending {
        /// Why.
        why: Ending,
    },
    /// The last line: everything of this session is stopped and removed.
    Finished,
}

/// Why a worker ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The boss said `quit`.
    Asked,
    /// Its input or output was closed.
    Closed,
    /// It heard nothing from the boss for so long.
    Silence {
        /// In milliseconds.
        ms: u64,
    },
    /// Somebody on the host sent it a signal, as `kill-workers --force` and a shutdown do.
    Signal {
        /// Which.
        number: u32,
        /// From whom, and what to do about that, as far as the host knows it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        by: String,
    },
    /// It cannot go on; `error` says why.
    Broken,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Asked => f.write_str("the boss asked the worker to end"),
            Ending::Closed => f.write_str("the connection to the worker was closed"),
            Ending::Silence { ms } => write!(f, "the worker heard nothing from this boss for {ms} ms"),
            Ending::Signal { number, by } if by.is_empty() => write!(
                f,
                "the worker got signal {number} on its host, as from a shutdown; `last -x` there may say more"
            ),
            Ending::Signal { number, by } => {
                write!(f, "the worker got signal {number} on its host from {by}")
            }
            Ending::Broken => f.write_str("the worker could not go on"),
        }
    }
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`crate::PROTOCOL_VERSION`] of the worker.
    pub protocol: u32,
    /// SHA-256 of the worker's binary.
    pub build: String,
    /// The worker's process.
    pub pid: u32,
    /// The host.
    pub facts: HostFacts,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Which.
    pub at: TaskRef,
    /// The outcome.
    pub outcome: Outcome,
    /// The stages that began, each with its end.
    pub stages: Vec<StageResult>,
    /// Where its time on the host went.
    #[serde(default, skip_serializing_if = "Phases::is_empty")]
    pub phases: Phases,
    /// Largest resident size of one process, in KiB.
    pub rss_kib_max: u64,
    /// Both outputs in the order of arrival.
    pub log: LogEnd,
    /// Standard error alone.
    pub err: LogEnd,
    /// What `size` says of the files named in `sizes`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sizes: String,
    /// What has to be fetched over a bulk channel.
    #[serde(default, skip_serializing_if = "ArtifactCount::is_none")]
    pub artifacts: ArtifactCount,
    /// Version of the toolchain used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
    /// Whether it started from a warm build directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm: bool,
    /// The machine that it ran in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Box<MachineResult>>,
    /// The guest, if it was kept for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Box<HeldGuest>>,
    /// What the outcome `infrastructure` is due to.
    #[serde(default, skip_serializing_if = "Cause::is_host")]
    pub cause: Cause,
    /// What a person should know: why it could not be run, which artifact is missing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Done {
    /// The end of an attempt of which nothing else is known: nothing ran, or nothing is left of it.
    pub fn bare(at: TaskRef, outcome: Outcome, message: String) -> Self {
        Self {
            at,
            outcome,
            stages: Vec::new(),
            phases: Phases::default(),
            rss_kib_max: 0,
            log: LogEnd::default(),
            err: LogEnd::default(),
            sizes: String::new(),
            artifacts: ArtifactCount::default(),
            toolchain: None,
            warm: false,
            machine: None,
            held: None,
            cause: Cause::default(),
            message,
        }
    }
}

/// A log whose end has been written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// Its length in bytes.
    pub bytes: u64,
    /// All of it, if it is short and UTF-8; otherwise it is fetched over a bulk channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// How much there is to fetch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactCount {
    /// Files.
    pub files: u32,
    /// The directories that they lie in, and those that these lie in.
    #[serde(default, skip_serializing_if = "is_none")]
    pub directories: u32,
    /// Bytes of all files.
    pub bytes: u64,
}

fn is_none(count: &u32) -> bool {
    *count == 0
}

impl ArtifactCount {
    /// Whether there is nothing to fetch.
    pub fn is_none(&self) -> bool {
        self.files == 0
    }
}

/// Why an order is not carried out. All of these are the host's fault, not the task's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// More orders than a worker keeps.
    QueueFull,
    /// The order names a target that was never configured.
    UnknownTarget,
    /// The same task and attempt was ordered before.
    Duplicate,
    /// The toolchain is not offered here, or no longer.
    NoToolchain,
    /// The machine is not offered here, or no longer.
    NoMachine,
    /// No space, or none left, for what the task needs.
    NoSpace,
    /// The source's tree is not there.
    NoSource,
    /// The environment could not be made.
    Environment,
    /// The worker is shutting down.
    Stopping,
}

/// What it is due to that a task could not be run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The host, as far as is known.
    #[default]
    Host,
    /// The machines that it was to run in, this time.
    Machine,
    /// What the task asks for is not to be had there, however often it is tried, and no host is to
    /// blame for that.
    Lasting,
    /// Somebody else has killed what ran it, as the kernel does for want of memory. A task that
    /// does well otherwise is tried again; one of which this is said twice brings it about itself.
    Killed,
}

impl Cause {
    fn is_host(&self) -> bool {
        *self == Self::Host
    }
}

/// What ended a session from the worker's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerErrorKind {
    /// The boss speaks another version or is another build.
    Version,
    /// A line that is no message, or a message at the wrong time.
    Protocol,
    /// The work directory cannot be used.
    WorkDirectory,
    /// The disk is full.
    NoSpace,
    /// Anything else that the worker cannot go on after.
    Internal,
}

fn standstill_ms() -> u64 {
    u64::try_from(crate::limits::STANDSTILL.as_millis()).unwrap_or(u64::MAX)
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Validate for ToWorker {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            ToWorker::Hello(hello) => hello.validate(),
            ToWorker::Configure { first, targets } => {
                let end = u64::from(*first) + targets.len() as u64;
                Invalid::check(end <= TARGETS_MAX as u64, "targets", || {
                    format!("{end} is over the limit of {TARGETS_MAX}")
                })?;
                targets.iter().try_for_each(Validate::validate)
            }
            ToWorker::Recall { tasks } => Invalid::at_most("tasks", tasks.len(), TASKS_PER_MESSAGE_MAX),
            ToWorker::SourceReady { .. }
            | ToWorker::Task(_)
            | ToWorker::Bootstrap(_)
            | ToWorker::Cancel { .. }
            | ToWorker::Collected { .. }
            | ToWorker::Ping { .. }
            | ToWorker::Quit => Ok(()),
        }
    }
}

impl Validate for Hello {
    fn validate(&self) -> Result<(), Invalid> {
        Invalid::at_most("boss", self.boss.len(), 256)?;
        Invalid::at_most("build", self.build.len(), 64)?;
        Invalid::at_most("toolchains", self.toolchains.len(), 1024)?;
        Invalid::check(self.heartbeat_ms >= 10, "heartbeat_ms", || "it is under 10".to_owned())?;
        Invalid::check(self.silence_ms / 2 >= self.heartbeat_ms, "silence_ms", || {
            format!("{} is less than two heartbeats", self.silence_ms)
        })?;
        Invalid::check(self.slots != Some(0), "slots", || "a host without slots can do nothing".to_owned())
    }
}

impl Validate for Target {
    fn validate(&self) -> Result<(), Invalid> {
        Invalid::check(!self.stages.is_empty(), "stages", || format!("target {} has none", self.name))?;
        Invalid::at_most("stages", self.stages.len(), STAGES_MAX)?;
        for (index, stage) in self.stages.iter().enumerate() {
            let twice = self.stages[..index].iter().any(|earlier| earlier.name == stage.name);
            Invalid::check(!twice, "stages", || format!("{} is there twice", stage.name))?;
            stage.command.validate()?;
        }
        if let Environment::Machine(machine) = &self.environment {
            machine.validate()?;
            Invalid::check(!self.incremental, "incremental", || {
                format!("target {} runs in a machine that is new each time", self.name)
            })?;
        }
        let nul = |text: &String| text.contains('\0');
        Invalid::check(!self.variables.iter().any(|(k, v)| !is_variable(k) || nul(v)), "variables", || {
            "a name is not made of letters, digits and `_`, or a value has a NUL".to_owned()
        })?;
        for (name, value) in &self.variables {
            let bytes = name.len() + 1 + value.len();
            Invalid::check(bytes <= WORD_BYTES_MAX, "variables", || {
                format!(
                    "{name} has {bytes} bytes with its name, and at most {WORD_BYTES_MAX} can be given to a program"
                )
            })?;
        }
        let bytes = serde_json::to_string(self).map_or(usize::MAX, |text| text.len());
        Invalid::check(bytes <= TARGET_BYTES_MAX, "variables", || {
            format!(
                "target {} has {} KiB of variables and stages, and at most {} KiB can be given to its programs",
                self.name,
                bytes.div_ceil(1024),
                TARGET_BYTES_MAX >> 10
            )
        })?;
        Invalid::check(self.timeout_ms > 0, "timeout_ms", || "it is 0".to_owned())
    }
}

/// Whether a text can be the name of an environment variable.
pub fn is_variable(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(word) && !name.starts_with(|c: char| c.is_ascii_digit())
}

impl Validate for Command {
    fn validate(&self) -> Result<(), Invalid> {
        let words = match self {
            Command::Shell(line) => std::slice::from_ref(line),
            Command::Words(words) => words.as_slice(),
        };
        let empty = words.first().is_none_or(|program| program.trim().is_empty());
        Invalid::check(!empty, "command", || "it is empty".to_owned())?;
        let nul = words.iter().any(|word| word.contains('\0'));
        Invalid::check(!nul, "command", || "it has a NUL".to_owned())?;
        let longest = words.iter().map(String::len).max().unwrap_or(0);
        Invalid::check(longest <= WORD_BYTES_MAX, "command", || {
            format!(
                "it has {longest} bytes in one piece, and at most {WORD_BYTES_MAX} can be given to a program"
            )
        })
    }
}

impl Validate for FromWorker {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            FromWorker::Ready(ready) => ready.validate(),
            FromWorker::Done(done) => done.validate(),
            FromWorker::Bootstrapped { end, .. } => end.validate(),
            FromWorker::Log { text, .. } => {
                // Bytes that are not UTF-8 grow to three when they are replaced.
                Invalid::at_most("text", text.len(), 3 * LIVE_CHUNK_BYTES_MAX)
            }
            FromWorker::Returned { tasks } => Invalid::at_most("tasks", tasks.len(), TASKS_PER_MESSAGE_MAX),
            FromWorker::Refused { text, .. }
            | FromWorker::Phase { text, .. }
            | FromWorker::Ending { why: Ending::Signal { by: text, .. } }
            | FromWorker::Notice { text }
            | FromWorker::Error { text, .. } => Invalid::at_most("text", text.len(), TEXT_BYTES_MAX),
            FromWorker::Waiting { .. }
            | FromWorker::GuestLoad { .. }
            | FromWorker::LongLog { .. }
            | FromWorker::Alive { .. }
            | FromWorker::Slots { .. }
            | FromWorker::Ending { .. }
            | FromWorker::Finished => Ok(()),
        }
    }
}

impl Validate for Ready {
    fn validate(&self) -> Result<(), Invalid> {
        let facts = &self.facts;
        Invalid::check((1..=65_536).contains(&facts.slots), "slots", || {
            format!("{} is not between 1 and 65536", facts.slots)
        })?;
        Invalid::check((1..=1_000_000).contains(&facts.speed), "speed", || {
            format!("{} is not between 1 and 1000000", facts.speed)
        })?;
        Invalid::at_most("toolchains", facts.toolchains.len(), 1024)?;
        Invalid::at_most("trees", facts.trees.len(), 1024)?;
        Invalid::at_most("machines", facts.machines.len(), MACHINES_MAX)?;
        Invalid::at_most("held", facts.held.len(), MACHINES_MAX)
    }
}

impl Validate for BootstrapEnd {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            BootstrapEnd::Made { versions, .. } | BootstrapEnd::Ready { versions } => {
                Invalid::at_most("versions", versions.len(), VERSIONS_MAX)
            }
            BootstrapEnd::Suspended { why }
            | BootstrapEnd::Abnormal { why }
            | BootstrapEnd::Failed { why } => Invalid::at_most("why", why.len(), TEXT_BYTES_MAX),
            BootstrapEnd::Cancelled => Ok(()),
        }
    }
}

impl Validate for Done {
    fn validate(&self) -> Result<(), Invalid> {
        Invalid::at_most("stages", self.stages.len(), STAGES_MAX + 1)?;
        Invalid::at_most("phases", self.phases.len(), Phases::MAX)?;
        let entries = self.artifacts.files.saturating_add(self.artifacts.directories);
        Invalid::at_most("artifacts", entries as usize, ARTIFACTS_MAX)?;
        Invalid::at_most("message", self.message.len(), TEXT_BYTES_MAX)?;
        Invalid::at_most("sizes", self.sizes.len(), TEXT_BYTES_MAX)?;
        let times = self.stages.iter().flat_map(|stage| [stage.wall_ms, stage.cpu_ms]);
        let times = times.chain(self.phases.iter().map(|phase| phase.wall_ms));
        let sizes = [self.log.bytes, self.err.bytes, self.artifacts.bytes, self.rss_kib_max];
        for number in times.chain(sizes) {
            Invalid::check(number <= NUMBER_MAX, "done", || {
                format!("{number} is over the limit of {NUMBER_MAX}")
            })?;
        }
        for log in [&self.log, &self.err] {
            if let Some(text) = &log.text {
                Invalid::at_most("log", text.len(), INLINE_LOG_BYTES_MAX)?;
                Invalid::check(text.len() as u64 == log.bytes, "log", || {
                    format!("{} bytes are announced, {} are there", log.bytes, text.len())
                })?;
            }
        }
        Invalid::check(self.outcome != Outcome::Skipped, "outcome", || "a worker skips nothing".to_owned())
    }
}

//! The crew: which hosts there are and how to reach them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crewboss_protocol::limits;
use crewboss_protocol::machine::AccelChoice;
use crewboss_protocol::message::TaskLimits;
use crewboss_protocol::{HostName, Name};

/// All hosts, and how the boss talks to them.
#[derive(Debug, Clone)]
pub struct Crew {
    /// The hosts, in the order of the crew file.
    pub hosts: Vec<Host>,
    /// What holds for every host that is reached by `ssh`.
    pub ssh: Ssh,
    /// What holds for every session.
    pub timing: Timing,
    /// How much tasks and hosts may send.
    pub limits: Limits,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name in the crew file.
    pub name: HostName,
    /// How to reach it.
    pub transport: Transport,
    /// Where the host keeps its files; by default the user's data directory there.
    pub work: Option<String>,
    /// Cap on its slots.
    pub slots: Option<u32>,
    /// Where its virtual machines lie; by default `machines` below the work directory.
    pub machines: Option<String>,
    /// What guests run with.
    pub accel: AccelChoice,
    /// Words that targets may ask for.
    pub tags: BTreeSet<Name>,
    /// Compilers besides those on its `PATH`: toolchain name to the compiler's path or name.
    pub toolchains: BTreeMap<Name, String>,
}

/// How a host is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// By `ssh` to this destination.
    Ssh(String),
    /// By a command that runs what is appended to it, with its standard input and output as ours.
    Command(Vec<String>),
    /// This computer, by a plain child process.
    Local,
}

/// Settings for `ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// What stands in for the user's own configuration.
    pub config: Option<SshConfig>,
    /// What to do with a host key that is not known yet. One that has changed is always refused.
    pub host_keys: HostKeys,
    /// How long connecting may take.
    pub connect_timeout: Duration,
}

/// A configuration of `ssh`, as it was when somebody made sure whose it is: it can name commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshConfig {
    /// Where it was read.
    pub path: PathBuf,
    /// What it says.
    pub content: Vec<u8>,
}

/// What to do with a host key that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKeys {
    /// Store it.
    AcceptNew,
    /// Refuse it.
    Strict,
}

impl Default for Ssh {
    fn default() -> Self {
        Self { config: None, host_keys: HostKeys::AcceptNew, connect_timeout: Duration::from_secs(15) }
    }
}

/// How much of what comes from hosts is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What one task may leave.
    pub task: TaskLimits,
    /// Bytes that are written down of a session with a host.
    pub host_log: u64,
    /// Lines that a host may say in a second.
    pub messages: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            task: TaskLimits::default(),
            host_log: limits::HOST_LOG_BYTES,
            messages: limits::MESSAGES_PER_SECOND,
        }
    }
}

/// See [`Timing::shell`].
const SHELL: Duration = Duration::from_secs(30);

/// See [`Timing::ready`].
const READY: Duration = Duration::from_secs(180);

/// How often boss and worker say that they are there, and when silence or standing still counts as
/// death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// See [`limits::HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`limits::SILENCE`].
    pub silence: Duration,
    /// See [`limits::STALL`].
    pub stall: Duration,
    /// See [`limits::STANDSTILL`].
    pub standstill: Duration,
    /// Between the opening of a channel and the first word of our script there: what a login
    /// shell's start-up files, or the command that leads to the host, may take.
    pub shell: Duration,
    /// Between that word and the first of the program there, and between that and a worker's
    /// `ready`: it removes what others left, and tries its compilers.
    pub ready: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: limits::HEARTBEAT,
            silence: limits::SILENCE,
            stall: limits::STALL,
            standstill: limits::STANDSTILL,
            shell: SHELL,
            ready: READY,
        }
    }
}

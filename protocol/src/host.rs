//! What a worker tells about its host.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::{HostName, Name, RunId, TreeId};
use crate::machine::{Emulator, HeldGuest, MachineFacts};

/// What a host is and can do, found out by the worker when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Operating system and kernel, as `uname -sr` would print.
    pub kernel: String,
    /// Architecture, as `uname -m` would print.
    pub architecture: String,
    /// Hardware threads that the worker may use.
    pub threads: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Free space below the work directory in bytes.
    pub disk_free: u64,
    /// The work directory.
    pub work: String,
    /// Slots: places for running tasks, shared by all bosses.
    pub slots: u32,
    /// Work of one thread in thousandths of the reference machine's.
    pub speed: u32,
    /// Where the speed comes from.
    pub speed_source: SpeedSource,
    /// Toolchains that compiled a test file.
    pub toolchains: Vec<Toolchain>,
    /// Compilers that were found but did not work, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken_toolchains: Vec<BrokenToolchain>,
    /// What file system and kernel allow.
    pub features: BTreeSet<Feature>,
    /// The state of the host right now.
    pub load: Load,
    /// Who holds which slot, of all bosses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<SlotHolder>,
    /// Trees whose source is already there, most recently used first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trees: Vec<TreeId>,
    /// What guests run with; `None` if there is no QEMU that can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulator: Option<Emulator>,
    /// Why there is none; empty also where nobody has looked, since there is no machine directory.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub no_emulator: String,
    /// What the guests of one task may have together, in bytes of memory.
    #[serde(default)]
    pub guest_memory: u64,
    /// Its virtual machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<MachineFacts>,
    /// Guests that are kept for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldGuest>,
}

/// How the speed of a host was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpeedSource {
    /// A short kernel was timed.
    Measured,
    /// The kernel's own bogomips, since timing was too noisy.
    Bogomips,
}

/// A toolchain that was tried and works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolchain {
    /// The name that targets ask for: an architecture, a triplet, `native`, or a name from the crew
    /// file.
    pub name: Name,
    /// The compiler's own version line.
    pub version: String,
    /// The compiler's absolute path, given to tasks as `$CREWBOSS_CC`.
    pub compiler: String,
    /// What to put before `gcc`, `ld`, `size` ...; empty for the native toolchain. Given as
    /// `$CREWBOSS_CROSS`.
    pub prefix: String,
}

/// A compiler that was found and failed its trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenToolchain {
    /// The name it would have had.
    pub name: Name,
    /// The compiler's path.
    pub compiler: String,
    /// What it said.
    pub why: String,
}

/// What a host's kernel and file system allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feature {
    /// Subvolume snapshots below the work directory.
    Btrfs,
    /// Files can share their data below the work directory.
    Reflink,
    /// A control group of our own can be made.
    Cgroup,
    /// `/dev/kvm` can be opened. Whether a guest runs in it is another question.
    Kvm,
    /// Mount namespaces of our own can be made.
    Namespaces,
    /// A feature of a newer build.
    #[serde(other)]
    Unknown,
}

/// The state of a host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// One-minute load average in hundredths.
    pub load_percent: u32,
    /// Memory that could be had without swapping, in bytes.
    pub memory_available: u64,
    /// Free space below the work directory, in bytes.
    pub disk_free: u64,
    /// Share of the last ten seconds in which some task waited for a processor, in hundredths of a
    /// per cent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_pressure: Option<u32>,
    /// The hottest sensor in thousandths of a degree Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<i32>,
}

/// Who runs a task in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotHolder {
    /// The slot's number, from 0.
    pub slot: u32,
    /// Who started the boss, as `user@computer`.
    pub boss: String,
    /// The boss's run.
    pub run: RunId,
    /// What the boss calls this host.
    pub host: HostName,
    /// The worker's process on the host.
    pub pid: u32,
    /// The boss's priority.
    pub priority: u32,
}

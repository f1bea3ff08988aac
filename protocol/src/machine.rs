//! Virtual machines, as far as boss and worker talk about them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::harmless::one_line;
use crate::id::{HostName, Name, RunId, TaskRef, TreeId};
use crate::limits::AUXILIARIES_MAX;
use crate::message::{Invalid, Validate};
use crate::outcome::Outcome;

/// The version of what is said between host and guest. It stands in the name of the link to a
/// machine's revision.
pub const MACHINE_PROTOCOL: u32 = 1;

/// The version of what the guest agent does. Whoever changes how a task runs in a guest raises it:
/// bootstrapped copies are remade then, and results of older versions do not count as unchanged.
pub const AGENT_VERSION: u32 = 1;

/// The toolchain of machines whose target names none: whatever the machine itself has.
pub const DEFAULT_TOOLCHAIN: &str = "default";

/// The machine that a target runs in, and those that serve it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MachineUse {
    /// The build machine.
    pub name: Name,
    /// Machines that are started before it, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auxiliary: Vec<Auxiliary>,
}

/// A machine that serves the build machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Auxiliary {
    /// What the task calls it: the prefix of its variables, in upper case.
    pub name: Name,
    /// The machine.
    pub machine: Name,
}

/// What runs the processor of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// Software.
    Tcg,
}

impl Accelerator {
    /// The word for it on QEMU's command line, in files and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// What a crew file says of the accelerator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM if a trial guest runs in it, else software.
    #[default]
    Auto,
    /// This one and no other.
    #[serde(untagged)]
    Only(Accelerator),
}

/// What a host runs guests with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emulator {
    /// QEMU's version, as `7.2.22`.
    pub version: String,
    /// The accelerator.
    pub accelerator: Accelerator,
    /// How it was chosen, for a person: set in the crew file, or what a trial guest did.
    pub why: String,
}

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineRole {
    /// Tasks run in it.
    Build,
    /// It serves a build machine.
    Auxiliary,
}

/// One machine of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// The volume that it lies in.
    pub volume: Name,
    /// Its name.
    pub name: Name,
    /// Build or auxiliary.
    pub role: MachineRole,
    /// The id of its current revision; empty if that cannot be used.
    pub id: String,
    /// What it is, in a line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// Its state, as far as it does not depend on a toolchain.
    pub state: MachineState,
    /// Its bootstrapped copies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyFacts>,
    /// Least memory of a guest in bytes.
    pub memory_min: u64,
    /// Most memory of a guest in bytes, if there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<u64>,
}

/// Whether a machine can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// It can.
    Usable,
    /// What a slot of the host has of its memory is less than its minimum.
    LittleMemory {
        /// Bytes needed.
        needs: u64,
        /// Bytes that a slot has.
        has: u64,
    },
    /// Not as it is: the manifest, the link or the disk is wrong, or QEMU is missing.
    Unusable {
        /// Why, with the path.
        why: String,
    },
}

/// A bootstrapped copy of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFacts {
    /// The toolchain that it was given.
    pub toolchain: Name,
    /// The toolchain's id.
    pub toolchain_id: String,
    /// Its state.
    pub state: CopyState,
    /// When it was made, in seconds since 1970; 0 if it was not.
    #[serde(default)]
    pub made: u64,
    /// The versions that its bootstrap reported.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, String>,
    /// Who uses it right now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<MachineHolder>,
}

/// The state of a bootstrapped copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// A task can start in it.
    Ready,
    /// It has to be made first.
    NeedsBootstrap {
        /// Why.
        why: String,
    },
    /// It is being made.
    Bootstrapping,
    /// Its toolchain cannot be used on this host, with any machine.
    NoToolchain {
        /// Why.
        why: String,
    },
    /// It could not be made: a person must look.
    Suspended {
        /// Why.
        why: String,
    },
    /// A newer crewboss made it; this one leaves it alone.
    Newer {
        /// The version of the agent in it.
        agent: u32,
    },
}

/// Who uses a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineHolder {
    /// Who started the boss, as `user@computer`.
    pub boss: String,
    /// The boss's run.
    pub run: RunId,
    /// What the boss calls this host.
    pub host: HostName,
    /// The process on the host that holds the lock.
    pub pid: u32,
    /// The boss's priority.
    pub priority: u32,
    /// The task, unless it is a bootstrap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// A guest that was stopped and kept for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldGuest {
    /// What it is called on its host: machine, toolchain and a few random characters.
    pub id: Name,
    /// The machine.
    pub machine: Name,
    /// The task's target.
    pub target: Name,
    /// The task's commit.
    pub commit: TreeId,
    /// The attempt.
    pub at: TaskRef,
    /// The stage in which it ended, if one had begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Name>,
    /// How the task ended.
    pub outcome: Outcome,
    /// Who started the boss, as `user@computer`.
    pub boss: String,
    /// The boss's run.
    pub run: RunId,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Until when it is kept, in seconds since 1970.
    pub until: u64,
    /// Whether the guest's memory was saved, so that it goes on where it stopped; otherwise its
    /// disk is all there is.
    pub memory: bool,
    /// Who is in it right now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered: Option<Visitor>,
}

/// A person who is in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visitor {
    /// Who, as `user@computer`.
    pub person: String,
    /// The address from which the person logged in to the host, if by ssh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The process on the host.
    pub pid: u32,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

impl Visitor {
    /// Who, from where and for how long, for a message. `now` is in seconds since 1970; clocks may
    /// differ.
    pub fn told(&self, now: u64) -> String {
        let from = self.from.as_ref().map(|from| format!(" from {}", one_line(from))).unwrap_or_default();
        let minutes = now.saturating_sub(self.since) / 60;
        let long = if minutes == 0 { "since just now".to_owned() } else { format!("for {minutes} min") };
        format!("{}{from}, {long}, process {}", one_line(&self.person), self.pid)
    }
}

/// What a result says about the machine that its task ran in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineResult {
    /// The machine.
    pub name: Name,
    /// Its id.
    pub id: String,
    /// The toolchain's id.
    pub toolchain_id: String,
    /// The version of the guest agent.
    pub agent: u32,
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Memory of the guest in bytes.
    pub memory: u64,
    /// Processors of the guest.
    pub processors: u32,
    /// From the start of QEMU until the guest asked for its task, in milliseconds; after a warm
    /// start, until it had proven that it is itself.
    pub boot_ms: u64,
    /// Whether the guest went on from saved memory instead of booting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warm: bool,
    /// Boots that it took.
    pub boots: u32,
    /// Versions that the bootstrap reported.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, String>,
    /// The machines that served it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auxiliary: Vec<AuxiliaryResult>,
}

/// What a result says about a machine that served its task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuxiliaryResult {
    /// What the task called it.
    pub name: Name,
    /// The machine.
    pub machine: Name,
    /// Its id.
    pub id: String,
    /// The id of its toolchain.
    pub toolchain_id: String,
    /// Memory of its guest in bytes.
    pub memory: u64,
}

impl Validate for MachineUse {
    fn validate(&self) -> Result<(), Invalid> {
        let refuse = |why: String| Err(Invalid { field: "auxiliary", why });
        if self.auxiliary.len() > AUXILIARIES_MAX {
            return refuse(format!("{} machines; {AUXILIARIES_MAX} is the most", self.auxiliary.len()));
        }
        for (index, one) in self.auxiliary.iter().enumerate() {
            let prefix = variable_prefix(&one.name);
            if self.auxiliary[..index].iter().any(|other| variable_prefix(&other.name) == prefix) {
                return refuse(format!("two machines would have the prefix {prefix}"));
            }
        }
        Ok(())
    }
}

/// The prefix of an auxiliary machine's variables: its name in upper case, with `_` for whatever a
/// variable's name cannot hold.
pub fn variable_prefix(name: &Name) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let mut prefix: String = name.as_str().chars().map(word).collect();
    if prefix.starts_with(|c: char| c.is_ascii_digit()) {
        prefix.insert(0, '_');
    }
    prefix
}

//! What a guest is run for.

use std::path::PathBuf;

use crewboss_protocol::machine::{Accelerator, MachineUse};
use crewboss_protocol::message::{BootstrapOrder, Hold, Pause};
use crewboss_protocol::{HostName, Name, RunId, SessionId};
use serde::{Deserialize, Serialize};

/// One bootstrap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapJob {
    /// What the boss wants.
    pub order: BootstrapOrder,
    /// What it takes to run its guest; there is no source.
    pub machine: MachineJob,
}

/// What a runner needs to know for a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineJob {
    /// The machine directory of the host.
    pub directory: PathBuf,
    /// The work directory of the host.
    pub work: PathBuf,
    /// The session, which owns the guest.
    pub session: SessionId,
    /// The machines.
    pub machines: MachineUse,
    /// The toolchain inside the build machine.
    pub toolchain: Name,
    /// What guests run with.
    pub accelerator: Accelerator,
    /// Memory for all guests of the task together, in bytes.
    pub memory: u64,
    /// Processors of each guest, at most.
    pub processors: u32,
    /// The source as an archive.
    pub source: PathBuf,
    /// When the guest is kept afterwards.
    pub hold: Hold,
    /// Where it waits for a person.
    pub pause: Option<Pause>,
    /// Who started the boss.
    pub boss: String,
    /// The boss's run.
    pub run: RunId,
    /// What the boss calls this host.
    pub host: HostName,
    /// The boss's priority.
    pub priority: u32,
}

//! What `overview` tells: who uses a host right now; one line on its standard output.

use serde::{Deserialize, Serialize};

use crate::host::SlotHolder;
use crate::id::{Name, RunId, TaskRef, TreeId};
use crate::limits::MACHINES_MAX;
use crate::machine::{HeldGuest, MachineHolder, Visitor};
use crate::message::{Invalid, Validate};
use crate::phase::Phase;

/// Slots in one overview; a host never has nearly as many.
const SLOTS_MAX: usize = 65_536;

/// Who uses a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// Who holds which slot, of all bosses.
    #[serde(default)]
    pub slots: Vec<SlotHolder>,
    /// What runs in slots, of all bosses.
    #[serde(default)]
    pub tasks: Vec<RunningTask>,
    /// Guests that run.
    #[serde(default)]
    pub guests: Vec<RunningGuest>,
    /// Guests that are kept for a person.
    #[serde(default)]
    pub held: Vec<HeldGuest>,
}

/// An attempt that has a slot, or a bootstrap that a person wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// Who started the boss, as `user@computer`.
    pub boss: String,
    /// The boss's run.
    pub run: RunId,
    /// The attempt.
    pub at: TaskRef,
    /// The task's target, unless it is a bootstrap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
    /// The task's commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<TreeId>,
    /// The machine that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Name>,
    /// What it is at.
    pub phase: Phase,
    /// For how long, in milliseconds.
    pub for_ms: u64,
}

/// A guest that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningGuest {
    /// What it is called on its host.
    pub id: Name,
    /// Its machine.
    pub machine: Name,
    /// How far it has come, in one word.
    pub step: Name,
    /// For whom it runs, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<MachineHolder>,
    /// The person that its task waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// A task that waits for a person in its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The task's target.
    pub target: Name,
    /// The task's commit.
    pub commit: TreeId,
    /// The attempt.
    pub at: TaskRef,
    /// The stage that comes next, or that has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Name>,
    /// Until when it waits, in seconds since 1970.
    pub until: u64,
    /// Who is in the guest right now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered: Option<Visitor>,
}

impl Validate for Overview {
    fn validate(&self) -> Result<(), Invalid> {
        let fits = |field: &'static str, len: usize, max: usize| {
            let why = || format!("{len} is over the limit of {max}");
            if len <= max { Ok(()) } else { Err(Invalid { field, why: why() }) }
        };
        fits("slots", self.slots.len(), SLOTS_MAX)?;
        fits("tasks", self.tasks.len(), SLOTS_MAX)?;
        fits("guests", self.guests.len(), MACHINES_MAX)?;
        fits("held", self.held.len(), MACHINES_MAX)
    }
}

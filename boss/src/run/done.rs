//! Which tasks are done already, as far as the journal and the result directory agree.
//!
//! The version of a target's toolchain is known only once hosts have answered. Until then a task with a recorded result
//! is a candidate: it is not handed out before every host has answered or failed, or [`SETTLE_WITHIN`] has passed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use crewboss_protocol::{Outcome, TaskId, Toolchain};

use crate::run::plan::Plan;
use crate::store::{Recorded, ResultFile, TaskKey};

/// How long candidates wait for hosts that answer late.
pub const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// Which recorded results are built again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Force {
    /// None: a recorded failure is a result too.
    #[default]
    Nothing,
    /// Those that did not go well.
    Failed,
    /// All.
    Everything,
}

/// A plan's tasks, divided by what is known of them.
#[derive(Debug, Default)]
pub struct Division {
    /// Nothing usable is recorded.
    pub open: Vec<TaskId>,
    /// Done, whatever the hosts say.
    pub done: Vec<(TaskId, Recorded)>,
    /// Done if a host offers one of the recorded toolchain versions.
    pub candidates: BTreeMap<TaskId, Vec<Recorded>>,
}

/// Divides the plan.
pub fn divide(
    plan: &Plan,
    recorded: &HashMap<TaskKey, Vec<Recorded>>,
    root: &Path,
    force: Force,
) -> Division {
    let mut division = Division::default();
    for task in (0..plan.tasks()).map(TaskId) {
        let key = plan.key(task);
        let needs_toolchain = plan.target(task).target.toolchain.is_some();
        let usable = |record: &&Recorded| stands(record.outcome, force) && is_in_place(record, root);
        let mut known: Vec<Recorded> = match recorded.get(&key) {
            Some(records) if force != Force::Everything => records.iter().filter(usable).cloned().collect(),
            _ => Vec::new(),
        };
        known.retain(|record| record.toolchain.is_some() == needs_toolchain);
        match known.pop() {
            None => division.open.push(task),
            Some(record) if !needs_toolchain => division.done.push((task, record)),
            Some(record) => {
                known.push(record);
                division.candidates.insert(task, known);
            }
        }
    }
    division
}

/// The recorded result that a host's toolchains confirm.
pub fn confirmed<'a>(
    plan: &Plan,
    task: TaskId,
    records: &'a [Recorded],
    offered: &[Toolchain],
) -> Option<&'a Recorded> {
    let wanted = plan.target(task).target.toolchain.as_ref()?;
    let version = &offered.iter().find(|toolchain| toolchain.name == *wanted)?.version;
    records.iter().find(|record| record.toolchain.as_ref() == Some(version))
}

/// Whether a recorded outcome is a result that is not tried again by itself.
fn stands(outcome: Outcome, force: Force) -> bool {
    match outcome {
        Outcome::Success | Outcome::Warning => true,
        Outcome::Failure | Outcome::Timeout | Outcome::Abnormal => force == Force::Nothing,
        Outcome::Infrastructure | Outcome::Interrupted | Outcome::Cancelled | Outcome::Skipped => false,
    }
}

/// Whether the recorded directory is there and holds what the journal says.
fn is_in_place(record: &Recorded, root: &Path) -> bool {
    let Ok(text) = fs::read(root.join(&*record.path).join("result.json")) else { return false };
    let file: Option<ResultFile> = serde_json::from_slice(&text).ok();
    file.is_some_and(|file| {
        (file.key, &file.toolchain, file.outcome) == (record.key, &record.toolchain, record.outcome)
    })
}

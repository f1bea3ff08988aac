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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Needs, TargetPlan};
    use crate::run::plan::Commit;
    use crate::store::RESULT_SCHEMA;
    use crewboss_protocol::message::ArtifactCount;
    use crewboss_protocol::{Attempt, Command, Environment, Stage, Target, TreeId};

    fn target(name: &str, toolchain: Option<&str>) -> TargetPlan {
        let stage = Stage { name: "build".parse().unwrap(), command: Command::Shell("make".to_owned()) };
        let target = Target {
            name: name.parse().unwrap(),
            toolchain: toolchain.map(|name| name.parse().unwrap()),
            incremental: false,
            environment: Environment::Snapshot,
            timeout_ms: 1000,
            stages: vec![stage],
            variables: BTreeMap::new(),
            artifacts: Vec::new(),
            sizes: Vec::new(),
        };
        TargetPlan { target, needs: Needs::default(), priority: 0 }
    }

    /// Two targets at one commit; the second one needs a toolchain.
    fn plan(tree: u8) -> Plan {
        let commit = Commit {
            id: TreeId([9; 20]),
            tree: TreeId([tree; 20]),
            short: "abc".into(),
            subject: "x".into(),
        };
        Plan::new(vec![commit], vec![target("plain", None), target("cross", Some("aarch64"))]).unwrap()
    }

    /// Records a result of a task as the store does, in journal and directory.
    fn record(plan: &Plan, task: u32, outcome: Outcome, toolchain: Option<&str>, root: &Path) -> Recorded {
        let task = TaskId(task);
        let name = plan.target(task).target.name.clone();
        let (key, toolchain) = (plan.key(task), toolchain.map(str::to_owned));
        let commit = plan.commit(task);
        let result = ResultFile {
            schema: RESULT_SCHEMA,
            run: "r1".parse().unwrap(),
            target: name.clone(),
            commit: commit.id,
            subject: commit.subject.clone(),
            tree: commit.tree,
            key,
            outcome,
            attempt: Attempt(1),
            host: None,
            ended_ms: 1,
            wall_ms: 1,
            cpu_ms: 1,
            rss_kib_max: 1,
            stages: Vec::new(),
            toolchain: toolchain.clone(),
            warm: false,
            log_bytes: 0,
            err_bytes: 0,
            artifacts: ArtifactCount::default(),
            message: String::new(),
            earlier: Vec::new(),
        };
        let place = root.join(&*plan.path(task));
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("result.json"), serde_json::to_vec(&result).unwrap()).unwrap();
        let (commit, path) = (commit.short.clone(), plan.path(task));
        Recorded {
            key,
            toolchain,
            target: name,
            commit,
            outcome,
            attempt: Attempt(1),
            host: None,
            wall_ms: 1,
            path,
        }
    }

    fn divided(plan: &Plan, records: &[Recorded], root: &Path, force: Force) -> (usize, usize, usize) {
        let recorded = records.iter().map(|record| (record.key, vec![record.clone()])).collect();
        let division = divide(plan, &recorded, root, force);
        (division.open.len(), division.done.len(), division.candidates.len())
    }

    #[test]
    fn only_what_matches_in_every_part_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let (root, now) = (dir.path(), plan(1));
        let plain = record(&now, 0, Outcome::Success, None, root);
        let cross = record(&now, 1, Outcome::Failure, Some("gcc 12"), root);
        let records = [plain.clone(), cross];
        assert_eq!(divided(&now, &records, root, Force::Nothing), (0, 1, 1));
        assert_eq!(divided(&now, &records, root, Force::Failed), (1, 1, 0));
        assert_eq!(divided(&now, &records, root, Force::Everything), (2, 0, 0));
        assert_eq!(divided(&plan(2), &records, root, Force::Nothing), (2, 0, 0), "another tree");
        fs::remove_file(root.join(&*plain.path).join("result.json")).unwrap();
        assert_eq!(divided(&now, &records, root, Force::Nothing), (1, 0, 1), "the directory is gone");
    }

    #[test]
    fn what_could_not_be_run_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let now = plan(1);
        for outcome in [Outcome::Infrastructure, Outcome::Cancelled, Outcome::Interrupted] {
            let records = [record(&now, 0, outcome, None, dir.path())];
            assert_eq!(divided(&now, &records, dir.path(), Force::Nothing), (2, 0, 0), "{outcome}");
        }
    }

    #[test]
    fn a_candidate_is_confirmed_by_the_same_toolchain_version_only() {
        let dir = tempfile::tempdir().unwrap();
        let now = plan(1);
        let records = [record(&now, 1, Outcome::Success, Some("gcc 12"), dir.path())];
        let offer = |version: &str| {
            [Toolchain {
                name: "aarch64".parse().unwrap(),
                version: version.to_owned(),
                compiler: String::new(),
                prefix: String::new(),
            }]
        };
        assert_eq!(confirmed(&now, TaskId(1), &records, &offer("gcc 12")), Some(&records[0]));
        assert_eq!(confirmed(&now, TaskId(1), &records, &offer("gcc 13")), None);
        assert_eq!(confirmed(&now, TaskId(1), &records, &[]), None);
    }
}

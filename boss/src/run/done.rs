//! Which tasks are done already, as far as the journal and the result directory agree.
//!
//! The version of a target's toolchain, and the ids of its machine, are known only once hosts have
//! answered. Until then a task with a recorded result is a candidate: it is not handed out before
//! every host has answered or failed, or [`SETTLE_WITHIN`] has passed.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use crewboss_ground::read_record;
use crewboss_protocol::machine::{AGENT_VERSION, DEFAULT_TOOLCHAIN, MachineRole, MachineState};
use crewboss_protocol::{Environment, HostFacts, Name, Outcome, Target, TaskId};

use crate::run::plan::Plan;
use crate::store::{AuxiliaryInputs, MachineInputs, Recorded, ResultFile, TaskKey};

/// How long candidates wait for hosts that answer late.
pub const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// A result that is longer has not been written by a boss.
const RESULT_BYTES_MAX: u64 = 64 << 20;

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
    /// Done if a host offers one of the recorded toolchain versions, or machines.
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
        let target = &plan.target(task).target;
        let usable = |record: &&Recorded| stands(record.outcome, force) && is_in_place(record, root);
        let mut known: Vec<Recorded> = match recorded.get(&key) {
            Some(records) if force != Force::Everything => records.iter().filter(usable).cloned().collect(),
            _ => Vec::new(),
        };
        known.retain(|record| says_enough(record, target));
        match known.pop() {
            None => division.open.push(task),
            Some(record) if !needs_host(target) => division.done.push((task, record)),
            Some(record) => {
                known.push(record);
                division.candidates.insert(task, known);
            }
        }
    }
    division
}

fn in_machine(target: &Target) -> bool {
    matches!(target.environment, Environment::Machine(_))
}

/// Whether it takes a host to say that a result stands.
fn needs_host(target: &Target) -> bool {
    in_machine(target) || target.toolchain.is_some()
}

/// Whether a record says of what it was built with as much as has to be compared.
fn says_enough(record: &Recorded, target: &Target) -> bool {
    if in_machine(target) {
        record.machine.is_some()
    } else {
        record.machine.is_none() && record.toolchain.is_some() == target.toolchain.is_some()
    }
}

/// The recorded result that a host confirms: it offers the toolchain, or the machine with its
/// toolchain, that was used.
pub fn confirmed<'a>(
    plan: &Plan,
    task: TaskId,
    records: &'a [Recorded],
    facts: &HostFacts,
) -> Option<&'a Recorded> {
    let target = &plan.target(task).target;
    if in_machine(target) {
        let machine =
            |record: &Recorded| record.machine.as_ref().is_some_and(|used| offers(facts, used, target));
        return records.iter().find(|record| machine(record));
    }
    let wanted = target.toolchain.as_ref()?;
    let version = &facts.toolchains.iter().find(|toolchain| toolchain.name == *wanted)?.version;
    records.iter().find(|record| record.toolchain.as_ref() == Some(version))
}

/// Whether a task of this target would run in the same machine on this host, served by the same
/// ones.
fn offers(facts: &HostFacts, used: &MachineInputs, target: &Target) -> bool {
    let toolchain = target.toolchain.as_ref().map_or(DEFAULT_TOOLCHAIN, Name::as_str);
    let has = |role, name: &Name, id: &String, toolchain: &str, toolchain_id: &String| {
        facts.machines.iter().any(|machine| {
            machine.role == role
                && machine.state == MachineState::Usable
                && (&machine.name, &machine.id) == (name, id)
                && machine
                    .copies
                    .iter()
                    .any(|copy| copy.toolchain.as_str() == toolchain && copy.toolchain_id == *toolchain_id)
        })
    };
    let serves = |one: &AuxiliaryInputs| {
        has(MachineRole::Auxiliary, &one.name, &one.id, DEFAULT_TOOLCHAIN, &one.toolchain_id)
    };
    used.agent == AGENT_VERSION
        && facts.emulator.is_some()
        && has(MachineRole::Build, &used.name, &used.id, toolchain, &used.toolchain_id)
        && wants(target) == used.auxiliary.len()
        && used.auxiliary.iter().all(serves)
}

/// How many machines serve a task of this target.
fn wants(target: &Target) -> usize {
    match &target.environment {
        Environment::Machine(machine) => machine.auxiliary.len(),
        Environment::Snapshot | Environment::Directory => 0,
    }
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
    let path = root.join(&*record.path).join("result.json");
    let Ok(Some(text)) = read_record(&path, RESULT_BYTES_MAX) else { return false };
    let file: Option<ResultFile> = serde_json::from_slice(&text).ok();
    file.is_some_and(|file| {
        let machine = file.machine.as_deref().map(MachineInputs::from);
        (file.key, &file.toolchain, file.outcome) == (record.key, &record.toolchain, record.outcome)
            && machine == record.machine
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Needs, TargetPlan};
    use crate::run::plan::Commit;
    use crate::store::RESULT_SCHEMA;
    use crewboss_protocol::host::SpeedSource;
    use crewboss_protocol::machine::{
        Accelerator, Auxiliary, CopyFacts, CopyState, Emulator, MachineFacts, MachineResult, MachineUse,
    };
    use crewboss_protocol::message::ArtifactCount;
    use crewboss_protocol::{Attempt, Command, Load, Phases, Stage, Toolchain, TreeId};
    use std::collections::BTreeSet;
    use std::fs;

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
            phases: Phases::default(),
            cpu_ms: 1,
            rss_kib_max: 1,
            stages: Vec::new(),
            toolchain: toolchain.clone(),
            machine: None,
            held: None,
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
            machine: None,
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

    fn facts(toolchain: &str, machine: Option<MachineFacts>) -> HostFacts {
        let toolchain = Toolchain {
            name: "aarch64".parse().unwrap(),
            version: toolchain.to_owned(),
            compiler: String::new(),
            prefix: String::new(),
        };
        HostFacts {
            kernel: String::new(),
            architecture: String::new(),
            threads: 1,
            memory: 1,
            disk_free: 1,
            work: String::new(),
            slots: 1,
            speed: 1,
            speed_source: SpeedSource::Measured,
            toolchains: vec![toolchain],
            broken_toolchains: Vec::new(),
            features: BTreeSet::new(),
            load: Load::default(),
            holders: Vec::new(),
            trees: Vec::new(),
            emulator: machine.is_some().then(|| Emulator {
                version: "7.2".to_owned(),
                accelerator: Accelerator::Tcg,
                why: String::new(),
            }),
            no_emulator: String::new(),
            guest_memory: 1 << 30,
            machines: machine.into_iter().collect(),
            held: Vec::new(),
        }
    }

    #[test]
    fn a_candidate_is_confirmed_by_the_same_toolchain_version_only() {
        let dir = tempfile::tempdir().unwrap();
        let now = plan(1);
        let records = [record(&now, 1, Outcome::Success, Some("gcc 12"), dir.path())];
        let confirmed = |facts| confirmed(&now, TaskId(1), &records, &facts);
        assert_eq!(confirmed(facts("gcc 12", None)), Some(&records[0]));
        assert_eq!(confirmed(facts("gcc 13", None)), None);
        let none = HostFacts { toolchains: Vec::new(), ..facts("gcc 12", None) };
        assert_eq!(confirmed(none), None);
    }

    /// A machine with a copy, as a host tells of it.
    fn machine(id: &str, toolchain: &str, toolchain_id: &str) -> MachineFacts {
        MachineFacts {
            volume: "default".parse().unwrap(),
            name: "debian".parse().unwrap(),
            role: MachineRole::Build,
            id: id.to_owned(),
            summary: String::new(),
            state: MachineState::Usable,
            copies: vec![CopyFacts {
                toolchain: toolchain.parse().unwrap(),
                toolchain_id: toolchain_id.to_owned(),
                state: CopyState::NeedsBootstrap { why: "it is old".to_owned() },
                made: 0,
                versions: BTreeMap::new(),
                holders: Vec::new(),
            }],
            memory_min: 1,
            memory_max: None,
        }
    }

    #[test]
    fn a_candidate_in_a_machine_is_confirmed_by_the_same_machine_toolchain_and_agent_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut inside = target("inside", Some("gcc12"));
        let name: Name = "debian".parse().unwrap();
        inside.target.environment =
            Environment::Machine(MachineUse { name: name.clone(), auxiliary: Vec::new() });
        let now = Plan::new(plan(1).commits().to_vec(), vec![inside]).unwrap();
        let mut recorded = record(&now, 0, Outcome::Success, None, dir.path());
        let division =
            |recorded: &Recorded| divided(&now, std::slice::from_ref(recorded), dir.path(), Force::Nothing);
        assert_eq!(division(&recorded), (1, 0, 0), "it is not said which machine it ran in");
        let used = MachineInputs {
            name,
            id: "1".to_owned(),
            toolchain_id: "a".to_owned(),
            agent: AGENT_VERSION,
            auxiliary: Vec::new(),
        };
        recorded.machine = Some(used.clone());
        assert_eq!(division(&recorded), (1, 0, 0), "result.json says something else");
        let path = dir.path().join(&*recorded.path).join("result.json");
        let mut file: ResultFile = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        file.machine = Some(Box::new(MachineResult {
            name: used.name.clone(),
            id: used.id.clone(),
            toolchain_id: used.toolchain_id.clone(),
            agent: used.agent,
            accelerator: Accelerator::Tcg,
            memory: 1,
            processors: 1,
            boot_ms: 1,
            warm: false,
            boots: 1,
            versions: BTreeMap::new(),
            auxiliary: Vec::new(),
        }));
        fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(division(&recorded), (0, 0, 1));

        let is_confirmed = |record: &Recorded, machine| {
            confirmed(&now, TaskId(0), std::slice::from_ref(record), &facts("gcc 12", machine)).is_some()
        };
        assert!(is_confirmed(&recorded, Some(machine("1", "gcc12", "a"))));
        for (offered, what) in [
            (None, "no machine"),
            (Some(machine("2", "gcc12", "a")), "another image"),
            (Some(machine("1", "gcc12", "b")), "another toolchain"),
            (Some(machine("1", "default", "a")), "another toolchain's name"),
            (
                Some(MachineFacts { role: MachineRole::Auxiliary, ..machine("1", "gcc12", "a") }),
                "another role",
            ),
        ] {
            assert!(!is_confirmed(&recorded, offered), "{what}");
        }
        let older = MachineInputs { agent: AGENT_VERSION + 1, ..used };
        recorded.machine = Some(older);
        assert!(!is_confirmed(&recorded, Some(machine("1", "gcc12", "a"))), "another agent");
    }

    #[test]
    fn another_image_of_a_machine_that_serves_makes_a_result_old() {
        let (build, db): (Name, Name) = ("debian".parse().unwrap(), "postgres".parse().unwrap());
        let mut served = target("served", None);
        let auxiliary = vec![Auxiliary { name: "db".parse().unwrap(), machine: db.clone() }];
        served.target.environment = Environment::Machine(MachineUse { name: build.clone(), auxiliary });
        let used = MachineInputs {
            name: build,
            id: "1".to_owned(),
            toolchain_id: "a".to_owned(),
            agent: AGENT_VERSION,
            auxiliary: vec![AuxiliaryInputs {
                name: db.clone(),
                id: "7".to_owned(),
                toolchain_id: "b".to_owned(),
            }],
        };
        let serves = |id: &str, toolchain: &str, role| MachineFacts {
            name: db.clone(),
            role,
            ..machine(id, "default", toolchain)
        };
        let offered = |serves: Option<MachineFacts>, used: &MachineInputs| {
            let mut facts = facts("gcc 12", Some(machine("1", "default", "a")));
            facts.machines.extend(serves);
            offers(&facts, used, &served.target)
        };
        let role = MachineRole::Auxiliary;
        assert!(offered(Some(serves("7", "b", role)), &used));
        assert!(!offered(None, &used), "it is gone");
        assert!(!offered(Some(serves("8", "b", role)), &used), "another image");
        assert!(!offered(Some(serves("7", "c", role)), &used), "another toolchain");
        assert!(!offered(Some(serves("7", "b", MachineRole::Build)), &used), "another role");
        let before = MachineInputs { auxiliary: Vec::new(), ..used };
        assert!(!offered(Some(serves("7", "b", role)), &before), "it is not said what served it");
    }
}

//! What is kept of a task: its key and its `result.json`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crewboss_protocol::machine::{HeldGuest, MachineResult};
use crewboss_protocol::message::ArtifactCount;
use crewboss_protocol::{Attempt, HostName, Name, Outcome, Phases, RunId, StageResult, Target, TreeId};
use serde::{Deserialize, Serialize};

/// Version of `result.json`. Raised when a field is removed or changes its meaning.
pub const RESULT_SCHEMA: u32 = 2;

/// What a task builds: the hash of its tree and of its target's definition, environment included.
/// Together with the version of the toolchain, or for a target in a machine with [`MachineInputs`],
/// it decides whether a task is already done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskKey(pub [u8; 32]);

impl TaskKey {
    /// The key of a target at a tree.
    pub fn new(target: &TargetDigest, tree: TreeId) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&tree.0);
        hasher.update(&target.0);
        Self(*hasher.finalize().as_bytes())
    }
}

/// The hash of a target's whole definition, computed once for all its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetDigest([u8; 32]);

impl TargetDigest {
    /// The digest of a target.
    pub fn new(target: &Target) -> Self {
        // A target has string keys only, so this cannot fail.
        Self(*blake3::hash(&serde_json::to_vec(target).unwrap_or_default()).as_bytes())
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for TaskKey {
    type Err = blake3::HexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(*blake3::Hash::from_hex(text)?.as_bytes()))
    }
}

impl TryFrom<String> for TaskKey {
    type Error = blake3::HexError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TaskKey> for String {
    fn from(key: TaskKey) -> String {
        key.to_string()
    }
}

/// The machine that a task ran in, as far as it decides whether the result still stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInputs {
    /// The machine.
    pub name: Name,
    /// Its id.
    pub id: String,
    /// The toolchain's id.
    pub toolchain_id: String,
    /// The version of the guest agent.
    pub agent: u32,
    /// The machines that served it, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auxiliary: Vec<AuxiliaryInputs>,
}

/// A machine that served a task, as far as it decides whether the result still stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuxiliaryInputs {
    /// The machine.
    pub name: Name,
    /// Its id.
    pub id: String,
    /// The toolchain's id.
    pub toolchain_id: String,
}

impl From<&MachineResult> for MachineInputs {
    fn from(result: &MachineResult) -> Self {
        let MachineResult { name, id, toolchain_id, agent, .. } = result;
        let auxiliary = result.auxiliary.iter().map(|one| AuxiliaryInputs {
            name: one.machine.clone(),
            id: one.id.clone(),
            toolchain_id: one.toolchain_id.clone(),
        });
        Self {
            name: name.clone(),
            id: id.clone(),
            toolchain_id: toolchain_id.clone(),
            agent: *agent,
            auxiliary: auxiliary.collect(),
        }
    }
}

/// An attempt that did not become the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptStory {
    /// Which.
    pub attempt: Attempt,
    /// Where.
    pub host: HostName,
    /// What happened.
    pub reason: String,
}

/// `result.json`: everything that is known of a task's end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultFile {
    /// [`RESULT_SCHEMA`].
    pub schema: u32,
    /// The run that made it.
    pub run: RunId,
    /// The target.
    pub target: Name,
    /// The commit's full id.
    pub commit: TreeId,
    /// The commit's subject.
    pub subject: Arc<str>,
    /// The tree that was built.
    pub tree: TreeId,
    /// See [`TaskKey`].
    pub key: TaskKey,
    /// How it ended.
    pub outcome: Outcome,
    /// The attempt that gave this result; 0 if it never ran.
    pub attempt: Attempt,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// Milliseconds since 1970, UTC, by the boss's clock.
    pub ended_ms: u64,
    /// The time that it has taken itself, see [`Phases::own_ms`]. Before schema 2 that of its
    /// stages alone.
    pub wall_ms: u64,
    /// Where all of its time went, from the start of the run, or from the end of the attempt
    /// before. `storing` lasts until this was written.
    #[serde(default, skip_serializing_if = "Phases::is_empty")]
    pub phases: Phases,
    /// Processor time of all stages, in milliseconds.
    pub cpu_ms: u64,
    /// Largest process, in KiB.
    pub rss_kib_max: u64,
    /// The stages that began, each with its end.
    pub stages: Vec<StageResult>,
    /// Version of the toolchain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
    /// The machine that it ran in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Box<MachineResult>>,
    /// The guest, if it was kept for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Box<HeldGuest>>,
    /// Whether it started from an earlier build directory.
    pub warm: bool,
    /// Length of `log` in bytes.
    pub log_bytes: u64,
    /// Length of `err` in bytes.
    pub err_bytes: u64,
    /// What is below `artifacts/`.
    pub artifacts: ArtifactCount,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Earlier attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<AttemptStory>,
}

impl ResultFile {
    /// What `done` holds, as buildman writes it: 0, or the exit code of the stage that ended the
    /// task.
    pub fn return_code(&self) -> u8 {
        match self.stages.last() {
            _ if self.outcome.is_good() => 0,
            Some(stage) if !stage.exit.is_success() => stage.exit.shell_code(),
            // Nothing failed by itself: a limit, a missing artifact or the environment ended it.
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_protocol::StageExit;

    /// As the first schema had it.
    const FIRST: &str = r#"{
        "schema": 1, "run": "20260704-120000-3f2a", "target": "arm64",
        "commit": "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "subject": "Do it", "tree": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        "key": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "outcome": "timeout", "attempt": 1, "host": "lab1",
        "ended_ms": 1783166400000, "wall_ms": 1840, "cpu_ms": 1700, "rss_kib_max": 51200,
        "stages": [{"name": "build", "exit": {"signal": 15}, "wall_ms": 1840, "cpu_ms": 1700}],
        "warm": false, "log_bytes": 0, "err_bytes": 0, "artifacts": {"files": 0, "bytes": 0}
    }"#;

    #[test]
    fn a_result_of_the_first_schema_can_still_be_read() {
        let mut result: ResultFile = serde_json::from_str(FIRST).unwrap();
        assert_eq!((result.schema, result.wall_ms, result.phases.is_empty()), (1, 1840, true));
        assert_eq!(result.return_code(), 143);
        for (exit, code) in [(StageExit::Timeout, 143), (StageExit::Lost, 137), (StageExit::Code(0), 1)] {
            result.stages[0].exit = exit;
            assert_eq!(result.return_code(), code, "{exit}");
        }
    }
}

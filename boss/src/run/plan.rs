//! The plan of a run: every target at every commit. A task is an index into it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crewboss_protocol::message::{Hold, Pause, TaskOrder};
use crewboss_protocol::{Environment, TaskId, TaskRef, TreeId};

use crate::plan::TargetPlan;
use crate::store::{TargetDigest, TaskKey, task_path};

/// Most tasks of one run. Ids have 32 bits; this keeps a typing error from filling the memory.
pub const TASKS_MAX: usize = 20_000_000;

/// A commit to build, or the working tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its id; for the working tree the id of its tree.
    pub id: TreeId,
    /// What is built.
    pub tree: TreeId,
    /// As many of its digits as git shows.
    pub short: Arc<str>,
    /// The first line of its message.
    pub subject: Arc<str>,
}

impl From<&crate::source::Commit> for Commit {
    fn from(commit: &crate::source::Commit) -> Self {
        let (short, subject) = (commit.short.as_str().into(), commit.subject.as_str().into());
        Self { id: commit.id, tree: commit.tree, short, subject }
    }
}

/// All targets at all commits, commit by commit.
#[derive(Debug)]
pub struct Plan {
    commits: Vec<Commit>,
    targets: Vec<TargetPlan>,
    digests: Vec<TargetDigest>,
    tasks: u32,
    guests: Guests,
}

/// What is asked for a person who wants to look into guests. It is no part of what a task builds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guests {
    /// After which ends they are kept.
    pub hold: Hold,
    /// Where tasks wait.
    pub pause: Option<Pause>,
}

/// There is nothing to do, or too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No targets are left.
    #[error("there are no targets to build; hint: name some in build.toml, as [target.NAME]")]
    NoTargets,
    /// More tasks than [`TASKS_MAX`].
    #[error(
        "{targets} targets at {commits} commits are more than {TASKS_MAX} tasks; hint: choose a smaller range"
    )]
    TooMany {
        /// Targets.
        targets: usize,
        /// Commits.
        commits: usize,
    },
}

impl Plan {
    /// The plan for these targets at these commits.
    pub fn new(commits: Vec<Commit>, targets: Vec<TargetPlan>) -> Result<Self, PlanError> {
        if targets.is_empty() {
            return Err(PlanError::NoTargets);
        }
        let tasks = commits.len().saturating_mul(targets.len());
        let tasks = u32::try_from(tasks).ok().filter(|&tasks| tasks as usize <= TASKS_MAX);
        let tasks = tasks.ok_or(PlanError::TooMany { targets: targets.len(), commits: commits.len() })?;
        let digests = targets.iter().map(|plan| TargetDigest::new(&plan.target)).collect();
        Ok(Self { commits, targets, digests, tasks, guests: Guests::default() })
    }

    /// The same plan, with other wishes about guests.
    pub fn with_guests(self, guests: Guests) -> Self {
        Self { guests, ..self }
    }

    /// How many tasks there are; their ids count from 0.
    pub fn tasks(&self) -> u32 {
        self.tasks
    }

    /// The targets, in the order of the build file.
    pub fn targets(&self) -> &[TargetPlan] {
        &self.targets
    }

    /// The commits, oldest first.
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// The index of a task's target.
    pub fn target_index(&self, task: TaskId) -> usize {
        task.0 as usize % self.targets.len()
    }

    /// The index of a task's commit.
    pub fn commit_index(&self, task: TaskId) -> usize {
        task.0 as usize / self.targets.len()
    }

    /// A task's target.
    pub fn target(&self, task: TaskId) -> &TargetPlan {
        &self.targets[self.target_index(task)]
    }

    /// A task's commit.
    pub fn commit(&self, task: TaskId) -> &Commit {
        &self.commits[self.commit_index(task)]
    }

    /// What decides whether a task is already done, with the toolchain's version.
    pub fn key(&self, task: TaskId) -> TaskKey {
        TaskKey::new(&self.digests[self.target_index(task)], self.commit(task).tree)
    }

    /// The task's directory below the result directory.
    pub fn path(&self, task: TaskId) -> Arc<str> {
        let (index, commit) = (self.commit_index(task), self.commit(task));
        task_path(index, self.commits.len(), &commit.short, &commit.subject, &self.target(task).target.name)
            .into()
    }

    /// What a worker is told to do.
    pub fn order(&self, at: TaskRef) -> TaskOrder {
        let commit = self.commit(at.task);
        let target = u32::try_from(self.target_index(at.task)).unwrap_or(u32::MAX);
        let in_guest = matches!(self.target(at.task).target.environment, Environment::Machine(_));
        let Guests { hold, pause } = if in_guest { self.guests.clone() } else { Guests::default() };
        TaskOrder { at, target, tree: commit.tree, commit: commit.id, cold: false, hold, pause }
    }

    /// The indexes of the commits whose tree is among these.
    pub fn tree_indexes(&self, trees: &BTreeSet<TreeId>) -> BTreeSet<u32> {
        let indexes = 0_u32..;
        indexes
            .zip(&self.commits)
            .filter(|(_, commit)| trees.contains(&commit.tree))
            .map(|(index, _)| index)
            .collect()
    }
}

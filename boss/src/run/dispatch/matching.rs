//! Targets and hosts in the words of the scheduler.

use std::collections::BTreeSet;

use crewboss_protocol::{HostFacts, Name, TaskId};

use super::super::plan::Plan;
use crate::scheduler::{ChainId, Offer, Requirement, RequirementId, Scheduler, TaskEntry};

/// What a host offers to the tasks of a plan.
pub fn offer(facts: &HostFacts, tags: &BTreeSet<Name>, plan: &Plan) -> Offer {
    let trees = facts.trees.iter().copied().collect();
    Offer {
        slots: facts.slots,
        speed: facts.speed,
        toolchains: facts.toolchains.iter().map(|toolchain| toolchain.name.clone()).collect(),
        features: facts.features.clone(),
        tags: tags.clone(),
        memory: facts.memory,
        disk_free: facts.disk_free,
        trees: plan.tree_indexes(&trees),
    }
}

/// The class of each target's tasks.
pub fn requirements(plan: &Plan, scheduler: &mut Scheduler) -> Vec<RequirementId> {
    plan.targets()
        .iter()
        .map(|target| scheduler.intern(Requirement::new(target.target.toolchain.clone(), &target.needs)))
        .collect()
}

/// A task as the scheduler needs to know it.
pub fn entry(plan: &Plan, requirements: &[RequirementId], task: TaskId) -> TaskEntry {
    let target = plan.target_index(task);
    let index = u32::try_from(target).unwrap_or(u32::MAX);
    TaskEntry {
        task,
        requirement: requirements[target],
        priority: plan.target(task).priority,
        expected_ms: None,
        tree: u32::try_from(plan.commit_index(task)).unwrap_or(u32::MAX),
        chain: plan.target(task).target.incremental.then_some(ChainId(index)),
    }
}

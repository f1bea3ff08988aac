//! Targets and hosts in the words of the scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crewboss_protocol::advice::Advice;
use crewboss_protocol::host::BrokenToolchain;
use crewboss_protocol::machine::{CopyState, MachineFacts, MachineRole, MachineState};
use crewboss_protocol::{Environment, HostFacts, HostName, Name, TaskId};

use super::super::plan::Plan;
use crate::plan::TargetPlan;
use crate::scheduler::{ChainId, MachineOffer, Offer, Requirement, RequirementId, Scheduler, TaskEntry};

/// For all that a worker does around an attempt, and the way of the news.
const ATTEMPT_GRACE: Duration = Duration::from_secs(60);

/// Before its first stage, a guest has its worker's limits, which the boss does not know.
const GUEST_ALLOWANCE: Duration = Duration::from_secs(24 * 3600);

/// What a host offers to the tasks of a plan.
pub fn offer(host: &HostName, facts: &HostFacts, tags: &BTreeSet<Name>, plan: &Plan) -> Offer {
    let trees = facts.trees.iter().copied().collect();
    Offer {
        slots: facts.slots,
        speed: facts.speed,
        toolchains: facts.toolchains.iter().map(|toolchain| toolchain.name.clone()).collect(),
        broken_toolchains: broken_toolchains(facts),
        machines: machines(host, &facts.machines),
        no_machines: (facts.emulator.is_none() && !facts.machines.is_empty())
            .then(|| format!("no QEMU that can be used: {}", facts.no_emulator)),
        refused_machines: BTreeMap::new(),
        features: facts.features.clone(),
        tags: tags.clone(),
        memory: facts.memory,
        guest_memory: facts.guest_memory,
        disk_free: facts.disk_free,
        trees: plan.tree_indexes(&trees),
    }
}

fn broken_toolchains(facts: &HostFacts) -> BTreeMap<Name, String> {
    let told =
        |broken: &BrokenToolchain| (broken.name.clone(), format!("{}: {}", broken.compiler, broken.why));
    // The crew file's come first, and the first of a name counts.
    facts.broken_toolchains.iter().rev().map(told).collect()
}

/// The machines of a host. Volumes may have machines of the same name: one that can be used counts.
fn machines(host: &HostName, all: &[MachineFacts]) -> BTreeMap<(MachineRole, Name), MachineOffer> {
    let mut offered: BTreeMap<(MachineRole, Name), MachineOffer> = BTreeMap::new();
    for machine in all {
        let unusable = match &machine.state {
            MachineState::Usable => None,
            MachineState::LittleMemory { needs, has } => Some(format!(
                "it needs {needs} bytes of memory, and a slot has {has}; give the host fewer slots"
            )),
            MachineState::Unusable { why } => Some(why.clone()),
        };
        let without = machine.copies.iter().filter_map(|copy| match &copy.state {
            CopyState::Suspended { why } => {
                let again = Advice::Bootstrap { host, machine: &machine.name, toolchain: &copy.toolchain };
                let why = format!("suspended until a person has looked: {why}; {again} tries again");
                Some((copy.toolchain.clone(), why))
            }
            CopyState::Newer { agent } => {
                Some((copy.toolchain.clone(), format!("a newer crewboss made its copy (agent {agent})")))
            }
            CopyState::NoToolchain { why } => Some((copy.toolchain.clone(), why.clone())),
            CopyState::Ready | CopyState::NeedsBootstrap { .. } | CopyState::Bootstrapping => None,
        });
        let without: BTreeMap<Name, String> = without.collect();
        let all = machine.copies.iter().map(|copy| copy.toolchain.clone());
        let toolchains = all.filter(|name| !without.contains_key(name)).collect();
        let offer = MachineOffer { unusable, toolchains, without, memory_min: machine.memory_min };
        let key = (machine.role, machine.name.clone());
        let better = offered.get(&key).is_none_or(|known| known.unusable.is_some());
        if better {
            offered.insert(key, offer);
        }
    }
    offered
}

/// The class of each target's tasks.
pub fn requirements(plan: &Plan, scheduler: &mut Scheduler) -> Vec<RequirementId> {
    plan.targets()
        .iter()
        .map(|target| scheduler.intern(Requirement::new(&target.target, &target.needs)))
        .collect()
}

/// How long an attempt can run at most, if its worker ends what it has to end: its stages, then
/// what is collected.
fn limit_ms(target: &TargetPlan, standstill: Duration) -> u64 {
    let after = standstill + ATTEMPT_GRACE;
    let before = match target.target.environment {
        // It may wait for its machine, the machine for its bootstrap, and all of them for a person.
        Environment::Machine(_) => GUEST_ALLOWANCE,
        _ => Duration::ZERO,
    };
    let more = u64::try_from((before + after).as_millis()).unwrap_or(u64::MAX);
    target.target.timeout_ms.saturating_add(more)
}

/// A task as the scheduler needs to know it.
pub fn entry(plan: &Plan, requirements: &[RequirementId], task: TaskId, standstill: Duration) -> TaskEntry {
    let target = plan.target_index(task);
    let index = u32::try_from(target).unwrap_or(u32::MAX);
    TaskEntry {
        task,
        requirement: requirements[target],
        priority: plan.target(task).priority,
        expected_ms: None,
        limit_ms: Some(limit_ms(plan.target(task), standstill)),
        tree: u32::try_from(plan.commit_index(task)).unwrap_or(u32::MAX),
        chain: plan.target(task).target.incremental.then_some(ChainId(index)),
    }
}

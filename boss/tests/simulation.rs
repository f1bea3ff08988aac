//! The scheduler against a simulated crew: random faults by the thousand, named faults, and how
//! good the plans are. `CREWBOSS_SEEDS=N` runs N random worlds, `CREWBOSS_SEED=S` only that one.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

#[path = "simulation/checker.rs"]
mod checker;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/makespan.rs"]
mod makespan;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/world.rs"]
mod world;

use crewboss_boss::scheduler::{ChainId, Offer, RequirementId, TaskEntry};
use crewboss_protocol::TaskId;

use world::HostModel;

/// A host without faults, 1 ms away.
pub fn model(slots: u32, speed: u32) -> HostModel {
    HostModel {
        offer: Offer { slots, speed, memory: 1 << 30, disk_free: 1 << 30, ..Offer::default() },
        speed: u64::from(speed),
        latency_ms: 1,
        fails_percent: 0,
        refuses_percent: 0,
        never: std::collections::BTreeSet::new(),
        up_at: 0,
        back_after: None,
    }
}

/// A task of which nothing is known.
pub fn entry(task: u32, requirement: RequirementId) -> TaskEntry {
    TaskEntry {
        task: TaskId(task),
        requirement,
        priority: 0,
        expected_ms: None,
        limit_ms: None,
        tree: 0,
        chain: None,
    }
}

/// A task of an incremental target.
pub fn chained(task: u32, requirement: RequirementId, chain: u32) -> TaskEntry {
    TaskEntry { chain: Some(ChainId(chain)), ..entry(task, requirement) }
}

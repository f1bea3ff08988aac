//! Random worlds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crewboss_boss::scheduler::{HostIndex, Input, MachineNeed, MachineOffer, Requirement, TaskEntry};
use crewboss_protocol::machine::MachineRole;
use crewboss_protocol::{Name, TaskId};

use super::world::{Chaos, HostModel, World};
use super::{chained, entry, model};

/// Enough to meet each rare combination of faults, few enough for every run of the tests.
const SEEDS: u64 = 3000;

fn toolchain(number: u32) -> Name {
    format!("tc{number}").parse().unwrap()
}

fn machine() -> MachineNeed {
    MachineNeed { role: MachineRole::Build, name: "debian".parse().unwrap(), toolchain: None }
}

fn random_host(random: &mut fastrand::Rng, faulty: bool) -> HostModel {
    let speed = random.u32(200..4000);
    let mut host = model(random.u32(1..5), speed);
    host.speed = u64::from(speed) * random.u64(50..200) / 100 + 1;
    host.latency_ms = random.u64(0..30);
    host.up_at = random.u64(0..500);
    host.offer.toolchains = (0..3).filter(|_| random.u8(0..10) < 7).map(toolchain).collect();
    if random.bool() {
        let MachineNeed { role, name, .. } = machine();
        host.offer.machines.insert((role, name), MachineOffer::default());
    }
    if faulty {
        host.fails_percent = if random.u8(0..4) == 0 { random.u32(0..100) } else { 0 };
        host.refuses_percent = if random.u8(0..6) == 0 { random.u32(0..100) } else { 0 };
        host.back_after = (random.u8(0..3) > 0).then(|| random.u64(1..2000));
    }
    host
}

fn random_world(seed: u64) -> World {
    let mut random = fastrand::Rng::with_seed(seed);
    let faulty = random.u8(0..4) > 0;
    let hosts = (0..random.usize(1..6)).map(|_| random_host(&mut random, faulty)).collect();
    let mut world = World::new(seed ^ 0x5eed, hosts);
    let tasks = random.u32(1..40);
    let known = random.bool();
    let mut entries: Vec<TaskEntry> = Vec::new();
    for task in 0..tasks {
        let toolchain = (random.u8(0..3) > 0).then(|| toolchain(random.u32(0..3)));
        let machines = (random.u8(0..4) == 0).then(machine).into_iter().collect();
        let class = world.scheduler.intern(Requirement { toolchain, machines, ..Requirement::default() });
        let duration = random.u64(1..1000);
        world.durations.insert(TaskId(task), duration);
        let chain_class = world.scheduler.intern(Requirement::default());
        let mut new = match random.u32(0..6) {
            0..2 => chained(task, chain_class, random.u32(0..2)),
            _ => entry(task, class),
        };
        new.priority = if random.u8(0..5) == 0 { 1 } else { 0 };
        new.expected_ms = known.then_some(duration);
        new.tree = random.u32(0..3);
        entries.push(new);
    }
    if faulty {
        let mut one_in = |n: u32, upto: u32| if random.u32(0..n) == 0 { random.u32(1..upto) } else { 0 };
        world.chaos = Chaos {
            cut: one_in(2, 60),
            double: one_in(2, 200),
            late: one_in(2, 300),
            result_lost: one_in(3, 100),
            killers: Default::default(),
        };
        if random.u8(0..3) == 0 {
            world.chaos.killers.insert(TaskId(random.u32(0..tasks)));
        }
        for model in &mut world.models {
            if random.u8(0..4) == 0 {
                model.never.insert(random.choice(&entries).unwrap().requirement);
            }
        }
        for host in 0..u32::try_from(world.models.len()).unwrap() {
            if random.u8(0..3) == 0 {
                world.cut(random.u64(0..5000), host);
            }
        }
    }
    let later = entries.split_off(random.usize(0..=entries.len()));
    world.add(entries);
    world.add(later);
    if random.u8(0..8) == 0 {
        world.outside(random.u64(0..2000), Input::Disk { host: HostIndex(0), free: 0 });
    }
    world
}

fn check(seed: u64) {
    let mut world = random_world(seed);
    world.run();
    let counts = world.scheduler.counts();
    // Nothing is left unless it waits for a host that never came back, and in these worlds all that
    // return do.
    assert!(world.scheduler.is_finished(), "tasks are left over: {counts:?}");
    assert_eq!(world.checker.ends.len(), world.checker.tasks.len());
}

#[test]
fn random_worlds_keep_every_promise() {
    let one = std::env::var("CREWBOSS_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let count = std::env::var("CREWBOSS_SEEDS").map_or(SEEDS, |count| count.parse().unwrap());
    let seeds = one.map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(seed))) {
            println!("to repeat: CREWBOSS_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

//! Faults by name.

use std::collections::BTreeSet;

use crewboss_boss::scheduler::{Input, MachineNeed, MachineOffer, Requirement};
use crewboss_protocol::TaskId;
use crewboss_protocol::machine::MachineRole;

use super::checker::End;
use super::world::{HostModel, World};
use super::{chained, entry, model};

fn world(hosts: Vec<HostModel>, tasks: u32, duration: u64) -> World {
    let mut world = World::new(1, hosts);
    let class = world.scheduler.intern(Requirement::default());
    for task in 0..tasks {
        world.durations.insert(TaskId(task), duration);
    }
    world.add((0..tasks).map(|task| entry(task, class)).collect());
    world
}

fn accepted(world: &World) -> usize {
    world.checker.ends.values().filter(|end| **end == End::Accepted).count()
}

#[test]
fn a_host_dies_silently_and_others_do_its_work() {
    let mut world = world(vec![model(4, 1000), model(4, 1000)], 100, 200);
    world.cut(700, 0);
    world.run();
    assert_eq!(accepted(&world), 100);
}

#[test]
fn every_host_dies_and_one_comes_back() {
    let back = HostModel { back_after: Some(3000), ..model(2, 1000) };
    let mut world = world(vec![back, model(4, 1000)], 50, 100);
    world.cut(300, 0);
    world.cut(400, 1);
    world.run();
    assert_eq!(accepted(&world), 50);
}

#[test]
fn the_last_host_dies_for_good_and_the_run_ends() {
    let mut world = world(vec![model(2, 1000)], 50, 100);
    world.cut(450, 0);
    world.run();
    assert!(world.scheduler.is_finished());
    assert!(accepted(&world) >= 6, "{}", accepted(&world));
    assert_eq!(world.checker.ends.len(), 50);
}

/// A host of which every task in the machine `debian` ends at once, and one that runs them if
/// `able`.
fn with_a_suspended_machine(able: bool) -> World {
    let need = MachineNeed { role: MachineRole::Build, name: "debian".parse().unwrap(), toolchain: None };
    let mut hosts = vec![model(4, 1000), model(4, 1000)];
    for host in hosts.iter_mut().take(1 + usize::from(able)) {
        host.offer.machines.insert((need.role, need.name.clone()), MachineOffer::default());
    }
    let mut world = World::new(1, hosts);
    let plain = world.scheduler.intern(Requirement::default());
    let guest = world.scheduler.intern(Requirement { machines: vec![need], ..Requirement::default() });
    world.models[0].never.insert(guest);
    for task in 0..60 {
        world.durations.insert(TaskId(task), 100);
    }
    world.add((0..60).map(|task| entry(task, if task % 3 == 0 { guest } else { plain })).collect());
    world.run();
    world
}

#[test]
fn what_a_host_can_never_do_goes_elsewhere_and_costs_it_nothing() {
    let world = with_a_suspended_machine(true);
    assert_eq!(accepted(&world), 60);
    let tried: usize = world.lasting.values().map(Vec::len).sum();
    assert!((1..=8).contains(&tried), "a slot each, and once more until the rest is asked back: {tried}");
    assert_eq!(world.paused, BTreeSet::new());
}

#[test]
fn what_no_host_can_ever_do_ends_after_one_attempt() {
    let world = with_a_suspended_machine(false);
    assert_eq!(accepted(&world), 40, "the host does all else");
    let mut tried: Vec<TaskId> = world.lasting.into_values().flatten().collect();
    assert!(tried.len() <= 8, "{tried:?}");
    tried.sort();
    let all = tried.len();
    tried.dedup();
    assert_eq!(tried.len(), all, "a task was tried twice");
    assert_eq!(world.paused, BTreeSet::new());
}

#[test]
fn a_task_that_kills_its_hosts_ends_alone() {
    let hosts = vec![HostModel { back_after: Some(500), ..model(4, 1000) }; 5];
    let mut world = world(hosts, 300, 100);
    world.chaos.killers = BTreeSet::from([TaskId(17)]);
    world.run();
    assert_eq!(world.checker.ends[&TaskId(17)], End::GivenUp);
    assert_eq!(accepted(&world), 299, "others were blamed for what task 17 did");
}

#[test]
fn a_task_that_kills_the_only_host_ends_too() {
    let mut world = world(vec![HostModel { back_after: Some(500), ..model(1, 1000) }], 20, 100);
    world.chaos.killers = BTreeSet::from([TaskId(5)]);
    world.run();
    assert_eq!(world.checker.ends[&TaskId(5)], End::GivenUp);
    assert_eq!(accepted(&world), 19);
}

#[test]
fn a_host_on_which_nothing_can_be_run_does_no_harm() {
    let broken = HostModel { fails_percent: 100, ..model(8, 4000) };
    let mut world = world(vec![broken, model(2, 1000)], 400, 100);
    world.run();
    assert_eq!(accepted(&world), 400);
}

#[test]
fn a_host_that_refuses_everything_does_no_harm() {
    let broken = HostModel { refuses_percent: 100, ..model(8, 4000) };
    let mut world = world(vec![broken, model(2, 1000)], 400, 100);
    world.run();
    assert_eq!(accepted(&world), 400);
}

#[test]
fn a_crew_on_which_nothing_can_be_run_ends_the_run() {
    let broken = HostModel { fails_percent: 100, ..model(2, 1000) };
    let mut world = world(vec![broken], 200, 10);
    world.run();
    assert!(world.scheduler.is_finished());
    assert_eq!(accepted(&world), 0);
}

#[test]
fn results_that_cannot_be_fetched_are_made_again() {
    let mut world = world(vec![model(4, 1000); 3], 200, 50);
    world.chaos.result_lost = 30;
    world.run();
    assert_eq!(accepted(&world), 200);
}

#[test]
fn a_long_link_loses_nothing_and_wastes_little() {
    let far = HostModel { latency_ms: 100, ..model(4, 1000) };
    let mut world = world(vec![far], 2000, 10);
    world.run();
    assert_eq!(accepted(&world), 2000);
    // 2,000 tasks of 10 ms in 4 slots take 5 s; one round trip for each would make it 105 s.
    assert!(world.finished_at < 7500, "{} ms", world.finished_at);
}

#[test]
fn after_a_stop_nothing_is_sent() {
    let mut world = world(vec![model(2, 1000)], 100, 100);
    world.outside(350, Input::Stop);
    world.run();
    assert!(!world.scheduler.is_finished());
    assert!((4..=10).contains(&accepted(&world)), "{}", accepted(&world));
}

#[test]
fn a_chain_is_cut_into_one_piece_per_host_in_commit_order() {
    let mut world = World::new(1, vec![model(4, 1000); 4]);
    let class = world.scheduler.intern(Requirement::default());
    world.add((0..100).map(|task| chained(task, class, 0)).collect());
    world.run();
    assert_eq!(accepted(&world), 100);
    let mut breaks = 0;
    for (host, ran) in &world.ran {
        assert!(ran.len() >= 20, "host {host} ran only {}", ran.len());
        breaks += ran.windows(2).filter(|pair| pair[1].0 != pair[0].0 + 1).count();
    }
    assert!(breaks <= 6, "the pieces are not contiguous: {breaks} breaks");
}

#[test]
fn chains_stay_with_their_hosts_through_a_loss() {
    let hosts = vec![HostModel { back_after: Some(1000), ..model(2, 1000) }; 2];
    let mut world = World::new(1, hosts);
    let class = world.scheduler.intern(Requirement::default());
    let tasks = (0..80).map(|task| chained(task, class, task % 8));
    world.add(tasks.collect());
    world.cut(1050, 1);
    world.run();
    assert_eq!(accepted(&world), 80);
}

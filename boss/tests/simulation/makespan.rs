//! How good the plans are: makespan against the lower bound, which no plan can beat.

use crewboss_boss::scheduler::Requirement;
use crewboss_protocol::TaskId;

use super::entry;
use super::model;
use super::world::{HostModel, World};

/// The ratio of makespan and lower bound in thousandths.
fn ratio(hosts: Vec<HostModel>, durations: &[u64], known: bool) -> u64 {
    let weight: u64 = hosts.iter().map(|host| u64::from(host.offer.slots) * host.speed).sum();
    let fastest = hosts.iter().map(|host| host.speed).max().unwrap();
    let work: u64 = durations.iter().sum();
    let bound = (work * 1000 / weight).max(durations.iter().max().unwrap() * 1000 / fastest);
    let mut world = World::new(1, hosts);
    world.checked = durations.len() <= 100;
    let class = world.scheduler.intern(Requirement::default());
    let mut entries = Vec::new();
    for (task, duration) in (0..).zip(durations) {
        world.durations.insert(TaskId(task), *duration);
        let mut entry = entry(task, class);
        entry.expected_ms = known.then_some(*duration);
        entries.push(entry);
    }
    // First everybody connects: who comes late is another matter.
    world.run();
    world.add(entries);
    world.run();
    assert!(world.scheduler.is_finished());
    world.finished_at * 1000 / bound
}

fn unequal() -> Vec<HostModel> {
    vec![model(8, 1000), model(4, 2000), model(2, 3500), model(16, 600), model(1, 500)]
}

/// From 100 ms to 10 s, most of them short.
fn mixed(count: usize) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(11);
    (0..count).map(|_| 100 + random.u64(0..100).pow(2)).collect()
}

#[test]
fn unequal_hosts_end_together_when_nothing_is_known() {
    let ratio = ratio(unequal(), &mixed(8000), false);
    assert!(ratio <= 1050, "{ratio}");
}

#[test]
fn unequal_hosts_end_together_when_durations_are_known() {
    let ratio = ratio(unequal(), &mixed(2000), true);
    assert!(ratio <= 1050, "{ratio}");
}

#[test]
fn a_measured_speed_that_is_wrong_costs_little() {
    let mut hosts = unequal();
    hosts[0].offer.speed = 4000;
    hosts[2].offer.speed = 900;
    let ratio = ratio(hosts, &mixed(8000), false);
    assert!(ratio <= 1050, "{ratio}");
}

#[test]
fn short_tasks_over_a_long_link_are_spread_well() {
    let mut hosts = unequal();
    hosts.iter_mut().for_each(|host| host.latency_ms = 25);
    let ratio = ratio(hosts, &vec![20; 20_000], false);
    assert!(ratio <= 1150, "{ratio}");
}

#[test]
fn small_cases_with_known_durations_are_near_the_bound() {
    // The long one goes to the fast host.
    let long_first = ratio(vec![model(1, 1000), model(1, 4000)], &[4000, 1000], true);
    assert!(long_first <= 1050, "{long_first}");
    let few = ratio(vec![model(2, 1000), model(2, 3000)], &[3000, 3000, 1000, 1000], true);
    assert!(few <= 1050, "{few}");
    let equal = ratio(vec![model(4, 1000); 4], &vec![1000; 64], true);
    assert!(equal <= 1050, "{equal}");
}

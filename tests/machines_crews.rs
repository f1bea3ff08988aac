//! Several bosses use the machines of one host at once: one bootstrap is made, no machine has more
//! guests than it may have, and nobody waits for ever.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::SOON;
use support::boss::{Ended, Running};
use support::ground::{Ground, Place};
use support::scene::Scene;

/// Each with a work directory, and so a worker and slots, of its own.
const CREWS: [&str; 4] = ["one", "two", "three", "four"];

/// A machine that may have one guest at a time.
const SINGLE: &str = "single";

/// A machine that may have two.
const TWIN: &str = "twin";

/// How long the second stage lasts, which is told of, in milliseconds.
const STAGE_MS: u64 = 1000;

/// Long enough for all of it, on a machine that is busy with other things and has no KVM.
const WITHIN: Duration = Duration::from_secs(1800);

/// Short against the life of any guest.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Every crew has two slots, which its tasks fill with both machines in different orders.
fn scene() -> Scene {
    let target = |name: &str, machine: &str| {
        format!(
            "[target.{name}]\nenvironment = {{ machine = '{machine}' }}\nstages.first = 'true'\nstages.second = 'sleep 1'\n"
        )
    };
    let targets = [target("a", TWIN), target("b", SINGLE), target("c", TWIN)].concat();
    Scene::with_commits(&format!("commits = 'HEAD'\nhold = '0'\n{targets}"), 1)
}

/// Looks at the records of guests until all have ended. A record is there before its guest and goes
/// after it.
fn watch_guests(place: &Place, bosses: &mut [Running]) {
    let (mut most, start) = ([0, 0], Instant::now());
    while bosses.iter_mut().any(Running::is_running) {
        let records = place.records();
        let guests = |machine: &str| records.iter().filter(|record| record["machine"] == machine).count();
        let now = [guests(SINGLE), guests(TWIN)];
        assert!(now[0] <= 1 && now[1] <= 2, "too many guests at once: {records:#?}");
        assert!(start.elapsed() < WITHIN, "a deadlock: {records:#?}\n{}", stories(bosses));
        most = [most[0].max(now[0]), most[1].max(now[1])];
        std::thread::sleep(LOOK_EVERY);
    }
    assert_eq!(most, [1, 2], "guests at once");
}

fn stories(bosses: &[Running]) -> String {
    bosses.iter().map(Running::story).collect()
}

/// The times at which the second stage began in a guest of [`SINGLE`], in order.
fn begun(ended: &[Ended]) -> Vec<u64> {
    let begun_in = |ended: &Ended| -> Vec<u64> {
        let started = ended.of_kind("task_started");
        let of_single = |at: &Value| started.iter().any(|event| event["at"] == *at && event["target"] == "b");
        let phases = ended.of_kind("task_phase");
        let second = |event: &&&Value| event["phase"]["stage"] == "second" && of_single(&event["at"]);
        let times = phases.iter().filter(second);
        times.filter_map(|event| event["time_ms"].as_u64()).collect()
    };
    let mut times: Vec<u64> = ended.iter().flat_map(begun_in).collect();
    times.sort_unstable();
    times
}

fn steps<'a>(ended: &'a [Ended], beginning: &str) -> Vec<&'a str> {
    let texts =
        ended.iter().flat_map(|one| one.of_kind("task_phase")).filter_map(|event| event["text"].as_str());
    texts.filter(|text| text.starts_with(beginning)).collect()
}

#[test]
fn four_crews_share_the_machines_of_a_host_and_none_waits_for_ever() {
    let ground = Ground::new();
    let place = ground.place("host");
    place.make(SINGLE, &["--manifest", "instances = 1"]);
    place.make(TWIN, &["--manifest", "instances = 2"]);
    let crews = CREWS.map(|name| (place.beside(name), scene()));
    let mut bosses: Vec<Running> =
        crews.iter().map(|(crew, scene)| crew.build(scene, 2, &[]).start()).collect();
    watch_guests(&place, &mut bosses);
    let ended: Vec<Ended> = bosses
        .into_iter()
        .map(|boss| boss.end(SOON).expect_code(0).expect_civil().expect_tasks(3, "success"))
        .collect();

    for machine in [SINGLE, TWIN] {
        for beginning in [format!("bootstraps {machine},"), format!("bootstrapped {machine}:")] {
            assert_eq!(steps(&ended, &beginning).len(), 1, "{beginning:?} in {ended:#?}");
        }
    }
    let begun = begun(&ended);
    assert_eq!(begun.len(), CREWS.len(), "{ended:#?}");
    // Between two stages lie the first one, the end of its guest and a boot, so the way of the news
    // does not matter.
    assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= STAGE_MS), "two at once: {begun:?}");
    assert!(!steps(&ended, "waits for a place in single").is_empty(), "nobody had to wait: {ended:#?}");
    for (crew, _) in &crews {
        crew.expect_clean(&ended);
    }
}

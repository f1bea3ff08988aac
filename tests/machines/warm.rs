//! Tasks that start from the saved memory of a guest: each is itself and sees its own source, and
//! whatever is wrong with what was saved costs time alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::boss::Ended;
use crate::support::machines::{A_GUEST_RUN, Site, TINY, directory, target};
use crate::support::scene::Scene;
use serde_json::Value;

/// The machine of these tests: [`TINY`] with warm starts.
const WARM: &str = "warm";

/// Says who the guest is: machine id, random bytes, seconds since 1970, the content of the source.
const WHO: &str = r#"stages.who = 'cat /etc/machine-id; head -c 16 /dev/urandom | sha256sum; date +%s; cat number; echo made >"$CREWBOSS_OUT/made"'
artifacts = ["made"]"#;

fn prepared() -> Site {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    site.variant(TINY, WARM, &["warm_start = true"]);
    site
}

fn template() -> String {
    format!("{}/{WARM}-default.saved", directory(WARM))
}

fn run(site: &Site, scene: &Scene, crew: &str) -> Ended {
    site.build(scene, crew).start().end(A_GUEST_RUN).expect_code(0)
}

/// The lines that every task printed, and what its result says of its machine.
fn tasks(ended: &Ended) -> Vec<(Vec<String>, Value)> {
    let read = |path: &std::path::PathBuf| {
        let text = |name: &str| std::fs::read_to_string(path.join(name)).expect("a file of a result");
        assert_eq!(text("artifacts/made"), "made\n");
        let result: Value = serde_json::from_str(&text("result.json")).expect("JSON");
        (text("log").lines().map(str::to_owned).collect(), result["machine"].clone())
    };
    ended.results.tasks.values().map(read).collect()
}

fn steps(ended: &Ended) -> String {
    let steps = ended.of_kind("task_phase");
    steps.iter().filter_map(|event| event["text"].as_str()).collect::<Vec<_>>().join("\n")
}

/// Runs one task; what was said of it, and what its result says of its machine.
fn run_one(site: &Site, crew: &str) -> (String, Value) {
    let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{}", target("who", WARM, WHO)), 1);
    let ended = run(site, &scene, crew).expect_tasks(1, "success");
    let (_, machine) = tasks(&ended).remove(0);
    (steps(&ended), machine)
}

#[test]
fn guests_of_one_template_are_themselves_and_see_their_own_source() {
    let site = prepared();
    let scene = Scene::with_commits(&format!("commits = 'HEAD~2..HEAD'\n{}", target("who", WARM, WHO)), 4);
    let began = SystemTime::now();
    let ended = run(&site, &scene, "slots = 1").expect_tasks(2, "success");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let (began, over) = (began.duration_since(UNIX_EPOCH).expect("after 1970"), now());
    let tasks = tasks(&ended);
    let [(one, machine), (other, of_the_other)] = &tasks[..] else { panic!("{tasks:?}") };
    for used in [machine, of_the_other] {
        assert_eq!((&used["warm"], &used["boots"]), (&true.into(), &0.into()), "{}", steps(&ended));
    }
    assert!(one[0].len() == 32 && one[0] != other[0], "one machine id: {tasks:?}");
    assert_ne!(one[1], other[1], "the same random numbers");
    let time = |lines: &[String]| Duration::from_secs(lines[2].parse().expect("seconds"));
    let second = Duration::from_secs(1);
    for lines in [one, other] {
        assert!((began - second..=over + second).contains(&time(lines)), "a wrong clock: {tasks:?}");
    }
    let mut numbers = [one[3].as_str(), other[3].as_str()];
    numbers.sort_unstable();
    assert_eq!(numbers, ["3", "4"], "the source of another task");
    assert_eq!(steps(&ended).matches("saves a guest").count(), 1, "{}", steps(&ended));
    site.expect_no_guests();
    site.remove(WARM);
}

#[test]
fn a_template_that_does_not_fit_any_more_is_made_anew() {
    let site = prepared();
    run_one(&site, "slots = 1");
    let (steps, used) = run_one(&site, "slots = 1");
    assert!(used["warm"] == true && !steps.contains("saves a guest"), "{steps}");
    // A guest has as many processors as its slot.
    let (steps, used) = run_one(&site, "slots = 2");
    assert!(steps.contains("the size of its guests, has changed"), "{steps}");
    assert_eq!(used["warm"], true, "{steps}");
    // As after a new bootstrap.
    let copy = format!("{}/{WARM}-default", directory(WARM));
    site.on(&format!("sed -i 's/\"made\":[0-9]*/\"made\":1/' {copy}/bootstrapped.json"));
    let (steps, used) = run_one(&site, "slots = 2");
    assert!(steps.contains("it was bootstrapped since"), "{steps}");
    assert_eq!(used["warm"], true, "{steps}");
    site.expect_no_guests();
    site.remove(WARM);
}

#[test]
fn a_guest_boots_when_what_was_saved_is_damaged() {
    let site = prepared();
    run_one(&site, "slots = 1");
    // All zeros, as after a loss of power.
    let memory = format!("{}/memory", template());
    site.on(&format!("size=$(stat -c %s {memory}); truncate -s 0 {memory}; truncate -s $size {memory}"));
    let (steps, used) = run_one(&site, "slots = 1");
    assert!(steps.contains("did not start warm"), "{steps}");
    assert_eq!((&used["warm"], &used["boots"]), (&Value::Null, &1.into()), "{used}");
    // It is not tried with every task from then on.
    let (steps, used) = run_one(&site, "slots = 1");
    assert!(used["boots"] == 1 && !steps.contains("warm:"), "{steps}");
    site.expect_no_guests();
    // Nor is it given up.
    site.on(&format!("sed -i 's/\"since\":[0-9]*/\"since\":1/' {}/saved.json", template()));
    let (steps, used) = run_one(&site, "slots = 1");
    assert_eq!(used["warm"], true, "{steps}");
    site.expect_no_guests();
    site.remove(WARM);
}

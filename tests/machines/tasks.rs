//! Tasks in guests, from the build file to the result directory, on a host with machines made from
//! Debian packages.
//!
//! Most of it is looked at in the results of one run, since a boot takes seconds where there is no
//! KVM.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use crate::support::boss::Running;
use crate::support::lab::User;
use crate::support::machines::{A_GUEST_RUN, Kept, PLAIN, Site, TINY, directory, live, target};
use crate::support::scene::Scene;
use crate::support::{SOON, phase_ms, wait_for};
use serde_json::{Value, json};

/// Both ways to talk to a guest.
const BOTH: [&str; 2] = [TINY, PLAIN];

/// From Ctrl-C to the end, with some room for a busy machine.
const STOP_WITHIN: Duration = Duration::from_secs(7);

/// Targets of which each is built in a machine of either kind, as `<name>-<machine>`.
const TARGETS: [(&str, &str); 7] = [
    ("good", GOOD),
    ("warns", "stages.run = 'echo \"x.c:1: warning: strange\" >&2'"),
    ("fails", "stages.one = 'echo one'\nstages.two = 'echo two; exit 3'\nstages.three = 'echo three'"),
    ("dies", "stages.run = 'kill -SEGV $$'"),
    ("lacks", "stages.run = 'echo here >\"$CREWBOSS_OUT/here\"'\nartifacts = ['here', 'nowhere/*.bin']"),
    ("slow", "timeout = '7s'\nstages.run = 'echo it begins; sleep 600 & sleep 600'\nartifacts = ['x']"),
    ("off", "stages.first = 'true'\nstages.second = 'echo good night; poweroff -f; sleep 600'"),
];

/// Everything that goes well.
const GOOD: &str = r#"
stages.build = '''
echo "made of $(cat number) at $CREWBOSS_COMMIT by $CREWBOSS_JOBS"
echo beside >&2
cd "$CREWBOSS_OUT"
mkdir -p lib "with space/deep" upload/package/hello
echo 42 >lib/answer; echo 43 >lib/answer.o; echo 44 >"with space/deep/file"; echo no >unwanted
echo hi >upload/package/hello/greeting
echo seen >"$CREWBOSS_SRC/in-source"
ln -s lib/answer link
printf '#!/bin/sh\necho it runs\n' >program
chmod 755 program
'''
stages.test = ["/bin/sh", "-c", 'echo "$0"; printf "<%s>\n" "$GREETING" "$COLOUR"; cat lib/nowhere || ls $CREWBOSS_OUT', "a  b"]
artifacts = ["lib/*", "with space/**", "program", "in-source", "link"]
sizes = ["program"]
variables.GREETING = "it's a \"test\" \\ $HOME `x`\nof lines"
"#;

/// A line of a manifest: the kernel finds no first process, panics and resets.
const PANICS: &str = "append = \"root=/dev/vda console=ttyS0 panic=-1 quiet rdinit=/bin/false\"";

const BUILD: &str = "commits = 'HEAD'\nhold = '0'\nvariables.COLOUR = 'blue'\n";

/// The one run.
fn matrix() -> &'static Kept {
    static RUN: OnceLock<Option<Kept>> = OnceLock::new();
    let run = RUN.get_or_init(|| catch_unwind(AssertUnwindSafe(run_matrix)).ok());
    run.as_ref().expect("the run that is looked at failed; the first test says why")
}

fn run_matrix() -> Kept {
    let site = Site::shared();
    let mut build = BUILD.to_owned();
    for (name, lines) in TARGETS {
        build += &BOTH.map(|machine| target(&format!("{name}-{machine}"), machine, lines)).concat();
    }
    let scene = Scene::with_commits(&build, 1);
    let kept = Kept::of(site.run(&scene));
    site.expect_no_guests();
    kept
}

fn each(name: &str, look: impl Fn(&Kept, &str)) {
    for machine in BOTH {
        look(matrix(), &format!("{name}-{machine}"));
    }
}

fn exits(kept: &Kept, target: &str) -> Vec<String> {
    let stages = kept.result(target)["stages"].as_array().cloned().unwrap_or_default();
    stages
        .iter()
        .map(|stage| format!("{} {}", stage["name"].as_str().unwrap_or_default(), stage["exit"]))
        .collect()
}

#[test]
fn stages_run_in_order_and_see_the_task_and_its_variables() {
    each("good", |kept, target| {
        let log = kept.file(target, "log");
        assert_eq!(kept.ended.outcome_of(target), "success", "{log}");
        assert_eq!(exits(kept, target), [r#"build {"code":0}"#, r#"test {"code":0}"#]);
        let commit = kept.result(target)["commit"].as_str().expect("text").to_owned();
        let made = log.find(&format!("made of 1 at {commit} by 1\n")).unwrap_or_else(|| panic!("{log}"));
        let words = log.find("a  b\n<it's a \"test\" \\ $HOME `x`\nof lines>\n<blue>\n");
        assert!(words.is_some_and(|words| made < words), "{log}");
    });
}

#[test]
fn standard_error_is_in_the_log_and_also_apart() {
    each("good", |kept, target| {
        let (log, err) = (kept.file(target, "log"), kept.file(target, "err"));
        assert!(err.starts_with("beside\n") && log.contains("beside\n"), "{err}\n{log}");
        assert!(!err.contains("made of"), "{err}");
    });
}

#[test]
fn output_is_shown_live_and_the_way_of_a_guest_under_verbose() {
    each("good", |kept, target| {
        assert!(live(&kept.ended, target).contains("made of 1"), "{:#?}", kept.ended);
    });
    for machine in BOTH {
        let step = format!("{machine} boots");
        assert!(kept_said(&step), "{step:?} is not said: {:#?}", matrix().ended);
    }
}

fn kept_said(text: &str) -> bool {
    let ended = &matrix().ended;
    ended.stdout.contains(text) || ended.stderr.contains(text)
}

#[test]
fn artifacts_come_out_by_name_and_by_pattern_from_both_places() {
    each("good", |kept, target| {
        for (name, content) in [
            ("lib/answer", "42\n"),
            ("lib/answer.o", "43\n"),
            ("with space/deep/file", "44\n"),
            ("in-source", "seen\n"),
            ("link", "42\n"),
        ] {
            assert_eq!(kept.file(target, &format!("artifacts/{name}")), content, "{target}: {name}");
        }
        assert!(kept.file(target, "artifacts/program").contains("it runs"));
        let names = kept.names(target);
        assert!(!names.iter().any(|name| name.contains("unwanted")), "{names:?}");
    });
}

#[test]
fn sizes_and_uploads_come_out_too() {
    each("good", |kept, target| {
        assert!(kept.file(target, "sizes").contains("7 8 9"), "{}", kept.file(target, "sizes"));
        kept.file(target, "artifacts/upload/package/hello.tar");
        kept.file(target, "artifacts/upload/package/hello.tar.sha256");
    });
}

#[test]
fn results_say_which_machine_it_was() {
    each("good", |kept, target| {
        let result = kept.result(target);
        let machine = &result["machine"];
        assert!(target.ends_with(machine["name"].as_str().expect("a name")), "{result:#}");
        assert_eq!((&machine["accelerator"], &machine["boots"]), (&"tcg".into(), &1.into()), "{result:#}");
        assert!(machine["memory"].as_u64().is_some_and(|memory| memory == 256 << 20), "{result:#}");
        assert!(machine["versions"]["kernel"].is_string(), "{result:#}");
        assert!(machine["boot_ms"].as_u64().is_some_and(|boot| boot > 100), "{result:#}");
    });
}

/// What a task was at, in the order in which that was announced.
fn announced(kept: &Kept, target: &str) -> Vec<String> {
    let started = kept.ended.of_kind("task_started").into_iter().find(|event| event["target"] == target);
    let at = &started.unwrap_or_else(|| panic!("{target} never started: {:#?}", kept.ended))["at"];
    let phases = kept.ended.of_kind("task_phase").into_iter().filter(|event| event["at"] == *at);
    let mut words: Vec<String> = phases.map(|event| event["phase"].to_string()).collect();
    words.dedup();
    words
}

#[test]
fn what_a_guest_is_at_is_announced_from_the_first_stage_on() {
    let at = |words: &[String], wanted: &str| {
        let place = words.iter().position(|word| word == wanted);
        place.unwrap_or_else(|| panic!("{wanted} was not announced: {words:?}"))
    };
    each("good", |kept, target| {
        let words = announced(kept, target);
        let mut wanted = vec!["\"machine\"", "\"booting\""];
        let stages = [r#""preparing""#, r#"{"stage":"build"}"#, r#"{"stage":"test"}"#];
        wanted.extend(if target.ends_with(TINY) { &stages[..] } else { &["\"stages\""] });
        wanted.extend(["\"collecting\"", "\"storing\""]);
        let places: Vec<usize> = wanted.iter().map(|word| at(&words, word)).collect();
        assert!(places.is_sorted(), "{wanted:?}: {words:?}");
    });
}

#[test]
fn every_stage_that_began_is_in_the_result_with_its_end_and_its_time() {
    let stage = |name: &str| json!({ "stage": name });
    let ms = |result: &Value, phase: &Value| {
        phase_ms(result, phase).unwrap_or_else(|| panic!("{phase} is missing: {result:#}"))
    };
    each("good", |kept, target| {
        let result = kept.result(target);
        let phases = ["machine".into(), "booting".into(), stage("build"), stage("test"), "collecting".into()];
        let own: u64 = phases.iter().map(|phase| ms(&result, phase)).sum();
        assert!(result["wall_ms"].as_u64().is_some_and(|all| all >= own), "{result:#}");
        assert!(ms(&result, &"booting".into()) >= result["machine"]["boot_ms"].as_u64().unwrap_or(u64::MAX));
        ms(&result, &"storing".into());
    });
    // The limit is 7 s, and what comes before does not count.
    each("slow", |kept, target| {
        let result = kept.result(target);
        assert!((6000..60_000).contains(&ms(&result, &stage("run"))), "{result:#}");
        assert_eq!(exits(kept, target), ["run \"timeout\""]);
        let took = result["wall_ms"].as_u64().unwrap_or_default();
        assert!(took >= 7000 + ms(&result, &"booting".into()), "{result:#}");
    });
    each("off", |kept, target| {
        assert_eq!(exits(kept, target), [r#"first {"code":0}"#, "second \"lost\""]);
        ms(&kept.result(target), &stage("second"));
    });
}

#[test]
fn a_warning_on_standard_error_makes_a_warning() {
    each("warns", |kept, target| assert_eq!(kept.ended.outcome_of(target), "warning"));
}

#[test]
fn a_stage_that_fails_ends_the_task_with_its_exit_code() {
    each("fails", |kept, target| {
        assert_eq!(kept.ended.outcome_of(target), "failure");
        assert_eq!(exits(kept, target), [r#"one {"code":0}"#, r#"two {"code":3}"#]);
        let log = kept.file(target, "log");
        assert!(log.contains("two\n") && !log.contains("three"), "{log}");
    });
}

#[test]
fn a_signal_in_a_guest_is_reported_as_one() {
    each("dies", |kept, target| {
        assert_eq!(kept.ended.outcome_of(target), "failure");
        assert_eq!(exits(kept, target), [r#"run {"signal":11}"#]);
    });
}

#[test]
fn an_artifact_that_is_missing_is_a_failure() {
    each("lacks", |kept, target| {
        assert_eq!(kept.ended.outcome_of(target), "failure");
        let message = kept.result(target)["message"].to_string();
        assert!(message.contains("nowhere/*.bin"), "{message}");
        assert_eq!(kept.file(target, "artifacts/here"), "here\n");
    });
}

#[test]
fn a_task_that_takes_too_long_is_ended_with_its_guest() {
    each("slow", |kept, target| {
        assert_eq!(kept.ended.outcome_of(target), "timeout");
        let message = kept.result(target)["message"].to_string();
        assert!(message.contains("7000 ms"), "{message}");
        // Without our agent this is the time for the source as well.
        let shown = target.ends_with(PLAIN) || live(&kept.ended, target).contains("it begins");
        assert!(shown, "{:#?}", kept.ended);
    });
}

#[test]
fn the_agent_says_how_its_guest_is() {
    let loads = matrix().ended.of_kind("guest_load");
    let load = loads.first().unwrap_or_else(|| panic!("{:#?}", matrix().ended));
    assert_eq!(load["machine"], TINY);
    let (memory, disk) = (load["load"]["memory_available"].as_u64(), load["load"]["disk_free"].as_u64());
    assert!(memory.is_some_and(|bytes| bytes > 1 << 20 && bytes < 256 << 20), "{load}");
    assert!(disk.is_some_and(|bytes| bytes > 1 << 20), "{load}");
    let message = matrix().result(&format!("slow-{TINY}"))["message"].to_string();
    assert!(message.contains("it last said that its load is"), "{message}");
}

#[test]
fn a_guest_that_ends_by_itself_is_abnormal_and_its_console_is_kept() {
    each("off", |kept, target| {
        assert_eq!(kept.ended.outcome_of(target), "abnormal");
        let message = kept.result(target)["message"].to_string();
        assert!(message.contains("switched itself off"), "{message}");
        let console = kept.file(target, "artifacts/console.log");
        assert!(console.to_lowercase().contains("power down"), "{console}");
    });
    each("good", |kept, target| assert!(kept.find(target, "artifacts/console.log").is_none()));
}

/// Started, and its boss is told nothing more until both of its tasks run.
fn two_of(site: &Site, scene: &Scene, machine: &str) -> Running {
    let mut running = site.build(scene, "slots = 2").start();
    for target in ["a", "b"] {
        running.wait_for_event("task_started", |event| event["target"] == target);
    }
    wait_for(&format!("guests of {machine}"), A_GUEST_RUN, || (guests(site) > 0).then_some(()));
    running
}

/// How many QEMU processes there are on the host.
fn guests(site: &Site) -> usize {
    site.on("pgrep -xc qemu-system-x86 || true").trim().parse().expect("a number")
}

fn two_targets(machine: &str, lines: &str) -> Scene {
    Scene::with_commits(&format!("{BUILD}{}{}", target("a", machine, lines), target("b", machine, lines)), 1)
}

#[test]
fn two_tasks_run_at_once_in_two_guests_of_one_machine() {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    let scene = two_targets(TINY, "stages.run = 'cat /etc/machine-id; sleep 3'");
    let running = two_of(&site, &scene, TINY);
    wait_for("two guests", A_GUEST_RUN, || (guests(&site) == 2).then_some(()));
    let ended = running.end(A_GUEST_RUN).expect_code(0).expect_tasks(2, "success");
    assert_ne!(
        ended.results.file("a", "log"),
        ended.results.file("b", "log"),
        "each is a machine of its own"
    );
    site.expect_no_guests();
}

#[test]
fn a_machine_with_one_instance_takes_one_task_after_the_other() {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    site.variant(TINY, "single", &["instances = 1"]);
    let scene = two_targets("single", "stages.run = 'sleep 1'");
    let mut running = two_of(&site, &scene, "single");
    while running.is_running() {
        assert!(guests(&site) <= 1, "two guests of a machine with one instance");
    }
    running.end(SOON).expect_code(0).expect_tasks(2, "success").expect_said("waits for a place in single");
    site.remove("single");
    site.expect_no_guests();
}

/// Whether the only stage of a task had begun that was stopped. What it was at is in its result,
/// and for how long.
fn stopped_as_it_was(result: &Value) -> bool {
    let of_stage = phase_ms(result, &json!({ "stage": "run" }));
    if of_stage.is_some() {
        let stage = &result["stages"][0];
        assert_eq!(stage["exit"], "stopped", "{result:#}");
        assert!(of_stage >= stage["wall_ms"].as_u64(), "{result:#}");
    } else {
        assert!(result["stages"].as_array().is_none_or(Vec::is_empty), "{result:#}");
    }
    // One that waited for its machine has not even booted.
    let before = ["machine", "booting"].map(|phase| phase_ms(result, &phase.into()));
    assert!(before.iter().any(Option::is_some), "{result:#}");
    of_stage.is_some()
}

#[test]
fn ctrl_c_ends_guests_that_run_and_guests_that_boot() {
    let site = Site::shared();
    site.bootstrap(&BOTH);
    let lines = "stages.run = 'echo it runs; sleep 600'";
    let both = BOTH.map(|machine| target(machine, machine, lines)).concat();
    let scene = Scene::with_commits(&format!("{BUILD}{both}"), 1);
    for runs in [true, false] {
        let mut running = site.build(&scene, "slots = 2").start();
        if runs {
            running.wait_for_output("it runs");
        } else {
            let boots = |event: &Value| event["text"].to_string().contains("boots");
            running.wait_for_event("task_phase", boots);
        }
        running.signal("INT");
        let ended = running.end_in_time(STOP_WITHIN).expect_code(130).expect_civil();
        assert!(ended.outcomes().values().all(|each| each == &["cancelled"]), "{ended:#?}");
        let of = |target| -> Value {
            serde_json::from_str(&ended.results.file(target, "result.json")).expect("JSON")
        };
        let begun = BOTH.map(|target| stopped_as_it_was(&of(target)));
        assert!(begun.contains(&true) || !runs, "{ended:#?}");
        site.expect_no_guests();
    }
}

#[test]
fn a_host_without_the_machine_is_named_with_the_reason() {
    let site = Site::shared();
    let build = format!(
        "{BUILD}{}{}",
        target("a", "unheard-of", "stages.run = 'true'"),
        "[target.b]\nstages.run = 'true'\n"
    );
    let scene = Scene::with_commits(&build, 1);
    let crew = scene.two_hosts(site.lab(), User::Root);
    for dry in [true, false] {
        let boss = scene.build(site.lab(), &crew).args(if dry { &["--dry-run"] } else { &[] });
        let ended = boss.run().expect_civil();
        let ended = if dry { ended } else { ended.expect_code(102) };
        ended
            .expect_said("host1: no machine unheard-of (has: ")
            .expect_said("plain, ")
            .expect_said("host2: no machine unheard-of (has: none)");
    }
    let crew = scene.crew(site.lab(), User::Root, &[("host1", "machines = \"/srv/none\"")]);
    let ended = scene.build(site.lab(), &crew).run().expect_code(102).expect_civil();
    ended.expect_said("no machine unheard-of (has: none)");
    site.expect_no_guests();
}

#[test]
fn a_machine_that_boots_only_later_is_tried_again() {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    site.variant(TINY, "late", &[PANICS, "limits = { misboots = 20 }"]);
    let scene = Scene::with_commits(&format!("{BUILD}{}", target("t", "late", "stages.run = 'true'")), 1);
    let mut running = site.build(&scene, "slots = 1").start();
    running.wait_for_event("task_phase", |event| {
        event["text"].as_str().is_some_and(|text| text.starts_with("late did not boot, try 1 of 21"))
    });
    // Each try has a snapshot of the copy as it is then.
    site.on("sed -i s/rdinit=.bin.false// /srv/crewboss/machines/local/late/late-default/manifest.toml");
    let ended = running.end(A_GUEST_RUN).expect_code(0).expect_tasks(1, "success");
    let result: Value = serde_json::from_str(&ended.results.file("t", "result.json")).expect("JSON");
    assert!(result["machine"]["boots"].as_u64().is_some_and(|boots| boots >= 2), "{result:#}");
    site.remove("late");
    site.expect_no_guests();
}

#[test]
fn a_machine_that_never_boots_is_an_infrastructure_failure_with_its_console() {
    let site = Site::shared();
    site.bootstrap(&[TINY]);
    site.variant(TINY, "never", &[PANICS, "limits = { misboots = 1 }"]);
    let scene = Scene::with_commits(&format!("{BUILD}{}", target("t", "never", "stages.run = 'true'")), 1);
    let ended = site.run(&scene).expect_code(102).expect_tasks(1, "infrastructure").expect_civil();
    let ended = ended.expect_said("never did not boot, try 1 of 2");
    let message = ended.results.file("t", "result.json");
    assert!(message.contains("did not boot, 2 times") && message.contains("reset itself"), "{message}");
    assert!(ended.results.file("t", "artifacts/console.log").contains("Kernel panic"));

    // The same in the bootstrap that a task has to wait for.
    site.on(&format!("btrfs -q subvolume delete {}/never-default", directory("never")));
    let ended = site.run(&scene).expect_code(102).expect_tasks(1, "infrastructure").expect_civil();
    assert!(ended.results.file("t", "artifacts/console.log").contains("Kernel panic"));
    site.remove("never");
    site.expect_no_guests();
}

#[test]
fn a_plain_user_runs_tasks_in_guests_of_machines_that_are_theirs() {
    let site = Site::shared();
    let theirs = "/srv/builder/machines";
    site.on(&format!(
        "mkdir -p {theirs}/local/tiny && cd {theirs}/local/tiny
        btrfs -q subvolume snapshot /srv/crewboss/machines/local/tiny/tiny-1.1 tiny-1.1
        ln -s tiny-1.1 tiny-1
        chown -R builder: {theirs}"
    ));
    let scene = Scene::with_commits(&format!("{BUILD}{}", target("t", TINY, "stages.run = 'cat number'")), 1);
    let crew = scene.crew(site.lab(), User::Plain, &[("host1", "slots = 1\naccel = \"tcg\"")]);
    let ended = scene.build(site.lab(), &crew).start().end(A_GUEST_RUN);
    let ended = ended.expect_code(0).expect_tasks(1, "success");
    assert_eq!(ended.results.file("t", "log"), "1");
    let left = site.on(&format!("cd {theirs}; ls guests locks; ls local/tiny"));
    assert_eq!(
        left.split_whitespace().collect::<Vec<_>>(),
        ["guests:", "locks:", "tiny-1", "tiny-1.1", "tiny-default"]
    );
    site.on(&format!("btrfs -q subvolume delete {theirs}/local/tiny/tiny-1.1 {theirs}/local/tiny/tiny-default; rm -r {theirs}"));
    site.expect_no_guests();
}

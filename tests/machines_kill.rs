//! Whoever is killed, or stands still, at whatever step of a guest's life: the run ends right, and
//! the next worker or `kill-workers` leaves nothing on the host.
//!
//! Each case has a work directory and machines of its own on one btrfs, and a host that is this
//! computer, so that variables reach the runner: it stands still at a step, as if that took for
//! ever, until somebody has been killed.

mod support;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;
use support::boss::{Ended, Running};
use support::ground::{Ground, Place, Process, wait_for_halt};
use support::scene::Scene;
use support::{read, wait_for, write};

use Victim::{All, Boss, Guardian, Qemu, Runner, Worker};
use Way::{Bootstrap, Hold, Interactive, Save, Served, Task, Tftp, Warm};

/// As many cases at once: most of their time they wait.
const AT_ONCE: usize = 3;

/// Long enough for a boot or two, beside other cases, on a machine that is busy with other things
/// and has no KVM.
const A_WHILE: Duration = Duration::from_secs(900);

/// With this, only cases in whose names it occurs are tried: `CREWBOSS_TEST_ONLY=Hold-saving`.
const ONLY: &str = "CREWBOSS_TEST_ONLY";

/// What serves others.
const SERVICE: &str = "#!/bin/sh\necho ready\nwhile :; do sleep 1000; done\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The runner, which is the TFTP server as well.
    Runner,
    Qemu,
    Worker,
    Guardian,
    Boss,
    All,
}

/// What the guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Task,
    /// A task over TFTP, where the runner serves files as well.
    Tftp,
    /// `crewboss machines bootstrap`.
    Bootstrap,
    /// A task that waits for a person.
    Interactive,
    /// A task that fails, whose guest is kept.
    Hold,
    /// The first task of a machine with warm starts, whose guest is saved for all others.
    Save,
    /// Any other task of that machine.
    Warm,
    /// A task with an auxiliary machine.
    Served,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    way: Way,
    step: &'static str,
    victim: Victim,
}

const EVERYBODY: &[Victim] = &[Runner, Qemu, Worker, Guardian, Boss, All];
const WITHOUT_QEMU: &[Victim] = &[Runner, Worker, Guardian, Boss, All];

/// What takes long comes first, so that all threads end at about the same time. Once it is up a
/// guest is the same however it came up: most start warm, which saves a boot.
const TABLE: [(Way, &str, &[Victim]); 26] = [
    (Bootstrap, "bootstrapping", EVERYBODY),
    (Bootstrap, "stopping", &[Runner, Qemu, All]),
    (Bootstrap, "booting", &[Runner, Qemu, Worker, All]),
    (Save, "saving", &[Runner, Qemu, Worker, All]),
    (Save, "booting", &[Runner, Qemu, All]),
    (Save, "planned", &[Runner, All]),
    (Served, "collecting", &[Runner]),
    (Task, "running", EVERYBODY),
    (Warm, "preparing", EVERYBODY),
    (Served, "running", &[Qemu]),
    (Warm, "collecting", EVERYBODY),
    (Served, "collecting", &[All]),
    (Warm, "stopping", EVERYBODY),
    (Task, "booting", EVERYBODY),
    (Interactive, "waiting", &[Runner, Qemu, Worker, Boss, All]),
    (Hold, "saving", &[Runner, Qemu, Worker, Boss, All]),
    (Hold, "held", &[Runner, Worker, Boss, All]),
    (Tftp, "running", &[Runner, All]),
    (Warm, "running", &[Runner, All]),
    (Warm, "booting", &[Runner, Qemu, Worker, All]),
    (Warm, "copied", &[Runner, Worker, All]),
    (Warm, "planned", &[All]),
    (Task, "planned", WITHOUT_QEMU),
    (Task, "copied", WITHOUT_QEMU),
    (Bootstrap, "planned", &[Runner, Worker, All]),
    (Bootstrap, "copied", &[Runner, Worker, All]),
];

fn cases() -> VecDeque<Case> {
    let only = std::env::var(ONLY).unwrap_or_default();
    let of = |(way, step, victims): (Way, &'static str, &'static [Victim])| {
        victims.iter().map(move |victim| Case { way, step, victim: *victim })
    };
    TABLE.into_iter().flat_map(of).filter(|case| case.name().contains(&only)).collect()
}

impl Way {
    /// The machine of the build, and all that is needed with it.
    fn machines(self) -> &'static [&'static str] {
        match self {
            Task | Bootstrap => &["tiny"],
            Tftp => &["plain"],
            Save | Warm | Interactive | Hold => &["warm"],
            Served => &["tiny", "serves"],
        }
    }

    fn build_file(self) -> String {
        let auxiliary = if self == Served { ", auxiliary = { db = 'serves' }" } else { "" };
        // A person wants it to succeed.
        let stage = if self == Hold { "test \"$V\" = good" } else { "echo ran; echo 1 >made" };
        format!(
            "commits = 'HEAD'\n[target.t]\nenvironment = {{ machine = '{}'{auxiliary} }}\nartifacts = ['made*']\n\
             stages.run = '{stage}'\n",
            self.machines()[0]
        )
    }
}

impl Case {
    fn name(&self) -> String {
        format!("{:?}-{}-{:?}", self.way, self.step, self.victim)
    }

    /// Whether the run goes on to its end after somebody was killed whom it can do without; the
    /// others are stopped as soon as the task is to be run again, which saves a boot.
    fn goes_on(&self) -> bool {
        matches!((self.way, self.step), (Task | Tftp, "running") | (Bootstrap, "bootstrapping"))
            || matches!((self.way, self.step, self.victim), (Save, "saving", Runner))
    }

    /// Whether the task is lost with its guest, and is tried again, since it may have been anything
    /// that killed that.
    fn needs_qemu(&self) -> bool {
        matches!(self.step, "preparing" | "running" | "waiting" | "collecting")
    }

    /// What is to be killed while it is at it.
    fn start(&self, place: &Place, scene: &Scene) -> Running {
        let boss = match self.way {
            Bootstrap => place.command(scene, &["machines", "bootstrap"]),
            Interactive => place.build(scene, 1, &["--interactive"]),
            Hold => place.build(scene, 1, &["--hold"]),
            _ => place.build(scene, 1, &[]),
        };
        let halt = format!("{}={}", self.step, halted(place).display());
        boss.env("CREWBOSS_HALT_AT", halt).start()
    }

    /// Machines as at the beginning. A bootstrap finds no copy, and who saves a guest none that is
    /// saved.
    fn place(&self, ground: &Ground) -> Place {
        let place = ground.place(&self.name());
        place.copy(&ground.place("base"), self.way.machines());
        match self.way {
            Bootstrap => place.forget("tiny", "default"),
            Save => place.forget("warm", "default.saved"),
            _ => {}
        }
        place
    }
}

/// The one ground of the tests that run at a time, with machines that are bootstrapped.
fn ground() -> Arc<Ground> {
    static GROUND: Mutex<Weak<Ground>> = Mutex::new(Weak::new());
    let mut known = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
    known.upgrade().unwrap_or_else(|| {
        let ground = Arc::new(make_ground());
        *known = Arc::downgrade(&ground);
        ground
    })
}

fn make_ground() -> Ground {
    let ground = Ground::new();
    let place = ground.place("base");
    let scene = Scene::with_commits(&Warm.build_file(), 1);
    let service = scene.path("service");
    write(&service, SERVICE);
    place.make("tiny", &[]);
    place.make("plain", &["--exchange", "tftp"]);
    place.make("serves", &["--service", &service.to_string_lossy()]);
    drop(place.crewboss(&scene, &["machines", "bootstrap"]).end(A_WHILE).expect_code(0));
    place.variant("tiny", "warm", "warm_start = true");
    let ended = place.build(&scene, 1, &[]).start().end(A_WHILE).expect_code(0);
    ended.expect_said("saves a guest of warm");
    ground
}

/// The file of the runner that stands still.
fn halted(place: &Place) -> PathBuf {
    place.root.join("halted")
}

fn kill(place: &Place, victim: Victim, runner: &Process) {
    let is_victim = |one: &Process| match victim {
        Runner => one.role() == "runner",
        Qemu => one.is_qemu(),
        Worker => one.role() == "worker" && one.command.contains(" --proper"),
        Guardian => one.role() == "worker" && !one.command.contains(" --proper"),
        Boss => matches!(one.role(), "build" | "machines"),
        All => true,
    };
    let victims: Vec<Process> = place.processes().into_iter().filter(is_victim).collect();
    assert!(!victims.is_empty(), "there is no {victim:?} to be killed");
    for one in &victims {
        one.signal("KILL");
    }
    // Whoever is left goes on from here.
    runner.signal("CONT");
}

fn try_case(ground: &Ground, case: &Case) {
    let place = case.place(ground);
    let scene = Scene::with_commits(&case.way.build_file(), 1);
    let mut boss = case.start(&place, &scene);
    // Much cheaper to look for than the process.
    wait_for("the step", A_WHILE, || (halted(&place).exists() || boss.has_ended()).then_some(()));
    let runner = wait_for_halt(&place, &mut boss, A_WHILE);
    let records = place.records();
    assert!(records.iter().any(|record| record["step"] == case.step), "{records:#?}");
    assert!(case.way != Served || case.step != "collecting" || records.len() == 2, "{records:#?}");
    kill(&place, case.victim, &runner);
    match case.victim {
        // Its host finds out by itself.
        Boss => {
            wait_for("the worker to end", A_WHILE, || place.processes().is_empty().then_some(()));
        }
        All => {}
        Qemu if case.way == Bootstrap => expect_another_bootstrap(case, boss),
        _ if case.way == Bootstrap => expect_end_of_bootstrap(case, boss.end(A_WHILE)),
        Qemu if case.needs_qemu() => expect_another_attempt(case, boss),
        Qemu => expect_end_without_qemu(case, boss.end(A_WHILE)),
        // The worker ends in order then, and what is done is told.
        Guardian if case.step == "stopping" => {
            drop(boss.end(A_WHILE).expect_code(0).expect_tasks(1, "success"));
        }
        Runner | Worker | Guardian => expect_another_attempt(case, boss),
    }
    if case.way == Hold {
        expect_held_are_whole(case, &place, &scene);
    }
    clean_up(case, &place, &scene);
}

/// The next worker start does as well as `kill-workers`, except that it leaves what is kept for
/// people.
fn clean_up(case: &Case, place: &Place, scene: &Scene) {
    let words: &[&str] = match (case.way, case.step, case.victim) {
        // It is made anew, by whoever was there first.
        (Bootstrap, "stopping", All) => &["machines", "bootstrap"],
        (Bootstrap | Hold, ..) | (.., Worker | Qemu | Guardian | Boss) => &["kill-workers"],
        (.., Runner | All) => &["machines", "bootstrap"],
    };
    let ended = place.crewboss(scene, words).end(A_WHILE).expect_code(0);
    place.expect_clean(&(words, ended));
}

fn expect_another_attempt(case: &Case, mut boss: Running) {
    boss.wait_for_event_within("task_retried", A_WHILE, |_| true);
    if case.goes_on() {
        let ended = boss.end(A_WHILE).expect_code(0).expect_civil().expect_tasks(1, "success");
        let result: Value = serde_json::from_str(&ended.results.file("t", "result.json")).expect("JSON");
        assert_eq!(result["machine"]["warm"] == true, case.way == Save, "{result:#}");
    } else {
        boss.signal("TERM");
        drop(boss.end(A_WHILE).expect_code(130).expect_civil());
    }
}

fn expect_end_without_qemu(case: &Case, ended: Ended) {
    let ended = ended.expect_civil();
    match (case.way, case.step) {
        // Then it boots as if there were no warm starts.
        (Save, _) => drop(ended.expect_said("no guest of warm was saved").expect_tasks(1, "success")),
        (Warm, "booting") => drop(ended.expect_said("warm did not start warm").expect_tasks(1, "success")),
        (Hold, _) => drop(ended.expect_tasks(1, "failure").expect_said("kept with its disk alone")),
        // A boot is tried again, and at the end it is not needed any more.
        _ => drop(ended.expect_code(0).expect_tasks(1, "success")),
    }
}

/// That is nothing of the machine's, which is not suspended for it.
fn expect_another_bootstrap(case: &Case, boss: Running) {
    let again = "tries it once more: QEMU of a guest of tiny was killed from outside, by signal 9";
    wait_for("another try", A_WHILE, || boss.story().contains(again).then_some(()));
    if case.goes_on() {
        drop(boss.end(A_WHILE).expect_code(0).expect_civil().expect_said("bootstrapped in"));
    } else {
        boss.signal("TERM");
        drop(boss.end(A_WHILE).expect_code(130).expect_civil());
    }
}

fn expect_end_of_bootstrap(case: &Case, ended: Ended) {
    let ended = ended.expect_civil();
    match case.victim {
        Runner => drop(ended.expect_code(102).expect_said("its runner was killed")),
        // The worker ends in order then, or its session is lost.
        _ => drop(ended.expect_code(102)),
    }
}

/// A guest that was to be kept is kept with all that it needs to go on, or not at all.
fn expect_held_are_whole(case: &Case, place: &Place, scene: &Scene) {
    let ended = place.crewboss(scene, &["status", "--json"]).end(A_WHILE).expect_code(0);
    let hosts: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let held = hosts[0]["held"].as_array().cloned().unwrap_or_default();
    assert!(case.step != "held" || !held.is_empty(), "it is not kept: {:#?}", place.records());
    for guest in &held {
        assert_eq!(guest["memory"] == true, case.victim != Qemu, "{guest:#}");
        let id = format!("here/{}", guest["id"].as_str().expect("an id"));
        let mut words = vec!["retry", &id, "--stage", "run", "--set", "V=good"];
        if guest["memory"] == false {
            // Its source is on a disk that QEMU had not finished with.
            words.push("--wipe");
        }
        drop(place.crewboss(scene, &words).end(A_WHILE).expect_code(0));
    }
    let kept = place.records();
    assert!(kept.iter().filter(|record| record["step"] == "held").count() == held.len(), "{kept:#?}");
}

#[test]
fn whoever_is_killed_at_whatever_step_nothing_is_left() {
    let ground = ground();
    let open = Mutex::new(cases());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let case = open.lock().expect("the cases").pop_front();
                    let Some(case) = case else { return };
                    let begun = std::time::Instant::now();
                    if catch_unwind(AssertUnwindSafe(|| try_case(&ground, &case))).is_err() {
                        failed.lock().expect("the failed").push(case);
                    }
                    eprintln!("{} took {:.1} s", case.name(), begun.elapsed().as_secs_f64());
                }
            });
        }
    });
    let failed = failed.into_inner().expect("the failed");
    assert!(failed.is_empty(), "these failed, see above: {failed:#?}");
}

#[test]
fn a_guest_whose_qemu_is_killed_is_noticed_long_before_its_stage_ends() {
    let ground = ground();
    let place = ground.place("noticed");
    place.copy(&ground.place("base"), &["tiny"]);
    let build = "commits = 'HEAD'\nhold = '0'\n[target.t]\nenvironment = { machine = 'tiny' }\n\
                 stages.run = 'echo it runs; sleep 600'\n";
    let scene = Scene::with_commits(build, 1);
    let mut boss = place.build(&scene, 1, &[]).start();
    let kill = || {
        let processes = place.processes();
        let guests: Vec<&Process> = processes.iter().filter(|one| one.is_qemu()).collect();
        assert_eq!(guests.len(), 1, "{processes:#?}");
        guests[0].signal("KILL");
    };
    boss.wait_for_output("it runs");
    kill();
    // It may have been anything that killed it: another try tells.
    let retried = boss.wait_for_event("task_retried", |_| true);
    assert!(retried["reason"].as_str().is_some_and(|why| why.contains("by signal 9")), "{retried}");
    boss.wait_for_event("task_output", |event| {
        event["at"] != retried["at"] && event["text"].as_str().is_some_and(|text| text.contains("it runs"))
    });
    let killed = now_ms();
    kill();
    let ended = boss.end(A_WHILE).expect_code(100).expect_tasks(1, "abnormal");
    let done = &ended.of_kind("task_done")[0];
    let message = done["message"].as_str().unwrap_or_default();
    let story = "QEMU of a guest of tiny was killed from outside, by signal 9";
    assert_eq!(message.matches(story).count(), 2, "both stories: {done}");
    let result: Value = serde_json::from_str(&ended.results.file("t", "result.json")).expect("JSON");
    let stage = &result["stages"][0];
    assert_eq!((&stage["name"], &stage["exit"]), (&"run".into(), &"lost".into()), "{result:#}");
    let of_stage = support::phase_ms(&result, &serde_json::json!({ "stage": "run" }));
    assert!(of_stage.is_some() && of_stage >= stage["wall_ms"].as_u64(), "{result:#}");
    let done = done["time_ms"].as_u64().expect("a time");
    // It takes milliseconds; the silence of a guest is noticed after two minutes.
    assert!(done.saturating_sub(killed) < 60_000, "noticed after {} ms", done.saturating_sub(killed));
    place.expect_clean(&ended);
}

#[test]
fn a_bootstrap_whose_qemu_is_killed_twice_says_so_and_its_machine_is_not_suspended() {
    let ground = ground();
    let place = ground.place("twice");
    place.copy(&ground.place("base"), &["tiny"]);
    place.toolchain("slow", "#!/bin/sh\necho it installs\nsleep 600\n");
    let build = "commits = 'HEAD'\n[target.t]\nenvironment = { machine = 'tiny' }\ntoolchain = 'slow'\n\
                 stages.run = 'true'\n";
    let scene = Scene::with_commits(build, 1);
    let story = "was killed from outside, by signal 9";
    let ask = &["machines", "bootstrap", "tiny", "--toolchain", "slow", "-v"];
    for boss in [place.command(&scene, ask), place.build(&scene, 1, &[])] {
        let boss = boss.start();
        for number in 1..=2 {
            wait_for("the bootstrap", A_WHILE, || {
                (boss.story().matches("it installs").count() >= number).then_some(())
            });
            let processes = place.processes();
            processes.iter().find(|one| one.is_qemu()).expect("a guest").signal("KILL");
        }
        let ended = boss.end(A_WHILE).expect_civil().expect_said("abnormal");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.matches(story).count() >= 2, "both stories: {ended:#?}");
        let is_build = !ended.events.is_empty();
        let ended = ended.expect_code(if is_build { 100 } else { 102 });
        place.expect_clean(&ended);
    }
    let shown = place.crewboss(&scene, &["machines", "--json"]).end(A_WHILE).expect_code(0);
    assert!(shown.stdout.contains("\"slow\"") && !shown.stdout.contains("suspended"), "{shown:#?}");
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("not that late")
}

/// Who stands still where, and how its task ends.
const STILL: [(Way, &str, Victim, &str); 6] = [
    (Task, "booting", Runner, "success"),
    (Warm, "preparing", Runner, "success"),
    (Warm, "collecting", Runner, "success"),
    (Warm, "stopping", Qemu, "success"),
    (Task, "booting", Qemu, "success"),
    (Task, "running", Qemu, "timeout"),
];

/// Nobody is killed: whoever watches the one that stands still has to end it.
#[test]
fn whoever_stands_still_at_whatever_step_is_ended_and_nothing_is_left() {
    let ground = ground();
    std::thread::scope(|scope| {
        for cases in STILL.chunks(STILL.len().div_ceil(AT_ONCE)) {
            let ground = &ground;
            scope.spawn(move || cases.iter().for_each(|case| stand_still(ground, case)));
        }
    });
}

fn stand_still(ground: &Ground, &(way, step, victim, outcome): &(Way, &'static str, Victim, &str)) {
    let case = Case { way, step, victim };
    let place = ground.place(&format!("still-{}", case.name()));
    // A guest that does not come up is given up soon, as is a runner that does not go on.
    place.copy(&ground.place("base"), way.machines());
    place.variant(way.machines()[0], "soon", "limits = { startup = \"40s\" }");
    let machine = if way == Task { "soon" } else { way.machines()[0] };
    let limit = if outcome == "timeout" { "timeout = '20s'\nhold = '0'\n" } else { "" };
    let stage = if outcome == "timeout" { "echo it runs; sleep 600" } else { "echo 1 >made" };
    let build = format!(
        "commits = 'HEAD'\n{limit}[target.t]\nenvironment = {{ machine = '{machine}' }}\nartifacts = ['made*']\n\
         stages.run = '{stage}'\n"
    );
    let scene = Scene::with_commits(&build, 1);
    let boss = place.build(&scene, 1, &[]);
    let crew = scene.path("crew.toml");
    write(&crew, read(&crew).replace("[limits]\n", "[limits]\nstandstill = \"40s\"\n"));
    if outcome == "timeout" {
        let mut boss = boss.start();
        boss.wait_for_output("it runs");
        stop_qemu(&place);
        let ended = boss.end(A_WHILE).expect_code(100).expect_civil().expect_tasks(1, outcome);
        return place.expect_clean(&ended);
    }
    let mut boss = boss.env("CREWBOSS_HALT_AT", format!("{step}={}", halted(&place).display())).start();
    wait_for("the step", A_WHILE, || (halted(&place).exists() || boss.has_ended()).then_some(()));
    let runner = wait_for_halt(&place, &mut boss, A_WHILE);
    if victim == Qemu {
        stop_qemu(&place);
        runner.signal("CONT");
    } else {
        let retried = boss.wait_for_event_within("task_retried", A_WHILE, |_| true);
        let reason = retried["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("runner") && reason.contains("still"), "{}: {retried}", case.name());
    }
    let ended = boss.end(A_WHILE).expect_code(0).expect_civil().expect_tasks(1, outcome);
    place.expect_clean(&ended);
}

fn stop_qemu(place: &Place) {
    let processes = place.processes();
    let guests: Vec<&Process> = processes.iter().filter(|one| one.is_qemu()).collect();
    assert!(!guests.is_empty(), "{processes:#?}");
    guests.iter().for_each(|guest| guest.signal("STOP"));
}

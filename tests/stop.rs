//! Stopping: by Ctrl-C, by `kill-workers`, and sharing hosts with others who do not want to be
//! stopped.

mod support;

use std::path::Path;
use std::time::Duration;

use support::boss::Running;
use support::lab::{Lab, User};
use support::scene::{FAST_LIMITS, Scene};
use support::{A_RUN, SOON, wait_for};

const HOSTS: [&str; 2] = ["host1", "host2"];

/// From the first Ctrl-C to the end, with some room for a busy machine.
const STOP_WITHIN: Duration = Duration::from_secs(7);

/// Quick targets, and long ones that do not like to be asked to end.
fn long() -> Scene {
    let quick: String = (0..4).map(|n| format!("[target.a{n}]\nstages.run = ['/bin/true']\n")).collect();
    let slow: String = (0..4)
        .map(|n| {
            format!(
                "[target.b{n}]\nstages.run = \"trap '' TERM INT; setsid sleep 600 & sleep 600; sleep 600\"\n"
            )
        })
        .collect();
    Scene::with_commits(&format!("commits = 'HEAD'\n{quick}{slow}"), 1)
}

fn busy(scene: &Scene, lab: &Lab, user: User, name: &str) -> Running {
    let crew = scene.two_hosts(lab, user);
    let mut running = scene.build(lab, &crew).called(name).start();
    for host in HOSTS {
        running.wait_for_event("task_started", |event| {
            event["host"] == host && event["target"].as_str().is_some_and(|target| target.starts_with('b'))
        });
    }
    running
}

#[test]
fn one_signal_stops_everything_everywhere() {
    let lab = Lab::shared();
    for (user, signal) in [(User::Root, "INT"), (User::Plain, "TERM")] {
        let scene = long();
        let running = busy(&scene, &lab, user, "boss");
        running.signal(signal);
        let ended = running.end_in_time(STOP_WITHIN).expect_code(130).expect_civil();
        for (name, path) in &ended.results.tasks {
            assert!(path.join("done").exists(), "{name} is there, so it is whole");
        }
        let announced = ended.of_kind("task_done").len();
        assert_eq!(
            announced,
            ended.results.tasks.len(),
            "what is there is announced, and no more: {ended:#?}"
        );
        assert!(!ended.results.tasks.is_empty(), "what was done is kept: {ended:#?}");
        lab.expect_clean(&HOSTS);
    }
}

#[test]
fn a_second_signal_ends_the_boss_at_once() {
    let lab = Lab::shared();
    let scene = long();
    let mut running = busy(&scene, &lab, User::Root, "boss");
    // After the first signal it is waited for.
    lab.on("host2", "pkill -STOP -f '[c]rewboss'");
    running.signal("INT");
    // Two signals that wait to be taken are one.
    running.wait_for_event("stopping", |_| true);
    running.signal("INT");
    let ended = running.end_in_time(Duration::from_secs(3));
    lab.on("host2", "pkill -CONT -f '[c]rewboss'");
    assert_eq!(ended.status.code(), Some(130), "{ended:#?}");
    lab.expect_clean(&HOSTS);
}

#[test]
fn kill_workers_cleans_what_is_dead_and_spares_what_lives() {
    let lab = Lab::shared();
    let scene = long();
    let mut running = busy(&scene, &lab, User::Root, "boss");
    let crew = scene.path("crew.toml").display().to_string();

    let gentle = scene.crewboss(Some(&lab), &["kill-workers", "--crew", &crew]).called("gentle").run();
    assert!(gentle.status.code().is_some(), "{gentle:#?}");
    assert!(lab.leftovers("host1").contains("sleep 600"), "a live boss's work goes on: {gentle:#?}");

    let forced = scene.crewboss(Some(&lab), &["kill-workers", "--force", "--crew", &crew]).called("forced");
    forced.run().expect_code(0).expect_said("host1").expect_said("host2");
    // Whoever has lost work learns whom to ask.
    let lost = running.wait_for_event("host_lost", |_| true);
    let why = lost["reason"].as_str().unwrap_or_default();
    assert!(why.contains("from `crewboss kill-workers` of root@") && why.ends_with("; ask them"), "{why}");
    // The boss has lost its workers and may have started new ones by now.
    running.signal("INT");
    let ended = running.end_in_time(STOP_WITHIN);
    assert!(ended.status.code().is_some(), "{ended:#?}");
    lab.expect_clean(&HOSTS);
}

#[test]
fn kill_workers_removes_what_a_dead_worker_left() {
    let lab = Lab::shared();
    let scene = long();
    let running = busy(&scene, &lab, User::Root, "boss");
    running.signal("KILL");
    // Guardians too: nothing is left on the host that could clean up.
    for host in HOSTS {
        lab.on(host, "pkill -9 -f '[c]rewboss' || true");
    }
    drop(running);
    let crew = scene.path("crew.toml").display().to_string();
    let forced = scene.crewboss(Some(&lab), &["kill-workers", "--crew", &crew]).called("clean");
    forced.run().expect_code(0).expect_said("host1").expect_said("host2");
    lab.expect_clean(&HOSTS);
}

#[test]
fn two_bosses_share_the_hosts() {
    let lab = Lab::shared();
    let targets: String = (0..6)
        .map(|n| format!("[target.t{n}]\nstages.run = 'date +%s.%N; sleep 0.5; date +%s.%N'\n"))
        .collect();
    let scenes = [(); 2].map(|()| Scene::with_commits(&format!("commits = 'HEAD'\n{targets}"), 1));
    let running = scenes.each_ref().map(|scene| {
        let crew = scene.two_hosts(&lab, User::Root);
        scene.build(&lab, &crew).start()
    });
    let ended = running.map(|boss| boss.end(A_RUN).expect_code(0).expect_tasks(6, "success"));
    // Slots belong to the host: all bosses together never run more there than it has.
    let spans: Vec<_> =
        ended.iter().flat_map(|ended| ended.results.tasks.values()).map(|path| span(path)).collect();
    for host in HOSTS {
        for (_, start, _) in spans.iter().filter(|(on, ..)| on == host) {
            let at_once =
                spans.iter().filter(|(on, from, to)| on == host && from <= start && start < to).count();
            assert!(at_once <= 1, "{at_once} tasks at once on {host}, which has one slot: {spans:?}");
        }
    }
    lab.expect_clean(&HOSTS);
}

/// Where a task ran, and from when to when, by the times in its log.
fn span(task: &Path) -> (String, f64, f64) {
    let json = std::fs::read_to_string(task.join("result.json")).expect("a result");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let log = std::fs::read_to_string(task.join("log")).expect("a log");
    let times: Vec<f64> = log.lines().map(|line| line.parse().expect("a time")).collect();
    (json["host"].as_str().expect("a host").to_owned(), times[0], times[1])
}

#[test]
fn work_goes_elsewhere_while_others_hold_all_slots_of_a_host() {
    let lab = Lab::shared();
    let holder = Scene::with_commits("commits = 'HEAD'\n[target.a]\nstages.run = 'sleep 600'\n", 1);
    let crew = holder.two_hosts(&lab, User::Root);
    let mut holding = holder.build(&lab, &crew).args(&["--host", "host1"]).called("holder").start();
    holding.wait_for_task_on("host1");
    let quick: String = (0..6).map(|n| format!("[target.t{n}]\nstages.run = 'sleep 0.1'\n")).collect();
    let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{quick}"), 1);
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_code(0).expect_tasks(6, "success");
    assert_eq!(ended.hosts(), ["host2"]);
    holding.signal("INT");
    holding.end_in_time(STOP_WITHIN).expect_code(130);
    lab.expect_clean(&HOSTS);
}

#[test]
fn hosts_shows_who_holds_what() {
    let lab = Lab::shared();
    let scene = long();
    let running = busy(&scene, &lab, User::Root, "boss");
    let crew = scene.path("crew.toml").display().to_string();
    let shown = scene
        .crewboss(Some(&lab), &["hosts", "--json", "--crew", &crew])
        .called("hosts")
        .run()
        .expect_code(0);
    let json: serde_json::Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert!(json.to_string().contains("holder"), "{json:#}");
    running.signal("INT");
    running.end(SOON).expect_code(130);
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_boss_that_was_stopped_says_so_and_blames_nobody() {
    // Four levels up is the work directory.
    let build = "commits = 'HEAD'\n[target.t]\nstages.run = \"until [ -e $CREWBOSS_OUT/../../../../go ]; do sleep 0.1; done\"\n";
    let scene = Scene::with_commits(build, 1);
    let work = scene.path("work");
    let crew = scene.crew_file(&format!("{FAST_LIMITS}[host.here]\nlocal = true\nwork = {work:?}\n"));
    let mut boss = scene.build_local();
    boss.arg("--crew").arg(crew);
    let mut running = boss.start();
    running.wait_for_event("task_started", |_| true);
    running.signal("STOP");
    let sessions = || std::fs::read_dir(work.join("tasks")).unwrap().count();
    wait_for("the worker to end for want of its boss", SOON, || (sessions() == 0).then_some(()));
    std::fs::write(work.join("go"), "").unwrap();
    running.signal("CONT");
    let ended = running.end(A_RUN).expect_code(0).expect_civil().expect_tasks(1, "success");
    let ended = ended.expect_said("this boss stood still for");
    for event in ended.of_kind("task_retried").into_iter().chain(ended.of_kind("host_lost")) {
        let reason = event["reason"].as_str().unwrap();
        assert!(reason.contains("this boss stood still for"), "{reason}");
    }
    assert_eq!(ended.of_kind("host_lost").len(), 1, "{ended:#?}");
}

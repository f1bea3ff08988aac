//! Losing things in the middle of a run: hosts, links, sshd, workers, and the boss itself.

mod support;

use crewboss_host::process::{ProcessId, with_variable};
use rustix::process::Signal;
use serde_json::Value;
use support::boss::{Ended, Running};
use support::lab::{Lab, User};
use support::scene::Scene;
use support::{A_RUN, SOON, read, wait_for};

const HOSTS: [&str; 2] = ["host1", "host2"];

/// Tasks in a plan of `counting`.
const COUNT: usize = 8;

/// As many targets as `COUNT`. None comes to its end before `go`.
fn counting() -> Scene {
    let wait = "until [ -e /tmp/go ] || [ -e /tmp/go-$CREWBOSS_TARGET ]; do sleep 0.1; done";
    let targets: String = (0..COUNT)
        .map(|n| format!("[target.t{n}]\nstages.run = \"{wait}; echo $CREWBOSS_TARGET\"\n"))
        .collect();
    Scene::with_commits(&format!("commits = \"HEAD\"\nenvironment = \"directory\"\n{targets}"), 1)
}

/// Lets the tasks on this host come to their end.
fn go(lab: &Lab, host: &str) {
    lab.on(host, "touch /tmp/go");
}

/// What becomes of a run after a loss.
fn end(lab: &Lab, running: Running) -> Ended {
    HOSTS.iter().for_each(|host| go(lab, host));
    running.end(A_RUN)
}

/// Starts a run and waits until both hosts work.
fn busy(scene: &Scene, lab: &Lab, user: User) -> Running {
    for host in HOSTS {
        lab.on(host, "rm -f /tmp/go*");
    }
    let crew = scene.two_hosts_that_may_fall_silent(lab, user);
    let mut running = scene.build(lab, &crew).start();
    running.wait_for_task_on("host1");
    running.wait_for_task_on("host2");
    running
}

/// What must hold however a host was lost: all tasks done, each once, each with its own log.
fn expect_complete(ended: Ended) -> Ended {
    let ended = ended.expect_code(0).expect_tasks(COUNT, "success").expect_civil();
    assert_eq!(ended.results.tasks.len(), COUNT);
    for n in 0..COUNT {
        assert_eq!(ended.results.file(&format!("t{n}"), "log"), format!("t{n}\n"));
    }
    assert!(!ended.of_kind("host_lost").is_empty(), "the loss is told: {ended:#?}");
    assert!(!ended.of_kind("task_retried").is_empty(), "what ran there went elsewhere: {ended:#?}");
    ended
}

#[test]
fn a_worker_that_is_killed_loses_nothing() {
    let lab = Lab::shared();
    for user in User::BOTH {
        let scene = counting();
        let running = busy(&scene, &lab, user);
        lab.on("host2", "pkill -9 -f '[c]rewboss worker'");
        expect_complete(end(&lab, running));
        // What the dead worker left is swept by the next one that starts there, or was by its
        // guardian.
        scene
            .build(&lab, &scene.path("crew.toml"))
            .args(&["--force", "--host", "host2", "t0"])
            .run()
            .expect_code(0);
        lab.expect_clean(&HOSTS);
    }
}

#[test]
fn a_link_that_is_cut_loses_nothing() {
    let lab = Lab::shared();
    let scene = counting();
    let running = busy(&scene, &lab, User::Root);
    lab.lab("cut", &["host2"]);
    expect_complete(end(&lab, running));
    // The worker there notices by itself that its boss is gone, and ends everything. The link is
    // still down.
    wait_for("the cut-off host to be clean", SOON, || {
        let left = lab.leftovers("host2");
        // Its sshd may wait for the other end as long as it likes.
        left.lines().all(|line| line.contains("sshd:") || line.contains("sshd-session:")).then_some(())
    });
    lab.lab("heal", &["host2"]);
    lab.on("host2", "pkill -f '[s]shd[^ ]*: .*@notty' || true");
    lab.expect_clean(&HOSTS);
}

#[test]
fn an_sshd_that_is_killed_loses_nothing() {
    let lab = Lab::shared();
    let scene = counting();
    let running = busy(&scene, &lab, User::Plain);
    lab.lab("kill-sshd", &["host2"]);
    expect_complete(end(&lab, running));
    lab.lab("start-sshd", &["host2"]);
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_host_that_falls_silent_loses_nothing() {
    let lab = Lab::shared();
    let scene = counting();
    let running = busy(&scene, &lab, User::Root);
    lab.on("host2", "pkill -STOP -f '[c]rewboss'");
    expect_complete(end(&lab, running));
    lab.on("host2", "pkill -CONT -f '[c]rewboss' || true");
    lab.expect_clean(&HOSTS);
}

#[test]
fn an_ssh_connection_that_stands_still_loses_nothing_and_does_not_stay() {
    let lab = Lab::shared();
    let scene = counting();
    let running = busy(&scene, &lab, User::Root);
    let home = scene.path("home").display().to_string();
    let masters: Vec<ProcessId> = with_variable("HOME", &home)
        .into_iter()
        .filter(|one| {
            let line = std::fs::read(format!("/proc/{}/cmdline", one.pid)).unwrap_or_default();
            line.starts_with(b"ssh") && line.windows(5).any(|part| part == b"host2")
        })
        .collect();
    assert!(!masters.is_empty(), "nobody holds the connection");
    assert!(masters.iter().all(|master| master.signal(Signal::STOP)));
    expect_complete(end(&lab, running));
    wait_for("the connection to be gone", SOON, || {
        masters.iter().all(|master| !master.is_alive()).then_some(())
    });
    // Its sshd on the host may wait for the other end as long as it likes.
    lab.on("host2", "pkill -f '[s]shd[^ ]*: .*@notty' || true");
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_host_that_loses_power_loses_nothing() {
    let lab = Lab::up(&["2"]);
    let scene = counting();
    let running = busy(&scene, &lab, User::Root);
    lab.lab("off", &["host2"]);
    go(&lab, "host1");
    expect_complete(running.end(A_RUN));
    lab.expect_clean(&["host1"]);
}

#[test]
fn a_link_that_heals_is_used_again() {
    let lab = Lab::shared();
    let scene = counting();
    let mut running = busy(&scene, &lab, User::Root);
    lab.lab("kill-sshd", &["host2"]);
    let lost = running.wait_for_event("host_lost", |event| event["host"] == "host2");
    lab.lab("start-sshd", &["host2"]);
    let later = |event: &Value| event["time_ms"].as_u64() > lost["time_ms"].as_u64();
    running.wait_for_event("task_started", |event| event["host"] == "host2" && later(event));
    expect_complete(end(&lab, running));
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_boss_that_is_killed_goes_on_where_it_stopped() {
    let lab = Lab::shared();
    for user in User::BOTH {
        let scene = counting();
        let mut running = busy(&scene, &lab, user);
        let first = running.wait_for_task_on("host1")["target"].as_str().expect("a name").to_owned();
        lab.on("host1", &format!("touch /tmp/go-{first}"));
        running.wait_for_event("task_done", |_| true);
        running.signal("KILL");
        let killed = running.end(SOON);
        assert_eq!(killed.status.code(), None, "{killed:#?}");
        // Nobody tells the workers, and still they stop and clean up.
        lab.expect_clean(&HOSTS);
        let done = killed.results.tasks.len();
        assert_eq!(done, 1, "killed in the middle: {killed:#?}");

        HOSTS.iter().for_each(|host| go(&lab, host));
        let ended = scene.build(&lab, &scene.path("crew.toml")).run().expect_code(0);
        assert_eq!(ended.results.tasks.len(), COUNT);
        assert!(
            ended.of_kind("task_started").len() <= COUNT - done,
            "what is done is not built again: {ended:#?}"
        );
        lab.expect_clean(&HOSTS);
    }
}

#[test]
fn a_task_that_kills_every_worker_fails_with_the_story() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"
environment = "directory"
[target.poison]
stages.run = "pkill -9 -f '[c]rewboss worker'; sleep 60"
[target.fine]
stages.run = ["/bin/true"]
"#,
        1,
    );
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_code(102).expect_civil();
    assert_eq!(ended.outcome_of("poison"), "infrastructure", "{ended:#?}");
    assert_eq!(ended.outcome_of("fine"), "success", "{ended:#?}");
    let done = ended.of_kind("task_done");
    let poison = done.iter().find(|event| event["target"] == "poison").expect("its end");
    // Hand-outs that came to nothing before they started have numbers too.
    let story = poison["message"].as_str().unwrap_or_default();
    assert_eq!(story.matches("attempt ").count() - story.matches("every attempt").count(), 3, "{ended:#?}");
    // The boss tells of it, unless the worker has heard of its guardian's end before its own.
    let result: Value = serde_json::from_str(&ended.results.file("poison", "result.json")).expect("JSON");
    let stage = &result["stages"][0];
    assert!(stage["name"] == "run" && (stage["exit"] == "lost" || stage["exit"] == "stopped"), "{result:#}");
    let phase = serde_json::json!({ "stage": "run" });
    assert!(support::phase_ms(&result, &phase).is_some(), "{result:#}");
    lab.expect_clean(&HOSTS);
}

#[test]
fn one_dead_host_delays_nobody() {
    let lab = Lab::shared();
    // It takes connections and never says a word.
    lab.on("host2", "kill -STOP $(cat /run/lab/sshd.pid)");
    let scene = Scene::with_commits("commits = 'HEAD'\n[target.t]\nstages.run = ['/bin/true']\n", 1);
    // Nobody would wait for that long.
    let crew = read(&scene.two_hosts(&lab, User::Root));
    let crew = scene.crew_file(&crew.replace("[ssh]", "[ssh]\nconnect_timeout = '1h'"));
    let ended = scene.build(&lab, &crew).run().expect_code(0).expect_tasks(1, "success");
    let of_host2 = ended.events.iter().filter(|event| event["host"] == "host2");
    assert_eq!(of_host2.map(|event| &event["event"]).collect::<Vec<_>>(), ["host_connecting"], "{ended:#?}");
    lab.on("host2", "kill -CONT $(cat /run/lab/sshd.pid)");
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_full_disk_puts_a_host_out_of_the_run() {
    let lab = Lab::up(&["2", "--disk", "300M"]);
    lab.lab("fill", &["host2"]);
    go(&lab, "host1");
    let scene = counting();
    // Enough source that the little room that is left will not do.
    let noise: String = (0..2_000_000_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    scene.commit(&[("noise", &noise)], "Noise");
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_code(0).expect_tasks(COUNT, "success").expect_civil();
    assert_eq!(ended.hosts(), ["host1"]);
    let out = ended.of_kind("host_failed");
    let told = |event: &&Value| event["reason"].as_str().is_some_and(|why| why.contains("space"));
    assert!(out.iter().any(|event| event["host"] == "host2" && told(event)), "{ended:#?}");
    assert!(ended.stdout.contains("No space left"), "{ended:#?}");
}

#[test]
fn a_stage_that_kills_the_worker_costs_nobody_a_result_and_forges_none() {
    let scene = Scene::new("");
    let at = |name: &str| scene.path(name).display().to_string();
    let kill = "p=$$; while [ $p -gt 1 ]; do p=$(cut -d' ' -f4 /proc/$p/stat); \
                grep -q proper /proc/$p/cmdline && kill -9 $p; done; sleep 1000";
    let evil = format!(
        "[ -e {killed} ] && exec touch {over}; until [ -e {begun} ]; do sleep 0.1; done; touch {killed}; {kill}",
        killed = at("killed"),
        over = at("over"),
        begun = at("begun"),
    );
    let honest =
        format!("touch {}; until [ -e {} ]; do sleep 0.1; done; echo real; exit 3", at("begun"), at("over"));
    let build = format!(
        "commits = 'HEAD'\n[target.evil]\nstages.run = {evil:?}\n[target.honest]\nstages.run = {honest:?}\n"
    );
    scene.commit(&[("build.toml", &build)], "Build");
    let crew = scene.crew_file(&format!("[host.here]\nlocal = true\nslots = 2\nwork = {:?}\n", at("work")));
    let mut boss = scene.build_local();
    boss.arg("--crew").arg(crew);
    let ended = boss.run().expect_civil();
    assert_eq!((ended.outcome_of("evil"), ended.outcome_of("honest")), ("success".into(), "failure".into()));
    assert_eq!(ended.results.file("honest", "log"), "real\n");
    assert_eq!(ended.of_kind("task_retried").len(), 2, "{ended:#?}");
}

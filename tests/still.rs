//! What stands still: whoever waits for it notices, says what it is, and leaves nothing.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use support::boss::{Boss, Results};
use support::lab::{Lab, User};
use support::scene::{FAST_LIMITS, Scene};
use support::{A_RUN, SOON, read, run, wait_for, write};

const GOOD: &str = "[target.t]\nstages.run = ['/bin/true']\n";

/// Has every `git` of a boss stand still. Their numbers are in the file.
fn with_still_git(scene: &Scene, boss: Boss) -> (Boss, PathBuf) {
    let (git, pids) = (scene.path("programs/git"), scene.path("pids"));
    std::fs::create_dir(scene.path("programs")).expect("a directory");
    write(&git, format!("#!/bin/sh\nsleep 1000 &\necho $$ $! >>{}\nkill -STOP $$\n", pids.display()));
    std::fs::set_permissions(&git, Permissions::from_mode(0o755)).expect("it is ours");
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", scene.path("programs").display());
    (boss.env("PATH", path), pids)
}

fn is_alive(pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn expect_gone(pids: &str) {
    wait_for("end of all", SOON, || (!pids.split_whitespace().any(is_alive)).then_some(()));
}

#[test]
fn a_git_that_stands_still_is_ended_and_named() {
    let scene = Scene::with_commits(GOOD, 1);
    let crew = scene.crew_file("[limits]\nstall = \"1s\"\n[host.here]\nlocal = true\n");
    let (mut boss, pids) = with_still_git(&scene, scene.build_local());
    boss.arg("--crew").arg(crew);
    let ended = boss.run().expect_code(2).expect_civil();
    let ended = ended.expect_said("`git config` stood still: for 1 s").expect_said("`stall` in [limits]");
    let status = format!("see whether `git -C '{}' status` answers", scene.repo().display());
    let ended = ended.expect_said(&status);
    assert!(ended.results.tasks.is_empty() && !scene.out().exists());
    expect_gone(&read(&pids));
}

#[test]
fn whoever_waits_for_a_host_is_told_which() {
    let scene = Scene::with_commits(GOOD, 1);
    let pids = scene.path("pids");
    let slow = format!("echo $$ >>{}; exec sleep 1000", pids.display());
    let crew = scene.crew_file(&format!(
        "[limits]\nshell = \"1h\"\n[host.quick]\nlocal = true\n[host.slow]\ncommand = ['sh', '-c', '{slow}']\n"
    ));
    for command in ["status", "kill-workers", "hosts", "machines"] {
        let boss = scene.crewboss(None, &[command, "--crew", crew.to_str().expect("a plain name")]);
        let mut running = boss.start();
        wait_for("word of who is slow", SOON, || {
            assert!(!running.has_ended(), "{}", running.story());
            running.story().contains("still waiting for slow\n").then_some(())
        });
    }
    // They were killed, and nothing of theirs reads its input to hear of that.
    expect_gone(&read(&pids));
}

#[test]
fn ctrl_c_works_at_once_while_git_stands_still() {
    let scene = Scene::with_commits(GOOD, 1);
    let (boss, pids) = with_still_git(&scene, scene.build_local());
    let running = boss.start();
    wait_for("git", SOON, || pids.exists().then_some(()));
    running.signal("INT");
    let _ended = running.end_in_time(Duration::from_secs(5)).expect_code(130).expect_civil();
    let leader = read(&pids);
    expect_gone(leader.split_whitespace().next().unwrap_or_default());
}

/// A disk of its own for results. It can stand still: whoever writes to it then waits. Nothing of
/// it is left, whatever becomes of the test.
struct Disk(PathBuf);

impl Disk {
    fn new(scene: &Scene) -> Self {
        let (image, place) = (scene.path("image"), scene.path("disk"));
        let file = std::fs::File::create_new(&image).expect("a file");
        file.set_len(256 << 20).expect("a sparse file");
        std::fs::create_dir(&place).expect("a directory");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place));
        Self(place)
    }

    fn freeze(&self) {
        run(Command::new("fsfreeze").arg("-f").arg(&self.0));
    }

    fn thaw(&self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A disk that does not stand still cannot be thawed. One that is used is unmounted when it
        // is not used any more.
        drop(Command::new("fsfreeze").arg("-u").arg(&self.0).stderr(Stdio::null()).status());
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// Waits until a worker has heard its boss for so long while the disk stood still.
fn wait_for_heartbeats(scene: &Scene, for_long: Duration) {
    let begun = SystemTime::now();
    wait_for("heartbeats", SOON, || {
        let sessions = std::fs::read_dir(scene.path("work/tasks")).into_iter().flatten().flatten();
        let heard = |session: std::fs::DirEntry| session.path().join("alive").metadata()?.modified();
        sessions.filter_map(|session| heard(session).ok()).find(|heard| *heard > begun + for_long)
    });
}

#[test]
fn a_disk_of_results_that_stands_still_costs_no_host_and_no_result() {
    const SILENCE: Duration = Duration::from_secs(4);
    let several: String = (0..6)
        .map(|n| format!("[target.t{n}]\nstages.run = 'seq 1 20000; echo x >$CREWBOSS_OUT/a; sleep {n}'\nartifacts = ['a']\n"))
        .collect();
    let scene = Scene::with_commits(&several, 1);
    let disk = Disk::new(&scene);
    let crew = scene.crew_file(&format!(
        "{FAST_LIMITS}[host.here]\nlocal = true\nslots = 2\nwork = '{}'\n",
        scene.path("work").display()
    ));
    let mut boss = scene.crewboss(None, &["build", "--crew", crew.to_str().expect("a plain name")]);
    boss.arg("--file").arg(scene.repo().join("build.toml")).arg("--out").arg(disk.0.join("out"));
    boss.events(scene.path("events.jsonl"));

    // It stands still before the results are opened, and then while they come in.
    disk.freeze();
    let mut running = boss.start();
    wait_for_heartbeats(&scene, SILENCE * 2);
    disk.thaw();
    running.wait_for_event("task_started", |_| true);
    disk.freeze();
    wait_for_heartbeats(&scene, SILENCE * 2);
    disk.thaw();
    let ended = running.end(A_RUN).expect_code(0).expect_civil().expect_tasks(6, "success");
    assert!(ended.of_kind("host_lost").is_empty(), "{ended:#?}");
    let results = Results::read(&disk.0.join("out"));
    for target in 0..6 {
        let log = results.file(&format!("t{target}"), "log");
        assert!(
            log.ends_with("19999\n20000\n")
                && results.only(&format!("t{target}")).join("artifacts/a").exists()
        );
    }
}

#[test]
fn a_bulk_process_that_stands_still_costs_no_result_and_does_not_stay() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        "commits = 'HEAD'\n[target.t]\nstages.run = 'seq 1 20000; until [ -e /srv/builder/go ]; do sleep 0.05; done; echo end'\n",
        1,
    );
    let limits = "[limits]\nheartbeat = \"1s\"\nsilence = \"2m\"\nstall = \"2s\"\n";
    let crew = scene.crew_with(limits, &lab, User::Plain, &[("host1", "slots = 1")]);
    let running = scene.build(&lab, &crew).start();
    wait_for("the channel of the log", SOON, || {
        let found = lab.on("host1", "pgrep -f '[b]ulk --session' || true");
        // One brought the source, the other one is asked for the log.
        (found.lines().count() == 2).then_some(())
    });
    lab.on("host1", "pkill -STOP -f '[b]ulk --session'; touch /srv/builder/go");
    let ended = running.end(A_RUN).expect_code(0).expect_tasks(1, "success");
    assert!(ended.results.file("t", "log").ends_with("20000\nend\n"), "{ended:#?}");
    lab.on("host1", "rm /srv/builder/go");
    lab.expect_clean(&["host1"]);
}

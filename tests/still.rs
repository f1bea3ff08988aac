//! What stands still: whoever waits for it notices, says what it is, and leaves nothing.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use support::boss::Boss;
use support::scene::Scene;
use support::{SOON, read, wait_for, write};

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
    let crew = scene.crew_file(
        "[limits]\nshell = \"1h\"\n[host.quick]\nlocal = true\n[host.slow]\ncommand = ['sh', '-c', 'sleep 1000']\n",
    );
    for command in ["status", "kill-workers", "hosts", "machines"] {
        let boss = scene.crewboss(None, &[command, "--crew", crew.to_str().expect("a plain name")]);
        let mut running = boss.start();
        wait_for("word of who is slow", SOON, || {
            assert!(!running.has_ended(), "{}", running.story());
            running.story().contains("still waiting for slow\n").then_some(())
        });
    }
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

//! What a task may do, what it sees, and what is left of it: nothing.

mod support;

use support::lab::{Lab, User};
use support::scene::Scene;

const HOSTS: [&str; 2] = ["host1", "host2"];

/// Programs that try to outlive their task. `$1` is the number of seconds that shows which test
/// they are from.
const ESCAPES: &str = r#"#!/bin/bash
sleep "$1" &
setsid sleep "$1" &
(setsid bash -c "sleep $1 & disown" &)
(trap '' TERM INT HUP; exec -a stubborn sleep "$1") &
nohup setsid bash -c "trap '' TERM; while :; do sleep $1; done" >/dev/null 2>&1 </dev/null &
env -i setsid sleep "$1" >/dev/null 2>&1 &
echo started
"#;

#[test]
fn nothing_outlives_its_task() {
    let lab = Lab::shared();
    for user in User::BOTH {
        let scene = Scene::new(
            r#"
commits = "HEAD"
[target.ends]
stages.run = "bash ./escape 7001"
[target.waits]
timeout = "2s"
stages.run = "bash ./escape 7002; sleep 7002"
[target.dies]
stages.run = "bash ./escape 7003; kill -9 $$"
"#,
        );
        scene.commit(&[("escape", ESCAPES)], "Escape");
        let crew = scene.two_hosts(&lab, user);
        let running = scene.build(&lab, &crew).start();
        let ended = running.end(support::A_RUN).expect_code(100);
        assert_eq!(ended.outcome_of("ends"), "success");
        assert_eq!(ended.outcome_of("waits"), "timeout");
        assert_eq!(ended.outcome_of("dies"), "failure");
        lab.expect_clean(&HOSTS);
    }
}

#[test]
fn the_shared_source_cannot_be_changed() {
    let lab = Lab::shared();
    for user in User::BOTH {
        // One slot and one host: the second target runs after the first, on the same source.
        let scene = Scene::with_commits(
            r#"
commits = "HEAD"
[target.a_breaks]
stages.run = "echo broken >number; rm -rf sub; echo x >new; chmod -R 777 . || true"
[target.b_looks]
stages.run = "cat number; ls"
"#,
            1,
        );
        scene.commit(&[("sub/file", "x")], "More");
        let crew = scene.crew(&lab, user, &[("host1", "slots = 1")]);
        for round in 0..2 {
            let ended =
                scene.build(&lab, &crew).args(&["--force"]).run().expect_code(0).expect_tasks(2, "success");
            assert_eq!(ended.results.file("b_looks", "log"), "1build.toml\nnumber\nsub\n", "round {round}");
        }
        lab.expect_clean(&["host1"]);
    }
}

#[test]
fn without_btrfs_the_same_promises_hold() {
    let lab = Lab::up(&["1", "--plain", "1"]);
    for user in User::BOTH {
        let scene = Scene::with_commits(
            "commits = 'HEAD'\n[target.t]\nstages.run = 'cat number; echo x >number'\n",
            1,
        );
        let crew = scene.crew(&lab, user, &[("host1", "slots = 1")]);
        for _ in 0..2 {
            let ended = scene.build(&lab, &crew).args(&["--force"]).run().expect_code(0);
            assert_eq!(ended.results.file("t", "log"), "1");
        }
        lab.expect_clean(&["host1"]);
    }
}

#[test]
fn stages_see_a_clean_environment() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"
[variables]
COLOUR = "blue"
[target.plain]
stages.run = "env | sort; pwd; test -w $CREWBOSS_OUT && test -d $HOME && test -d $TMPDIR && echo usable"
[target.cross]
toolchain = "aarch64"
variables.COLOUR = "green"
stages.run = 'env | sort; printf "int main(void){return 0;}" >x.c; "$CREWBOSS_CC" -o "$CREWBOSS_OUT/x" x.c && ${CREWBOSS_CROSS}objdump -f "$CREWBOSS_OUT/x"'
"#,
        1,
    );
    let crew = scene.crew(&lab, User::Plain, &[("host1", "slots = 1")]);
    let boss = scene.build(&lab, &crew).env("SECRET_OF_THE_BOSS", "x");
    let ended = boss.run().expect_code(0).expect_tasks(2, "success");
    let plain = ended.results.file("plain", "log");
    for name in [
        "CREWBOSS_SRC",
        "CREWBOSS_OUT",
        "CREWBOSS_JOBS",
        "CREWBOSS_TARGET=plain",
        "CREWBOSS_COMMIT",
        "COLOUR=blue",
    ] {
        assert!(plain.contains(name), "{name} in {plain}");
    }
    for name in ["SECRET_OF_THE_BOSS", "SSH_CONNECTION", "CROSS_COMPILE", "SUDO", "OLDPWD"] {
        assert!(!plain.contains(name), "{name} in {plain}");
    }
    assert!(plain.contains("usable"), "{plain}");
    let cross = ended.results.file("cross", "log");
    for text in ["COLOUR=green", "CROSS_COMPILE=", "aarch64"] {
        assert!(cross.contains(text), "{text} in {cross}");
    }
}

#[test]
fn an_incremental_target_goes_on_from_its_last_good_build() {
    let lab = Lab::shared();
    for user in User::BOTH {
        let scene = Scene::with_commits(
            r#"
commits = "HEAD"
[target.steps]
incremental = true
artifacts = ["first"]
stages.run = 'test -e "$CREWBOSS_OUT/first" || cat number >"$CREWBOSS_OUT/first"; cat "$CREWBOSS_OUT/steps" 2>/dev/null || true; cat number >>"$CREWBOSS_OUT/steps"; test "$(cat number)" != 2'
"#,
            1,
        );
        let crew = scene.crew(&lab, user, &[("host1", "slots = 1")]);
        let build = |code: i32| scene.build(&lab, &crew).run().expect_code(code).results;
        assert_eq!(build(0).file("steps", "log"), "", "nothing to start from");
        scene.commit(&[("number", "2")], "Fails");
        let out = scene.build(&lab, &crew).run().expect_code(100);
        let failed = out.results.tasks.values().find(|path| support::read(&path.join("log")) == "1");
        let failed = failed.unwrap_or_else(|| panic!("{out:#?}"));
        assert!(!failed.join("artifacts").exists(), "what an earlier commit made is not this one's artifact");
        scene.commit(&[("number", "3")], "Works");
        let out = scene.build(&lab, &crew).run().expect_code(0);
        // Neither "12" nor "": the failed build left no trace in the warm directory.
        let last = out
            .of_kind("task_done")
            .last()
            .and_then(|event| event["path"].as_str())
            .expect("a path")
            .to_owned();
        assert_eq!(support::read(&scene.out().join(last).join("log")), "1");
        lab.expect_clean(&["host1"]);
    }
}

#[test]
fn strange_builds_are_only_builds() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"
timeout = "60s"
[target.long_line]
stages.run = "head -c 100000000 /dev/zero | tr '\\0' x"
[target.closes_output]
stages.run = "exec >&- 2>&-; sleep 1"
[target.removes_itself]
stages.run = 'rm -rf "$CREWBOSS_SRC" "$CREWBOSS_OUT" "$HOME" "$TMPDIR"; echo removed'
[target.reads_input]
stages.run = "cat; echo end"
[target.odd_names]
stages.run = '''cd "$CREWBOSS_OUT" && mkdir -p d && : >"d/a b" && : >"d/quo\"te" && : >"d/.hidden" && printf x >"d/new
line" && ln -s /etc/passwd d/link && : >"d/$(printf "\\377")"'''
artifacts = ["d/*"]
"#,
        1,
    );
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_civil();
    assert_eq!(ended.of_kind("task_done").len(), 5, "each has its result: {ended:#?}");
    let log = std::fs::metadata(ended.results.only("long_line").join("log")).expect("the log");
    assert_eq!(log.len(), 100_000_000);
    for target in ["closes_output", "reads_input"] {
        assert_eq!(ended.outcome_of(target), "success", "{target}");
    }
    assert_eq!(ended.results.file("reads_input", "log"), "end\n");
    assert!(ended.results.file("removes_itself", "log").contains("removed"));
    let artifacts = ended.results.only("odd_names").join("artifacts/d");
    assert!(
        !support::output(std::process::Command::new("cat").arg(artifacts.join("link")))
            .stdout
            .starts_with(b"root:")
    );
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_log_that_is_gone_holds_up_nobody() {
    let lab = Lab::shared();
    // Removed as soon as it is there, which is before anybody comes for it; in a further attempt
    // somebody may be there already.
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"
[target.a_removes]
stages.run = '''log=$CREWBOSS_OUT/../log; x=$(head -c 100000 /dev/zero | tr '\0' x); echo "$x"
until [ -s "$log" ]; do :; done; rm "$log"; sleep 1'''
[target.b_works]
stages.run = "cat number"
"#,
        1,
    );
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_civil();
    assert!(["success", "infrastructure"].contains(&&*ended.outcome_of("a_removes")), "{ended:#?}");
    assert_eq!(ended.outcome_of("b_works"), "success", "{ended:#?}");
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_build_that_fills_the_disk_does_not_take_the_host_with_it() {
    let lab = Lab::up(&["2", "--disk", "300M"]);
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"
[target.a_fills]
stages.run = 'dd if=/dev/zero of="$CREWBOSS_OUT/big" bs=1M count=4000'
[target.b_works]
stages.run = "cat number"
"#,
        1,
    );
    let crew = scene.crew(&lab, User::Root, &[("host1", "slots = 1")]);
    let ended = scene.build(&lab, &crew).run().expect_civil();
    assert!(matches!(ended.status.code(), Some(100 | 102)), "{ended:#?}");
    assert_eq!(ended.outcome_of("b_works"), "success", "{ended:#?}");
    lab.expect_clean(&["host1"]);
}

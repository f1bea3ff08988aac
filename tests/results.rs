//! The main job: a matrix of targets and commits, built on hosts, and the result directory that
//! comes of it.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use support::lab::{Lab, User};
use support::scene::Scene;
use support::{A_RUN, phase_ms, read, run, write};

const HOSTS: [&str; 2] = ["host1", "host2"];

/// Two targets; one builds a program, the other one only looks.
const MATRIX: &str = r#"
commits = "HEAD~3..HEAD"

[target.program]
toolchain = "native"
stages.build = '$CREWBOSS_CC -o "$CREWBOSS_OUT/program" program.c'
stages.test = '"$CREWBOSS_OUT/program"'
artifacts = ["program"]
sizes = ["program"]

[target.look]
stages.look = 'cat number; echo "$CREWBOSS_TARGET at $CREWBOSS_COMMIT" >&2'
"#;

const PROGRAM: &str = "#include <stdio.h>\nint main(void) { puts(\"it runs\"); return 0; }\n";

fn matrix() -> Scene {
    let scene = Scene::new(MATRIX);
    scene.files(&[("program.c", PROGRAM)]);
    for number in 1..=4 {
        scene.commit(&[("number", &format!("{number}\n"))], &format!("Count to {number}"));
    }
    scene
}

#[test]
fn a_matrix_is_built_on_two_hosts_as_root_and_as_a_plain_user() {
    let lab = Lab::shared();
    for user in User::BOTH {
        let scene = matrix();
        let crew = scene.two_hosts(&lab, user);
        let ended = scene.build(&lab, &crew).run().expect_code(0).expect_tasks(6, "success");
        assert_eq!(ended.results.tasks.len(), 6, "{:?}", ended.results.tasks);
        for (name, path) in &ended.results.tasks {
            assert_eq!(read(&path.join("done")).trim(), "0", "{name}");
            serde_json::from_str::<serde_json::Value>(&read(&path.join("result.json"))).expect("JSON");
            if name.ends_with("program") {
                assert_eq!(run(&mut Command::new(path.join("artifacts/program"))), "it runs\n");
                assert!(read(&path.join("log")).contains("it runs"));
                assert!(read(&path.join("sizes")).contains("text"), "{}", read(&path.join("sizes")));
            }
        }
        let (name, last) =
            ended.results.tasks.iter().rfind(|(name, _)| name.ends_with("/look")).expect("a look");
        assert!(
            name.starts_with("03_of_03_g") || name.starts_with("3_of_3_g"),
            "buildman's way to count: {name}"
        );
        assert!(name.contains("Count"), "{name}");
        let head = run(Command::new("git").arg("-C").arg(scene.repo()).args(["rev-parse", "HEAD"]));
        assert_eq!(read(&last.join("log")), format!("4\nlook at {head}"));
        assert_eq!(read(&last.join("err")), format!("look at {head}"));
        lab.expect_clean(&HOSTS);
    }
}

/// Processor types in the header of a program, as the ELF format numbers them.
const MACHINES: [(&str, u16); 4] = [("amd64", 62), ("arm64", 183), ("armhf", 40), ("riscv64", 243)];

#[test]
fn a_third_party_program_is_built_for_four_architectures() {
    let lab = Lab::shared();
    let scene = Scene::new("");
    std::fs::remove_dir_all(scene.repo()).expect("the empty repository");
    // Fetches Debian's source of a small program, unless an earlier run has.
    run(Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo-repo")).arg(scene.repo()));
    let crew = scene.crew(&lab, User::Plain, &[("host1", ""), ("host2", "")]);
    let boss = scene.build(&lab, &crew).args(&["--commits", "HEAD"]);
    let ended = boss.start().end(Duration::from_secs(300)).expect_code(0);
    assert_eq!(ended.results.tasks.len(), MACHINES.len(), "{ended:#?}");
    for (target, machine) in MACHINES {
        let program = std::fs::read(ended.results.only(target).join("artifacts/unzip")).expect("the program");
        assert_eq!(u16::from_le_bytes([program[18], program[19]]), machine, "{target}");
        let sizes = ended.results.file(target, "sizes");
        assert!(sizes.contains("unzip") && !sizes.contains("/tasks/"), "{target}: {sizes}");
    }
    lab.expect_clean(&HOSTS);
}

#[test]
fn what_is_done_is_not_built_again_unless_asked_or_changed() {
    let lab = Lab::shared();
    let scene = matrix();
    let crew = scene.two_hosts(&lab, User::Root);
    scene.build(&lab, &crew).run().expect_code(0).expect_tasks(6, "success");
    let again = scene.build(&lab, &crew).run().expect_code(0);
    assert!(again.of_kind("task_started").is_empty(), "{again:#?}");
    assert_eq!(again.results.tasks.len(), 6);

    let forced = scene.build(&lab, &crew).args(&["--force", "look"]).run().expect_code(0);
    assert_eq!(forced.of_kind("task_started").len(), 3, "{forced:#?}");

    // Another definition of one target is another key; the other target's stays.
    write(&scene.repo().join("build.toml"), MATRIX.replace("cat number;", "cat number number;"));
    let changed = scene.build(&lab, &crew).run().expect_code(0);
    assert_eq!(changed.of_kind("task_started").len(), 3, "{changed:#?}");
    assert!(changed.results.tasks.iter().any(|(_, path)| read(&path.join("log")).starts_with("4\n4\n")));
}

#[test]
fn uploads_are_brought_back_and_handed_over_before_the_result_counts() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"

[target.good]
stages.build = 'mkdir -p "$CREWBOSS_OUT/upload/package/hello" "$CREWBOSS_OUT/upload/log/all" && echo hi > "$CREWBOSS_OUT/upload/package/hello/greeting"'

[target.bad]
stages.build = 'mkdir -p "$CREWBOSS_OUT/upload/broken/one"'

[target.wrong]
stages.build = 'mkdir -p "$CREWBOSS_OUT/upload" && touch "$CREWBOSS_OUT/upload/file"'

[upload.package]
command = ["sh", "-c", "cp \"$CREWBOSS_UPLOAD_FILE\" taken.tar; echo \"took $CREWBOSS_UPLOAD_INSTANCE\""]

[upload.broken]
command = ["sh", "-c", "echo no room >&2; exit 4"]
"#,
        1,
    );
    let crew = scene.crew(&lab, User::Plain, &[("host1", "")]);
    let ended = scene.build(&lab, &crew).run().expect_code(100);
    let good = ended.results.only("good");
    let archive = good.join("artifacts/upload/package/hello.tar");
    let listed = run(Command::new("tar").arg("tf").arg(&archive));
    assert_eq!(listed, "hello/\nhello/greeting\n");
    assert!(good.join("artifacts/upload/log/all.tar.sha256").is_file());
    let taken = std::fs::read(scene.repo().join("taken.tar")).expect("the command's copy");
    assert_eq!(taken, std::fs::read(&archive).unwrap());
    assert!(read(&good.join("log")).ends_with("took hello\n"), "{}", read(&good.join("log")));

    let result = |target: &str| -> serde_json::Value {
        serde_json::from_str(&ended.results.file(target, "result.json")).expect("JSON")
    };
    let (good, bad, wrong) = (result("good"), result("bad"), result("wrong"));
    assert_eq!((&good["outcome"], &good["stages"][1]["name"]), (&"success".into(), &"upload".into()));
    assert_eq!((&bad["outcome"], &bad["stages"][1]["exit"]["code"]), (&"failure".into(), &4.into()));
    assert_eq!(bad["message"], "upload broken/one failed: exit code 4");
    assert!(ended.results.file("bad", "log").contains("no room"));
    assert_eq!((&wrong["outcome"], wrong["stages"].as_array().map(Vec::len)), (&"failure".into(), Some(1)));
    assert!(wrong["message"].as_str().is_some_and(|text| text.contains("not a directory")), "{wrong}");
    lab.expect_clean(&["host1"]);

    let again = scene.build(&lab, &crew).run().expect_code(100);
    assert!(again.of_kind("task_started").is_empty(), "a failed upload is a result: {again:#?}");
    let done = again.of_kind("task_done");
    let skipped = done.iter().find(|event| event["target"] == "good").expect("its event");
    assert_eq!(skipped["matched"]["key"], good["key"]);
}

#[test]
fn failures_warnings_and_timeouts_are_results() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"
[target.good]
stages.run = ["/bin/true"]
[target.bad]
stages.first = "echo fine"
stages.second = "echo 'this went wrong' >&2; exit 7"
stages.third = "echo never >never; echo never"
[target.killed]
stages.run = "kill -SEGV $$"
[target.slow]
timeout = "1s"
stages.run = "sleep 600"
[target.promised]
stages.run = ["/bin/true"]
artifacts = ["not-there"]
"#,
        1,
    );
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_code(100).expect_said("this went wrong").expect_civil();
    let expected = [
        ("good", "success"),
        ("bad", "failure"),
        ("killed", "failure"),
        ("slow", "timeout"),
        ("promised", "failure"),
    ];
    for (target, outcome) in expected {
        assert_eq!(ended.outcome_of(target), outcome, "{target}");
    }
    assert_eq!(ended.results.file("bad", "done").trim(), "7");
    assert_eq!(ended.results.file("bad", "log"), "fine\nthis went wrong\n");
    assert!(ended.results.file("killed", "result.json").contains("11"), "the signal is kept");
    let slow: serde_json::Value =
        serde_json::from_str(&ended.results.file("slow", "result.json")).expect("JSON");
    let (stage, took) = (&slow["stages"][0], slow["wall_ms"].as_u64());
    assert_eq!((&stage["name"], &stage["exit"]), (&"run".into(), &"timeout".into()), "{slow:#}");
    let times = [stage["wall_ms"].as_u64(), phase_ms(&slow, &json!({ "stage": "run" })), took];
    assert!(times.iter().all(|ms| ms.is_some_and(|ms| (1000..60_000).contains(&ms))), "{slow:#}");
    for phase in ["waiting", "preparing", "storing"] {
        assert!(phase_ms(&slow, &phase.into()).is_some(), "{phase} is missing: {slow:#}");
    }
    lab.expect_clean(&HOSTS);
    let again = scene.build(&lab, &crew).run().expect_code(100);
    assert!(again.of_kind("task_started").is_empty(), "failures are results too: {again:#?}");
}

#[test]
fn a_stage_that_is_stopped_or_whose_runner_is_killed_is_in_the_result_with_its_time() {
    let lab = Lab::shared();
    let build = "commits = 'HEAD'\n[target.t]\nstages.first = 'true'\nstages.second = 'sleep 600'\n";
    let crew_of = |scene: &Scene| scene.crew(&lab, User::Root, &[("host1", "slots = 1")]);
    let second = json!({ "stage": "second" });
    for stopped in [true, false] {
        let scene = Scene::with_commits(build, 1);
        let crew = crew_of(&scene);
        let mut running = scene.build(&lab, &crew).start();
        // Without the boss's will it is tried again, as often as any task.
        for attempt in 1..=if stopped { 1 } else { 3 } {
            running.wait_for_event("task_phase", |event| {
                event["phase"] == second
                    && event["at"].as_str().is_some_and(|at| at.ends_with(&format!(".{attempt}")))
            });
            if stopped {
                let mut status = scene.crewboss(Some(&lab), &["status", "--crew"]).called("status");
                status.arg(&crew);
                drop(status.run().expect_code(0).expect_said("of root@").expect_said(": stage second, for "));
                running.signal("INT");
            } else {
                lab.on("host1", "pkill -KILL -f '[/]exe runner '");
            }
        }
        let ended = running.end(A_RUN).expect_code(if stopped { 130 } else { 102 }).expect_civil();
        let result: serde_json::Value =
            serde_json::from_str(&ended.results.file("t", "result.json")).expect("JSON");
        let exits: Vec<_> =
            result["stages"].as_array().expect("stages").iter().map(|one| &one["exit"]).collect();
        assert_eq!(
            exits,
            [&json!({ "code": 0 }), &json!(if stopped { "stopped" } else { "lost" })],
            "{result:#}"
        );
        for phase in [json!({ "stage": "first" }), second.clone(), "storing".into()] {
            assert!(phase_ms(&result, &phase).is_some(), "{phase} is missing: {result:#}");
        }
        assert!(phase_ms(&result, &second) >= result["stages"][1]["wall_ms"].as_u64(), "{result:#}");
        lab.expect_clean(&HOSTS);
    }
}

#[test]
fn with_no_crew_file_the_crew_is_this_computer() {
    let scene = matrix();
    let ended =
        scene.build_local().args(&["--commits", "HEAD"]).run().expect_code(0).expect_tasks(2, "success");
    assert_eq!(run(&mut Command::new(ended.results.only("program").join("artifacts/program"))), "it runs\n");
    let data = scene.path("home/.local/share/crewboss");
    let left = std::fs::read_dir(data.join("tasks")).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(left, 0, "nothing is left in {}", data.display());
}

#[test]
fn the_working_tree_is_built_as_it_is_and_not_touched() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        "[target.look]\nstages.look = 'cat number new; test ! -e ignored && test ! -e gone && echo end'\n",
        1,
    );
    scene.commit(&[(".gitignore", "ignored\n"), ("gone", "x")], "Ignore");
    scene.files(&[("number", "changed\n"), ("new", "untracked\n"), ("ignored", "x")]);
    std::fs::remove_file(scene.repo().join("gone")).expect("it is there");
    run(Command::new("git").arg("-C").arg(scene.repo()).args(["add", "number"]));
    let state = || {
        let git = |arguments: &[&str]| run(Command::new("git").arg("-C").arg(scene.repo()).args(arguments));
        let index = std::fs::read(scene.repo().join(".git/index")).expect("the index");
        (git(&["status", "--porcelain"]), git(&["for-each-ref"]), git(&["stash", "list"]), index)
    };
    let before = state();
    let crew = scene.two_hosts(&lab, User::Plain);
    let ended = scene.build(&lab, &crew).run().expect_code(0).expect_tasks(1, "success");
    assert_eq!(ended.results.file("look", "log"), "changed\nuntracked\nend\n");
    // `git status` itself may refresh the index, so it is the last to be asked.
    assert_eq!(before.3, std::fs::read(scene.repo().join(".git/index")).expect("the index"));
    assert_eq!(before, state());
}

#[test]
fn only_missing_objects_travel() {
    let lab = Lab::shared();
    let scene = Scene::new(
        "commits = \"HEAD\"\n[target.look]\nstages.look = ['cat', 'number']\nenvironment = 'snapshot'\n",
    );
    let noise: String = (0..200_000_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    scene.commit(&[("noise", &noise), ("number", "1")], "First");
    let crew = scene.crew(&lab, User::Root, &[("host1", "")]);
    let first = scene.build(&lab, &crew).run().expect_code(0);
    scene.commit(&[("number", "2")], "Second");
    let second = scene.build(&lab, &crew).run().expect_code(0);
    let bytes = |ended: &support::boss::Ended| -> u64 {
        ended.of_kind("source_sent").iter().filter_map(|event| event["bytes"].as_u64()).sum()
    };
    assert!(bytes(&first) > 100_000, "{first:#?}");
    assert!(bytes(&second) < 5_000, "{second:#?}");
}

#[test]
fn other_ways_to_reach_a_host() {
    let lab = Lab::shared();
    let scene = matrix();
    let config = lab.dir().join("ssh_config").display().to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lab");
    let words = format!(r#"["{script}", "exec", "--dir", "{}", "host1"]"#, lab.dir().display());
    let text = format!(
        "[ssh]\nconfig = \"{config}\"\n[host.piped]\ncommand = {words}\nwork = \"/srv/crewboss\"\n\
         [host.jumped]\nssh = \"host2-via-host1\"\nwork = \"/srv/crewboss\"\n"
    );
    let crew = scene.crew_file(&text);
    for host in ["piped", "jumped"] {
        let boss = scene.build(&lab, &crew).args(&["--force", "--host", host]);
        let ended = boss.run().expect_code(0).expect_tasks(6, "success");
        assert_eq!(ended.hosts(), [host]);
    }
    lab.expect_clean(&HOSTS);
}

#[test]
fn a_dry_run_shows_the_plan_and_does_nothing() {
    let lab = Lab::shared();
    let scene = matrix();
    let crew = scene.two_hosts(&lab, User::Root);
    scene
        .build(&lab, &crew)
        .args(&["--dry-run"])
        .run()
        .expect_code(0)
        .expect_said("program")
        .expect_said("look");
    assert!(!scene.out().exists() || std::fs::read_dir(scene.out()).expect("a directory").count() == 0);
    lab.expect_clean(&HOSTS);
}

#[test]
fn hosts_are_shown_as_a_table_and_as_json() {
    let lab = Lab::shared();
    let scene = matrix();
    let crew = scene.two_hosts(&lab, User::Plain).display().to_string();
    scene
        .crewboss(Some(&lab), &["hosts", "--crew", &crew])
        .run()
        .expect_code(0)
        .expect_said("host1")
        .expect_said("aarch64");
    let ended = scene.crewboss(Some(&lab), &["hosts", "--json", "--crew", &crew]).run().expect_code(0);
    serde_json::from_str::<serde_json::Value>(&ended.stdout).expect("one JSON document");
    lab.expect_clean(&HOSTS);
}

#[test]
fn bulk_comes_back_whole() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        r#"
commits = "HEAD"
environment = "directory"
[target.log]
stages.run = "seq 3000000; printf 'no newline at the end'"
[target.binary]
stages.run = "head -c 3000000 /dev/zero; printf '\\377\\376\\000'"
[target.files]
stages.run = 'seq 200 | while read n; do mkdir -p d$n; echo $n >d$n/f; done; head -c 20000000 /dev/urandom >big; sha256sum big'
artifacts = ["big", "d*/f"]
"#,
        1,
    );
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_code(0).expect_tasks(3, "success");
    let expected: String =
        (1..=3_000_000).map(|n| format!("{n}\n")).collect::<String>() + "no newline at the end";
    assert!(ended.results.file("log", "log") == expected, "the log is complete, byte for byte");
    let binary = std::fs::read(ended.results.only("binary").join("log")).expect("the log");
    assert_eq!((binary.len(), &binary[3_000_000..]), (3_000_003, &[0o377, 0o376, 0][..]));
    let artifacts = ended.results.only("files").join("artifacts");
    let sum = run(Command::new("sha256sum").arg("big").current_dir(&artifacts));
    assert_eq!(sum, ended.results.file("files", "log"));
    for n in 1..=200 {
        assert_eq!(read(&artifacts.join(format!("d{n}/f"))), format!("{n}\n"));
    }
    lab.expect_clean(&HOSTS);
}

//! A worker that speaks the protocol and means harm. The boss never panics, never writes outside
//! its result directory, and ends with an error that says which host it was.

mod support;

use std::path::Path;
use std::process::Command;

use crewboss_protocol::PROTOCOL_VERSION;
use support::boss::Ended;
use support::scene::{LIMITS, Scene};
use support::{run, write};

const BUILD: &str = "commits = 'HEAD'\n[target.t]\nstages.run = ['/bin/true']\n";

/// Answers like a worker. `$1` is the tree that it claims to have; what else it is given is put in
/// by the tests: lines to say instead of `ready`, when a task comes, and on a bulk channel.
const WORKER: &str = r#"
tree=$1
say() { printf '@cb %s\n' "$1"; }
frame() { printf '\000\000\000\005hello\000\000\000\000'; }
started() { say "{\"phase\":{\"at\":\"$1\",\"phase\":{\"stage\":\"run\"}}}"; }
done_with() { say "{\"done\":{\"at\":\"$1\",\"outcome\":\"success\",\"stages\":[],\"rss_kib_max\":1,$2}}"; }
good() { done_with "$1" '"log":{"bytes":3,"text":"ok\n"},"err":{"bytes":0}'; }
case $* in
*" bulk "* | *"'bulk'"*)
    echo '@cb-ship run'
    say '"open"'
    while read -r line; do
        :
        BULK
    done
    exit
    ;;
esac
echo '@cb-ship run'
read -r hello
build=${hello#*'"build":"'}
build=${build%%'"'*}
ready() {
    say "{\"ready\":{\"protocol\":${2:-PROTOCOL},\"build\":\"$1\",\"pid\":1,\"facts\":{\"kernel\":\"x\",\"architecture\":\"x\",\"threads\":1,\"memory\":1,\"disk_free\":1000000000000,\"work\":\"/\",\"slots\":1,\"speed\":1000,\"speed_source\":\"measured\",\"toolchains\":[],\"features\":[],\"load\":{\"load_percent\":0,\"memory_available\":1,\"disk_free\":1000000000000},\"trees\":[\"$tree\"]}}}"
}
READY
while read -r line; do
    case $line in
    *'"quit"'*) say '"finished"'; exit ;;
    *'"task":'*)
        at=${line#*'"at":"'}
        at=${at%%'"'*}
        :
        TASK
        ;;
    esac
done
"#;

struct Lies {
    ready: &'static str,
    task: &'static str,
    bulk: &'static str,
}

const HONEST: Lies = Lies { ready: "ready $build", task: "started $at; good $at", bulk: "exit" };

fn told(lies: &Lies) -> (Scene, Ended) {
    let scene = Scene::with_commits(BUILD, 1);
    let text = WORKER
        .replace("READY", lies.ready)
        .replace("TASK", lies.task)
        .replace("BULK", lies.bulk)
        .replace("PROTOCOL", &PROTOCOL_VERSION.to_string());
    write(&scene.path("fake"), text);
    let tree = run(Command::new("git").arg("-C").arg(scene.repo()).args(["rev-parse", "HEAD^{tree}"]));
    let crew = scene.crew_file(&format!(
        "{LIMITS}[host.fake]\ncommand = [\"sh\", {:?}, {:?}]\n",
        scene.path("fake").display().to_string(),
        tree.trim()
    ));
    let mut boss = scene.build_local();
    boss.arg("--crew").arg(crew);
    let ended = boss.run().expect_civil();
    for outside in ["x", "out/x", "out/evil", "repo/x"] {
        assert!(!scene.path(outside).exists(), "{outside} was written: {ended:#?}");
    }
    assert!(!Path::new("/tmp/crewboss-evil").exists());
    (scene, ended)
}

#[test]
fn what_is_said_behind_ready_in_the_same_breath_is_heard() {
    let ready = r#"{ ready $build; say '{"error":{"kind":"work_directory","text":"the dog ate it"}}'; } >"$0.said"
cat "$0.said"; exit"#;
    let (_scene, ended) = told(&Lies { ready, ..HONEST });
    ended.expect_code(102).expect_said("the worker gave up: the dog ate it");
}

#[test]
fn the_stand_in_is_believed_when_it_is_honest() {
    let (_scene, ended) = told(&HONEST);
    assert_eq!(ended.expect_code(0).expect_tasks(1, "success").results.file("t", "log"), "ok\n");
}

#[test]
fn what_it_says_of_tasks_that_it_does_not_have_is_ignored() {
    let task = r#"
for other in 0.0 0.9 0.4294967295 7.1 4294967295.1; do
    started $other
    say "{\"long_log\":{\"at\":\"$other\"}}"
    say "{\"phase\":{\"at\":\"$other\",\"phase\":\"booting\",\"text\":\"evil\"}}"
    say "{\"log\":{\"at\":\"$other\",\"seq\":18446744073709551615,\"text\":\"evil\",\"lost\":18446744073709551615}}"
    say "{\"returned\":{\"tasks\":[\"$other\",\"$other\"]}}"
    say "{\"refused\":{\"at\":\"$other\",\"reason\":\"no_space\",\"text\":\"evil\"}}"
    good $other
done
started $at; good $at"#;
    let (_scene, ended) = told(&Lies { task, ..HONEST });
    let ended = ended.expect_code(0).expect_tasks(1, "success");
    assert_eq!(ended.of_kind("task_started").len(), 1, "{ended:#?}");
    let phases: Vec<_> = ended.of_kind("task_phase").iter().map(|event| event["phase"].clone()).collect();
    assert_eq!(phases, [serde_json::json!({ "stage": "run" }), "storing".into()], "{ended:#?}");
    assert!(ended.of_kind("task_output").is_empty(), "{ended:#?}");
}

#[test]
fn saying_everything_twice_changes_nothing() {
    let task = r#"
ready $build; ready other
started $at; started $at
say "{\"long_log\":{\"at\":\"$at\"}}"
say "{\"long_log\":{\"at\":\"$at\"}}"
done_with $at '"log":{"bytes":5},"err":{"bytes":0}'
done_with $at '"log":{"bytes":5},"err":{"bytes":0}'
good $at; started $at
say "{\"returned\":{\"tasks\":[\"$at\"]}}""#;
    let bulk = r#"case $line in *'"log"'*) printf '\000\000\000\005hello' ;; *log_ends*) printf '\000\000\000\000' ;; esac"#;
    let (_scene, ended) = told(&Lies { task, bulk, ..HONEST });
    let ended = ended.expect_code(0).expect_tasks(1, "success");
    assert_eq!(ended.of_kind("task_started").len(), 1, "{ended:#?}");
    assert_eq!(ended.results.file("t", "log"), "hello");
}

#[test]
fn numbers_beyond_all_reason_end_the_session() {
    for end in [
        r#""log":{"bytes":18446744073709551615},"err":{"bytes":0}"#,
        r#""log":{"bytes":0},"err":{"bytes":0},"artifacts":{"files":0,"bytes":18446744073709551615}"#,
        r#""log":{"bytes":0},"err":{"bytes":0},"artifacts":{"files":4294967295,"bytes":1}"#,
    ] {
        let task = Box::leak(format!("started $at; done_with $at '{end}'").into_boxed_str());
        let (_scene, ended) = told(&Lies { task, ..HONEST });
        ended.expect_code(102).expect_said("fake").expect_said("limit").expect_tasks(1, "infrastructure");
    }
}

#[test]
fn artifacts_that_leave_the_directory_or_lie_about_their_size_are_refused() {
    let task = r#"started $at; done_with $at '"log":{"bytes":0},"err":{"bytes":0},"artifacts":{"files":1,"bytes":5}'"#;
    for (announced, word) in [
        (r#""path":"../x","bytes":5"#, ".."),
        (r#""path":"a/../../../x","bytes":5"#, ".."),
        (r#""path":"/tmp/crewboss-evil","bytes":5"#, "relative"),
        (r#""path":"evil","bytes":4503599627370496"#, "announced"),
        (r#""path":"evil","bytes":5"#, "evil"),
    ] {
        let bulk = format!(
            r#"case $line in *'"artifacts"'*) say '{{"artifact":{{{announced},"mode":493}}}}'; frame;
say '{{"checksum":{{"blake3":"{}"}}}}'; say '"complete"' ;; esac"#,
            "0".repeat(64)
        );
        let (_scene, ended) = told(&Lies { task, bulk: Box::leak(bulk.into_boxed_str()), ..HONEST });
        let ended = ended.expect_code(102).expect_tasks(1, "infrastructure");
        let story = ended.of_kind("task_done")[0]["message"].to_string();
        assert!(story.contains(word) && story.contains("attempt 3"), "{word:?} in {story}");
    }
}

#[test]
fn another_build_or_version_or_greeting_ends_the_session_at_once() {
    for (ready, word) in [
        ("ready other", "another build"),
        ("ready $build 99", "another build"),
        ("started 0.1", "did not say `ready`"),
        ("say '{\"ready\":{}}'", "cannot be taken"),
        ("say '{\"error\":{\"kind\":\"internal\",\"text\":\"evil\"}}'; exit", "evil"),
    ] {
        let (_scene, ended) = told(&Lies { ready, ..HONEST });
        ended.expect_code(102).expect_said("fake").expect_said(word);
    }
}

#[test]
fn giving_everything_back_for_ever_comes_to_an_end() {
    let task = r#"say "{\"returned\":{\"tasks\":[\"$at\"]}}""#;
    let (_scene, ended) = told(&Lies { task, ..HONEST });
    ended.expect_code(102).expect_said("fake").expect_tasks(1, "infrastructure");
}

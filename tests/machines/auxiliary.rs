//! Tasks that are served by auxiliary machines, in a private network of their own.

use std::collections::BTreeMap;

use crate::support::boss::Ended;
use crate::support::ground::{Ground, Place, wait_for_halt};
use crate::support::machines::{A_GUEST_RUN, PLAIN, Site, TINY};
use crate::support::scene::Scene;
use crate::support::write;
use serde_json::Value;

/// Serves a megabyte of its own by HTTP.
const WEB: &str = r#"#!/bin/sh
mkdir -p /tmp/www
i=0; while [ $i -lt 16384 ]; do printf '%063d\n' $i; i=$((i + 1)); done >/tmp/www/numbers
echo "$CREWBOSS_MACHINE is here" >/tmp/www/name
httpd -p 8080 -h /tmp/www
echo starting
echo PORT=8080
echo SUM=$(sha256sum </tmp/www/numbers | cut -c 1-64)
echo ready
while :; do sleep 1000; done
"#;

/// Says a word to whoever connects.
const WORD: &str = r#"#!/bin/sh
nc -ll -p 9000 -e echo "a word from $CREWBOSS_MACHINE" &
echo PORT=9000
echo ready
while :; do sleep 1000; done
"#;

/// Ends as soon as somebody connects.
const FRAIL: &str = r#"#!/bin/sh
echo ready
nc -l -p 9001 >/dev/null
echo it is over >/dev/console
poweroff -f
"#;

/// Never comes to serve: it ends, or says that it starts and nothing more.
const LAZY: &str = r#"#!/bin/sh
if [ "$CREWBOSS_MACHINE" = db ]; then echo no will >&2; exit 3; fi
echo starting
while :; do sleep 1000; done
"#;

/// Says who it is to whoever connects.
const SERVES: &str = r#"#!/bin/sh
nc -ll -p 9000 -e echo "$CREWBOSS_MACHINE answers" &
echo ready
while :; do sleep 1000; done
"#;

/// What three of them are called, in their order.
const THREE: [&str; 3] = ["first", "second", "third"];

fn make(site: &Site, scene: &Scene, name: &str, service: &str, options: &[&str]) {
    let file = scene.path(name);
    write(&file, service);
    let file = file.to_string_lossy().into_owned();
    site.make("host1", name, &[&["--service", file.as_str()], options].concat());
}

/// What was said of what attempts did, in order.
fn steps(ended: &Ended) -> Vec<String> {
    let texts = ended.of_kind("task_phase").into_iter().filter_map(|event| event["text"].as_str());
    texts.map(str::to_owned).collect()
}

fn result(ended: &Ended, target: &str) -> Value {
    serde_json::from_str(&ended.results.file(target, "result.json")).expect("JSON")
}

fn expect_in_order(steps: &[String], wanted: &[&str]) {
    let mut rest = steps.iter();
    for one in wanted {
        assert!(rest.any(|step| step == one), "{one:?} is not there, or too early: {steps:#?}");
    }
}

#[test]
fn a_task_reaches_its_auxiliary_machines_by_address_and_all_are_gone_afterwards() {
    let site = Site::shared();
    let stage = r#"
        wget -q -O name http://$FILES_ADDRESS:$FILES_PORT/name; cat name
        wget -q -O numbers http://$FILES_ADDRESS:$FILES_PORT/numbers
        [ $(sha256sum <numbers | cut -c 1-64) = $FILES_SUM ]
        nc $SAYS_A_WORD_ADDRESS $SAYS_A_WORD_PORT </dev/null
        echo $FILES_ADDRESS $SAYS_A_WORD_ADDRESS
    "#;
    let target = |name: &str, machine: &str| {
        format!(
            "[target.{name}]\nenvironment = {{ machine = '{machine}', auxiliary = {{ files = 'web', says-a-word = 'word' }} }}\n\
             stages.get = '''{stage}'''\n"
        )
    };
    let targets = [target("by-agent", TINY), target("by-tftp", PLAIN)].concat();
    let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{targets}"), 1);
    make(&site, &scene, "web", WEB, &["--memory", "128M:192M"]);
    make(&site, &scene, "word", WORD, &["--memory", "128M:128M", "--exchange", "tftp"]);

    let ended =
        site.build(&scene, "slots = 1").start().end(A_GUEST_RUN).expect_code(0).expect_tasks(2, "success");
    for name in ["by-agent", "by-tftp"] {
        let log = ended.results.file(name, "log");
        for line in ["files is here", "a word from says-a-word", "10.77.0.2 10.77.0.3"] {
            assert!(log.contains(line), "{line:?} is not in {log}\n{ended:#?}");
        }
        let machine = &result(&ended, name)["machine"];
        let (build, web, word) = (&machine["memory"], &machine["auxiliary"][0], &machine["auxiliary"][1]);
        assert_eq!(
            [build, &web["memory"], &word["memory"]],
            [256 << 20, 192 << 20, 128 << 20],
            "{machine:#}"
        );
        assert_eq!((&web["name"], &web["machine"]), (&"files".into(), &"web".into()), "{machine:#}");
        assert!(word["id"].as_str().is_some_and(|id| id.starts_with("word-")), "{machine:#}");
    }
    expect_in_order(
        &steps(&ended),
        &["web boots", "files serves (web)", "word boots", "says-a-word serves (word)", "tiny boots"],
    );
    site.expect_no_guests();

    let planned = || {
        let ended = site.build(&scene, "slots = 1").args(&["--dry-run"]).start().end(A_GUEST_RUN);
        ended.expect_code(0).stdout
    };
    assert!(planned().starts_with("0 tasks to run"), "nothing has changed: {}", planned());
    // Another image of what serves it: the results do not stand any more.
    make(&site, &scene, "word", &WORD.replace("a word", "another word"), &["--memory", "128M:128M"]);
    assert!(planned().starts_with("2 tasks to run"), "{}", planned());
    site.remove("web");
    site.remove("word");
}

#[test]
fn an_auxiliary_machine_that_is_missing_or_ends_or_is_never_ready_is_nobodys_failure() {
    let site = Site::shared();
    let target = |name: &str, auxiliary: &str, stage: &str| {
        format!(
            "[target.{name}]\nenvironment = {{ machine = '{TINY}', auxiliary = {{ {auxiliary} }} }}\nstages.use = '{stage}'\n"
        )
    };
    let targets = [
        target("left-alone", "db = 'frail'", "nc $DB_ADDRESS 9001 </dev/null; sleep 600"),
        target("never-served", "db = 'lazy'", "true"),
        target("never-ready", "slow = 'slow'", "true"),
    ];
    let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{}", targets.concat()), 1);
    make(&site, &scene, "frail", FRAIL, &["--memory", "128M:128M"]);
    make(&site, &scene, "lazy", LAZY, &["--memory", "128M:128M"]);
    // The same limit holds for its bootstrap, which is to come to its end.
    let mut bootstrap = scene.crewboss(Some(site.lab()), &["machines", "bootstrap", "lazy", "--crew"]);
    bootstrap.arg(site.crew(&scene, "slots = 2"));
    drop(bootstrap.start().end(A_GUEST_RUN).expect_code(0));
    site.variant("lazy", "slow", &["limits = { bootstrap = \"2s\" }"]);

    let ended = site.run(&scene).expect_code(102).expect_civil().expect_tasks(3, "infrastructure");
    for (name, wanted) in [
        ("left-alone", ["the auxiliary machine db is missing: it switched itself off", "it is over"]),
        (
            "never-served",
            [
                "the auxiliary machine db is missing",
                "/etc/crewboss/service ended with exit code 3; it printed last: no will",
            ],
        ),
        ("never-ready", ["the auxiliary machine slow is missing", "its service is not up after 2 s"]),
    ] {
        let result = result(&ended, name);
        let message = result["message"].as_str().unwrap_or_default();
        assert!(wanted.iter().all(|part| message.contains(part)), "{wanted:?} is not in {result:#}");
        let tries = result["earlier"].as_array().map(Vec::len);
        assert_eq!(tries, Some(3), "it is tried three times: {result:#}");
    }
    site.expect_no_guests();
    for name in ["frail", "lazy", "slow"] {
        site.remove(name);
    }
}

/// The guests that there are, and how far each has come.
fn guests(place: &Place) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    place.records().iter().map(|record| (text(&record["machine"]), text(&record["step"]))).collect()
}

/// Three auxiliary machines that are bootstrapped, and one to build in.
fn with_three(ground: &Ground, scene: &Scene) -> Place {
    let place = ground.place("host");
    let service = scene.path("service");
    write(&service, SERVES);
    place.make("serves", &["--service", &service.to_string_lossy()]);
    place.make(TINY, &[]);
    drop(place.crewboss(scene, &["machines", "bootstrap"]).end(A_GUEST_RUN).expect_code(0));
    THREE.iter().for_each(|name| place.variant("serves", name, "instances = 1"));
    place
}

#[test]
fn three_auxiliary_machines_serve_until_the_build_machine_is_gone_and_go_in_reverse_order() {
    let ground = Ground::new();
    let ask = |name: &str| format!("nc ${}_ADDRESS 9000 </dev/null\n", name.to_uppercase());
    let build = format!(
        "commits = 'HEAD'\n[target.t]\nenvironment = {{ machine = '{TINY}', auxiliary = {{ {} }} }}\nstages.ask = '''\n{}'''\n",
        THREE.map(|name| format!("{name} = '{name}'")).join(", "),
        THREE.map(ask).concat()
    );
    let scene = Scene::with_commits(&build, 1);
    let place = with_three(&ground, &scene);
    // The runner stands still whenever it is about to end a guest.
    let mut boss = place.build(&scene, 1, &[]).env("CREWBOSS_HALT_AT", "stopping").start();
    let order = [&THREE[..], &[TINY]].concat();
    for last in (0..order.len()).rev() {
        let runner = wait_for_halt(&place, &mut boss, A_GUEST_RUN);
        let step = |name: &str| if name == order[last] { "stopping" } else { "running" };
        let wanted: BTreeMap<String, String> =
            order[..=last].iter().map(|name| ((*name).to_owned(), step(name).to_owned())).collect();
        assert_eq!(guests(&place), wanted, "{}", boss.story());
        assert_eq!(place.processes().iter().filter(|one| one.is_qemu()).count(), last + 1);
        runner.signal("CONT");
    }
    let ended = boss.end(A_GUEST_RUN).expect_code(0).expect_tasks(1, "success");
    let log = ended.results.file("t", "log");
    assert_eq!(log.trim(), THREE.map(|name| format!("{name} answers")).join("\n"), "{ended:#?}");
    let machine = &result(&ended, "t")["machine"];
    assert_eq!(machine["auxiliary"].as_array().map(Vec::len), Some(3), "{machine:#}");
    let boots = THREE.iter().flat_map(|name| [format!("{name} boots"), format!("{name} serves ({name})")]);
    let boots: Vec<String> = boots.chain([format!("{TINY} boots")]).collect();
    expect_in_order(&steps(&ended), &boots.iter().map(String::as_str).collect::<Vec<_>>());
    place.expect_clean(&ended);
}

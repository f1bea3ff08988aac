//! `crewboss machines bootstrap`: machines made ready ahead of the first task that needs them.

use crate::support::advised;
use crate::support::boss::Ended;
use crate::support::machines::{A_GUEST_RUN, MACHINES, Site, TINY, directory, target};
use crate::support::scene::Scene;
use serde_json::Value;

/// A toolchain that installs itself only in a guest whose kernel was told so, which is no matter of
/// the machine's id.
const TOOLCHAIN: &str = r#"#!/bin/sh
if ! grep -q let.it.be /proc/cmdline; then echo will not; exit 3; fi
echo "picky 1.0" >"$CREWBOSS_VERSIONS"
"#;

/// A toolchain that never comes to its end.
const ENDLESS: &str = "#!/bin/sh\necho it begins\nsleep 600\n";

/// Two slots, or one where there is no second processor, and another worker on the same host, which
/// is never without one.
const AND_BESIDE: &str = "slots = 2\n[host.beside]\nssh = \"root@host1\"\nwork = \"/tmp/beside\"\nslots = 1";

/// Makes a toolchain of the host.
fn toolchain(site: &Site, name: &str, script: &str) {
    let at = format!("{MACHINES}/toolchains/{name}");
    site.on(&format!("mkdir -p {at}; cat >{at}/bootstrap <<'E'\n{script}\nE\nchmod +x {at}/bootstrap"));
}

fn bootstrap(site: &Site, scene: &Scene, words: &[&str]) -> Ended {
    let crew = site.crew(scene, "slots = 2");
    let mut boss = scene.crewboss(Some(site.lab()), &["machines", "bootstrap", "--crew"]);
    boss.arg(crew);
    boss.args(words).called("bootstrap").start().end(A_GUEST_RUN)
}

fn copy(site: &Site, scene: &Scene, machine: &str, toolchain: &str) -> Value {
    let shown = site.shown(scene, machine);
    let copies = shown["copies"].as_array().cloned().unwrap_or_default();
    copies.into_iter().find(|copy| copy["toolchain"] == toolchain).unwrap_or_else(|| panic!("{shown:#}"))
}

#[test]
fn a_person_bootstraps_ahead_of_time_and_may_try_again_what_was_suspended() {
    let site = Site::shared();
    let scene = Scene::new("");
    toolchain(&site, "picky", TOOLCHAIN);
    site.variant(TINY, "moody", &["limits = { misboots = 0 }"]);
    let once = |words: &[&str]| bootstrap(&site, &scene, words);

    let ended = once(&["moody", "--toolchain", "picky", "-v"]).expect_code(102);
    assert!(ended.stdout.contains("suspended") && ended.stdout.contains("exit code 3"), "{ended:#?}");
    assert!(ended.stderr.contains("moody boots") && ended.stderr.contains("will not"), "{ended:#?}");
    assert!(copy(&site, &scene, "moody", "picky")["state"]["suspended"]["why"].is_string());
    site.expect_no_guests();

    // A task is told what to do about it, and it works as it stands.
    let build = target("t", "moody", "toolchain = 'picky'\nstages.run = 'true'");
    let of_task = Scene::with_commits(&format!("commits = 'HEAD'\n{build}"), 1);
    let refused = site.run(&of_task).expect_code(102);
    assert!(refused.of_kind("task_retried").is_empty(), "it would be the same again: {refused:#?}");
    let hints = advised(&refused.stdout);
    let hint = hints.iter().find(|hint| hint.contains("machines bootstrap"));
    let hint = hint.unwrap_or_else(|| panic!("no hint: {refused:#?}"));

    let manifest = format!("{}/moody-1/manifest.toml", directory("moody"));
    site.on(&format!("sed -i 's/^append = \"/&let.it.be /' {manifest}"));
    let ended = of_task.typed(Some(site.lab()), hint).called("hint").start().end(A_GUEST_RUN).expect_code(0);
    assert!(ended.stdout.contains("bootstrapped in") && ended.stdout.contains("picky 1.0"), "{ended:#?}");
    assert_eq!(copy(&site, &scene, "moody", "picky")["state"], "ready");

    let ended = once(&["moody", "--toolchain", "picky"]).expect_code(0);
    assert!(ended.stdout.contains("already ready"), "{ended:#?}");
    assert!(!ended.stderr.contains("boots"), "{ended:#?}");

    let ended =
        once(&["moody", "--toolchain", "picky", "--force", "--json", "--host", "host1"]).expect_code(0);
    let hosts: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(hosts[0]["machines"][0]["end"]["made"]["versions"]["picky"], "1.0", "{hosts:#}");
    assert!(ended.stderr.contains("since a person wants it"), "{ended:#?}");
    site.expect_no_guests();

    for (words, name) in
        [(["moodier"].as_slice(), "machine moodier"), (&["--toolchain", "vax"], "usable toolchain vax")]
    {
        let ended = once(words).expect_code(2);
        assert!(ended.stderr.contains(&format!("no host has a {name}")), "{ended:#?}");
    }
    let ended = once(&["--host", "nowhere"]).expect_code(2);
    assert!(ended.stderr.contains("nowhere"), "{ended:#?}");

    site.remove("moody");
    site.on(&format!("rm -r {MACHINES}/toolchains/picky"));
    site.expect_no_guests();
}

#[test]
fn a_bootstrap_that_takes_too_long_is_ended_and_holds_up_nobody_else() {
    let site = Site::shared();
    toolchain(&site, "endless", ENDLESS);
    // Without ACPI a guest cannot switch itself off.
    let append = format!("append = \"{} acpi=off\"", site.append_of(TINY));
    site.variant(TINY, "stays", &[&append, "limits = { shutdown = \"2s\", misboots = 0 }"]);
    site.variant(TINY, "slow", &["limits = { bootstrap = \"10s\", misboots = 0 }"]);
    let here = ["a", "b", "c"].map(|name| format!("[target.{name}]\nstages.run = 'true'\n")).concat();
    let stays = target("stays", "stays", "stages.run = 'true'\ntoolchain = 'quick'");
    let slow = target("slow", "slow", "stages.run = 'true'\ntoolchain = 'endless'");
    toolchain(&site, "quick", "#!/bin/sh\ntrue");
    let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{slow}{stays}{here}"), 1);

    let ended = site.build(&scene, AND_BESIDE).start().end(A_GUEST_RUN).expect_code(102).expect_civil();
    for name in ["a", "b", "c"] {
        assert_eq!(ended.outcome_of(name), "success");
    }
    let done = ended.of_kind("task_done");
    let place = |name: &str| done.iter().position(|event| event["target"] == name);
    assert!(["a", "b", "c"].iter().all(|name| place(name) < place("slow")), "they waited for it: {ended:#?}");
    for (name, toolchain, why) in [
        ("slow", "endless", "slow cannot run it: its bootstrap takes longer than 10 s"),
        ("stays", "quick", "stays cannot run it: it did not switch itself off within 2 s"),
    ] {
        assert_eq!(ended.outcome_of(name), "infrastructure");
        let result = ended.results.file(name, "result.json");
        assert!(result.contains(why) || result.contains("is suspended"), "{result}");
        let suspended = &copy(&site, &scene, name, toolchain)["state"]["suspended"]["why"];
        assert!(suspended.as_str().is_some_and(|text| text.contains(why)), "{suspended}");
    }
    site.expect_no_guests();
    for name in ["slow", "stays"] {
        site.remove(name);
    }
    site.on(&format!("rm -r {MACHINES}/toolchains/endless {MACHINES}/toolchains/quick /tmp/beside"));
}

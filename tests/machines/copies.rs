//! From a revision to a copy that tasks start in: when it is made, made again, left alone, or given
//! up; and what that means for tasks that are done already.

use crate::support::boss::Ended;
use crate::support::machines::{A_GUEST_RUN, MACHINES, Site, TINY, directory, target};
use crate::support::scene::Scene;

/// A file to build with one target in `machine`, with the toolchain `tools`.
fn scene(machine: &str) -> Scene {
    let lines = "toolchain = 'tools'\nstages.run = 'cat /usr/lib/tools/version || true'";
    Scene::with_commits(&format!("commits = 'HEAD'\nhold = '0'\n{}", target("t", machine, lines)), 1)
}

/// Makes a toolchain of the host, or changes it.
fn toolchain(site: &Site, script: &str) {
    let at = format!("{MACHINES}/toolchains/tools");
    site.on(&format!(
        "mkdir -p {at} && cat >{at}/bootstrap <<'E'\n#!/bin/sh -e\n{script}\nE\nchmod 755 {at}/bootstrap"
    ));
}

fn version(number: &str) -> String {
    format!(
        "mkdir -p /usr/lib/tools; echo {number} >/usr/lib/tools/version; echo \"tools {number}\" >>\"$CREWBOSS_VERSIONS\""
    )
}

fn build(site: &Site, scene: &Scene, arguments: &[&str]) -> Ended {
    site.build(scene, "slots = 1").args(arguments).start().end(A_GUEST_RUN).expect_civil()
}

fn result(ended: &Ended) -> serde_json::Value {
    serde_json::from_str(&ended.results.file("t", "result.json")).expect("JSON")
}

#[test]
fn what_is_unchanged_is_skipped_until_machine_or_toolchain_change() {
    let site = Site::shared();
    site.variant(TINY, "one", &[]);
    toolchain(&site, &version("1.0"));
    let scene = scene("one");
    let first = build(&site, &scene, &[]).expect_code(0).expect_tasks(1, "success");
    assert_eq!(first.results.file("t", "log"), "1.0\n");
    assert_eq!(result(&first)["machine"]["versions"]["tools"], "1.0");
    let shown = site.shown(&scene, "one")["copies"].as_array().cloned().unwrap_or_default();
    let copy = shown.iter().find(|copy| copy["toolchain"] == "tools").expect("a copy").clone();
    assert_eq!((&copy["state"], &copy["versions"]["tools"]), (&"ready".into(), &"1.0".into()), "{copy:#}");

    let again = build(&site, &scene, &[]).expect_code(0).expect_tasks(1, "skipped");
    again.expect_said("unchanged: tree").expect_said("machine one (one-of-tiny-1), toolchain id");

    toolchain(&site, &version("2.0"));
    let other = build(&site, &scene, &[]).expect_code(0).expect_tasks(1, "success");
    let other = other.expect_said("bootstraps one, since the toolchain tools has changed");
    assert_eq!(other.results.file("t", "log"), "2.0\n");

    site.variant("one", "one", &[]);
    let moved = build(&site, &scene, &[]).expect_code(0).expect_tasks(1, "success");
    let moved = moved.expect_said("bootstraps one, since the machine is one-of-one-2 now");
    assert_eq!(result(&moved)["machine"]["id"], "one-of-one-2");

    let forced = build(&site, &scene, &["--force"]).expect_code(0).expect_tasks(1, "success");
    assert!(!forced.stdout.contains("bootstraps"), "{forced:#?}");
    site.remove("one");
    site.expect_no_guests();
}

#[test]
fn a_bootstrap_that_fails_suspends_the_machine_until_something_changes() {
    let site = Site::shared();
    site.variant(TINY, "two", &["limits = { misboots = 1 }"]);
    toolchain(
        &site,
        &format!("grep -q good=1 /proc/cmdline || {{ echo no such luck >&2; exit 7; }}\n{}", version("3.0")),
    );
    let scene = scene("two");
    let failed = build(&site, &scene, &[]).expect_code(102).expect_tasks(1, "infrastructure");
    failed.expect_said("bootstrap failed").expect_said("try 1 of 2").expect_said("7");
    let copies = site.shown(&scene, "two")["copies"].to_string();
    assert!(copies.contains("suspended") && copies.contains('7'), "{copies}");
    let refused = build(&site, &scene, &["--dry-run"]);
    refused.expect_said("suspended until a person has looked");

    let append = site
        .on(&format!("sed -n 's/^append = \"\\(.*\\)\"/\\1/p' {}/two-1.1/manifest.toml", directory("two")));
    site.variant("two", "two", &[&format!("append = \"{} good=1\"", append.trim())]);
    let mended = build(&site, &scene, &[]).expect_code(0).expect_tasks(1, "success");
    assert_eq!(mended.results.file("t", "log"), "3.0\n");
    assert!(site.on(&format!("ls {}", directory("two"))).lines().all(|name| !name.ends_with(".suspended")));
    site.remove("two");
    site.expect_no_guests();
}

#[test]
fn an_old_copy_is_made_again_and_one_of_a_newer_crewboss_is_left_alone() {
    let site = Site::shared();
    site.variant(TINY, "three", &["refresh = \"2d\""]);
    toolchain(&site, &version("4.0"));
    let scene = scene("three");
    drop(build(&site, &scene, &[]).expect_code(0).expect_tasks(1, "success"));
    let record = format!("{}/three-tools/bootstrapped.json", directory("three"));
    site.on(&format!("sed -i 's/\"made\":[0-9]*/\"made\":1000000000/' {record}"));
    let state = |site: &Site| site.shown(&scene, "three")["copies"].to_string();
    assert!(
        state(&site).contains("needs_bootstrap") && state(&site).contains("days old"),
        "{}",
        state(&site)
    );
    let fresh = build(&site, &scene, &["--force"]).expect_code(0).expect_tasks(1, "success");
    fresh.expect_said("bootstraps three, since the copy is").expect_said("days old");

    site.on(&format!("sed -i 's/\"agent\":[0-9]*/\"agent\":4000000/' {record}"));
    let before = site.on(&format!("cat {record}"));
    assert!(state(&site).contains("newer"), "{}", state(&site));
    let newer = build(&site, &scene, &["--force"]).expect_code(102).expect_tasks(1, "infrastructure");
    newer.expect_said("a newer crewboss made its copy (agent 4000000)");
    assert_eq!(site.on(&format!("cat {record}")), before);
    site.remove("three");
    site.expect_no_guests();
}

#[test]
fn a_machine_without_a_link_is_ignored_and_its_copy_goes() {
    let site = Site::shared();
    site.variant(TINY, "four", &[]);
    let scene = scene("four");
    site.bootstrap(&["four"]);
    site.on(&format!("rm {}/four-1", directory("four")));
    let refused = build(&site, &scene, &[]).expect_code(102).expect_tasks(1, "infrastructure");
    // Those of other tests may be there too.
    refused.expect_said("no machine four (has: ").expect_said("plain, ").expect_said("tiny)");
    let left = site.on(&format!("ls {}", directory("four")));
    assert_eq!(left, "four-1.1\n", "the copy is gone, what the operator made is there");
    site.remove("four");
    site.expect_no_guests();
}

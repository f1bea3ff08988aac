//! Guests that mean harm, machines that lie, hosts whose QEMU or disk is no good. Whatever they do:
//! the task gets the right outcome with words that a person understands, the other tasks of the run
//! are unharmed, and nothing is left.

use std::path::Path;
use std::process::Command;

use crate::support::machines::{Kept, PLAIN, Site, TINY, target};
use crate::support::scene::Scene;
use crate::support::{phase_ms, read, run, write};

/// A machine with [`INIT`] and [`AGENT`]: a word on its kernel's command line says what it does.
const ODD: &str = "odd";
const INIT: &str = include_str!("../support/odd/init");
const AGENT: &str = include_str!("../support/odd/agent");

const BUILD: &str = "commits = 'HEAD'\nhold = '0'\n";

/// Two tasks that must come to a good end whatever the others do.
const HARMLESS: &str = "[target.here]\nstages.run = 'cat number'\n\
                        [target.guest]\nenvironment = { machine = 'tiny' }\nstages.run = 'cat number; sleep 1'\n";

/// How a guest is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Port,
    Tftp,
}

/// What a guest does, how its task ends, and what must be said of it somewhere.
struct Odd(By, &'static str, &'static str, &'static [&'static str]);

/// Guests that harm themselves alone: each has a result.
const RESULTS: [Odd; 24] = [
    Odd(By::Tftp, "asks-forever", "timeout", &["4000 ms"]),
    Odd(By::Tftp, "puts-without-end", "success", &["refused to the guest: log", "no more room"]),
    Odd(
        By::Tftp,
        "puts-elsewhere",
        "success",
        &["`..`", "absolute", "directory", "no such file", "only be read"],
    ),
    Odd(By::Tftp, "puts-twice", "success", &["it is complete, and is taken once"]),
    Odd(By::Tftp, "puts-after-the-result", "success", &[]),
    Odd(By::Tftp, "tells-strange-stages", "success", &[]),
    Odd(By::Tftp, "half-a-result", "abnormal", &["cut off"]),
    Odd(By::Tftp, "lies-about-stages", "abnormal", &["its stages are not those of the task"]),
    Odd(By::Tftp, "no-result", "abnormal", &["switched itself off"]),
    Odd(By::Tftp, "rubbish-as-result", "abnormal", &["cannot be read"]),
    Odd(By::Tftp, "rubbish-as-artifacts", "abnormal", &["archive of artifacts cannot be read"]),
    Odd(By::Tftp, "names-that-lead-out", "failure", &[".."]),
    Odd(By::Port, "rubbish-later", "abnormal", &["cannot be read", "is no line of the agent"]),
    Odd(By::Port, "endless-line", "abnormal", &["cannot be read", "long"]),
    Odd(By::Port, "another-stage", "abnormal", &["it says that stage other has ended"]),
    Odd(By::Port, "unasked", "abnormal", &["Prepared", "unasked"]),
    Odd(By::Port, "long-output", "abnormal", &["4294967295 is over the limit"]),
    Odd(By::Port, "output-without-end", "failure", &["stopped in stage run", "of the host's disk at"]),
    Odd(By::Port, "number-that-is-none", "abnormal", &["cannot be read"]),
    Odd(By::Port, "silent-stage", "timeout", &["stage run", "4000 ms"]),
    Odd(By::Port, "archive-that-is-none", "abnormal", &["1099511627776 bytes long as the guest says"]),
    Odd(By::Port, "rubbish-as-document", "abnormal", &["does not begin with"]),
    Odd(By::Port, "off-later", "abnormal", &["switched itself off", "stage run"]),
    Odd(By::Port, "leaves", "abnormal", &["stage run", "panic"]),
];

/// Guests with which no task can begin.
const NEVER: [Odd; 8] = [
    Odd(By::Port, "never-asks", "infrastructure", &["asked for nothing in the time"]),
    Odd(By::Tftp, "off-at-once", "infrastructure", &["it switched itself off"]),
    Odd(By::Port, "panics-at-once", "infrastructure", &["Kernel panic", "it reset itself"]),
    Odd(By::Tftp, "resets-at-once", "infrastructure", &["it reset itself"]),
    Odd(By::Port, "floods-at-once", "infrastructure", &["asked for nothing in the time"]),
    Odd(By::Port, "rubbish-at-once", "infrastructure", &["is no line of the agent"]),
    Odd(By::Port, "another-version", "infrastructure", &["its agent has version 999, not 1"]),
    Odd(By::Port, "refuses", "infrastructure", &["cannot run it", "room"]),
];

/// Makes the machine whose guests mean harm, once, and has it bootstrapped while it is still
/// harmless.
fn make_odd(site: &Site) {
    if site.has(ODD) {
        return;
    }
    let library = site.lab().dir().join("odd/usr/lib/crewboss");
    let honest = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/guest/init");
    for (name, text) in [("init", INIT), ("odd", AGENT), ("init.honest", &read(&honest))] {
        write(&library.join(name), text);
        run(Command::new("chmod").arg("755").arg(library.join(name)));
    }
    let files = site.lab().dir().join("odd").display().to_string();
    site.make("host1", ODD, &["--memory", "128M:256M", "--files", &files]);
    site.bootstrap(&[ODD, TINY]);
}

/// Runs tasks in odd guests, each in a machine of its own name, and harmless ones besides.
fn run_odd(site: &Site, all: &[Odd]) -> Kept {
    make_odd(site);
    let append = site.append_of(ODD);
    let mut build = BUILD.to_owned();
    for Odd(by, name, ..) in all {
        let append = format!("append = \"{append} odd={name}\"");
        // What floods its console has to come to it first.
        let startup = match *name {
            "never-asks" => "6s",
            "floods-at-once" => "25s",
            _ => "5m",
        };
        let limits = format!("limits = {{ startup = \"{startup}\", misboots = 0 }}");
        let (network, exchange) = match by {
            By::Port => ("network = \"none\"", "exchange = \"agent\""),
            By::Tftp => ("network = \"user\"", "exchange = \"tftp\""),
        };
        site.variant(ODD, name, &[&append, &limits, network, exchange]);
        let timeout = if matches!(*name, "asks-forever" | "silent-stage") { "4s" } else { "10m" };
        let artifacts = if *name == "names-that-lead-out" { "artifacts = ['*']" } else { "" };
        let lines = format!("timeout = '{timeout}'\n{artifacts}\nstages.run = 'true'");
        build += &target(name, name, &lines);
    }
    let scene = Scene::with_commits(&(build + HARMLESS), 1);
    let kept = Kept::of(site.run(&scene).expect_civil());
    for Odd(_, name, ..) in all {
        site.remove(name);
    }
    for outside in ["/tmp/crewboss-evil", "/etc/crewboss-evil"] {
        assert!(!Path::new(outside).exists(), "{outside} was written");
    }
    let found = site.on("find /srv /tmp /root -name '*crewboss-evil*' 2>/dev/null || true");
    assert_eq!(found, "", "was written");
    site.expect_no_guests();
    kept
}

/// Everything that is said of a task in its result.
fn said(kept: &Kept, target: &str) -> String {
    format!("{}\n{}", kept.result(target)["message"], kept.find(target, "log").unwrap_or_default())
}

fn expect(kept: &Kept, all: &[Odd]) {
    for target in ["here", "guest"] {
        assert_eq!(kept.ended.outcome_of(target), "success", "unharmed: {:#?}", kept.ended);
        assert_eq!(kept.file(target, "log"), "1");
    }
    let mut wrong = String::new();
    for Odd(_, name, outcome, words) in all {
        let (is, said) = (kept.ended.outcome_of(name), said(kept, name));
        let missing: Vec<&&str> = words.iter().filter(|word| !said.contains(**word)).collect();
        if is != *outcome || !missing.is_empty() {
            wrong += &format!("---- {name}: {is}, not {outcome}; {missing:?} is not said:\n{said:.1500}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn guests_that_misbehave_get_the_right_outcome_and_harm_nobody() {
    let site = Site::shared();
    // So that a file that grows for ever soon meets the end of the disk.
    site.on("fallocate -l 1100M /srv/filler");
    let kept = run_odd(&site, &RESULTS);
    site.on("rm /srv/filler");
    expect(&kept, &RESULTS);
    for target in ["puts-twice", "puts-after-the-result", "puts-elsewhere"] {
        let log = kept.file(target, "log");
        let evil = log.lines().any(|line| line == "evil");
        assert!(log.contains("harmless") && !evil, "{target}: {log}");
    }
    assert_eq!(kept.find("names-that-lead-out", "artifacts/fine"), Some("fine\n"));
}

#[test]
fn guests_that_never_begin_are_given_up_and_their_console_is_kept() {
    let site = Site::shared();
    let kept = run_odd(&site, &NEVER);
    expect(&kept, &NEVER);
    assert!(kept.ended.of_kind("host_paused").is_empty(), "the host is not to blame: {:#?}", kept.ended);
    for target in ["panics-at-once", "off-at-once", "never-asks"] {
        let result = kept.result(target);
        assert!(phase_ms(&result, &"booting".into()).is_some_and(|ms| ms > 0), "{result:#}");
        assert!(result["stages"].as_array().is_none_or(Vec::is_empty), "{result:#}");
    }
    for target in ["panics-at-once", "floods-at-once"] {
        let console = kept.file(target, "artifacts/console.log");
        assert!(console.len() < 600_000, "{target}: {} bytes", console.len());
        assert!(console.contains("Linux version") || console.contains("panic"), "{console:.3000}");
    }
}

/// What stages of an honest guest can do to it: how the task ends, and what is said then by the
/// agent and by the script.
const STAGES: [(&str, &str, &str, [&[&str]; 2]); 6] = [
    (
        "panics",
        "abnormal",
        "echo c >/proc/sysrq-trigger; sleep 600",
        [&["reset itself", "stage run"], &["reset itself"]],
    ),
    ("resets", "abnormal", "reboot -f; sleep 600", [&["reset itself"]; 2]),
    (
        "fills",
        "success",
        "cat /dev/zero >/fill || echo it is full; head -c 100000 /dev/zero | tr '\\0' x",
        // The script keeps the output on the disk that is full.
        [&["No space left", "it is full"], &["not all of its output was kept"]],
    ),
    ("floods", "timeout", "cat /dev/zero | tr '\\0' x >/dev/ttyS0", [&["5000 ms"]; 2]),
    ("says-much", "success", "head -c 3000000 /dev/zero | tr '\\0' x", [&[]; 2]),
    (
        "kills",
        "abnormal",
        "kill -9 1; kill -9 -1; sleep 1; poweroff -f; sleep 600",
        [&["was killed, by the stage itself"], &["switched itself off"]],
    ),
];

#[test]
fn stages_that_ruin_their_guest_ruin_nothing_else() {
    let site = Site::shared();
    site.bootstrap(&[TINY, PLAIN]);
    let mut build = BUILD.to_owned();
    for (name, _, line, _) in STAGES {
        for machine in [TINY, PLAIN] {
            let timeout = if name == "floods" { "5s" } else { "10m" };
            let lines =
                format!("timeout = '{timeout}'\nstages.run = \"\"\"{}\"\"\"", line.replace('\\', "\\\\"));
            build += &target(&format!("{name}-{machine}"), machine, &lines);
        }
    }
    let scene = Scene::with_commits(&(build + HARMLESS), 1);
    let kept = Kept::of(site.run(&scene).expect_civil());
    site.expect_no_guests();
    for (name, outcome, _, words) in STAGES {
        for (machine, words) in [TINY, PLAIN].into_iter().zip(words) {
            let target = format!("{name}-{machine}");
            let said = said(&kept, &target);
            assert_eq!(kept.ended.outcome_of(&target), outcome, "{target}: {said}");
            words.iter().for_each(|word| assert!(said.contains(word), "{target}: {word:?} is not in {said}"));
        }
        let console = kept.find(&format!("{name}-{TINY}"), "artifacts/console.log").unwrap_or_default();
        assert!(console.len() < 600_000, "{name}: {} bytes", console.len());
        assert!(name != "panics" || console.contains("Kernel panic"), "{console}");
    }
    for machine in [TINY, PLAIN] {
        assert_eq!(kept.file(&format!("says-much-{machine}"), "log").len(), 3_000_000);
    }
}

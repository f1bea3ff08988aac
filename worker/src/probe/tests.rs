use std::collections::BTreeMap;
use std::path::Path;

use crewboss_host::testing::{Mount, run};

use super::*;

fn hello(toolchains: &[(&str, &Path)]) -> Hello {
    let toolchains: BTreeMap<_, _> = toolchains
        .iter()
        .map(|(name, path)| (name.parse().unwrap(), path.to_str().unwrap().to_owned()))
        .collect();
    Hello {
        protocol: 1,
        build: String::new(),
        boss: "t@t".to_owned(),
        run: "r".parse().unwrap(),
        session: "r.1".parse().unwrap(),
        host: "h".parse().unwrap(),
        priority: 0,
        heartbeat_ms: 1000,
        silence_ms: 5000,
        standstill_ms: 600_000,
        limits: Default::default(),
        slots: None,
        toolchains,
        machines: None,
        accel: Default::default(),
        probe_only: true,
        refresh: false,
    }
}

fn script(path: &Path, text: &str) {
    crewboss_host::testing::write_script(path, &format!("#!/bin/sh\n{text}\n"));
}

#[test]
fn compilers_are_tried_and_remembered_until_they_change() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path().join("work"));
    let (good, bad) = (directory.path().join("my-gcc"), directory.path().join("bad-gcc"));
    let compile = "if [ \"$1\" = --version ]; then echo mine 1.0; else echo x >answer.o; fi";
    script(&good, compile);
    script(&bad, "seq 1000; echo this cannot work >&2; exit 3");
    let hello = hello(&[("mine", &good), ("bad", &bad), ("gone", Path::new("/nowhere/gcc"))]);
    let facts = probe(&layout, &hello).unwrap();
    let mine = facts.toolchains.iter().find(|toolchain| toolchain.name.as_str() == "mine").unwrap();
    assert_eq!(mine.version, "mine 1.0");
    assert_eq!(mine.prefix, good.to_str().unwrap().strip_suffix("gcc").unwrap());
    let broken: Vec<_> = facts.broken_toolchains.iter().map(|broken| broken.name.as_str()).collect();
    assert_eq!(broken, ["gone", "bad"]);
    let why = "exit status: 3 of `-c answer.c -o answer.o`: 999\n1000\nthis cannot work";
    assert_eq!(facts.broken_toolchains[1].why, why);
    assert!(
        facts.threads > 0 && facts.memory > 1 << 20 && facts.disk_free > 0 && facts.speed > 0,
        "{facts:?}"
    );
    let again = probe(&layout, &hello).unwrap();
    assert_eq!(again.toolchains, facts.toolchains);
    assert!(again.speed >= facts.speed, "a later measurement made the host slower");
    script(&good, &compile.replace("1.0", "1.1"));
    let changed = probe(&layout, &hello).unwrap();
    assert!(changed.toolchains.iter().any(|toolchain| toolchain.version == "mine 1.1"));
}

#[test]
fn a_compiler_that_something_came_between_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path().join("work"));
    let runs = directory.path().join("runs");
    let mut tried = Vec::new();
    for (name, end) in [
        ("broken", "echo 'error: no such option' >&2; exit 1"),
        ("killed", "kill -9 $$"),
        ("full", "echo 'Assembler messages: cannot write: No space left on device' >&2; exit 1"),
        ("out-of-memory", "echo 'fatal error: Killed signal terminated program cc1' >&2; exit 1"),
    ] {
        let compiler = directory.path().join(name);
        script(&compiler, &format!("echo {name} >>{}; {end}", runs.display()));
        let hello = hello(&[(name, &compiler)]);
        for _ in 0..2 {
            let facts = probe(&layout, &hello).unwrap();
            assert!(facts.broken_toolchains.iter().any(|broken| broken.name.as_str() == name));
        }
        let runs = fs::read_to_string(&runs).unwrap();
        tried.push(runs.lines().filter(|line| *line == name).count());
    }
    assert_eq!(tried, [1, 2, 2, 2]);
}

#[test]
fn slots_are_held_while_their_files_are_locked() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path().to_owned());
    fs::create_dir_all(layout.locks()).unwrap();
    let (run, host) = ("r".parse().unwrap(), "h".parse().unwrap());
    let held = SlotHolder { slot: 1, boss: "me@here".to_owned(), run, host, pid: 7, priority: 0 };
    for slot in ["slot-0", "slot-1", "slot-x", "users"] {
        fs::write(layout.locks().join(slot), serde_json::to_vec(&held).unwrap()).unwrap();
    }
    let lock = fs::File::open(layout.locks().join("slot-1")).unwrap();
    lock.try_lock().unwrap();
    assert_eq!(holders(&layout), [held]);
    // Closing is not enough: a program that another thread is just starting may have it open as
    // well.
    lock.unlock().unwrap();
    assert_eq!(holders(&layout), []);
}

#[test]
fn a_cache_that_is_nonsense_counts_as_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("probe.json");
    for text in ["", "{", "[]", "{\"speed\":7}", "\0"] {
        fs::write(&path, text).unwrap();
        assert_eq!(Cache::load(&path), Cache::default());
    }
}

#[test]
fn a_source_whose_objects_were_removed_is_not_offered() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path().join("work"));
    let tree = crate::testing::store(&layout, &[("file", 0o100_644, "content")]);
    fs::create_dir_all(layout.source(tree)).unwrap();
    assert_eq!(trees(&layout), [tree]);
    fs::remove_dir_all(layout.objects()).unwrap();
    assert_eq!(trees(&layout), []);
}

#[test]
fn a_work_directory_where_nothing_may_be_executed_is_refused() {
    let mount = Mount::btrfs();
    let layout = Layout::new(mount.path().join("work"));
    assert!(probe(&layout, &hello(&[])).is_ok());
    run(std::process::Command::new("mount").args(["-o", "remount,noexec"]).arg(mount.path()));
    let error = probe(&layout, &hello(&[])).unwrap_err().to_string();
    assert!(error.contains("mounted noexec; hint: name another directory"), "{error}");
}

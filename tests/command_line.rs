//! The binary as a person or a script calls it: exit codes and messages of everything that ends
//! before a run.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn crewboss(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crewboss"));
    command
        .current_dir(directory)
        .env("HOME", directory)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("CREWBOSS_LOG");
    command.stdin(Stdio::null());
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn check(directory: &Path, arguments: &[&str], code: i32, part: &str) {
    let output = crewboss(directory).args(arguments).output().expect("the binary can be started");
    let told = told(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    assert!(told.contains(part), "{arguments:?} does not say {part:?}: {told}");
}

#[test]
fn help_and_version_are_there() {
    let directory = tempfile::tempdir().unwrap();
    check(directory.path(), &["--help"], 0, "Exit codes");
    check(directory.path(), &["build", "--help"], 0, "Examples");
    check(directory.path(), &["--version"], 0, "crewboss");
}

#[test]
fn wrong_usage_and_wrong_files_end_with_two_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    check(path, &[], 2, "Usage");
    check(path, &["frobnicate"], 2, "frobnicate");
    check(path, &["build"], 2, "there is no build.toml");
    std::fs::write(path.join("build.toml"), "[target.x]\nstages.build = \"make\"\n").unwrap();
    check(path, &["build"], 2, "is not in a git repository");
    std::fs::create_dir(path.join(".git")).unwrap();
    check(path, &["build", "y"], 2, "has no target \"y\"");
    check(path, &["build", "--host", "nobody"], 2, "has no host \"nobody\"");
    check(path, &["build", "--commits", "--all"], 2, "begins with a dash");
    check(path, &["build", "--crew", "nowhere.toml"], 2, "cannot read");
    check(path, &["build", "--file", "."], 2, "directory");
    check(path, &["build", "--events", "/nonexistent/e"], 2, "cannot create");
    check(path, &["hosts", "nobody"], 2, "has no host");
    check(path, &["machines", "nobody"], 2, "has no host");
    check(path, &["build", "--hold"], 2, "none of the targets runs in a machine");
    check(path, &["build", "--hold=1"], 2, "none of the targets runs in a machine");
    check(path, &["build", "x", "--interactive"], 2, "x does not run in a machine");
    check(path, &["build", "--interactive-limit", "1m"], 2, "--interactive");
    std::fs::write(path.join("crew.toml"), "[host.a]\nshh = \"x\"\n").unwrap();
    check(path, &["build"], 2, "did you mean `ssh`");
    let mut left: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".git", "build.toml", "crew.toml"]);
}

#[test]
fn an_argument_that_is_no_text_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"x\xff");
    let output = crewboss(directory.path()).arg("build").arg(odd).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let output = crewboss(directory.path()).env("CREWBOSS_LOG", "a=b=c").arg("hosts").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
}

#[test]
fn nobody_reading_is_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let writer_too = writer.try_clone().unwrap();
    let status = crewboss(directory.path())
        .args(["build", "--help"])
        .stdout(writer)
        .stderr(writer_too)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

/// What `scripts/make-machine` is given, and what it says against it.
const WRONG: [(&[&str], &str); 18] = [
    (&[], "--into is missing"),
    (&["--into"], "--into has no value"),
    (&["--into", "HERE"], "the name is missing"),
    (&["--into", "HERE", "m", "n"], "'n' is one name too many"),
    (&["--into", "HERE", "-x"], "'-x' is not an option"),
    (&["--into", "HERE", "a/b"], "'a/b' is no name"),
    (&["--into", "HERE", "--volume", "locks", "m"], "cannot be called 'locks'"),
    (&["--into", "HERE", "--compiler", "tcc", "m"], "not 'tcc'"),
    (&["--into", "HERE", "--exchange", "http", "m"], "not 'http'"),
    (&["--into", "HERE", "--exchange", "tftp", "--network", "none", "m"], "needs --network user"),
    (&["--into", "HERE", "--memory", "lots", "m"], "'lots' is no size"),
    (&["--into", "HERE", "--memory", "512M:256M", "m"], "the least memory is more than the most"),
    (&["--into", "HERE", "--free", "0", "m"], "not between 1M and 64T"),
    (&["--into", "HERE", "--processors", "0", "m"], "a number from 1 to 255"),
    (&["--into", "HERE", "--service", "/nowhere", "m"], "no file that can be read"),
    (&["--into", "HERE", "--manifest", "instances = many", "m"], "not 'many'"),
    (&["--into", "HERE", "--manifest", "colour = 'red'", "m"], "no key 'colour'"),
    (&["--into", "HERE", "--manifest", "role = 'build'", "m"], "sets role itself"),
];

#[test]
fn the_script_that_makes_machines_has_help_and_refuses_before_it_touches_anything() {
    let directory = tempfile::tempdir().unwrap();
    let machine = directory.path().join("local/m");
    std::fs::create_dir_all(machine.join("m-1.1")).unwrap();
    std::os::unix::fs::symlink("m-1.1", machine.join("m-1")).unwrap();
    let run = |arguments: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-machine");
        let here = directory.path().to_string_lossy();
        let words = arguments.iter().map(|word| if *word == "HERE" { here.as_ref() } else { word });
        Command::new(script).args(words).stdin(Stdio::null()).output().expect("bash")
    };
    for words in [["--help"].as_slice(), &["-h"], &["--into", "HERE", "m", "--help"]] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", told(&output));
        for option in ["--into DIR", "--manifest LINE", "ends with 2"] {
            assert!(told(&output).contains(option), "{words:?} does not say {option:?}: {}", told(&output));
        }
    }
    for (arguments, part) in WRONG {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(part), "{arguments:?} does not say {part:?}: {}", told(&output));
    }
    let mut left: Vec<_> =
        std::fs::read_dir(&machine).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["m-1", "m-1.1"]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

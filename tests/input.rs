//! Bad input and bad circumstances: a clear error or a correct result, the right exit code, nothing
//! lost, nothing left.

mod support;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::boss::Ended;
use support::lab::{Lab, User};
use support::scene::{LIMITS, Scene};
use support::{read, run, wait_for, write};

const HOSTS: [&str; 2] = ["host1", "host2"];
const GOOD: &str = "commits = 'HEAD'\n[target.t]\nstages.run = ['/bin/true']\n";

/// The boss must refuse this, say all of `words`, and leave no trace.
fn expect_refused(scene: &Scene, ended: Ended, words: &[&str]) {
    let mut ended = ended.expect_code(2).expect_civil();
    for word in words {
        ended = ended.expect_said(word);
    }
    assert!(ended.results.tasks.is_empty(), "{ended:#?}");
    assert!(!scene.out().exists(), "no partial state");
}

#[test]
fn build_files_that_say_nothing_useful_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["build.toml"]),
        ("commits = 'HEAD'\n", &["target"]),
        ("[target.t]\n", &["stages", "t"]),
        ("[target.t]\nstagse.run = 'x'\n", &["stagse", "stages", ":2"]),
        ("[target.t]\nstages.run = 3\n", &[":2:", "stages"]),
        ("[target.t]\nstages.run = 'x'\n[target.t]\nstages.run = 'y'\n", &["duplicate", "t"]),
        ("[target.\"\"]\nstages.run = 'x'\n", &["target"]),
        ("[target.\"..\"]\nstages.run = 'x'\n", &[".."]),
        ("[target.\".hidden\"]\nstages.run = 'x'\n", &["hidden"]),
        ("[target.\"a/b\"]\nstages.run = 'x'\n", &["a/b"]),
        ("[target.\"new\\nline\"]\nstages.run = 'x'\n", &["new"]),
        ("timeout = '-5m'\n[target.t]\nstages.run = 'x'\n", &["timeout"]),
        ("timeout = '5 parsecs'\n[target.t]\nstages.run = 'x'\n", &["parsecs"]),
        ("environment = 'cloud'\n[target.t]\nstages.run = 'x'\n", &["cloud", "snapshot"]),
        ("[target.t]\nstages.run = 'x'\nartifacts = ['../x']\n", &["../x"]),
        ("[target.t]\nstages.run = 'x'\nartifacts = ['/etc/passwd']\n", &["/etc/passwd"]),
        ("this is not TOML", &["build.toml", "1"]),
    ];
    for (text, words) in cases {
        let scene = Scene::with_commits(text, 1);
        eprintln!("{text:?}");
        expect_refused(&scene, scene.build_local().run(), words);
    }
    let scene = Scene::with_commits(GOOD, 1);
    write(&scene.repo().join("build.toml"), b"[target.\xff]\n");
    expect_refused(&scene, scene.build_local().run(), &["UTF-8"]);
    std::fs::remove_file(scene.repo().join("build.toml")).expect("it is there");
    expect_refused(&scene, scene.build_local().run(), &["build.toml"]);
    std::fs::create_dir(scene.repo().join("build.toml")).expect("a directory in its place");
    expect_refused(&scene, scene.build_local().run(), &["build.toml"]);
}

#[test]
fn crew_files_that_make_no_sense_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["crew.toml", "host"]),
        ("[host.a]\nslots = 0\nssh = 'a'\n", &["slots"]),
        ("[host.a]\nssh = 'a'\nslost = 3\n", &["slost", "slots"]),
        ("[host.a]\nssh = '-oProxyCommand=touch /tmp/x'\n", &["-oProxyCommand"]),
        ("[host.\"..\"]\nssh = 'a'\n", &[".."]),
        ("[host.a]\nssh = 'a'\ncommand = ['b']\n", &["ssh", "command"]),
    ];
    for (text, words) in cases {
        let scene = Scene::with_commits(GOOD, 1);
        let crew = scene.crew_file(text);
        let mut boss = scene.build_local();
        boss.arg("--crew").arg(crew);
        eprintln!("{text:?}");
        expect_refused(&scene, boss.run(), words);
    }
    let scene = Scene::with_commits(GOOD, 1);
    let missing = scene.path("missing.toml").display().to_string();
    expect_refused(&scene, scene.build_local().args(&["--crew", &missing]).run(), &["missing.toml"]);
    let crew = scene.crew_file("[host.a]\nssh = 'a'\n").display().to_string();
    let boss = scene.build_local().args(&["--crew", &crew, "--host", "b"]);
    expect_refused(&scene, boss.run(), &["\"b\"", "a"]);
}

#[test]
fn commits_that_are_not_there_are_refused() {
    for range in ["nothing-like-this", "HEAD~99..HEAD", "", "--all", "HEAD..", "\u{7}"] {
        let scene = Scene::with_commits(GOOD, 1);
        let ended = scene.build_local().args(&["--commits", range]).run();
        // An empty range is nothing to do, which is either said or refused; all others name
        // nothing.
        if range == "HEAD.." {
            assert!(matches!(ended.status.code(), Some(0 | 2)), "{ended:#?}");
        } else {
            expect_refused(&scene, ended, &[]);
        }
    }
    let empty = Scene::new(GOOD);
    expect_refused(&empty, empty.build_local().run(), &["commit"]);
    let none = Scene::with_commits(GOOD, 1);
    std::fs::remove_dir_all(none.repo().join(".git")).expect("the repository");
    expect_refused(&none, none.build_local().run(), &["repository"]);
}

#[test]
fn a_shallow_clone_is_built_as_far_as_it_goes() {
    let scene = Scene::with_commits(GOOD, 4);
    let origin = format!("file://{}", scene.repo().display());
    let mut clone = Command::new("git");
    clone.args(["clone", "-q", "--depth", "2"]).arg(origin).arg(scene.path("shallow"));
    run(&mut clone);
    std::fs::rename(scene.repo(), scene.path("full")).expect("the repository");
    std::fs::rename(scene.path("shallow"), scene.repo()).expect("the clone");
    scene.build_local().run().expect_code(0).expect_tasks(1, "success");
    let deeper = scene.build_local().args(&["--commits", "HEAD~3..HEAD", "--force"]).run().expect_civil();
    assert_eq!(deeper.status.code(), Some(2), "{deeper:#?}");
}

#[test]
fn inside_a_hook_the_repository_is_the_one_around_it() {
    let scene = Scene::new("[target.t]\nstages.run = 'cat file'\n");
    scene.files(&[("file", "this one")]);
    let other = Scene::with_commits(GOOD, 1);
    let boss = scene
        .build_local()
        .env("GIT_DIR", other.repo().join(".git"))
        .env("GIT_WORK_TREE", other.repo())
        .env("GIT_INDEX_FILE", other.repo().join(".git/index.lock"));
    let ended = boss.run().expect_code(0);
    assert_eq!(read(&ended.results.only("t").join("log")), "this one", "{ended:#?}");
}

#[test]
fn a_repository_of_another_user_is_built_if_git_trusts_it() {
    let scene = Scene::with_commits("[target.t]\nstages.run = 'true'\n", 1);
    for path in [scene.repo(), scene.repo().join(".git")] {
        std::os::unix::fs::chown(path, Some(12_345), None).expect("a stranger's repository");
    }
    expect_refused(&scene, scene.build_local().run(), &["belongs to another user", "safe.directory '/"]);
    let trusted = |directory: String| {
        let boss = scene.build_local().env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory");
        boss.env("GIT_CONFIG_VALUE_0", directory)
    };
    for directory in ["*".to_owned(), scene.repo().display().to_string()] {
        trusted(directory).run().expect_code(0);
    }
    trusted("/nowhere".to_owned()).run().expect_code(2);
}

#[test]
fn nothing_uncommitted_is_left_in_the_temporary_directory() {
    let scene =
        Scene::new("[target.t]\nstages.run = 'trap \"\" TERM; echo begun; while :; do sleep 1; done'\n");
    scene.files(&[("file", "uncommitted")]);
    let temporary = scene.path("tmp");
    std::fs::create_dir(&temporary).expect("a directory");
    let left = || std::fs::read_dir(&temporary).expect("the directory").count();
    let start = || {
        let mut running = scene.build_local().env("TMPDIR", &temporary).start();
        running.wait_for_output("begun");
        assert_ne!(left(), 0);
        running
    };
    let mut twice = start();
    twice.signal("INT");
    twice.wait_for_event("stopping", |_| true);
    twice.signal("INT");
    twice.end_in_time(std::time::Duration::from_secs(5)).expect_code(130);
    assert_eq!(left(), 0);
    let killed = start();
    killed.signal("KILL");
    let ended = killed.end_in_time(std::time::Duration::from_secs(5));
    assert_eq!(ended.status.code(), None, "{ended:#?}");
    // Wherever its own temporary files go.
    scene.crewboss(None, &["kill-workers"]).called("cleaner").run().expect_code(0);
    assert_eq!(left(), 0);
}

#[test]
fn one_signal_is_enough_while_the_source_is_read() {
    let scene = Scene::new(GOOD);
    let (tools, temporary, pid) = (scene.path("tools"), scene.path("tmp"), scene.path("pid"));
    std::fs::create_dir_all(&temporary).expect("a directory");
    let git = tools.join("git");
    write(&git, format!("#!/bin/sh\necho $$ >{0}.new; mv {0}.new {0}\nexec sleep 60\n", pid.display()));
    std::fs::set_permissions(&git, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a program");
    let path = format!("{}:/usr/bin:/bin", tools.display());
    let running = scene.build_local().env("PATH", path).env("TMPDIR", &temporary).start();
    wait_for("git to be asked", std::time::Duration::from_secs(60), || pid.exists().then_some(()));
    running.signal("INT");
    let ended = running.end_in_time(std::time::Duration::from_secs(5));
    run(Command::new("kill").arg(read(&pid).trim()));
    ended.expect_code(130).expect_said("interrupted before anything was started");
    assert_eq!(std::fs::read_dir(&temporary).expect("the directory").count(), 0);
    assert!(!scene.out().exists(), "no partial state");
}

#[test]
fn targets_that_are_not_there_are_refused_with_near_names() {
    let scene = Scene::with_commits("[target.arm64]\nstages.run = 'x'\n", 1);
    expect_refused(&scene, scene.build_local().args(&["amr64"]).run(), &["amr64", "arm64"]);
    let scene = Scene::with_commits(GOOD, 1);
    expect_refused(&scene, scene.build_local().args(&["--no-such-option"]).run(), &["--no-such-option"]);
}

#[test]
fn odd_subjects_and_names_stay_inside_the_result_directory() {
    let lab = Lab::shared();
    let scene = Scene::new("commits = 'HEAD~3..HEAD'\n[target.'with space']\nstages.run = ['/bin/true']\n");
    for (number, subject) in
        ["first", "../../../evil", "a\tb \"quoted\" 'x' $(touch /tmp/x) \u{7f}", "."].iter().enumerate()
    {
        scene.commit(&[("number", &number.to_string())], subject);
    }
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_civil();
    // A name with a space may be refused; if it is not, it must work.
    if ended.status.code() != Some(2) {
        let ended = ended.expect_code(0);
        assert_eq!(ended.results.tasks.len(), 3, "{:?}", ended.results.tasks);
    }
    assert!(!scene.path("evil").exists());
}

#[test]
fn ten_thousand_targets_are_planned() {
    let targets: String =
        (0..10_000).map(|n| format!("[target.t{n}]\nstages.run = ['/bin/true']\n")).collect();
    let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{targets}"), 1);
    let ended = scene.build_local().args(&["--dry-run"]).run().expect_code(0);
    // However thousands are set off.
    let digits: String = ended.stdout.chars().filter(|c| !matches!(c, ',' | '_' | '\'' | ' ')).collect();
    assert!(digits.contains("10000"), "{}", ended.stdout);
}

#[test]
fn no_host_that_can_is_said_before_anything_starts() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(
        "commits = 'HEAD'\n[target.exotic]\ntoolchain = 'vax'\nstages.run = ['/bin/true']\n\
         [target.plain]\nstages.run = ['/bin/true']\n",
        1,
    );
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run().expect_code(102).expect_said("vax").expect_said("exotic");
    assert_eq!(ended.outcome_of("plain"), "success", "the rest is done: {ended:#?}");
    assert_eq!(ended.of_kind("tasks_impossible").len(), 1);
    lab.expect_clean(&HOSTS);
}

#[test]
fn no_host_that_answers_is_said() {
    let lab = Lab::shared();
    let scene = Scene::with_commits(GOOD, 1);
    for host in HOSTS {
        lab.lab("kill-sshd", &[host]);
    }
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run();
    for host in HOSTS {
        lab.lab("start-sshd", &[host]);
    }
    ended.expect_code(102).expect_civil().expect_said("host1").expect_said("host2").expect_said("refused");
    lab.expect_clean(&HOSTS);
}

#[test]
fn noisy_logins_are_kept_and_not_parsed() {
    let lab = Lab::shared();
    for host in HOSTS {
        lab.on(
            host,
            "echo 'yes \"crewboss {}\" | head -c 1000000; echo; echo some noise >&2' >/root/.bashrc",
        );
    }
    let scene = Scene::with_commits(GOOD, 1);
    let crew = scene.two_hosts(&lab, User::Root);
    let ended = scene.build(&lab, &crew).run();
    for host in HOSTS {
        lab.on(host, "rm /root/.bashrc");
    }
    ended.expect_code(0).expect_tasks(1, "success");
    let kept = HOSTS.iter().any(|host| {
        let log = scene.out().join(format!("host-{host}.log"));
        log.exists() && read(&log).contains("some noise")
    });
    assert!(kept, "stray output is in the host's log");
    lab.expect_clean(&HOSTS);
}

/// One host in a bad state; the run must end with 102 and words about it.
fn expect_bad_host(lab: &Lab, spoil: &str, words: &[&str]) {
    lab.on("host1", spoil);
    let scene = Scene::with_commits(GOOD, 1);
    let crew = scene.crew(lab, User::Root, &[("host1", "")]);
    let mut ended = scene.build(lab, &crew).run().expect_code(102).expect_civil().expect_said("host1");
    for word in words {
        ended = ended.expect_said(word);
    }
    lab.expect_clean(&["host1"]);
}

#[test]
fn a_start_up_file_that_ends_the_shell_is_named() {
    let lab = Lab::up(&["1"]);
    expect_bad_host(&lab, "echo 'exit 3' >/root/.bashrc", &["start-up"]);
}

#[test]
fn places_where_nothing_may_be_executed_are_named() {
    let lab = Lab::up(&["1"]);
    let spoil =
        "for d in /root /tmp /var/tmp /srv /run /dev/shm; do mount -o remount,bind,noexec $d || true; done";
    expect_bad_host(&lab, spoil, &["noexec"]);
}

#[test]
fn a_disk_without_room_for_the_program_is_named() {
    let lab = Lab::up(&["1", "--disk", "300M"]);
    lab.lab("fill", &["host1"]);
    expect_bad_host(
        &lab,
        "dd if=/dev/zero of=/srv/filler3 bs=64k 2>/dev/null; mount -t tmpfs -o size=64k none /root/.cache 2>/dev/null || { mkdir -p /root/.cache && mount -t tmpfs -o size=64k none /root/.cache; }",
        &["space"],
    );
}

#[test]
fn a_host_key_that_changed_is_refused() {
    let lab = Lab::up(&["1"]);
    let known = lab.dir().join("known_hosts");
    let other = run(Command::new("cut").args(["-d", " ", "-f", "1,2"]).arg(lab.dir().join("key.pub")));
    let address = read(&known).split_whitespace().next().expect("an address").to_owned();
    write(&known, format!("{address} {other}"));
    expect_bad_host(&lab, "true", &["key has changed", "ssh-keygen -R"]);
}

#[test]
fn a_host_that_wants_a_password_is_named() {
    let lab = Lab::up(&["1"]);
    expect_bad_host(&lab, "rm /root/.ssh/authorized_keys", &["denied"]);
}

/// A file system with little room, gone when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: &Path) -> Self {
        std::fs::create_dir(path).expect("a directory");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m,mode=700", "none"]).arg(path));
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whatever failed may still have files open there.
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn a_full_disk_at_the_boss_is_an_error_and_leaves_no_half_result() {
    let lab = Lab::up(&["1"]);
    let scene = Scene::with_commits(
        "commits = 'HEAD'\n[target.big]\nstages.run = 'head -c 30000000 /dev/urandom >big'\nartifacts = ['big']\n",
        1,
    );
    let crew = scene.crew(&lab, User::Root, &[("host1", "")]);
    let small = SmallDisk::at(&scene.out());
    let ended = scene.build(&lab, &crew).run();
    let whole = ended.results.tasks.values().all(|path| path.join("done").exists());
    drop(small);
    assert!(whole, "{ended:#?}");
    ended.expect_code(102).expect_civil().expect_said("space");
    lab.expect_clean(&["host1"]);
}

#[test]
fn a_temporary_directory_without_room_for_the_source_is_named() {
    let scene = Scene::with_commits("[target.t]\nstages.run = ['/bin/true']\n", 1);
    let mut big = std::fs::File::create(scene.repo().join("big")).expect("a file");
    let mut random = std::fs::File::open("/dev/urandom").expect("the device").take(20 << 20);
    std::io::copy(&mut random, &mut big).expect("room for it");
    let small = SmallDisk::at(&scene.path("small"));
    let ended = scene.build_local().env("TMPDIR", scene.path("small")).run().expect_code(2);
    drop(small);
    ended.expect_civil().expect_said("No space left on device").expect_said("TMPDIR can name a directory");
}

#[test]
fn a_home_that_is_none_is_not_made() {
    for home in ["", "foo"] {
        let scene = Scene::with_commits("[target.t]\nstages.run = ['/bin/true']\n", 1);
        let boss = scene.build_local().env("HOME", home).current_dir(&scene.repo());
        boss.run().expect_code(0).expect_tasks(1, "success");
        assert!(!scene.repo().join("foo").exists() && !Path::new("/nonexistent").exists());
    }
}

#[test]
fn a_host_that_talks_nonsense_ends_with_a_clear_error() {
    let scene = Scene::with_commits(GOOD, 1);
    let talkers = [
        ("ends_at_once", "exit 0"),
        ("garbage", "head -c 5000000 /dev/urandom"),
        ("huge_line", "head -c 50000000 /dev/zero | tr '\\\\0' x"),
    ];
    for (name, line) in talkers {
        let crew = scene.crew_file(&format!(
            "{LIMITS}[ssh]\nconnect_timeout = \"5s\"\n[host.{name}]\ncommand = [\"sh\", \"-c\", \"{line}; :\"]\n",
        ));
        let mut boss = scene.build_local();
        boss.arg("--crew").arg(crew);
        let ended = boss.run().expect_code(102).expect_civil().expect_said(name);
        ended.expect_tasks(1, "infrastructure");
    }
}

#[test]
fn more_hosts_than_open_files_allow_are_refused_with_numbers() {
    let scene = Scene::with_commits("commits = 'HEAD'\n[target.t]\nstages.run = ['/bin/true']\n", 1);
    let hosts: String = (0..60).map(|n| format!("[host.h{n}]\ncommand = [\"false\"]\n")).collect();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 500; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_crewboss"), "build"]);
    limited.arg("--crew").arg(scene.crew_file(&hosts)).current_dir(scene.repo());
    let output = limited.output().expect("crewboss");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(102), "{said}");
    for words in ["60 hosts take up to", "allows this user 500", "--host"] {
        assert!(said.contains(words), "{words:?} in {said}");
    }
}

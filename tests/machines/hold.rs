//! Guests that are kept for a person, and tasks that wait for one: found, entered, run again,
//! released, ended; and whatever ends a visit leaves nothing behind and changes nothing.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::boss::{Boss, Ended, Running};
use crate::support::lab::User;
use crate::support::machines::{A_GUEST_RUN, MACHINES, PLAIN, Site, TINY, target};
use crate::support::scene::{FAST_LIMITS, Scene, path_with_crewboss};
use crate::support::{self, SOON, advised, read, wait_for};
use serde_json::Value;

/// What leaves a guest.
const LEAVE: &[u8] = b"\x1d";

/// Restoring, booting and saving, on a machine that is busy with other things.
const A_VISIT: Duration = Duration::from_secs(600);

/// Counts in its memory, and goes on counting when it is restored. Whoever reads the number finds a
/// whole one.
const COUNTS: &str = "timeout = '3s'\nstages.count = 'i=0; while true; do i=$((i+1)); echo $i >/tmp/next; \
                      mv /tmp/next /tmp/count; sleep 0.2; done'";

/// Fails unless it is told not to, and changes its source.
const FAILS: &str = r#"stages.first = 'true'
stages.build = 'echo "V is $V, the number $(cat number)"; echo changed >number; test "$V" = good'"#;

struct Run {
    site: Site,
    scene: Scene,
    crew: PathBuf,
}

impl Run {
    fn new(targets: &str) -> Self {
        let site = Site::shared();
        site.bootstrap(&[TINY, PLAIN]);
        let scene = Scene::with_commits(&format!("commits = 'HEAD'\n{targets}"), 1);
        let crew = site.crew(&scene, "slots = 2");
        Self { site, scene, crew }
    }

    fn boss(&self, options: &[&str]) -> Boss {
        self.site.build(&self.scene, "slots = 2").args(options)
    }

    /// A run that keeps guests.
    fn build(&self, options: &[&str]) -> Ended {
        self.boss(options).start().end(A_GUEST_RUN).expect_code(100)
    }

    /// A command about guests.
    fn command(&self, words: &[&str]) -> Ended {
        let mut command = self.scene.crewboss(Some(self.site.lab()), words).called(words[0]);
        command.arg("--crew").arg(&self.crew);
        command.start().end(A_VISIT)
    }

    /// Types the only command that a text advises and that has this word.
    fn heed(&self, text: &str, word: &str) -> Ended {
        self.scene.typed(Some(self.site.lab()), &hint(text, word)).called("hint").start().end(A_VISIT)
    }

    fn status(&self) -> Value {
        let ended = self.command(&["status", "--json"]).expect_code(0);
        let hosts: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        hosts[0].clone()
    }

    /// The only guest that is kept.
    fn held(&self) -> Value {
        let held = self.status()["held"].as_array().cloned().unwrap_or_default();
        let [only] = &held[..] else { panic!("not one guest is kept: {held:?}") };
        only.clone()
    }

    fn held_id(&self) -> String {
        self.held()["id"].as_str().expect("an id").to_owned()
    }

    /// A person at a terminal, or without one.
    fn enter(&self, terminal: bool, words: &str) -> Person {
        self.enter_as("person", terminal, words)
    }

    fn enter_as(&self, name: &str, terminal: bool, words: &str) -> Person {
        self.person(name, terminal, &format!("crewboss enter --crew {} {words}", self.crew.display()))
    }

    /// Whoever types this line.
    fn person(&self, name: &str, terminal: bool, line: &str) -> Person {
        let program = Path::new(if terminal { "script" } else { "sh" });
        let mut command = self.site.lab().inside(program);
        if terminal {
            command.args(["-qefc", line, "/dev/null"]);
        } else {
            command.args(["-c", &format!("exec {line}")]);
        }
        let out = self.scene.path(name);
        let file = File::create(&out).expect("a file for what is shown");
        command
            .env_clear()
            .env("PATH", path_with_crewboss())
            .env("HOME", self.scene.path("home"))
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stderr(file.try_clone().expect("the same file"))
            .stdout(file);
        let child = command.spawn().expect("script, of the package bsdutils, gives a terminal");
        Person { child, out, read: 0 }
    }

    /// Ends the process on the host that somebody is in a guest with.
    fn kill_visit(&self, id: &str) {
        self.site
            .on(&format!(r#"kill -KILL "$(sed 's/.*"pid":\([0-9]*\).*/\1/' {MACHINES}/locks/{id}.guest)""#));
    }

    /// No process of a guest is there.
    fn expect_nothing_runs(&self) {
        let look = || {
            let found =
                self.site.on("for p in /proc/[0-9]*; do readlink $p/exe; done | grep qemu-system || true");
            found.is_empty().then_some(())
        };
        wait_for("no QEMU", SOON, look);
    }

    fn release_all(&self) {
        for held in self.status()["held"].as_array().into_iter().flatten() {
            let id = held["id"].as_str().expect("an id");
            drop(self.command(&["release", &format!("host1/{id}")]).expect_code(0));
        }
        self.site.expect_no_guests();
    }
}

/// The only command that a text advises and that has this word.
fn hint(text: &str, word: &str) -> String {
    let found: Vec<String> = advised(text).into_iter().filter(|command| command.contains(word)).collect();
    let [only] = &found[..] else { panic!("not one hint with {word:?}: {found:?} in {text}") };
    only.clone()
}

/// Somebody in a guest. Dropped, the link is cut.
struct Person {
    child: Child,
    out: PathBuf,
    read: usize,
}

impl Person {
    fn types(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().expect("a keyboard").write_all(bytes).expect("the terminal takes it");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        support::run(std::process::Command::new("kill").arg(format!("-{name}")).arg(pid));
    }

    /// Waits until this is shown, after all that was waited for before; returns what came before
    /// it.
    fn sees(&mut self, text: &str) -> String {
        let end = std::time::Instant::now() + A_VISIT;
        loop {
            let all = String::from_utf8_lossy(&std::fs::read(&self.out).expect("what is shown")).into_owned();
            let new = all[self.read..].to_owned();
            if let Some(at) = new.find(text) {
                self.read += at + text.len();
                return new[..at].to_owned();
            }
            assert!(std::time::Instant::now() < end, "{text:?} does not appear after:\n{all}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a line in the shell and returns what it printed.
    fn runs(&mut self, line: &str) -> String {
        // The terminal shows the line as well, so what it prints has to look different.
        self.types(format!("echo BE''GIN; {line}; echo E''ND\n").as_bytes());
        self.sees("BEGIN\r\n");
        self.sees("END").replace('\r', "").trim().to_owned()
    }

    /// Goes, and returns the exit code and everything that was shown.
    fn ends(mut self) -> (Option<i32>, String) {
        let status = wait_for("the end of a visit", A_VISIT, || self.child.try_wait().expect("its state"));
        (status.code(), read(&self.out))
    }

    fn leaves(mut self) -> String {
        self.types(LEAVE);
        let (code, shown) = self.ends();
        assert_eq!(code, Some(0), "{shown}");
        shown
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn after_a_timeout_a_person_finds_the_guest_as_it_was() {
    let run = Run::new(&target("slow", TINY, COUNTS));
    let ended = run.build(&[]).expect_tasks(1, "timeout");
    let held = run.held();
    let id = held["id"].as_str().expect("an id").to_owned();
    assert_eq!(
        (&held["stage"], &held["memory"], &held["target"]),
        (&"count".into(), &true.into(), &"slow".into())
    );
    // Exactly this line is what a person types.
    let line = format!("crewboss enter --crew {} host1/{id}", run.crew.display());
    assert!(ended.stdout.contains(&line), "{}", ended.stdout);
    for command in ["hosts", "status", "enter"] {
        drop(run.command(&[command]).expect_code(0).expect_said(&line).expect_said("timeout in stage count"));
    }
    run.expect_nothing_runs();

    let mut person = run.enter(true, &format!("host1/{id}"));
    person.sees("Ctrl-] leaves");
    let first: u32 = person.runs("cat /tmp/count").parse().expect("a number");
    assert!(first > 0);
    assert_eq!(person.runs("MINE=kept; pwd; echo $CREWBOSS_TARGET"), "/crewboss/src\nslow");
    let other = run.command(&["enter", &format!("host1/{id}")]).expect_code(102);
    assert!(other.stderr.contains("only one person can be: root@"), "{}", other.stderr);
    let take_over = format!("`crewboss enter host1/{id} --take-over --crew {}`", run.crew.display());
    assert!(other.stderr.contains(&take_over), "{}", other.stderr);
    drop(run.command(&["release", "slow"]).expect_code(102));
    let shown = person.leaves();
    assert!(shown.contains("is held for another"), "{shown}");
    run.expect_nothing_runs();

    // By its target, on whichever host it is, and without a terminal. The very same shell is still
    // there.
    let mut person = run.enter(false, "slow");
    person.sees("Ctrl-] leaves");
    assert_eq!(person.runs("echo $MINE"), "kept");
    let second: u32 = person.runs("cat /tmp/count").parse().expect("a number");
    assert!(second >= first, "the stage has started anew: {second} after {first}");
    let look = || (person.runs("cat /tmp/count") != second.to_string()).then_some(());
    wait_for("the stage to count on", A_VISIT, look);
    let shown = person.leaves();

    // What is advised is done as it stands.
    drop(run.heed(&shown, "release").expect_code(0).expect_said("is removed"));
    run.site.expect_no_guests();
    let none = run.command(&["enter", &format!("host1/{id}")]).expect_code(102);
    drop(run.heed(&none.stderr, "enter").expect_code(0).expect_said("no guest is kept"));
}

#[test]
fn a_stage_of_a_failed_task_runs_again_as_a_person_wants_it() {
    let run = Run::new(&target("bad", TINY, FAILS));
    drop(run.build(&[]).expect_tasks(1, "failure"));
    assert!(
        run.status()["held"].as_array().is_some_and(Vec::is_empty),
        "failures are kept only if asked for"
    );
    drop(run.build(&["--force", "--hold=30m"]).expect_tasks(1, "failure"));
    assert_eq!(run.held()["outcome"], "failure");
    let retry =
        |words: &[&str], code| run.command(&[&["retry", "bad", "--stage"], words].concat()).expect_code(code);
    drop(retry(&["build", "--set", "V=good"], 0).expect_said("V is good, the number changed"));
    drop(retry(&["build", "--set", "V=bad", "--wipe"], 100).expect_said("V is bad, the number 1"));
    drop(retry(&["build"], 100).expect_said("V is , the number changed"));
    drop(retry(&["nowhere"], 102).expect_said("has no stage nowhere; it has first, build"));
    drop(retry(&["build", "--set", "V"], 2));
    run.expect_nothing_runs();
    let ended = run.command(&["kill-workers"]).expect_code(0);
    assert!(ended.stdout.contains("the held guest"), "{}", ended.stdout);
    run.site.expect_no_guests();
}

#[test]
fn a_retry_stops_what_still_runs_and_can_be_stopped_itself() {
    let run = Run::new(&target("slow", TINY, COUNTS));
    drop(run.build(&[]).expect_tasks(1, "timeout"));
    let mut command = run.scene.crewboss(Some(run.site.lab()), &["retry", "slow", "--stage", "count"]);
    command.arg("--crew").arg(&run.crew);
    let retry: Running = command.called("retry").start();
    let stderr = run.scene.path("retry.stderr");
    wait_for("the stage", A_VISIT, || read(&stderr).contains("runs stage count again").then_some(()));
    retry.signal("INT");
    let ended = retry.end(A_VISIT).expect_code(130);
    for said in ["stops what still runs", "stops the stage", "is held for another"] {
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
    let mut person = run.enter(false, "slow");
    person.sees("Ctrl-] leaves");
    assert_eq!(person.runs("ps | grep -c '[w]hile true'"), "0", "the stage still runs");
    drop(person.leaves());
    run.release_all();
}

#[test]
fn however_a_visit_ends_nothing_runs_and_the_guest_is_kept() {
    let run = Run::new(&target("bad", TINY, FAILS));
    drop(run.build(&["--hold"]).expect_tasks(1, "failure"));
    let id = run.held_id();
    let look = || run.held()["entered"].is_null().then_some(());

    // The link drops: what was done is kept.
    let mut person = run.enter(true, "bad");
    person.sees("Ctrl-] leaves");
    assert_eq!(person.runs("echo one >/root/first; echo done"), "done");
    drop(person);
    wait_for("the guest to be put away", A_VISIT, look);
    run.expect_nothing_runs();

    // Killed: the guest is as it was before, disk and memory.
    let mut person = run.enter(true, "bad");
    person.sees("Ctrl-] leaves");
    assert_eq!(person.runs("cat /root/first; echo two >/root/second; sync; echo done"), "one\ndone");
    run.kill_visit(&id);
    drop(person.ends());
    wait_for("the lock to be free", SOON, look);
    run.expect_nothing_runs();

    let mut person = run.enter(true, "bad");
    person.sees("Ctrl-] leaves");
    assert_eq!(person.runs("cat /root/first; ls /root/second 2>/dev/null"), "one");
    // Thrown out by somebody who ends everything.
    drop(run.command(&["kill-workers", "--force"]).expect_code(0));
    drop(person.ends());
    run.site.expect_no_guests();
}

#[test]
fn a_visit_ends_soon_after_its_person_is_gone_and_what_was_done_is_kept() {
    let mut run = Run::new(&target("bad", TINY, FAILS));
    drop(run.build(&["--hold"]).expect_tasks(1, "failure"));
    let hosts = [("host1", "accel = \"tcg\"")];
    run.crew = run.scene.crew_with(FAST_LIMITS, run.site.lab(), User::Root, &hosts);
    let put_away = || run.held()["entered"].is_null().then_some(());
    let enter = |words: &str| {
        let mut person = run.enter(false, words);
        person.sees("Ctrl-] leaves");
        person
    };

    // The person's crewboss is killed.
    let mut person = enter("bad");
    assert_eq!(person.runs("echo one >/root/notes; echo done"), "done");
    person.signal("KILL");
    wait_for("the guest to be put away", A_VISIT, put_away);
    run.expect_nothing_runs();

    // It is stopped: its host hears nothing, and neither does it when it goes on.
    let mut person = enter("bad");
    assert_eq!(person.runs("cat /root/notes; echo two >>/root/notes"), "one");
    person.signal("STOP");
    wait_for("the guest to be put away", A_VISIT, put_away);
    person.signal("CONT");
    let (_, shown) = person.ends();
    // Either is true for somebody who was away that long.
    let told = ["is held for another", "a guest that was kept is kept there"];
    assert!(told.iter().any(|told| shown.contains(told)), "{shown}");
    run.expect_nothing_runs();

    // The link is cut. Both ends notice.
    let mut person = enter("bad");
    assert_eq!(person.runs("cat /root/notes; echo three >>/root/notes"), "one\ntwo");
    run.site.lab().lab("cut", &["host1"]);
    run.expect_nothing_runs();
    let (code, shown) = person.ends();
    run.site.lab().lab("heal", &["host1"]);
    // Its sshd may wait for the other end as long as it likes.
    run.site.on("pkill -f '[s]shd[^ ]*: .*@notty' || true");
    assert_eq!(code, Some(102), "{shown}");
    assert!(shown.contains("a guest that was kept is kept there"), "{shown}");
    wait_for("the guest to be put away", A_VISIT, put_away);
    let mut person = enter("bad");
    assert_eq!(person.runs("cat /root/notes"), "one\ntwo\nthree");
    drop(person.leaves());
    run.release_all();
}

#[test]
fn a_guest_is_taken_over_from_whoever_is_in_it() {
    let run = Run::new(&target("bad", TINY, FAILS));
    drop(run.build(&["--hold"]).expect_tasks(1, "failure"));
    let mut first = run.enter(false, "bad");
    first.sees("Ctrl-] leaves");
    assert_eq!(first.runs("MINE=kept; echo done"), "done");
    for command in ["status", "enter"] {
        drop(run.command(&[command]).expect_code(0).expect_said("entered by root@"));
    }
    let refused = run.command(&["enter", "bad"]).expect_code(102);
    let mut second = run.person("second", false, &hint(&refused.stderr, "--take-over"));
    second.sees("over from root@");
    let (code, shown) = first.ends();
    assert_eq!(code, Some(0), "{shown}");
    for said in ["somebody else takes the guest over", "is held for another"] {
        assert!(shown.contains(said), "{shown}");
    }
    second.sees("Ctrl-] leaves");
    assert_eq!(second.runs("echo $MINE"), "kept");
    drop(second.leaves());
    run.release_all();
}

#[test]
fn a_guest_that_switched_itself_off_is_kept_with_its_disk() {
    let off = "stages.run = 'echo here >/crewboss/out/here; test \"$V\" = stay || { sync; poweroff -f; sleep 600; }'";
    let run = Run::new(&target("off", TINY, off));
    let ended = run.build(&[]).expect_tasks(1, "abnormal");
    assert!(ended.stdout.contains("kept with its disk alone"), "{}", ended.stdout);
    assert_eq!(run.held()["memory"], false);
    let retry = |words: &[&str], code| {
        run.command(&[&["retry", "off", "--stage", "run"], words].concat()).expect_code(code)
    };
    drop(retry(&[], 102).expect_said("`--wipe` starts with the source unpacked anew"));
    let mut person = run.enter(true, "off");
    person.sees("Ctrl-] leaves");
    person.sees("its shell follows");
    person.sees("/crewboss/src # ");
    assert_eq!(person.runs("cat /crewboss/out/here"), "here");
    drop(person.leaves());
    drop(retry(&["--wipe", "--set", "V=stay"], 0));
    drop(retry(&["--set", "V=stay"], 0));
    run.release_all();
}

#[test]
fn a_guest_that_was_started_warm_is_kept_like_any_other() {
    const WARM: &str = "held-warm";
    let run = Run::new(&target("bad", WARM, FAILS));
    run.site.variant(TINY, WARM, &["warm_start = true"]);
    let ended = run.build(&["--hold"]).expect_tasks(1, "failure");
    let result: Value = serde_json::from_str(&ended.results.file("bad", "result.json")).expect("JSON");
    assert_eq!(result["machine"]["warm"], true, "{result}");
    // The memory that it shares with others may be gone.
    run.site.on(&format!("rm -rf {MACHINES}/local/{WARM}/{WARM}-default.saved"));
    let retry = ["retry", "bad", "--stage", "build", "--set", "V=good"];
    drop(run.command(&retry).expect_code(0).expect_said("V is good, the number changed"));
    drop(run.command(&retry).expect_code(0));
    run.release_all();
    run.site.remove(WARM);
}

#[test]
fn a_guest_whose_time_is_over_goes() {
    let here = "[target.here]\nstages.run = 'true'\n";
    let run = Run::new(&(target("slow", TINY, COUNTS) + here));
    drop(run.build(&["--hold=2s", "slow"]).expect_tasks(1, "timeout"));
    let over = || run.status()["held"].as_array().is_some_and(Vec::is_empty).then_some(());
    wait_for("the end of its time", SOON, over);
    assert!(!run.site.on(&format!("ls {MACHINES}/guests")).is_empty(), "it was removed before anybody came");
    // Whoever works on the host next ends it.
    drop(run.boss(&["here"]).start().end(A_GUEST_RUN).expect_code(0));
    run.site.expect_no_guests();
}

#[test]
fn without_our_agent_a_guest_is_kept_with_its_console() {
    let run = Run::new(&target(
        "plain",
        PLAIN,
        "timeout = '3s'\nstages.run = 'echo begun >/dev/console; sleep 600'",
    ));
    drop(run.build(&[]).expect_tasks(1, "timeout"));
    drop(run.command(&["retry", "plain", "--stage", "run"]).expect_code(102).expect_said("no agent of ours"));
    let no_shell = run.command(&["enter", "plain", "--shell"]).expect_code(102);
    drop(run.command(&["enter", "plain", "--vnc"]).expect_code(102).expect_said("display = true"));
    let mut person = run.person("person", true, &hint(&no_shell.stderr, "--console"));
    person.sees("the console of");
    drop(person.leaves());
    run.release_all();
    let refused = run.boss(&["--force", "--interactive", "plain"]).start().end(A_GUEST_RUN).expect_code(102);
    assert!(refused.stdout.contains("without our agent"), "{}", refused.stdout);
    run.site.expect_no_guests();
}

#[test]
fn a_task_waits_for_a_person_before_a_stage() {
    let lines = "stages.first = 'true'\nstages.second = 'cat number; grep -q person number'";
    let run = Run::new(&target("wait", TINY, lines));
    let mut boss = run.boss(&["wait", "--interactive=second"]).start();
    let waiting = boss.wait_for_event("task_waiting", |_| true);
    let id = waiting["guest"].as_str().expect("a guest").to_owned();
    let status = run.status();
    let (shown, task) = (&status["guests"][0], &status["tasks"][0]);
    assert_eq!((&shown["id"], &shown["waiting"]["stage"]), (&waiting["guest"], &"second".into()));
    assert_eq!((&task["phase"], &task["machine"]), (&"person".into(), &TINY.into()), "{status:#}");
    drop(run.command(&["retry", "wait", "--stage", "first"]).expect_code(102).expect_said("is not held"));
    let mut person = run.enter(true, &format!("host1/{id}"));
    person.sees("Ctrl-] leaves");
    assert_eq!(person.runs("echo by a person >number; pwd"), "/crewboss/src");
    let shown = person.leaves();
    assert!(shown.contains("still waits"), "{shown}");
    assert!(boss.is_running());
    drop(run.heed(&shown, "release").expect_code(0).expect_said("goes on"));
    let ended = boss.end(A_GUEST_RUN).expect_code(0).expect_tasks(1, "success");
    assert!(ended.stdout.contains(&format!("crewboss enter --crew {} host1/{id}", run.crew.display())));
    run.site.expect_no_guests();
}

#[test]
fn a_task_waits_when_a_stage_has_failed_and_goes_on_by_itself() {
    let run = Run::new(&target("bad", TINY, FAILS));
    let options = ["bad", "--interactive=failure", "--interactive-limit", "2s"];
    let ended = run.build(&options).expect_tasks(1, "failure");
    let waited = ended.of_kind("task_waiting");
    assert_eq!((waited.len(), &waited[0]["stage"]), (1, &"build".into()));
    run.site.expect_no_guests();
}

#[test]
fn ctrl_c_ends_a_task_that_waits_with_a_person_in_it() {
    let run = Run::new(&target("bad", TINY, FAILS));
    let mut boss = run.boss(&["bad", "--interactive"]).start();
    boss.wait_for_event("task_waiting", |_| true);
    let mut person = run.enter(true, "bad");
    person.sees("Ctrl-] leaves");
    assert_eq!(person.runs("ls /crewboss/src/number"), "/crewboss/src/number");
    boss.signal("INT");
    drop(boss.end(SOON).expect_code(130));
    let (code, shown) = person.ends();
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("does not wait any more"), "{shown}");
    run.site.expect_no_guests();
}

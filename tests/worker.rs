//! Real workers, driven like a boss would: through their standard input and output.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod support;

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crewboss_host::process::{KILL, ProcessId, TERM, descendants, with_variable};
use crewboss_protocol::message::{Done, Hello, TaskOrder};
use crewboss_protocol::target::{Command as StageCommand, Stage};
use crewboss_protocol::{
    CleanReport, Environment, FromWorker, Outcome, PROTOCOL_VERSION, Target, TaskRef, ToWorker, TreeId, codec,
};
use rustix::process::Signal;
use support::clock::FairClock;

const WITHIN: Duration = Duration::from_secs(120);
/// A user and a group without rights.
const NOBODY: u32 = 65_534;
const TREE: TreeId = TreeId([7; 20]);

struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<FromWorker>,
    early: VecDeque<FromWorker>,
    work: tempfile::TempDir,
    session: String,
    next: u32,
    targets: u32,
}

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_crewboss")
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WITHIN;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn hello(session: &str) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        build: String::new(),
        boss: "me@here".to_owned(),
        // Another session of the same run would take the place of this one.
        run: session.split('.').next().unwrap().parse().unwrap(),
        session: session.parse().unwrap(),
        host: "lab".parse().unwrap(),
        priority: 0,
        heartbeat_ms: 5_000,
        // The tests send no pings.
        silence_ms: 600_000,
        standstill_ms: 600_000,
        limits: Default::default(),
        slots: Some(2),
        toolchains: Default::default(),
        machines: None,
        accel: Default::default(),
        probe_only: false,
        refresh: false,
    }
}

fn shell(line: &str) -> Target {
    Target {
        name: "t".parse().unwrap(),
        toolchain: None,
        incremental: false,
        environment: Environment::Directory,
        timeout_ms: 60_000,
        stages: vec![Stage { name: "build".parse().unwrap(), command: StageCommand::Shell(line.to_owned()) }],
        variables: Default::default(),
        artifacts: Vec::new(),
        sizes: Vec::new(),
    }
}

impl Worker {
    fn start(name: &str) -> Self {
        Self::start_with(name, |_| ())
    }

    fn start_with(name: &str, change: impl FnOnce(&mut Hello)) -> Self {
        let work = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(work.path().join("sources").join(TREE.to_string())).unwrap();
        Self::start_in(work, name, change)
    }

    fn start_in(work: tempfile::TempDir, name: &str, change: impl FnOnce(&mut Hello)) -> Self {
        Self::start_by(Command::new(binary()), work, name, change)
    }

    /// As a user who has no rights at all. The program has to be where that one finds it.
    fn start_plain(name: &str) -> Self {
        let work = tempfile::tempdir().unwrap();
        let program = work.path().join("program");
        std::fs::copy(binary(), &program).unwrap();
        std::fs::create_dir_all(work.path().join("sources").join(TREE.to_string())).unwrap();
        for path in ["", "sources", &format!("sources/{TREE}")] {
            std::os::unix::fs::chown(work.path().join(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY);
        Self::start_by(command, work, name, |_| ())
    }

    fn start_by(
        mut command: Command,
        work: tempfile::TempDir,
        name: &str,
        change: impl FnOnce(&mut Hello),
    ) -> Self {
        let session = format!("{name}-{}.1", std::process::id());
        let mut hello = hello(&session);
        change(&mut hello);
        let mut child = command
            .args(["worker", "--work"])
            .arg(work.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let text = line.strip_prefix(codec::PREFIX).expect("a line of ours");
                if sender.send(codec::parse(text).unwrap()).is_err() {
                    break;
                }
            }
        });
        let mut worker =
            Self { child, stdin, lines, early: VecDeque::new(), work, session, next: 0, targets: 0 };
        worker.send(&ToWorker::Hello(hello));
        worker
    }

    fn send(&mut self, message: &ToWorker) {
        let mut line = Vec::new();
        codec::encode(message, &mut line);
        self.stdin.as_mut().unwrap().write_all(&line).unwrap();
    }

    fn order(&mut self, target: Target) -> TaskRef {
        let first = self.targets;
        self.targets += 1;
        self.send(&ToWorker::Configure { first, targets: vec![target] });
        self.order_again(first)
    }

    fn order_again(&mut self, target: u32) -> TaskRef {
        self.next += 1;
        let at: TaskRef = format!("{}.1", self.next).parse().unwrap();
        self.send(&ToWorker::Task(TaskOrder {
            at,
            target,
            tree: TREE,
            commit: TREE,
            cold: false,
            hold: Default::default(),
            pause: None,
        }));
        at
    }

    /// The next message for which `wanted` has an answer; the others are kept for later.
    fn hear<T>(&mut self, what: &str, mut wanted: impl FnMut(&FromWorker) -> Option<T>) -> T {
        for index in 0..self.early.len() {
            if let Some(found) = wanted(&self.early[index]) {
                self.early.remove(index);
                return found;
            }
        }
        let end = Instant::now() + WITHIN;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = self.lines.recv_timeout(left).unwrap_or_else(|_| {
                panic!("did not hear: {what}; but {:?}", self.early);
            });
            if let Some(found) = wanted(&message) {
                return found;
            }
            self.early.push_back(message);
        }
    }

    fn done(&mut self, at: TaskRef) -> Done {
        self.hear("done", |message| match message {
            FromWorker::Done(done) if done.at == at => Some((**done).clone()),
            _ => None,
        })
    }

    fn run(&mut self, target: Target) -> Done {
        let at = self.order(target);
        self.done(at)
    }

    fn directory(&self) -> PathBuf {
        self.work.path().join("tasks").join(&self.session)
    }

    fn attempt(&self, at: TaskRef) -> PathBuf {
        self.directory().join(at.to_string())
    }

    fn marked(&self) -> Vec<ProcessId> {
        with_variable("CREWBOSS_SESSION", &self.session).into_iter().filter(ProcessId::is_alive).collect()
    }

    fn wait_for_marked(&self, count: usize) {
        until("processes of the task", || (self.marked().len() >= count).then_some(()));
    }

    /// The worker proper and the first runner.
    fn roles(&self) -> (ProcessId, ProcessId) {
        until("a runner", || {
            let all = descendants(self.child.id(), &Default::default());
            let mut ours = all.into_iter().filter(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| {
                    text.windows(8).any(|part| part == b"\0runner\0" || part == b"--proper")
                })
            });
            Some((ProcessId::of(ours.next()?)?, ProcessId::of(ours.next()?)?))
        })
    }

    fn nothing_is_left(&mut self) {
        until("nothing runs any more", || self.marked().is_empty().then_some(()));
        let directory = self.directory();
        until("the session's directory is gone", || (!directory.exists()).then_some(()));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stdin = None;
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        for process in self.marked() {
            process.signal(KILL);
        }
    }
}

/// Processes that try to stay: a new session, a double fork, a deaf one.
const HIDERS: &str = "setsid sleep 1000 & (setsid sh -c 'sleep 1001 & exit' &) ; sh -c 'trap \"\" TERM; sleep 1002; sleep 1003' & ";

#[test]
fn a_task_runs_and_its_result_says_everything() {
    let mut worker = Worker::start("plain");
    let mut target = shell(
        "echo out; echo 'x.c: WARNING: odd' >&2; echo 12 > $CREWBOSS_OUT/a.bin; test $PWD = $CREWBOSS_OUT",
    );
    target.artifacts = vec!["*.bin".to_owned()];
    let done = worker.run(target);
    assert_eq!(done.outcome, Outcome::Warning, "{done:?}");
    assert_eq!(done.err.text.as_deref(), Some("x.c: WARNING: odd\n"));
    assert_eq!((done.log.bytes, done.artifacts.files, done.artifacts.bytes), (22, 1, 3));
    assert!(done.rss_kib_max > 0 && done.stages.len() == 1);
    let directory = worker.attempt(done.at);
    assert!(directory.join("artifacts.list").exists());
    worker.send(&ToWorker::Collected { at: done.at });
    // The directory itself may serve the next attempt; nothing of this one may be in it.
    let left = |name: &str| directory.join(name).exists();
    until("the attempt is removed", || (!left("artifacts.list") && !left("out/a.bin")).then_some(()));
    worker.send(&ToWorker::Quit);
    worker.hear("finished", |message| matches!(message, FromWorker::Finished).then_some(()));
    assert!(worker.child.wait().unwrap().success());
    worker.nothing_is_left();
}

#[test]
fn failures_missing_artifacts_and_missing_programs_are_results() {
    let mut worker = Worker::start("fail");
    let done = worker.run(shell("exit 3"));
    assert_eq!((done.outcome, done.stages[0].exit.shell_code()), (Outcome::Failure, 3));
    let done = worker.run(shell("kill -9 $$"));
    assert_eq!((done.outcome, done.stages[0].exit.shell_code()), (Outcome::Failure, 137));
    let done = worker.run(Target { artifacts: vec!["none".to_owned()], ..shell("true") });
    assert_eq!(
        (done.outcome, done.message.as_str()),
        (Outcome::Failure, "nothing matches the artifact \"none\"")
    );
    // The archive of one upload has the name of a directory in another one.
    let both = "cd $CREWBOSS_OUT; mkdir -p upload/k/x upload/k/x.tar; echo y >upload/k/x.tar/y";
    let done = worker.run(Target { artifacts: vec!["upload/k/x.tar/y".to_owned()], ..shell(both) });
    let message = "the artifact \"upload/k/x.tar\" cannot be brought back beside \"upload/k/x.tar/y\"";
    assert_eq!((done.outcome, done.message.as_str()), (Outcome::Failure, message));
    let mut target = shell("");
    target.stages[0].command = StageCommand::Words(vec!["no-such-program".to_owned()]);
    let done = worker.run(target);
    assert_eq!((done.outcome, done.stages[0].exit.shell_code()), (Outcome::Failure, 127));
    assert!(done.message.contains("not on the PATH"), "{}", done.message);
}

#[test]
fn what_a_task_leaves_running_dies_with_it() {
    let mut worker = Worker::start("hide");
    let done = worker.run(shell(&format!("{HIDERS} true")));
    assert_eq!(done.outcome, Outcome::Success);
    assert!(worker.marked().is_empty());
}

#[test]
fn timeout_and_cancel_end_even_the_deaf() {
    let mut worker = Worker::start("stop");
    let deaf = format!("{HIDERS} trap '' TERM; wait; sleep 1004");
    let at = worker.order(Target { timeout_ms: 200, ..shell(&deaf) });
    worker.hear("started", |message| matches!(message, FromWorker::Phase { .. }).then_some(()));
    let clock = FairClock::start();
    assert_eq!(worker.done(at).outcome, Outcome::Timeout);
    assert!(clock.elapsed() < Duration::from_secs(8), "it took {:?}", clock.elapsed());
    assert!(worker.marked().is_empty());
    let at = worker.order(shell("sleep 1000"));
    worker.wait_for_marked(1);
    worker.send(&ToWorker::Cancel { at });
    assert_eq!(worker.done(at).outcome, Outcome::Cancelled);
    assert!(worker.marked().is_empty());
}

#[test]
fn odd_output_is_stored_byte_for_byte() {
    let mut worker = Worker::start("output");
    let done = worker.run(shell("exec >&- 2>&-; sleep 0.1; exit 4"));
    assert_eq!((done.outcome, done.log.bytes), (Outcome::Failure, 0));
    let done = worker.run(shell("printf '\\377\\376'"));
    assert_eq!((done.log.bytes, done.log.text), (2, None));
    assert_eq!(std::fs::read(worker.attempt(done.at).join("log")).unwrap(), [0xff, 0xfe]);
    let at = worker.order(shell("head -c 100000000 /dev/zero | tr '\\0' x; sleep 1000 &"));
    worker.hear("long log", |message| (*message == FromWorker::LongLog { at }).then_some(()));
    let done = worker.done(at);
    assert_eq!((done.outcome, done.log.bytes, done.err.bytes), (Outcome::Success, 100_000_000, 0));
    assert_eq!(std::fs::metadata(worker.attempt(at).join("log")).unwrap().len(), 100_000_000);
    let done = worker.run(shell(
        "head -c 100000 /dev/zero; rm -rf \"$(dirname $CREWBOSS_OUT)\"; head -c 100000 /dev/zero",
    ));
    assert_eq!((done.outcome, done.log.bytes), (Outcome::Success, 200_000));
    assert_eq!(std::fs::metadata(worker.attempt(done.at).join("log")).unwrap().len(), 200_000);
}

#[test]
fn a_stage_that_stops_its_runner_has_the_time_limit_that_it_had() {
    let mut worker = Worker::start("stopped");
    let line = "head -c 100000 /dev/zero | tr '\\0' x; until [ -s \"$(dirname $CREWBOSS_OUT)/log\" ]; do sleep 0.01; done; \
                kill -STOP $PPID; sleep 1000";
    let done = worker.run(Target { timeout_ms: 5000, ..shell(line) });
    assert_eq!(done.outcome, Outcome::Timeout, "{done:?}");
    assert!(done.message.contains("stopped after 5000 ms; its runner stood still"), "{}", done.message);
    // What had been stored by then is kept.
    let log = std::fs::read(worker.attempt(done.at).join("log")).unwrap();
    assert!(done.log.bytes == log.len() as u64 && done.log.text.is_none(), "{done:?}");
    until("all of it is gone", || worker.marked().is_empty().then_some(()));
    assert_eq!(worker.run(shell("true")).outcome, Outcome::Success);
    // One that is stopped while it has nothing to do keeps no limit of its next task either.
    let (_, runner) = worker.roles();
    assert!(runner.signal(Signal::STOP));
    assert_eq!(worker.run(Target { timeout_ms: 1000, ..shell("true") }).outcome, Outcome::Timeout);
    assert_eq!(worker.run(shell("true")).outcome, Outcome::Success);
}

#[test]
fn a_killed_runner_costs_its_task_only() {
    let mut worker = Worker::start("runner");
    let at = worker.order(shell(&format!("{HIDERS} sleep 1000")));
    worker.wait_for_marked(4);
    let (_, runner) = worker.roles();
    assert!(runner.signal(KILL));
    let done = worker.done(at);
    assert_eq!(done.outcome, Outcome::Infrastructure);
    assert!(worker.marked().is_empty());
    assert_eq!(worker.run(shell("true")).outcome, Outcome::Success);
}

/// Kills all of them, so that none acts on the death of another.
fn kill(victims: &[&ProcessId]) {
    for signal in [Signal::STOP, KILL] {
        assert!(victims.iter().all(|victim| victim.signal(signal)), "somebody was gone before");
    }
}

#[test]
fn whoever_is_killed_the_others_leave_nothing() {
    for victims in ["guardian", "proper", "guardian runner", "proper runner", "guardian proper"] {
        let mut worker = Worker::start(&victims.replace(' ', "-"));
        worker.order(shell(&format!("{HIDERS} sleep 1000")));
        worker.wait_for_marked(4);
        let (proper, runner) = worker.roles();
        let guardian = ProcessId::of(worker.child.id()).unwrap();
        let named = [("guardian", &guardian), ("proper", &proper), ("runner", &runner)];
        let dying = named.into_iter().filter(|(name, _)| victims.contains(name));
        kill(&dying.map(|(_, process)| process).collect::<Vec<_>>());
        let _status = worker.child.wait();
        until(victims, || worker.marked().is_empty().then_some(()));
        if victims == "guardian proper" {
            // The processes are gone by themselves; nobody is left for the directory and the
            // control group.
            until("both are dead", || (!proper.is_alive() && !guardian.is_alive()).then_some(()));
            assert_eq!(clean(worker.work.path(), false).removed.len(), 1);
        }
        worker.nothing_is_left();
    }
}

#[test]
fn when_all_are_killed_at_once_the_next_sweep_does_it() {
    let mut worker = Worker::start("all");
    worker.order(shell(&format!("{HIDERS} sleep 1000")));
    worker.wait_for_marked(4);
    let (proper, runner) = worker.roles();
    let guardian = ProcessId::of(worker.child.id()).unwrap();
    kill(&[&runner, &proper, &guardian]);
    worker.child.wait().unwrap();
    until("all are dead", || (!proper.is_alive() && !runner.is_alive()).then_some(()));
    let report = clean(worker.work.path(), false);
    assert!(report.errors.is_empty() && report.removed.len() == 1, "{report:?}");
    worker.nothing_is_left();
}

#[test]
fn a_worker_that_stands_still_is_ended_once_its_boss_is_gone_and_a_guardian_is_woken() {
    let mut worker = Worker::start("frozen");
    worker.order(shell(&format!("{HIDERS} sleep 1000")));
    worker.wait_for_marked(4);
    let (proper, _) = worker.roles();
    assert!(proper.signal(Signal::STOP));
    worker.stdin = None;
    until("the guardian has ended it and itself", || worker.child.try_wait().unwrap());
    assert!(!proper.is_alive());
    worker.nothing_is_left();

    let mut worker = Worker::start("asleep");
    let _running = worker.order(shell("sleep 1000"));
    worker.wait_for_marked(1);
    assert!(ProcessId::of(worker.child.id()).unwrap().signal(Signal::STOP));
    worker.send(&ToWorker::Quit);
    until("the guardian ends with its worker", || worker.child.try_wait().unwrap());
    worker.nothing_is_left();
}

#[test]
fn what_a_task_may_leave_is_limited() {
    let mut worker = Worker::start_with("limits", |hello| {
        (hello.limits.log_bytes, hello.limits.artifacts, hello.limits.artifact_bytes) = (100_000, 4, 1 << 20);
    });
    let done = worker.run(shell("echo fine; while :; do echo on and on; done"));
    assert_eq!(done.outcome, Outcome::Failure);
    assert!(done.message.contains("its log has more than 100000 bytes (`log`"), "{}", done.message);
    assert!(done.log.bytes <= 100_000 + (1 << 20), "{done:?}");
    for (line, words) in [
        ("cd $CREWBOSS_OUT; touch 1.x 2.x 3.x 4.x 5.x", "it has left more than 4 artifacts (`artifacts`"),
        (
            "cd $CREWBOSS_OUT; mkdir -p a/b; touch a/b/1.x a/b/2.x a/b/3.x",
            "it has left 3 artifacts in 2 directories; the limit of all is 4 (`artifacts`",
        ),
        (
            "cd $CREWBOSS_OUT; mkdir a; truncate -s 1M a/1.x",
            "it has left artifacts of 1048576 bytes in 1 directories; the limit is 1048576 (`artifact_bytes`",
        ),
        // A hole takes no space here, and may take it elsewhere.
        ("truncate -s 1T $CREWBOSS_OUT/1.x", "1099511627776 bytes; the limit is 1048576 (`artifact_bytes`"),
    ] {
        let done = worker.run(Target { artifacts: vec!["**/*.x".to_owned()], ..shell(line) });
        assert_eq!((done.outcome, done.artifacts.files), (Outcome::Failure, 0), "{done:?}");
        assert!(done.message.contains(words), "{}", done.message);
    }
    let few = Target { artifacts: vec!["*.x".to_owned()], ..shell("cd $CREWBOSS_OUT; touch 1.x 2.x 3.x") };
    assert_eq!(worker.run(few).outcome, Outcome::Success);
}

fn clean(work: &Path, force: bool) -> CleanReport {
    let mut command = Command::new(binary());
    command.arg("clean").arg("--work").arg(work);
    if force {
        command.arg("--force");
    }
    let output = command.output().unwrap();
    codec::parse(output.stdout.strip_prefix(codec::PREFIX).unwrap().trim_ascii_end()).unwrap()
}

#[test]
fn a_live_session_is_left_alone_unless_forced() {
    let mut worker = Worker::start("live");
    worker.order(shell(&format!("{HIDERS} sleep 1000")));
    worker.wait_for_marked(4);
    assert_eq!(clean(worker.work.path(), false).left.len(), 1);
    assert!(!worker.marked().is_empty());
    let report = clean(worker.work.path(), true);
    assert_eq!((report.ended.len(), report.errors.len()), (1, 0), "{report:?}");
    worker.nothing_is_left();
}

#[test]
fn the_end_of_input_silence_and_sigterm_stop_everything_in_time() {
    for way in ["eof", "silence", "term"] {
        let mut worker = Worker::start_with(way, |hello| {
            if way == "silence" {
                (hello.heartbeat_ms, hello.silence_ms) = (1_000, 3_000);
            }
        });
        worker.order(shell(&format!("{HIDERS} sleep 1000")));
        until("processes of the task", || {
            // The silence begins only when they are there.
            worker.send(&ToWorker::Ping { number: 1 });
            (worker.marked().len() >= 4).then_some(())
        });
        let clock = FairClock::start();
        match way {
            "eof" => worker.stdin = None,
            "term" => {
                assert!(ProcessId::of(worker.child.id()).unwrap().signal(TERM))
            }
            _ => {}
        }
        until(way, || worker.child.try_wait().unwrap());
        let limit = if way == "silence" { 7_000 } else { 4_000 };
        assert!(clock.elapsed() < Duration::from_millis(limit), "{way} took {:?}", clock.elapsed());
        assert!(worker.marked().is_empty() && !worker.directory().exists());
    }
}

#[test]
fn nonsense_and_other_versions_end_the_session_with_a_typed_error() {
    use crewboss_protocol::message::WorkerErrorKind;
    let error = |worker: &mut Worker| {
        worker.hear("error", |message| match message {
            FromWorker::Error { kind, .. } => Some(*kind),
            _ => None,
        })
    };
    let mut worker = Worker::start_with("version", |hello| hello.protocol = 99);
    assert_eq!(error(&mut worker), WorkerErrorKind::Version);
    let mut worker = Worker::start("nonsense");
    worker.stdin.as_mut().unwrap().write_all(b"@cb {\"no\":1}\n").unwrap();
    assert_eq!(error(&mut worker), WorkerErrorKind::Protocol);
    worker.nothing_is_left();
    worker.child.wait().unwrap();
}

#[test]
fn who_only_looks_makes_nothing() {
    let mut worker = Worker::start_with("look", |hello| hello.probe_only = true);
    worker.hear("ready", |message| matches!(message, FromWorker::Ready(_)).then_some(()));
    worker.send(&ToWorker::Ping { number: 4 });
    worker.hear("alive", |message| matches!(message, FromWorker::Alive { number: 4, .. }).then_some(()));
    worker.stdin = None;
    assert!(worker.child.wait().unwrap().success());
    assert!(!worker.work.path().join("tasks").exists() && !worker.work.path().join("locks").exists());
}

#[test]
fn two_bosses_share_the_slots_of_a_host() {
    let mut one = Worker::start_with("one", |hello| hello.slots = Some(1));
    let go = one.work.path().join("go");
    let line = format!("until [ -e {} ]; do sleep 0.01; done; sleep 0.05; date +%s%N", go.display());
    one.order(shell(&line));
    for _ in 0..20 {
        one.order_again(0);
    }
    one.hear("started", |message| matches!(message, FromWorker::Phase { .. }).then_some(()));
    let mut two = beside(&one, "two", |hello| hello.slots = Some(1));
    let other = two.order(shell("date +%s%N"));
    two.hear("it waits", |message| matches!(message, FromWorker::Slots { .. }).then_some(()));
    std::fs::write(&go, "").unwrap();
    let time = |done: Done| done.log.text.unwrap().trim().parse::<u64>().unwrap();
    let (other, last) = (time(two.done(other)), time(one.done("21.1".parse().unwrap())));
    assert!(other < last, "it was let in only when the first one was through");
    leave(&mut two);
}

/// Another worker on the work directory of one; to be ended by [`leave`].
fn beside(one: &Worker, name: &str, change: impl FnOnce(&mut Hello)) -> Worker {
    let work = tempfile::tempdir().unwrap();
    std::fs::remove_dir(work.path()).unwrap();
    std::os::unix::fs::symlink(one.work.path(), work.path()).unwrap();
    Worker::start_in(work, name, change)
}

fn leave(worker: &mut Worker) {
    worker.send(&ToWorker::Quit);
    worker.hear("finished", |message| matches!(message, FromWorker::Finished).then_some(()));
    std::fs::remove_file(worker.work.path()).unwrap();
}

#[test]
fn old_sources_go_when_a_worker_starts_and_nobody_else_is_there() {
    let mut one = Worker::start("prune-one");
    assert_eq!(one.run(shell("true")).outcome, Outcome::Success);
    let sources = one.work.path().join("sources");
    (100..200).for_each(|one| std::fs::create_dir(sources.join(TreeId([one; 20]).to_string())).unwrap());
    let is_tree = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().is_dir();
    let count =
        || std::fs::read_dir(&sources).unwrap().filter_map(|entry| is_tree(entry).then_some(())).count();
    let mut two = beside(&one, "prune-two", |_| ());
    leave(&mut two);
    assert_eq!(count(), 101, "somebody else is there");
    one.send(&ToWorker::Quit);
    one.child.wait().unwrap();
    let mut three = beside(&one, "prune-three", |_| ());
    until("old sources are gone (more of them if the disk is full)", || (count() <= 64).then_some(()));
    assert_eq!(three.run(shell("true")).outcome, Outcome::Success, "the last one used is kept");
    leave(&mut three);
}

/// Puts the processes of ours that a stage runs below into `all`: guardian, worker proper and
/// runner.
const ABOVE: &str = "all=; p=$$; while [ $p -gt 1 ]; do p=$(cut -d' ' -f4 /proc/$p/stat); \
    case $(tr '\\0' ' ' </proc/$p/cmdline) in *' worker --'[wp]*|*' runner --s'*) all=\"$p $all\";; esac; done; ";

#[test]
fn a_stage_can_look_into_its_own_processes_and_not_into_ours() {
    let mut worker = Worker::start_plain("look");
    let look = "sleep 1000 & sleep 1000 & for p in $! $all; do for what in fd/0 fd/1 environ mem; do \
        (: </proc/$p/$what) 2>/dev/null && echo $p $what; done; done; echo own $!; for p in $all; do echo ours $p; done";
    let done = worker.run(shell(&format!("{ABOVE}{look}")));
    let text = done.log.text.unwrap();
    let own = text.lines().find_map(|line| line.strip_prefix("own ")).unwrap();
    let (proper, _) = worker.roles();
    assert_eq!(text.lines().filter(|line| line.starts_with("ours ")).count(), 3, "{text}");
    let opened: Vec<&str> =
        text.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).collect();
    assert!(opened.contains(&format!("{own} environ").as_str()), "{text}");
    assert!(opened.iter().all(|line| line.starts_with(own)), "{text}");
    // The worker proper could open its own end of the pipe to the guardian all the same.
    let pipes = |pid: u32| -> Vec<String> {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap());
        let number = |name: std::ffi::OsString| name.to_str()?.parse::<u32>().ok();
        let open = open.filter(|entry| number(entry.file_name()) > Some(2)).map(|entry| entry.path());
        let named = open.filter_map(|path| Some(std::fs::read_link(path).ok()?.to_str()?.to_owned()));
        named.filter(|name| name.starts_with("pipe:")).collect()
    };
    let of_guardian = pipes(worker.child.id());
    let shared = pipes(proper.pid).into_iter().filter(|pipe| of_guardian.contains(pipe)).count();
    assert_eq!(shared, 2, "what it was passed, and what it has opened by that");
}

/// A worker whose stage has stopped it with all that is above the stage, and does so again and
/// again.
fn stopped(name: &str, slots: u32) -> (Worker, [ProcessId; 3]) {
    let mut worker = Worker::start_with(name, |hello| hello.slots = Some(slots));
    let stop = "setsid sh -c \"while :; do kill -STOP $all; sleep 0.01; done\" 2>/dev/null & sleep 1000";
    worker.order(shell(&format!("{ABOVE}{stop}")));
    worker.wait_for_marked(2);
    let (proper, runner) = worker.roles();
    let all = [ProcessId::of(worker.child.id()).unwrap(), proper, runner];
    until("all of them are stopped", || all.iter().all(ProcessId::is_stopped).then_some(()));
    (worker, all)
}

/// As if its boss had not been heard for long.
fn forsake(worker: &Worker) {
    let alive = std::fs::File::options().append(true).open(worker.directory().join("alive")).unwrap();
    alive.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
    // It is touched no more: whoever did that is stopped.
}

#[test]
fn a_stage_that_stops_its_worker_goes_with_it_when_another_worker_or_a_person_comes() {
    for way in ["lost", "forsaken", "clean"] {
        let (mut worker, all) = stopped(way, 1);
        let run = || format!("{way}-{}", std::process::id()).parse().unwrap();
        forsake(&worker);
        if way == "clean" {
            let report = clean(worker.work.path(), false);
            assert_eq!((report.ended.len(), report.errors.len()), (1, 0), "{report:?}");
        } else {
            let mut next = beside(&worker, &format!("{way}-next"), |hello| {
                hello.slots = Some(1);
                if way == "lost" {
                    hello.run = run();
                }
            });
            assert_eq!(next.run(shell("true")).outcome, Outcome::Success);
            leave(&mut next);
        }
        worker.child.wait().unwrap();
        assert!(!all.iter().any(ProcessId::is_alive), "{way}");
        worker.nothing_is_left();
    }
}

#[test]
fn who_has_all_slots_and_stands_still_is_named_and_ended_while_another_waits() {
    let mut worker = Worker::start_with("holder", |hello| hello.slots = Some(1));
    worker.order(shell("sleep 1000"));
    worker.wait_for_marked(1);
    let mut next = beside(&worker, "waiter", |hello| hello.slots = Some(1));
    let at = next.order(shell("true"));
    next.hear("it waits", |message| matches!(message, FromWorker::Slots { .. }).then_some(()));
    let guardian = ProcessId::of(worker.child.id()).unwrap();
    let (proper, runner) = worker.roles();
    let all = [guardian, proper, runner];
    let wanted = format!("slot 0 is held by me@here (run holder-{}, process", std::process::id());
    next.hear("who has it", |message| match message {
        FromWorker::Notice { text } => text.contains(&wanted).then_some(()),
        _ => None,
    });
    assert!(all.iter().all(|process| process.signal(Signal::STOP)));
    forsake(&worker);
    assert_eq!(next.done(at).outcome, Outcome::Success);
    worker.child.wait().unwrap();
    leave(&mut next);
    worker.nothing_is_left();
}

/// The unified hierarchy of control groups, for as long as the test lasts.
struct Unified(Option<tempfile::TempDir>);

impl Unified {
    fn mount() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(" - cgroup2 ") {
            return Self(None);
        }
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(dir.path()).status().unwrap();
        assert!(mounted.success());
        Self(Some(dir))
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            drop(Command::new("umount").arg("--lazy").arg(dir.path()).status());
        }
    }
}

#[test]
fn what_escapes_from_all_of_ours_is_found_by_its_control_group() {
    let _unified = Unified::mount();
    let mut worker = Worker::start("escape");
    let told = worker.work.path().join("escaped");
    let escape = format!(
        "(setsid sh -c 'kill -9 '\"$all\"'; echo $$ >{}; exec env -i sleep 1000' &) ; sleep 1000",
        told.display()
    );
    worker.order(shell(&format!("{ABOVE}{escape}")));
    let escaped = until("somebody escapes", || {
        let pid = std::fs::read_to_string(&told).ok()?.trim().parse().ok()?;
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        line.starts_with("sleep").then(|| ProcessId::of(pid)).flatten()
    });
    worker.child.wait().unwrap();
    let record = std::fs::read_to_string(worker.directory().join("owner.json")).unwrap();
    let owner: serde_json::Value = serde_json::from_str(&record).unwrap();
    let group = owner["cgroup"].as_str().map(PathBuf::from).expect("a control group");
    assert!(escaped.is_alive() && group.exists());
    let report = clean(worker.work.path(), false);
    assert_eq!((report.removed.len(), report.errors.len()), (1, 0), "{report:?}");
    assert!(!escaped.is_alive() && !group.exists());
    worker.nothing_is_left();
}

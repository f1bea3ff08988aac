//! A running boss, and what it came to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::clock::FairClock;
use super::{A_RUN, read, run, wait_for};

/// A `crewboss` command that is being put together.
#[derive(Debug)]
pub struct Boss {
    command: Command,
    stdout: PathBuf,
    stderr: PathBuf,
    out: PathBuf,
    events: Option<PathBuf>,
}

impl Boss {
    /// What it prints goes to files in `dir`, so that it is never held up by a reader.
    pub fn new(command: Command, dir: &Path, out: PathBuf) -> Self {
        Self { command, stdout: dir.join("stdout"), stderr: dir.join("stderr"), out, events: None }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in this directory.
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Has it write events to this file.
    pub fn events(&mut self, file: PathBuf) {
        self.command.arg("--events").arg(&file);
        self.events = Some(file);
    }

    /// Renames what it prints to, for several at once in one scene.
    pub fn called(mut self, name: &str) -> Self {
        self.stdout.set_file_name(format!("{name}.stdout"));
        self.stderr.set_file_name(format!("{name}.stderr"));
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        if let Some(events) = &self.events
            && events.exists()
        {
            std::fs::remove_file(events).expect("the events of the run before");
        }
        let file = |path: &Path| File::create(path).expect("a file for what it prints");
        let command = self.command.stdin(Stdio::null()).stdout(file(&self.stdout)).stderr(file(&self.stderr));
        let child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {:?}: {error}", self.command));
        Running { child, boss: self }
    }

    /// Runs it to its end.
    #[must_use = "what it came to is what is tested"]
    pub fn run(self) -> Ended {
        self.start().end(A_RUN)
    }
}

/// A boss that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    boss: Boss,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        run(Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]));
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_some()
    }

    /// Everything it said.
    pub fn story(&self) -> String {
        self.boss.story()
    }

    /// Waits for an event of this kind for which `wanted` holds, as long as the boss runs.
    pub fn wait_for_event(&mut self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_event_within(kind, A_RUN, wanted)
    }

    /// As [`Self::wait_for_event`], for as long as that.
    pub fn wait_for_event_within(
        &mut self,
        kind: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        self.wait_for_events(&format!("event {kind}"), within, |events| {
            events.iter().find(|event| event["event"] == kind && wanted(event)).cloned()
        })
    }

    /// Waits until a task has shown this text, which may come in pieces.
    pub fn wait_for_output(&mut self, text: &str) {
        self.wait_for_events(&format!("output {text:?}"), A_RUN, |events| {
            let mut shown = BTreeMap::<String, String>::new();
            for event in events.iter().filter(|event| event["event"] == "task_output") {
                let piece = event["text"].as_str().unwrap_or_default();
                shown.entry(event["at"].to_string()).or_default().push_str(piece);
            }
            shown.values().any(|shown| shown.contains(text)).then_some(())
        });
    }

    /// Waits until all events together are what `look` wants.
    fn wait_for_events<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&[Value]) -> Option<T>,
    ) -> T {
        let (boss, child) = (&self.boss, &mut self.child);
        let look = || {
            // The state first: what it wrote before its end must be seen.
            let ended = child.try_wait().expect("its state");
            match (look(&boss.read_events()), ended) {
                (Some(found), _) => Some(Ok(found)),
                (None, Some(status)) => Some(Err(format!("the boss ended before: {status}"))),
                (None, None) => None,
            }
        };
        let waiting = std::panic::AssertUnwindSafe(move || wait_for(what, within, look));
        let found = std::panic::catch_unwind(waiting).unwrap_or_else(|_| Err("the time is up".to_owned()));
        found.unwrap_or_else(|why| panic!("no {what}: {why}\n{}", self.boss.story()))
    }

    /// Waits until a task has started on this host.
    pub fn wait_for_task_on(&mut self, host: &str) -> Value {
        self.wait_for_event("task_started", |event| event["host"] == host)
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// Waits for its end, which must come within that, but for pauses of this machine.
    #[must_use = "what it came to is what is tested"]
    pub fn end_in_time(self, limit: Duration) -> Ended {
        let clock = FairClock::start();
        let ended = self.end(A_RUN);
        let took = clock.elapsed();
        assert!(took < limit, "the boss took {took:?} to its end, not {limit:?}: {ended:#?}");
        ended
    }

    /// Waits for its end.
    #[must_use = "what it came to is what is tested"]
    pub fn end(mut self, within: Duration) -> Ended {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                break status;
            }
            if start.elapsed() > within {
                panic!("the boss did not end within {within:?}\n{}", self.boss.story());
            }
            std::thread::sleep(super::LOOK_EVERY);
        };
        Ended {
            status,
            took: start.elapsed(),
            stdout: read(&self.boss.stdout),
            stderr: read(&self.boss.stderr),
            events: self.boss.read_events(),
            results: Results::read(&self.boss.out),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Boss {
    /// All whole lines of the event file.
    fn read_events(&self) -> Vec<Value> {
        let Some(text) = self.events.as_ref().and_then(|path| std::fs::read_to_string(path).ok()) else {
            return Vec::new();
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("an event is a line of JSON")).collect()
    }

    /// Everything it said, for a test that fails.
    fn story(&self) -> String {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let log = text(&self.out.join("boss.log"));
        let events: String = self.read_events().iter().map(|event| format!("{event}\n")).collect();
        let (stdout, stderr) = (text(&self.stdout), text(&self.stderr));
        format!("---- stdout\n{stdout}---- stderr\n{stderr}---- boss.log\n{log}---- events\n{events}")
    }
}

/// A boss that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// How long it was waited for.
    pub took: Duration,
    /// What it printed.
    pub stdout: String,
    /// What it printed for people.
    pub stderr: String,
    /// Its events.
    pub events: Vec<Value>,
    /// Its result directory.
    pub results: Results,
}

impl Ended {
    /// It must have ended with this code.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "wrong exit code of {self:#?}");
        self
    }

    /// It must have printed this, anywhere.
    pub fn expect_said(self, text: &str) -> Self {
        let said = format!("{}{}", self.stdout, self.stderr);
        assert!(said.to_lowercase().contains(&text.to_lowercase()), "{text:?} is not said in {self:#?}");
        self
    }

    /// No panic and no bare debug output, whatever went wrong.
    pub fn expect_civil(self) -> Self {
        for word in ["panicked at", "RUST_BACKTRACE", "Error {", "Err(", "Some("] {
            assert!(!self.stderr.contains(word), "{word:?} is in what a person sees: {self:#?}");
        }
        self
    }

    /// This many tasks must have ended, each exactly once, and all with this outcome.
    pub fn expect_tasks(self, count: usize, outcome: &str) -> Self {
        let outcomes = self.outcomes();
        assert_eq!(outcomes.len(), count, "tasks with a result in {self:#?}");
        assert!(
            outcomes.values().all(|each| each == &[outcome]),
            "all {outcome}, each once: {outcomes:?}\n{self:#?}"
        );
        self
    }

    /// The outcomes recorded for each task, in the order of events.
    pub fn outcomes(&self) -> BTreeMap<String, Vec<String>> {
        let mut all = BTreeMap::<String, Vec<String>>::new();
        for event in self.of_kind("task_done") {
            all.entry(event["task"].to_string()).or_default().push(text(&event["outcome"]));
        }
        all
    }

    /// Events of one kind.
    pub fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["event"] == kind).collect()
    }

    /// The outcome of a target's only task.
    pub fn outcome_of(&self, target: &str) -> String {
        let done = self.of_kind("task_done");
        let found: Vec<String> = done
            .iter()
            .filter(|event| event["target"] == target)
            .map(|event| text(&event["outcome"]))
            .collect();
        assert_eq!(found.len(), 1, "one result of {target} in {self:#?}");
        found[0].clone()
    }

    /// The hosts that results came from.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> =
            self.of_kind("task_done").iter().map(|event| text(&event["host"])).collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The tasks of a result directory.
#[derive(Debug)]
pub struct Results {
    /// Directory of each task, by `<commit directory>/<target>`.
    pub tasks: BTreeMap<String, PathBuf>,
}

impl Results {
    /// Reads the layout `<nn>_of_<mm>_g<hash>_<subject>/<target>/`.
    pub fn read(out: &Path) -> Self {
        let mut tasks = BTreeMap::new();
        for commit in directories(out) {
            let name = file_name(&commit);
            if !name.contains("_of_") {
                continue;
            }
            for target in directories(&commit) {
                tasks.insert(format!("{name}/{}", file_name(&target)), target);
            }
        }
        Self { tasks }
    }

    /// The directory of a target's only task.
    pub fn only(&self, target: &str) -> &Path {
        let found: Vec<&PathBuf> = self.tasks.values().filter(|path| file_name(path) == target).collect();
        assert_eq!(found.len(), 1, "one directory of {target} in {:?}", self.tasks);
        found[0]
    }

    /// A file of a target's only task, as text.
    pub fn file(&self, target: &str, name: &str) -> String {
        read(&self.only(target).join(name))
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

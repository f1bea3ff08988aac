//! From a worker's `done` to a stored result.

use crewboss_ground::Open;
use crewboss_protocol::message::{ArtifactCount, Done, LogEnd};
use crewboss_protocol::{
    HostName, Millis, Name, Outcome, PhaseClock, Phases, RunId, StageExit, StageResult, TaskId, TaskRef,
};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::event::{Matched, TaskDone};
use crate::run::events::unix_ms;
use crate::run::plan::Plan;
use crate::run::upload::{Uploader, UploadsEnd};
use crate::store::{AttemptStory, MachineInputs, RESULT_SCHEMA, Recorded, ResultFile, Submission};

/// How much of the end of a log is shown when a task did not go well.
const TAIL_BYTES_MAX: usize = 2000;

/// Lines of it.
const TAIL_LINES_MAX: usize = 12;

/// What a result that was fetched has. Found out where the disk is waited for.
#[derive(Debug)]
pub struct Seen {
    /// The end of its log.
    pub tail: String,
    /// Whether it has uploads.
    pub uploads: bool,
}

impl Seen {
    /// Looks into the directory where a result was gathered.
    pub fn of(part: &Path) -> Self {
        let tail = last_lines(&String::from_utf8_lossy(&end_of(&part.join("log"))));
        Self { tail, uploads: Uploader::is_wanted(part) }
    }
}

/// What of a result did not come with the message that told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Length of the log in bytes, if it has to be fetched.
    pub log: Option<u64>,
    /// Length of standard error in bytes, if it has to be fetched.
    pub err: Option<u64>,
    /// The artifacts, if there are any.
    pub artifacts: Option<ArtifactCount>,
}

impl Missing {
    /// Whether all has come.
    pub fn is_none(&self) -> bool {
        *self == Self { log: None, err: None, artifacts: None }
    }
}

/// A result on its way into the result directory.
#[derive(Debug)]
pub struct Collected {
    /// What the worker said, or what is said for a task that never got that far.
    pub done: Box<Done>,
    /// Where it ran.
    pub host: Option<HostName>,
    /// Earlier attempts.
    pub earlier: Vec<AttemptStory>,
    /// What was seen where its files are gathered, once all is there.
    pub fetched: Option<Seen>,
    /// What the boss itself adds to the log.
    pub log_more: String,
    /// Goes on where the worker's has stopped.
    pub clock: PhaseClock,
}

impl Collected {
    /// What has to be fetched besides what the message holds.
    pub fn missing(&self) -> Missing {
        let missing = |log: &LogEnd| log.text.is_none().then_some(log.bytes).filter(|&bytes| bytes > 0);
        Missing {
            log: missing(&self.done.log),
            err: missing(&self.done.err),
            artifacts: Some(self.done.artifacts).filter(|count| !count.is_none()),
        }
    }

    /// Nothing more of it is done before it is stored.
    pub fn end_phases(&mut self, now: Millis) {
        self.done.phases = std::mem::take(&mut self.clock).end(now);
    }

    /// The event that announces the result once it is stored.
    pub fn event(&self, plan: &Plan) -> TaskDone {
        let done = &self.done;
        let good = done.outcome.is_good() && done.outcome != Outcome::Warning;
        TaskDone {
            task: done.at.task,
            target: plan.target(done.at.task).target.name.clone(),
            commit: plan.commit(done.at.task).short.clone(),
            attempt: done.at.attempt,
            host: self.host.clone(),
            outcome: done.outcome,
            recorded: None,
            matched: None,
            held: done.held.clone(),
            wall_ms: done.phases.own_ms(),
            phases: done.phases.clone(),
            bytes: done.log.bytes + done.artifacts.bytes,
            message: self.reason(),
            tail: if good { String::new() } else { self.tail() },
            path: plan.path(done.at.task),
        }
    }

    /// Why it ended as it did. Of a stage that failed on its own account the worker says only how
    /// it ended.
    fn reason(&self) -> String {
        let done = &self.done;
        match done.stages.last() {
            Some(last) if done.message.is_empty() && !last.exit.is_success() => {
                let meant = match last.exit {
                    StageExit::Code(127) => ", by which a shell says that a program is not there",
                    StageExit::Code(126) => ", by which a shell says that a file cannot be executed",
                    _ => "",
                };
                format!("stage {}: {}{meant}", last.name, last.exit)
            }
            _ => done.message.clone(),
        }
    }

    /// The last lines of output.
    fn tail(&self) -> String {
        match &self.done.log.text {
            _ if !self.log_more.is_empty() => last_lines(&self.log_more),
            Some(text) => last_lines(text),
            None => self.fetched.as_ref().map(|seen| seen.tail.clone()).unwrap_or_default(),
        }
    }

    /// Takes note of what became of its uploads.
    pub fn uploaded(&mut self, end: UploadsEnd) {
        self.log_more = end.output;
        self.done.stages.extend(end.stage);
        if let Some(why) = end.failure {
            self.done.outcome = Outcome::Failure;
            self.done.message = why;
        }
    }

    /// What the store needs.
    pub fn submission(self, plan: &Plan, run: &RunId, part: PathBuf) -> Submission {
        let at = self.done.at;
        let result = self.result(plan, run);
        let recorded = Recorded {
            key: result.key,
            toolchain: result.toolchain.clone(),
            machine: result.machine.as_deref().map(MachineInputs::from),
            target: result.target.clone(),
            commit: plan.commit(at.task).short.clone(),
            outcome: result.outcome,
            attempt: result.attempt,
            host: result.host.clone(),
            wall_ms: result.wall_ms,
            path: plan.path(at.task),
        };
        let text = |log: LogEnd| if log.bytes == 0 { Some(String::new()) } else { log.text };
        Submission {
            at,
            since: Instant::now(),
            result,
            recorded,
            part,
            fetched: self.fetched.is_some(),
            log: text(self.done.log),
            log_more: self.log_more,
            err: text(self.done.err),
            sizes: self.done.sizes,
        }
    }

    fn result(&self, plan: &Plan, run: &RunId) -> ResultFile {
        let (done, task) = (&self.done, self.done.at.task);
        let commit = plan.commit(task);
        ResultFile {
            schema: RESULT_SCHEMA,
            run: run.clone(),
            target: plan.target(task).target.name.clone(),
            commit: commit.id,
            subject: commit.subject.clone(),
            tree: commit.tree,
            key: plan.key(task),
            outcome: done.outcome,
            attempt: done.at.attempt,
            host: self.host.clone(),
            ended_ms: unix_ms(),
            wall_ms: done.phases.own_ms(),
            phases: done.phases.clone(),
            cpu_ms: done.stages.iter().map(|stage| stage.cpu_ms).sum(),
            rss_kib_max: done.rss_kib_max,
            stages: done.stages.clone(),
            toolchain: done.toolchain.clone(),
            machine: done.machine.clone(),
            held: done.held.clone(),
            warm: done.warm,
            log_bytes: done.log.bytes + self.log_more.len() as u64,
            err_bytes: done.err.bytes,
            artifacts: done.artifacts,
            message: done.message.clone(),
            earlier: self.earlier.clone(),
        }
    }
}

/// Adds what has been seen from here of an attempt that nobody is left to tell of: its runner or
/// its host was lost.
pub fn witness(done: &mut Done, seen: PhaseClock, now: Millis) {
    if !done.phases.is_empty() || done.outcome.is_good() {
        return;
    }
    done.phases = seen.end(now);
    let stages = done.phases.iter().filter_map(|one| Some((one.phase.stage()?, one.wall_ms)));
    // A stage begins when the one before it has ended well.
    let ended = |(name, wall_ms): (&Name, u64)| StageResult {
        name: name.clone(),
        exit: StageExit::Code(0),
        wall_ms,
        cpu_ms: 0,
    };
    done.stages = stages.map(ended).collect();
    if let Some(last) = done.stages.last_mut() {
        last.exit = if done.outcome == Outcome::Timeout { StageExit::Timeout } else { StageExit::Lost };
    }
}

/// The result of a task that no attempt could complete.
pub fn given_up(at: TaskRef, message: String) -> Box<Done> {
    Box::new(Done::bare(at, Outcome::Infrastructure, message))
}

/// The event for a task whose recorded result stands.
pub fn skipped(plan: &Plan, task: TaskId, record: &Recorded) -> TaskDone {
    TaskDone {
        task,
        target: plan.target(task).target.name.clone(),
        commit: plan.commit(task).short.clone(),
        attempt: record.attempt,
        host: record.host.clone(),
        outcome: Outcome::Skipped,
        recorded: Some(record.outcome),
        matched: Some(Box::new(Matched {
            tree: plan.commit(task).tree,
            key: record.key,
            toolchain: record.toolchain.clone(),
            machine: record.machine.clone(),
        })),
        held: None,
        wall_ms: record.wall_ms,
        phases: Phases::default(),
        bytes: 0,
        message: String::new(),
        tail: String::new(),
        path: record.path.clone(),
    }
}

fn end_of(path: &Path) -> Vec<u8> {
    let read = || {
        let mut file = Open::read().path(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX as u64)))?;
        let mut end = Vec::new();
        file.take(TAIL_BYTES_MAX as u64).read_to_end(&mut end)?;
        std::io::Result::Ok(end)
    };
    // Only a courtesy: the whole log is in the result directory.
    read().unwrap_or_default()
}

fn last_lines(text: &str) -> String {
    let text = text.trim_end();
    let mut from = text.len().saturating_sub(TAIL_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let text = &text[from..];
    let begin = text.rmatch_indices('\n').nth(TAIL_LINES_MAX - 1).map_or(0, |(at, _)| at + 1);
    text[begin..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_protocol::Phase;
    #[test]
    fn a_lost_runner_leaves_the_stages_that_were_seen_to_begin() {
        let phases = || {
            let mut seen = PhaseClock::default();
            for (ms, phase) in [(0, Phase::Booting), (30, stage("a")), (50, stage("b"))] {
                seen.begin(phase, Millis(ms));
            }
            seen
        };
        for (outcome, exit) in
            [(Outcome::Infrastructure, StageExit::Lost), (Outcome::Timeout, StageExit::Timeout)]
        {
            let mut done = given_up("1.1".parse().unwrap(), String::new());
            done.outcome = outcome;
            witness(&mut done, phases(), Millis(80));
            let stages: Vec<(&str, StageExit)> =
                done.stages.iter().map(|stage| (stage.name.as_str(), stage.exit)).collect();
            assert_eq!(stages, [("a", StageExit::Code(0)), ("b", exit)]);
            assert_eq!((done.stages[0].wall_ms, done.phases.len()), (20, 3));
            let told = done.clone();
            witness(&mut done, PhaseClock::default(), Millis(90));
            assert_eq!(done, told, "what was told counts");
        }
    }

    fn stage(name: &str) -> Phase {
        Phase::Stage(name.parse().unwrap())
    }

    #[test]
    fn the_tail_is_short_and_never_cuts_a_character() {
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let tail = last_lines(&many);
        assert_eq!(tail.lines().count(), TAIL_LINES_MAX);
        assert!(tail.starts_with("line 88\n") && tail.ends_with("line 99"));
        assert!(last_lines(&"ü".repeat(3000)).len() <= TAIL_BYTES_MAX);
        assert_eq!(last_lines("one\n"), "one");
        assert_eq!(last_lines(""), "");
    }
}

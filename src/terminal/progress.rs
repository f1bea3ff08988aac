//! The state of a run as the event stream tells it. Terminal and plain output both read it; it
//! formats nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crewboss_boss::event::{Event, EventKind, TaskDone};
use crewboss_protocol::{HostName, Name, Outcome, Phase, TaskRef};

/// How far a run is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Tasks of the plan.
    pub total: u32,
    /// Results by kind.
    pub tally: Tally,
    /// Tasks that ran in this run and have a result: not those done before, nor those that nobody
    /// could take.
    pub ran: u32,
    /// Bytes brought back.
    pub bytes: u64,
    /// When the run started, in the events' time.
    pub started_ms: u64,
    /// The time of the last event.
    pub now_ms: u64,
    /// The hosts.
    pub hosts: BTreeMap<HostName, HostProgress>,
    /// Whether the run is being stopped.
    pub stopping: bool,
}

/// Results of a run or a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Success.
    pub ok: u32,
    /// Warning.
    pub warn: u32,
    /// Everything else that is a result.
    pub fail: u32,
    /// Those that were cancelled, and have none.
    pub cancelled: u32,
}

/// Those of the last kind are named only where there are any.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ok {}  warn {}  fail {}", self.ok, self.warn, self.fail)?;
        if self.cancelled > 0 { write!(f, "  cancelled {}", self.cancelled) } else { Ok(()) }
    }
}

impl Tally {
    /// All of them.
    pub fn done(self) -> u32 {
        self.ok + self.warn + self.fail + self.cancelled
    }

    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Success | Outcome::Skipped => self.ok += 1,
            Outcome::Warning => self.warn += 1,
            Outcome::Cancelled => self.cancelled += 1,
            _ => self.fail += 1,
        }
    }
}

/// How a host is doing.
#[derive(Debug, Default)]
pub struct HostProgress {
    /// What it is up to.
    pub state: HostState,
    /// Its slots.
    pub slots: u32,
    /// What came from it.
    pub tally: Tally,
    /// What runs there.
    pub running: BTreeMap<TaskRef, Running>,
}

/// What a host is up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostState {
    /// Being connected.
    #[default]
    Connecting,
    /// It takes tasks.
    Ready,
    /// It gets no tasks for a while.
    Paused,
    /// Its session ended; it is tried again.
    Lost,
    /// It is out of the run.
    Failed,
}

impl HostState {
    /// The word on the screen.
    pub fn word(self) -> &'static str {
        match self {
            HostState::Connecting => "connecting",
            HostState::Ready => "ready",
            HostState::Paused => "paused",
            HostState::Lost => "lost",
            HostState::Failed => "out",
        }
    }
}

/// A task that runs.
#[derive(Debug)]
pub struct Running {
    /// Its target.
    pub target: Name,
    /// The short id of its commit.
    pub commit: Arc<str>,
    /// What it is at, as soon as that is said.
    pub phase: Option<Phase>,
}

/// The task, and what it is at.
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.target, self.commit)?;
        self.phase.as_ref().map_or(Ok(()), |phase| write!(f, " {phase}"))
    }
}

impl Progress {
    /// Takes note of an event.
    pub fn note(&mut self, event: &Event) {
        self.now_ms = self.now_ms.max(event.time_ms);
        match &event.kind {
            EventKind::RunStarted { tasks, hosts, .. } => {
                self.total = *tasks;
                self.started_ms = event.time_ms;
                self.hosts = hosts.iter().map(|host| (host.clone(), HostProgress::default())).collect();
            }
            EventKind::TaskDone(done) => self.done(done),
            EventKind::Stopping { .. } => self.stopping = true,
            kind => self.note_host(kind),
        }
    }

    fn note_host(&mut self, kind: &EventKind) {
        match kind {
            EventKind::HostConnecting { host } => self.enter(host, HostState::Connecting),
            EventKind::HostReady { host, slots, .. } => {
                self.enter(host, HostState::Ready);
                self.with(host, |state| state.slots = *slots);
            }
            EventKind::HostLost { host, .. } => self.enter(host, HostState::Lost),
            EventKind::HostFailed { host, .. } => self.enter(host, HostState::Failed),
            EventKind::HostPaused { host, .. } => self.with(host, |state| state.state = HostState::Paused),
            EventKind::TaskStarted { host, at, target, commit } => self.with(host, |state| {
                // A task on a paused host is the one by which it proves itself.
                state.state = HostState::Ready;
                let running = Running { target: target.clone(), commit: Arc::clone(commit), phase: None };
                state.running.insert(*at, running);
            }),
            EventKind::TaskPhase { host, at, phase, .. } => self.with(host, |state| {
                if let Some(running) = state.running.get_mut(at) {
                    running.phase = Some(phase.clone());
                }
            }),
            EventKind::TaskRetried { host, at, .. } => self.with(host, |state| {
                state.running.remove(at);
            }),
            _ => {}
        }
    }

    fn with(&mut self, host: &HostName, change: impl FnOnce(&mut HostProgress)) {
        if let Some(state) = self.hosts.get_mut(host) {
            change(state);
        } else {
            change(self.hosts.entry(host.clone()).or_default());
        }
    }

    /// A new state of a session: nothing of the old one runs any more.
    fn enter(&mut self, host: &HostName, new: HostState) {
        self.with(host, |state| {
            state.state = new;
            state.running.clear();
        });
    }

    fn done(&mut self, done: &TaskDone) {
        let outcome = if done.outcome == Outcome::Skipped {
            done.recorded.unwrap_or(Outcome::Success)
        } else {
            done.outcome
        };
        self.tally.count(outcome);
        self.ran += u32::from(done.attempt.0 > 0 && done.outcome != Outcome::Skipped);
        self.bytes = self.bytes.saturating_add(done.bytes);
        if let Some(host) = &done.host {
            self.with(host, |state| {
                state.running.remove(&TaskRef { task: done.task, attempt: done.attempt });
                if done.outcome != Outcome::Skipped {
                    state.tally.count(done.outcome);
                }
            });
        }
    }

    /// Time since the start, in milliseconds.
    pub fn elapsed_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.started_ms)
    }

    /// The time that the rest will take if it goes on like this, in milliseconds; unknown before
    /// the first result.
    pub fn remaining_ms(&self) -> Option<u64> {
        let left = u64::from(self.total.saturating_sub(self.tally.done()));
        self.elapsed_ms().saturating_mul(left).checked_div(u64::from(self.ran))
    }

    /// Tasks that run now.
    pub fn running(&self) -> usize {
        self.hosts.values().map(|host| host.running.len()).sum()
    }

    /// What they are at, and how many of them; what most are at first.
    pub fn phases(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let running = self.hosts.values().flat_map(|host| host.running.values());
        for phase in running.filter_map(|task| task.phase.as_ref()) {
            *counts.entry(phase.to_string()).or_default() += 1;
        }
        let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::{host, run};

    #[test]
    fn a_run_is_followed_from_its_events() {
        let mut progress = Progress::default();
        for event in run() {
            progress.note(&event);
        }
        assert_eq!((progress.total, progress.tally.done(), progress.ran), (6, 6, 4));
        assert_eq!(progress.tally, Tally { ok: 2, warn: 1, fail: 3, cancelled: 0 });
        assert_eq!(progress.running(), 0);
        assert_eq!(progress.hosts[&host("lab2")].state, HostState::Failed);
        assert_eq!(progress.remaining_ms(), Some(0));
    }

    #[test]
    fn nothing_is_known_of_the_end_before_the_first_result() {
        let mut progress = Progress::default();
        progress.note(&run()[0]);
        assert_eq!(progress.remaining_ms(), None);
    }
}

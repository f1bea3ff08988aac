//! A worker with its real core. What it asks for takes time and may fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crewboss_protocol::message::Done;
use crewboss_protocol::{FromWorker, Outcome, TaskRef};
use crewboss_worker::core::state::{Action, Core, Event};

/// What a host is like.
#[derive(Debug, Clone)]
pub struct Model {
    pub slots: u32,
    pub speed: u32,
    /// One way, in milliseconds.
    pub latency: u64,
    /// Per mille of attempts that the host fails.
    pub fails: u32,
    /// Per mille of environments that cannot be made.
    pub refuses: u32,
    /// Per mille of runners that die.
    pub runners_die: u32,
}

/// One session's worker.
pub struct Worker {
    core: Core,
    slots: u32,
    /// Environments that are there.
    pub prepared: BTreeSet<TaskRef>,
    pub running: BTreeMap<usize, TaskRef>,
    pub cancelled: BTreeSet<TaskRef>,
    /// What runners have left to be reported.
    results: BTreeMap<TaskRef, Box<Done>>,
    /// Long logs, as long as their environment is there.
    pub logs: BTreeMap<TaskRef, String>,
}

/// What takes time.
#[derive(Debug)]
pub enum Asked {
    Say(FromWorker),
    Alive(u64),
    Prepare(TaskRef),
    Run { runner: usize, at: TaskRef },
    Cancel { runner: usize, at: TaskRef },
    EndRunner { runner: usize, outcome: Outcome, text: String },
    Keep(TaskRef),
    Slots(u32),
    Exit,
}

impl Worker {
    pub fn new(core: Core, slots: u32) -> Self {
        Self {
            core,
            slots,
            prepared: BTreeSet::new(),
            running: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            results: BTreeMap::new(),
            logs: BTreeMap::new(),
        }
    }

    pub fn deadline(&self) -> Instant {
        self.core.deadline()
    }

    /// A runner has ended, and leaves a result.
    pub fn leave(&mut self, done: Box<Done>, log: Option<String>) {
        self.logs.extend(log.map(|log| (done.at, log)));
        self.results.insert(done.at, done);
    }

    /// Whether nothing is left of any attempt.
    pub fn is_empty(&self) -> bool {
        self.prepared.is_empty() && self.running.is_empty() && self.results.is_empty() && self.logs.is_empty()
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Asked> {
        let mut actions = Vec::new();
        self.core.handle(event, now, &mut actions);
        actions.into_iter().filter_map(|action| self.act(action)).collect()
    }

    fn act(&mut self, action: Action) -> Option<Asked> {
        Some(match action {
            Action::Send(message) => Asked::Say(message),
            Action::Alive(number) => Asked::Alive(number),
            Action::Prepare { order, .. } => Asked::Prepare(order.at),
            Action::Run { runner, order, .. } => {
                assert!(self.prepared.contains(&order.at), "{} runs without an environment", order.at);
                assert!(self.running.insert(runner, order.at).is_none(), "runner {runner} runs two");
                assert!(self.running.len() <= self.slots as usize, "more tasks run than there are slots");
                Asked::Run { runner, at: order.at }
            }
            Action::CancelRun { runner, at } => {
                self.cancelled.insert(at);
                Asked::Cancel { runner, at }
            }
            Action::EndRunner { runner, outcome, text } => Asked::EndRunner { runner, outcome, text },
            Action::Keep { at, .. } => Asked::Keep(at),
            Action::Report { at } => Asked::Say(FromWorker::Done(self.results.remove(&at)?)),
            Action::Forget { at } => {
                self.results.remove(&at);
                return None;
            }
            Action::Remove { at } => {
                assert!(self.prepared.remove(&at), "{at} has no environment");
                assert!(!self.running.values().any(|running| *running == at), "{at} runs without it");
                self.logs.remove(&at);
                return None;
            }
            Action::Slots { want } => Asked::Slots(want),
            Action::Bootstrap { order, .. } => unreachable!("nobody orders {}", order.at),
            Action::Exit => Asked::Exit,
        })
    }
}

//! Bootstraps that a person asked for: they wait for a slot as tasks do, but need neither source
//! nor environment, and leave nothing that has to be collected.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crewboss_protocol::limits::QUEUED_TASKS_MAX;
use crewboss_protocol::message::{BootstrapEnd, BootstrapOrder, Refusal};
use crewboss_protocol::{FromWorker, TaskRef};

use super::{Action, Core};

/// Those that wait, and those that run.
#[derive(Debug, Default)]
pub(super) struct Bootstraps {
    waiting: VecDeque<BootstrapOrder>,
    running: BTreeMap<TaskRef, usize>,
}

impl Bootstraps {
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn has(&self, at: TaskRef) -> bool {
        self.running.contains_key(&at) || self.waiting.iter().any(|order| order.at == at)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (TaskRef, usize)> {
        self.running.iter().map(|(at, runner)| (*at, *runner))
    }

    /// Takes back one that has not started.
    pub(super) fn withdraw(&mut self, at: TaskRef) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|order| order.at != at);
        self.waiting.len() < before
    }

    pub(super) fn start(&mut self, runner: usize) -> Option<BootstrapOrder> {
        let order = self.waiting.pop_front()?;
        self.running.insert(order.at, runner);
        Some(order)
    }

    /// Forgets one that ran; says whether there was one.
    pub(super) fn ended(&mut self, at: TaskRef) -> bool {
        self.running.remove(&at).is_some()
    }

    /// Forgets the one that ran in a runner that is gone.
    pub(super) fn lost(&mut self, runner: usize) -> Option<TaskRef> {
        let at = *self.running.iter().find(|(_, other)| **other == runner)?.0;
        self.running.remove(&at);
        Some(at)
    }
}

impl Core {
    pub(super) fn order_bootstrap(&mut self, order: BootstrapOrder, actions: &mut Vec<Action>) {
        let at = order.at;
        let refused = if let Err(refused) = self.check_order(at) {
            Some(refused)
        } else if self.bootstraps.waiting() >= QUEUED_TASKS_MAX {
            Some((Refusal::QueueFull, format!("{QUEUED_TASKS_MAX} bootstraps wait already")))
        } else {
            None
        };
        match refused {
            Some((reason, text)) => actions.push(Action::Send(FromWorker::Refused { at, reason, text })),
            None => self.bootstraps.waiting.push_back(order),
        }
    }

    /// Stops one, wherever it stands; says whether there is one.
    pub(super) fn cancel_bootstrap(&mut self, at: TaskRef, now: Instant, actions: &mut Vec<Action>) -> bool {
        if let Some(runner) = self.bootstraps.running.get(&at) {
            self.promises.cancel(*runner, now);
            actions.push(Action::CancelRun { runner: *runner, at });
            true
        } else if self.bootstraps.withdraw(at) {
            let end = BootstrapEnd::Cancelled;
            actions.push(Action::Send(FromWorker::Bootstrapped { at, end }));
            true
        } else {
            false
        }
    }
}

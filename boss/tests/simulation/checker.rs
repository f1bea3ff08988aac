//! What must hold after every step, checked from outside: from the actions alone and the
//! scheduler's public predicate.

use std::collections::{BTreeMap, BTreeSet};

use crewboss_boss::scheduler::{Action, Counts, HostIndex, Scheduler};
use crewboss_protocol::{Attempt, TaskId, TaskRef};

/// The end of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Accepted,
    GivenUp,
}

/// Follows a scheduler.
#[derive(Debug, Default)]
pub struct Checker {
    pub tasks: BTreeSet<TaskId>,
    pub ends: BTreeMap<TaskId, End>,
    /// The live attempt of each task that is out.
    pub live: BTreeMap<TaskId, (HostIndex, TaskRef)>,
    attempts: BTreeMap<TaskId, Attempt>,
    recalled: BTreeSet<TaskRef>,
    pub stopped: bool,
}

impl Checker {
    /// Takes note of actions, and checks each.
    pub fn actions(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Send { host, at } => self.send(*host, *at),
                Action::Recall { host, tasks } => {
                    assert!(!tasks.is_empty());
                    for at in tasks {
                        assert!(self.recalled.insert(*at), "{at} was recalled twice");
                        assert_eq!(self.live.get(&at.task), Some(&(*host, *at)), "{at} is not there");
                    }
                }
                Action::Accept { host, at } => {
                    assert_eq!(
                        self.live.remove(&at.task),
                        Some((*host, *at)),
                        "{at} was accepted and not out"
                    );
                    self.end(at.task, End::Accepted);
                }
                Action::GiveUp { task, .. } => {
                    self.live.remove(task);
                    self.end(*task, End::GivenUp);
                }
                Action::Retry { host, at, .. } => {
                    if let Some(live) = self.live.remove(&at.task) {
                        assert_eq!(live, (*host, *at));
                    }
                }
                Action::Cancel { .. }
                | Action::Pause { .. }
                | Action::EndSession { .. }
                | Action::Out { .. } => {}
            }
        }
    }

    fn send(&mut self, host: HostIndex, at: TaskRef) {
        assert!(!self.stopped, "{at} was sent after the stop");
        assert!(self.tasks.contains(&at.task), "{at} was never added");
        assert!(!self.ends.contains_key(&at.task), "{at} was sent after its end");
        let old = self.attempts.insert(at.task, at.attempt);
        assert!(old.is_none_or(|old| old < at.attempt), "attempt of {at} is not above {old:?}");
        let live = self.live.insert(at.task, (host, at));
        assert!(live.is_none(), "{at} was sent while {live:?} is out");
    }

    fn end(&mut self, task: TaskId, end: End) {
        assert_eq!(self.ends.insert(task, end), None, "{task} ended twice");
    }

    /// An attempt is out no more, without an action: given back, or lost before its start.
    pub fn gone(&mut self, at: TaskRef) {
        if self.live.get(&at.task).is_some_and(|(_, live)| *live == at) {
            self.live.remove(&at.task);
        }
    }

    /// An accepted result was lost.
    pub fn reopen(&mut self, task: TaskId) {
        assert_eq!(self.ends.remove(&task), Some(End::Accepted));
    }

    /// What holds between two inputs.
    pub fn rest(&self, scheduler: &Scheduler, hosts: u32) {
        let counts = scheduler.counts();
        self.conserved(&counts);
        let mut held: BTreeMap<HostIndex, u32> = BTreeMap::new();
        self.live.values().for_each(|(host, _)| *held.entry(*host).or_default() += 1);
        let waiting: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|task| !self.ends.contains_key(task) && !self.live.contains_key(task))
            .copied()
            .collect();
        for host in (0..hosts).map(HostIndex) {
            let view = scheduler.host_view(host).unwrap();
            let held = held.get(&host).copied().unwrap_or(0);
            assert_eq!(view.running + view.sent, held, "{host:?} is thought to hold another number");
            if self.stopped || held >= view.capacity {
                continue;
            }
            for task in &waiting {
                let can = scheduler.can_take(host, *task);
                assert!(can.is_err(), "{host:?} idles ({view:?}) while task {task} waits");
            }
        }
    }

    fn conserved(&self, counts: &Counts) {
        let sum = counts.waiting + counts.sent + counts.running;
        assert_eq!(sum + counts.done + counts.given_up + counts.withdrawn, counts.total, "{counts:?}");
        let count = |end| self.ends.values().filter(|e| **e == end).count();
        assert_eq!(counts.total as usize, self.tasks.len());
        assert_eq!(counts.done as usize, count(End::Accepted), "{counts:?}");
        assert_eq!(counts.given_up as usize, count(End::GivenUp), "{counts:?}");
        assert_eq!(counts.withdrawn, 0, "nothing is withdrawn in these worlds");
        assert_eq!((counts.sent + counts.running) as usize, self.live.len(), "{counts:?}");
    }
}

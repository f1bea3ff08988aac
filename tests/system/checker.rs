//! The judge: knows what runners have left, what the store was given and what people were told, and
//! nothing of how it was decided.

use std::collections::{BTreeMap, BTreeSet};

use crewboss_boss::event::TaskDone;
use crewboss_boss::run::Collected;
use crewboss_boss::scheduler::HostIndex;
use crewboss_protocol::{Outcome, TaskId, TaskRef};

/// What a runner has left of an attempt on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub outcome: Outcome,
    /// What its log says, which no other attempt's does.
    pub log: String,
}

#[derive(Debug, Default)]
pub struct Checker {
    /// By attempt and host, what was left there.
    left: BTreeMap<(TaskRef, u32), Vec<Left>>,
    /// What workers were told to forget.
    forgotten: BTreeSet<(TaskRef, u32)>,
    /// Results that the store was given, and those that are in place.
    given: BTreeMap<TaskId, TaskRef>,
    stored: BTreeMap<TaskId, TaskRef>,
    announced: BTreeMap<TaskId, Outcome>,
    /// Attempts whose uploads were handed over, and whether that failed.
    uploads: BTreeMap<TaskRef, bool>,
    /// Tasks that have uploads.
    pub uploading: BTreeSet<TaskId>,
}

impl Checker {
    pub fn left(&mut self, host: u32, at: TaskRef, left: Left) {
        self.left.entry((at, host)).or_default().push(left);
    }

    pub fn forget(&mut self, host: HostIndex, at: TaskRef) {
        self.forgotten.insert((at, host.0));
    }

    /// The store is given a result, with a log that has come with it or was fetched.
    pub fn give(&mut self, collected: &Collected, host: Option<u32>, log: Option<&str>) {
        let (at, outcome) = (collected.done.at, collected.done.outcome);
        let known = self.given.get(&at.task);
        assert!(known.is_none(), "{at} is stored, and {known:?} was");
        self.given.insert(at.task, at);
        let Some(host) = host.filter(|_| outcome != Outcome::Infrastructure) else { return };
        assert!(!self.forgotten.contains(&(at, host)), "{at} was forgotten on {host} before it is stored");
        let left = self.left.get(&(at, host)).map_or(&[][..], Vec::as_slice);
        let failed = self.uploads.get(&at).copied();
        let on_host = if failed == Some(true) { Outcome::Success } else { outcome };
        let is_it = |left: &Left| left.outcome == on_host && log.is_none_or(|log| log == left.log);
        assert!(left.iter().any(is_it), "{at} is {outcome} with {log:?}; left there: {left:?}");
        // Only what was fetched can have any.
        if collected.fetched.is_some() && outcome.is_good() && self.uploading.contains(&at.task) {
            assert_eq!(failed, Some(false), "the uploads of {at} were not handed over");
        }
    }

    pub fn uploaded(&mut self, at: TaskRef, failed: bool) {
        self.uploads.insert(at, failed);
    }

    pub fn store(&mut self, at: TaskRef) {
        assert_eq!(self.given.get(&at.task), Some(&at));
        assert_eq!(self.stored.insert(at.task, at), None, "{at} is stored twice");
    }

    pub fn announce(&mut self, done: &TaskDone, now: u64) {
        let at = TaskRef { task: done.task, attempt: done.attempt };
        assert_eq!(self.stored.get(&at.task), Some(&at), "{at} is announced and not in place");
        let known = self.announced.insert(done.task, done.outcome);
        assert_eq!(known, None, "task {} has ended twice", done.task);
        assert!(done.phases.total_ms() <= now + 1, "{at} took {:?} by {now} ms", done.phases);
    }

    pub fn announced(&self) -> usize {
        self.announced.len()
    }

    /// Outcomes of a run that came to its end.
    pub fn outcomes(&self) -> &BTreeMap<TaskId, Outcome> {
        &self.announced
    }

    /// What holds of a run that was stopped, or has ended: all that is in place was announced.
    pub fn finish(&self) {
        let untold: Vec<_> = self.stored.keys().filter(|task| !self.announced.contains_key(task)).collect();
        assert!(untold.is_empty(), "stored and not announced: {untold:?}");
    }
}

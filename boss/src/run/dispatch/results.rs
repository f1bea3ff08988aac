//! Results: from a worker's word that an attempt has ended to the announcement of what is stored.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crewboss_protocol::message::{Cause, Done};
use crewboss_protocol::{HostName, Outcome, Phase, PhaseClock, TaskId, TaskRef, ToWorker};

use super::super::collect::{Collected, Seen, given_up, witness};
use super::super::hosts::Order;
use super::super::session_error::stood_still;
use super::super::site::LOG_SLACK;
use super::super::upload::{UploadJob, UploadsEnd, stage_name};
use super::{Dispatcher, Storing};
use crate::event::{EventKind, Stopped};
use crate::scheduler::{Ended, GiveUp, HostIndex, Input, Unfit};
use crate::store::AttemptStory;

impl Dispatcher {
    pub(super) fn follow(&mut self, host: HostIndex, at: TaskRef) {
        if self.scheduler.holds(host, at) && self.following.insert(at, host).is_none() {
            self.hosts[host.0 as usize].order(Order::Follow { at, part: self.out.part(at) });
        }
    }

    /// An attempt has ended. If the scheduler wants its result, [`Self::accept`] follows; else it
    /// is thrown away.
    pub(super) fn done(&mut self, host: HostIndex, mut done: Box<Done>) {
        let at = done.at;
        if let Some(seen) = self.seen.remove(&at) {
            witness(&mut done, seen);
        }
        let ended = match Ended::of(&done) {
            Ended::Cancelled { why, .. } => self.cancelled(host, why),
            ended => ended,
        };
        self.ended.insert(at, done);
        self.input(Input::Ended { host, at, ended });
        if self.ended.remove(&at).is_some() {
            self.discard(host, at);
        }
    }

    /// An attempt was stopped, and not by us: its worker ends. It may be that it had not heard us
    /// for too long.
    fn cancelled(&self, host: HostIndex, otherwise: String) -> Ended {
        let ending = self.hosts[host.0 as usize].ending.as_ref();
        match self.awake.explains() {
            Some(stood) => Ended::Cancelled { why: stood_still(stood), ours: true },
            None => Ended::Cancelled { why: ending.map_or(otherwise, |why| why.to_string()), ours: false },
        }
    }

    /// Nothing of this attempt is wanted. If the host says it a second time, the first result is
    /// still on its way.
    fn discard(&mut self, host: HostIndex, at: TaskRef) {
        if self.fetching.contains_key(&at) {
            return;
        }
        if self.following.get(&at) == Some(&host) {
            self.following.remove(&at);
            self.hosts[host.0 as usize].order(Order::Abandon { at, part: self.out.part(at) });
        }
        self.send(host, ToWorker::Collected { at });
    }

    pub(super) fn accept(&mut self, host: HostIndex, at: TaskRef) {
        let Some(mut done) = self.ended.remove(&at) else { return };
        if done.cause == Cause::Killed {
            done.outcome = Outcome::Abnormal;
            for one in self.stories.get(&at.task).into_iter().flatten() {
                done.message += &format!("\nattempt {} on {}: {}", one.attempt, one.host, one.reason);
            }
        }
        self.take(host, done);
    }

    /// Brings what is still on the host, then has it stored.
    fn take(&mut self, host: HostIndex, done: Box<Done>) {
        let at = done.at;
        let refused = self.refuse(&done);
        let mut collected = self.collected(Some(self.name(host)), done);
        if let Some(reason) = refused {
            return self.result_lost(host, collected, reason);
        }
        let fetch = collected.fetch();
        if fetch.is_empty() && !self.following.contains_key(&at) {
            self.submit(Some((host, at)), collected);
        } else {
            self.begin_here(host, &mut collected, Phase::Collecting);
            self.hosts[host.0 as usize].order(Order::Fetch(fetch));
            self.fetching.insert(at, (host, collected));
        }
    }

    /// A worker of ours has seen to the limits. One that has not is not asked for the rest.
    fn refuse(&self, done: &Done) -> Option<String> {
        let longest = self.limits.log_bytes.saturating_add(LOG_SLACK);
        let too_long = done.log.bytes > longest || done.err.bytes > longest;
        let log = too_long.then(|| self.limits.refuse_log());
        log.or_else(|| self.limits.refuse(done.artifacts))
    }

    fn collected(&mut self, host: Option<HostName>, mut done: Box<Done>) -> Collected {
        let (earlier, part) =
            (self.stories.get(&done.at.task).cloned().unwrap_or_default(), self.out.part(done.at));
        let mut phases = std::mem::take(&mut done.phases);
        // What the host does not know of, it has waited for.
        let since = self.requeued.remove(&done.at.task).unwrap_or_default();
        let whole = self.events.now().0.saturating_sub(since.0);
        phases.add_waiting(Duration::from_millis(whole.saturating_sub(phases.total_ms())));
        let clock = PhaseClock::after(phases);
        Collected { done, host, earlier, part, fetched: None, log_more: String::new(), clock }
    }

    /// What is done with a result here begins.
    fn begin_here(&mut self, host: HostIndex, collected: &mut Collected, phase: Phase) {
        collected.clock.begin(phase.clone(), Instant::now());
        self.tell_phase(host, collected.done.at, phase, String::new());
    }

    pub(super) fn fetched(&mut self, at: TaskRef, seen: Seen) {
        self.following.remove(&at);
        if let Some((host, mut collected)) = self.fetching.remove(&at) {
            let uploads = seen.uploads && collected.done.outcome.is_good();
            collected.fetched = Some(seen);
            if !uploads {
                self.submit(Some((host, at)), collected);
            } else if self.stopped.is_none() {
                self.upload(host, collected);
            }
        }
    }

    /// A failed upload is a failed task, so the result is not stored before its uploads are where
    /// they belong.
    fn upload(&mut self, host: HostIndex, mut collected: Collected) {
        let at = collected.done.at;
        if let Some(stage) = stage_name() {
            self.begin_here(host, &mut collected, Phase::Stage(stage));
        }
        let target = self.plan.target(at.task).target.name.clone();
        let (commit, part) = (self.plan.commit(at.task).id, collected.part.clone());
        self.uploading.insert(at, (host, collected));
        self.uploader.start(UploadJob { at, target, commit, part });
    }

    /// Takes what became of a result's uploads.
    pub fn uploaded(&mut self, at: TaskRef, end: UploadsEnd) {
        if let Some((host, mut collected)) = self.uploading.remove(&at) {
            collected.uploaded(end);
            self.submit(Some((host, at)), collected);
        }
    }

    pub(super) fn fetch_failed(&mut self, host: HostIndex, at: TaskRef, reason: String, at_boss: bool) {
        self.following.remove(&at);
        let wanted = self.fetching.remove(&at);
        if at_boss {
            self.stop(Stopped::Error(reason));
        } else if let Some((_, collected)) = wanted {
            self.result_lost(host, collected, reason);
        }
    }

    /// What was to be fetched cannot be: the task is tried again, unless it was given up already.
    pub(super) fn result_lost(&mut self, host: HostIndex, collected: Collected, reason: String) {
        let at = collected.done.at;
        if collected.done.outcome == Outcome::Infrastructure {
            let done = given_up(at, collected.done.message);
            self.submit(None, Collected { done, ..collected });
        } else {
            self.input(Input::ResultLost { host, at, reason });
        }
    }

    pub(super) fn submit(&mut self, source: Option<(HostIndex, TaskRef)>, mut collected: Collected) {
        let (task, since) = (collected.done.at.task, Instant::now());
        collected.end_phases(since);
        if let Some((host, at)) = source {
            self.tell_phase(host, at, Phase::Storing, String::new());
        }
        let announce = collected.event(&self.plan);
        let submission = collected.submission(&self.plan, &self.run, &announce.path, since);
        self.stories.remove(&task);
        if self.store.submit(submission) {
            self.storing.insert(task, Storing { announce, source, since });
        }
    }

    pub(super) fn give_up(&mut self, task: TaskId, why: &GiveUp, story: Vec<crate::scheduler::AttemptStory>) {
        let attempt = story.last().map_or(crewboss_protocol::Attempt(0), |last| last.attempt);
        let at = TaskRef { task, attempt };
        let story_host = story.last().map(|last| last.host);
        let mut message = why.to_string();
        if let GiveUp::Impossible(reasons) = why {
            let reasons = self.reasons(reasons);
            message += &reasons.iter().map(|(host, why)| format!("\n{host}: {why}")).collect::<String>();
            self.name_impossible(task, reasons);
        }
        let earlier: Vec<AttemptStory> = story
            .into_iter()
            .map(|one| AttemptStory { attempt: one.attempt, host: self.name(one.host), reason: one.reason })
            .collect();
        for one in &earlier {
            message += &format!("\nattempt {} on {}: {}", one.attempt, one.host, one.reason);
        }
        let last = story_host.and_then(|host| Some((host, self.ended.remove(&at)?)));
        self.stories.insert(task, earlier);
        match last {
            // What the last attempt has left says more than any message: its log, the console of
            // its guest.
            Some((host, done)) => {
                self.take(host, Box::new(Done { outcome: Outcome::Infrastructure, message, ..*done }));
            }
            None => {
                let mut done = given_up(at, message);
                if let Some(seen) = self.seen.remove(&at) {
                    witness(&mut done, seen);
                }
                let collected = self.collected(story_host.map(|host| self.name(host)), done);
                self.submit(None, collected);
            }
        }
    }

    fn reasons(&self, reasons: &[Unfit]) -> BTreeMap<HostName, String> {
        self.hosts.iter().zip(reasons).map(|(host, why)| (host.name.clone(), why.to_string())).collect()
    }

    /// Says once per target that no host can take its tasks.
    fn name_impossible(&mut self, task: TaskId, reasons: BTreeMap<HostName, String>) {
        let index = self.plan.target_index(task);
        if self.impossible.insert(index) {
            let target = self.plan.target(task).target.name.clone();
            let tasks = u32::try_from(self.plan.commits().len()).unwrap_or(u32::MAX);
            self.events.emit(EventKind::TasksImpossible { target, tasks, reasons });
        }
    }
}

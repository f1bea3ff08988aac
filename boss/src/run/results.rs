//! Results, from a worker's word that an attempt has ended to the announcement of what is stored.
//!
//! Pure: no clock, no I/O. [`Results::handle`] takes something that happened, and the time, and
//! says what is to be done. It has no opinion on which result counts: that is the scheduler's.
//!
//! ```text
//! running -> judging -> fetching -> uploading -> storing -> announced
//!               |          |           |
//!               |          |           '-> dropped, if the run is stopped: it is built again
//!               |          '-> lost: the scheduler hears of it, and has the task tried again
//!               '-> discarded: the scheduler does not want it
//! ```
//!
//! **What always holds.** A worker is told to forget an attempt once its result is in place or
//! discarded, never before. A task is announced once, after its result is in the journal.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::message::{Cause, Done, LogEnd, TaskLimits};
use crewboss_protocol::{Attempt, HostName, Millis, Outcome, Phase, PhaseClock, TaskId, TaskRef};

use super::collect::{Collected, Missing, Seen, given_up, witness};
use super::plan::Plan;
use super::site::LOG_SLACK;
use super::upload::{UploadsEnd, stage_name};
use crate::event::TaskDone;
use crate::scheduler::{self, HostIndex};
use crate::store::AttemptStory;

/// Something that happened. What hosts say is checked before: of an attempt that the scheduler
/// holds to be at that host, unless an event says something else.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named by the sentences")]
pub enum Event {
    /// An attempt is at something.
    Seen { host: HostIndex, at: TaskRef, phase: Phase },
    /// The log of an attempt has grown beyond what a message can hold.
    LongLog { host: HostIndex, at: TaskRef },
    /// An attempt has ended. The scheduler is asked next, and [`Event::Judged`] follows.
    Ended { host: HostIndex, done: Box<Done> },
    /// An attempt has ended that is not, or no longer, at that host.
    Stray { host: HostIndex, at: TaskRef },
    /// The scheduler wants the result.
    Accepted { at: TaskRef },
    /// The attempt has failed, and its task is queued again.
    Retried { host: HostIndex, at: TaskRef, reason: String },
    /// A task is not tried any more.
    GivenUp { task: TaskId, message: String, story: Vec<scheduler::AttemptStory> },
    /// The scheduler has been asked. What it does not want is discarded.
    Judged { at: TaskRef },
    /// All of a result is here.
    Fetched { host: HostIndex, at: TaskRef, seen: Seen },
    /// Some of it cannot be had.
    FetchFailed { host: HostIndex, at: TaskRef, reason: String },
    /// The session of a host is over; the scheduler knows it already.
    HostDown { host: HostIndex, reason: String },
    /// The uploads of a result are where they belong, or cannot be.
    Uploaded { at: TaskRef, end: UploadsEnd },
    /// A result is in place, and in the journal.
    Stored { at: TaskRef },
    /// Nothing can be stored any more.
    StoreFailed,
    /// The run is stopped: results are still taken, but not uploaded.
    Stop,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Begin to fetch a log that grows.
    Follow { host: HostIndex, at: TaskRef },
    /// Stop that, and remove what is here.
    Abandon { host: HostIndex, at: TaskRef },
    /// Fetch what is missing.
    Fetch { host: HostIndex, at: TaskRef, missing: Missing },
    /// Hand over the uploads.
    Upload { at: TaskRef },
    /// Store a result.
    Store(Box<Collected>),
    /// Tell the worker that it may forget the attempt.
    Forget { host: HostIndex, at: TaskRef },
    /// Tell the scheduler that an accepted result is lost.
    Lost { host: HostIndex, at: TaskRef, reason: String },
    /// Tell people what is done with a result.
    Tell { host: HostIndex, at: TaskRef, phase: Phase },
    /// Tell people that a task has its result.
    Announce(Box<TaskDone>),
}

/// How far an attempt has come.
#[derive(Debug)]
enum Step {
    /// It runs.
    Running {
        /// What it was seen to be at, in case that nobody is left to tell.
        seen: PhaseClock,
        /// Its log is being fetched while it grows.
        followed: bool,
    },
    /// It has ended, and the scheduler is being asked.
    Judging { done: Box<Done>, followed: bool },
    /// What the message did not hold is being fetched.
    Fetching(Box<Collected>),
    /// Its uploads are being handed over.
    Uploading(Box<Collected>),
    /// It is with the store.
    Storing { announce: Box<TaskDone>, since: Millis },
}

#[derive(Debug)]
struct Progress {
    /// Where its worker keeps it. None for what no worker has.
    host: Option<HostIndex>,
    step: Step,
}

/// All attempts that have started and whose result is not in place.
#[derive(Debug)]
pub(super) struct Results {
    plan: Arc<Plan>,
    hosts: Vec<HostName>,
    limits: TaskLimits,
    attempts: BTreeMap<TaskRef, Progress>,
    /// The failed attempts of tasks without a result.
    stories: BTreeMap<TaskId, Vec<AttemptStory>>,
    /// When tasks were queued again; all others wait since the start.
    requeued: BTreeMap<TaskId, Millis>,
    storing: usize,
    stopped: bool,
}

impl Results {
    /// Nothing has started. The hosts are in the order of their indexes.
    pub(super) fn new(plan: Arc<Plan>, hosts: Vec<HostName>, limits: TaskLimits) -> Self {
        Self {
            plan,
            hosts,
            limits,
            attempts: BTreeMap::new(),
            stories: BTreeMap::new(),
            requeued: BTreeMap::new(),
            storing: 0,
            stopped: false,
        }
    }

    /// How many results are with the store.
    pub(super) fn storing(&self) -> usize {
        self.storing
    }

    /// Takes something that happened at this moment of the run's clock.
    pub(super) fn handle(&mut self, event: Event, now: Millis, out: &mut Vec<Action>) {
        match event {
            Event::Seen { host, at, phase } => self.see(host, at, phase, now),
            Event::LongLog { host, at } => self.follow(host, at, out),
            Event::Ended { host, done } => self.ended(host, done, now),
            Event::Stray { host, at } => self.stray(host, at, out),
            Event::Accepted { at } => self.accepted(at, now, out),
            Event::Retried { host, at, reason } => self.retried(host, at, reason, now),
            Event::GivenUp { task, message, story } => self.given_up(task, message, story, now, out),
            Event::Judged { at } => self.judged(at, out),
            Event::Fetched { host, at, seen } => self.fetched(host, at, seen, now, out),
            Event::FetchFailed { host, at, reason } => self.fetch_failed(host, at, reason, now, out),
            Event::HostDown { host, reason } => self.host_down(host, &reason, now, out),
            Event::Uploaded { at, end } => self.uploaded(at, end, now, out),
            Event::Stored { at } => self.stored(at, now, out),
            Event::StoreFailed => {
                self.attempts.retain(|_, progress| !matches!(progress.step, Step::Storing { .. }));
                self.storing = 0;
            }
            Event::Stop => {
                self.stopped = true;
                self.attempts.retain(|_, progress| !matches!(progress.step, Step::Uploading(_)));
            }
        }
    }

    fn running(&mut self, host: HostIndex, at: TaskRef) -> Option<(&mut PhaseClock, &mut bool)> {
        let fresh = || Step::Running { seen: PhaseClock::default(), followed: false };
        let progress =
            self.attempts.entry(at).or_insert_with(|| Progress { host: Some(host), step: fresh() });
        match &mut progress.step {
            Step::Running { seen, followed } => Some((seen, followed)),
            _ => None,
        }
    }

    fn see(&mut self, host: HostIndex, at: TaskRef, phase: Phase, now: Millis) {
        // A host could fill our memory with stages that its task does not have.
        let stages = &self.plan.target(at.task).target.stages;
        let known = phase.stage().is_none_or(|name| stages.iter().any(|stage| stage.name == *name));
        if let Some((seen, _)) = self.running(host, at).filter(|_| known) {
            seen.begin(phase, now);
        }
    }

    fn follow(&mut self, host: HostIndex, at: TaskRef, out: &mut Vec<Action>) {
        if let Some((_, followed)) = self.running(host, at)
            && !std::mem::replace(followed, true)
        {
            out.push(Action::Follow { host, at });
        }
    }

    fn ended(&mut self, host: HostIndex, mut done: Box<Done>, now: Millis) {
        let at = done.at;
        let Some((seen, followed)) = self.running(host, at) else { return };
        witness(&mut done, std::mem::take(seen), now);
        let step = Step::Judging { done, followed: *followed };
        self.attempts.insert(at, Progress { host: Some(host), step });
    }

    fn stray(&self, host: HostIndex, at: TaskRef, out: &mut Vec<Action>) {
        // If the host says it a second time, the first result is still on its way.
        if self.attempts.get(&at).is_none_or(|progress| progress.host != Some(host)) {
            out.push(Action::Forget { host, at });
        }
    }

    /// Takes an attempt out of the state in which it is, if it is in one of these.
    fn take<T>(
        &mut self,
        at: TaskRef,
        take: impl FnOnce(Step) -> Result<T, Step>,
    ) -> Option<(Option<HostIndex>, T)> {
        let Progress { host, step } = self.attempts.remove(&at)?;
        match take(step) {
            Ok(taken) => Some((host, taken)),
            Err(step) => {
                self.attempts.insert(at, Progress { host, step });
                None
            }
        }
    }

    fn take_judged(&mut self, at: TaskRef) -> Option<(HostIndex, Box<Done>, bool)> {
        let (host, (done, followed)) = self.take(at, |step| match step {
            Step::Judging { done, followed } => Ok((done, followed)),
            step => Err(step),
        })?;
        Some((host?, done, followed))
    }

    fn take_fetching(&mut self, host: HostIndex, at: TaskRef) -> Option<Box<Collected>> {
        if self.attempts.get(&at)?.host != Some(host) {
            return None;
        }
        let fetching = |step| match step {
            Step::Fetching(collected) => Ok(collected),
            step => Err(step),
        };
        self.take(at, fetching).map(|(_, collected)| collected)
    }

    fn judged(&mut self, at: TaskRef, out: &mut Vec<Action>) {
        if let Some((host, _, followed)) = self.take_judged(at) {
            if followed {
                out.push(Action::Abandon { host, at });
            }
            out.push(Action::Forget { host, at });
        }
    }

    fn accepted(&mut self, at: TaskRef, now: Millis, out: &mut Vec<Action>) {
        let Some((host, mut done, followed)) = self.take_judged(at) else { return };
        if done.cause == Cause::Killed {
            done.outcome = Outcome::Abnormal;
            for one in self.stories.get(&at.task).into_iter().flatten() {
                done.message += &told(one);
            }
        }
        self.collect(host, done, followed, now, out);
    }

    fn retried(&mut self, host: HostIndex, at: TaskRef, reason: String, now: Millis) {
        self.requeued.insert(at.task, now);
        let story = AttemptStory { attempt: at.attempt, host: self.name(host), reason };
        self.stories.entry(at.task).or_default().push(story);
        // Of one that has just ended, its worker is still to be told.
        self.take(at, |step| if matches!(step, Step::Running { .. }) { Ok(()) } else { Err(step) });
    }

    fn given_up(
        &mut self,
        task: TaskId,
        mut message: String,
        story: Vec<scheduler::AttemptStory>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let last = story.last().map(|last| (last.host, last.attempt));
        let named = |one: scheduler::AttemptStory| {
            let host = self.name(one.host);
            AttemptStory { attempt: one.attempt, host, reason: one.reason }
        };
        let earlier: Vec<AttemptStory> = story.into_iter().map(named).collect();
        message.extend(earlier.iter().map(told));
        self.stories.insert(task, earlier);
        let at = TaskRef { task, attempt: last.map_or(Attempt(0), |(_, attempt)| attempt) };
        if let Some((host, done, followed)) = self.take_judged(at) {
            // What the last attempt has left says more than any message: its log, the console of
            // its guest.
            let done = Box::new(Done { outcome: Outcome::Infrastructure, message, ..*done });
            return self.collect(host, done, followed, now, out);
        }
        let mut done = given_up(at, message);
        if let Some((seen, _)) = last.and_then(|(host, _)| self.running(host, at)) {
            witness(&mut done, std::mem::take(seen), now);
        }
        let host = last.map(|(host, _)| self.name(host));
        let collected = self.collected(host, done, now);
        self.submit(None, collected, now, out);
    }

    /// Has fetched what is still on the host, then stored.
    fn collect(
        &mut self,
        host: HostIndex,
        done: Box<Done>,
        followed: bool,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let at = done.at;
        let refused = self.refuse(&done);
        let mut collected = self.collected(Some(self.name(host)), done, now);
        if let Some(reason) = refused {
            if followed {
                out.push(Action::Abandon { host, at });
            }
            return self.lost(host, *collected, reason, now, out);
        }
        let missing = collected.missing();
        if missing.is_none() && !followed {
            return self.submit(Some(host), collected, now, out);
        }
        collected.clock.begin(Phase::Collecting, now);
        out.push(Action::Tell { host, at, phase: Phase::Collecting });
        out.push(Action::Fetch { host, at, missing });
        self.attempts.insert(at, Progress { host: Some(host), step: Step::Fetching(collected) });
    }

    /// A worker of ours has seen to the limits. One that has not is not asked for the rest.
    fn refuse(&self, done: &Done) -> Option<String> {
        let longest = self.limits.log_bytes.saturating_add(LOG_SLACK);
        let is_long = |log: &LogEnd| log.bytes > longest;
        let log = (is_long(&done.log) || is_long(&done.err)).then(|| self.limits.refuse_log());
        log.or_else(|| self.limits.refuse(done.artifacts))
    }

    fn collected(&mut self, host: Option<HostName>, mut done: Box<Done>, now: Millis) -> Box<Collected> {
        let task = done.at.task;
        let earlier = self.stories.get(&task).cloned().unwrap_or_default();
        let mut phases = std::mem::take(&mut done.phases);
        // What the host does not know of, it has waited for.
        let whole = now.since(self.requeued.remove(&task).unwrap_or_default());
        phases.add_waiting(whole.saturating_sub(Duration::from_millis(phases.total_ms())));
        let clock = PhaseClock::after(phases);
        Box::new(Collected { done, host, earlier, fetched: None, log_more: String::new(), clock })
    }

    fn fetched(&mut self, host: HostIndex, at: TaskRef, seen: Seen, now: Millis, out: &mut Vec<Action>) {
        let Some(mut collected) = self.take_fetching(host, at) else { return };
        let uploads = seen.uploads && collected.done.outcome.is_good();
        collected.fetched = Some(seen);
        if !uploads {
            self.submit(Some(host), collected, now, out);
        } else if !self.stopped {
            // A failed upload is a failed task, so the result is not stored before its uploads are
            // where they belong.
            if let Some(phase) = stage_name().map(Phase::Stage) {
                collected.clock.begin(phase.clone(), now);
                out.push(Action::Tell { host, at, phase });
            }
            out.push(Action::Upload { at });
            self.attempts.insert(at, Progress { host: Some(host), step: Step::Uploading(collected) });
        }
    }

    fn fetch_failed(
        &mut self,
        host: HostIndex,
        at: TaskRef,
        reason: String,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        if let Some(collected) = self.take_fetching(host, at) {
            self.lost(host, *collected, reason, now, out);
        }
    }

    fn host_down(&mut self, host: HostIndex, reason: &str, now: Millis, out: &mut Vec<Action>) {
        let here = |(&at, progress): (&TaskRef, &Progress)| (progress.host == Some(host)).then_some(at);
        let there: Vec<TaskRef> = self.attempts.iter().filter_map(here).collect();
        for at in there {
            self.fetch_failed(host, at, reason.to_owned(), now, out);
            // The scheduler has had all others tried again that it still wanted.
            self.take(at, |step| if matches!(step, Step::Running { .. }) { Ok(()) } else { Err(step) });
        }
    }

    /// What was to be fetched cannot be: the task is tried again, unless it was given up already.
    fn lost(
        &mut self,
        host: HostIndex,
        collected: Collected,
        reason: String,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let at = collected.done.at;
        if collected.done.outcome == Outcome::Infrastructure {
            let done = given_up(at, collected.done.message);
            self.submit(None, Box::new(Collected { done, ..collected }), now, out);
        } else {
            out.push(Action::Lost { host, at, reason });
        }
    }

    fn uploaded(&mut self, at: TaskRef, end: UploadsEnd, now: Millis, out: &mut Vec<Action>) {
        let uploading = |step| match step {
            Step::Uploading(collected) => Ok(collected),
            step => Err(step),
        };
        if let Some((host, mut collected)) = self.take(at, uploading) {
            collected.uploaded(end);
            self.submit(host, collected, now, out);
        }
    }

    fn submit(
        &mut self,
        host: Option<HostIndex>,
        mut collected: Box<Collected>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let at = collected.done.at;
        collected.end_phases(now);
        if let Some(host) = host {
            out.push(Action::Tell { host, at, phase: Phase::Storing });
        }
        let announce = Box::new(collected.event(&self.plan));
        self.stories.remove(&at.task);
        self.attempts.insert(at, Progress { host, step: Step::Storing { announce, since: now } });
        self.storing += 1;
        out.push(Action::Store(collected));
    }

    fn stored(&mut self, at: TaskRef, now: Millis, out: &mut Vec<Action>) {
        let storing = |step| match step {
            Step::Storing { announce, since } => Ok((announce, since)),
            step => Err(step),
        };
        let Some((host, (mut announce, since))) = self.take(at, storing) else { return };
        self.storing -= 1;
        announce.phases.add(Phase::Storing, now.since(since));
        out.extend(host.map(|host| Action::Forget { host, at }));
        out.push(Action::Announce(announce));
    }

    fn name(&self, host: HostIndex) -> HostName {
        self.hosts[host.0 as usize].clone()
    }
}

/// A failed attempt in a message, on a line of its own.
fn told(one: &AttemptStory) -> String {
    format!("\nattempt {} on {}: {}", one.attempt, one.host, one.reason)
}

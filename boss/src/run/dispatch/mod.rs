//! The run loop's state: turns news from hosts and store into inputs of the scheduler, and its
//! actions into orders.
//!
//! No waiting happens here. [`super::drive`] feeds it and asks when it is over.

mod crew;
mod host;
mod matching;
mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crewboss_protocol::limits::TASKS_PER_MESSAGE_MAX;
use crewboss_protocol::message::{Done, TaskLimits};
use crewboss_protocol::{FromWorker, HostName, Phase, PhaseClock, RunId, TaskId, TaskRef, ToWorker};

use super::awake::Awake;
use super::collect::{Collected, skipped};
use super::done::Division;
use super::events::EventStream;
use super::hosts::{News, Order, Report};
use super::plan::Plan;
use super::site::Common;
use super::upload::Uploader;
use crate::event::{EventKind, HostSummary, Stopped, Summary, TaskDone};
use crate::scheduler::{Action, HostIndex, Input, Millis, RequirementId, Scheduler};
use crate::store::{AttemptStory, JournalError, OutDir, Recorded, StoreReply, Writer};

pub use host::HostState;
pub use matching::{entry, offer, requirements};

/// Results that may wait for the disk. A disk that is slower than the hosts slows them down; it
/// must not fill the memory.
const STORING_MAX: usize = 1024;

/// A result that is with the store.
#[derive(Debug)]
struct Storing {
    announce: TaskDone,
    /// Who may forget it once it is in place.
    source: Option<(HostIndex, TaskRef)>,
    /// When it was handed over.
    since: Instant,
}

/// The state of a run.
#[derive(Debug)]
pub struct Dispatcher {
    run: RunId,
    plan: Arc<Plan>,
    scheduler: Scheduler,
    requirements: Vec<RequirementId>,
    hosts: Vec<HostState>,
    events: EventStream,
    out: OutDir,
    store: Writer,
    /// Attempts whose log is being fetched while it grows.
    following: BTreeMap<TaskRef, HostIndex>,
    /// The worker's word on attempts that have ended, until the scheduler says whether they count.
    ended: BTreeMap<TaskRef, Box<Done>>,
    /// Results that are being fetched, and from where.
    fetching: BTreeMap<TaskRef, (HostIndex, Collected)>,
    /// Results whose uploads are being handed over, and where they came from.
    uploading: BTreeMap<TaskRef, (HostIndex, Collected)>,
    uploader: Uploader,
    storing: BTreeMap<TaskId, Storing>,
    stories: BTreeMap<TaskId, Vec<AttemptStory>>,
    /// When tasks were queued again; all others wait since the start.
    requeued: BTreeMap<TaskId, Millis>,
    /// What attempts were seen to be at, for the case that nobody is left to tell.
    seen: BTreeMap<TaskRef, PhaseClock>,
    candidates: BTreeMap<TaskId, Vec<Recorded>>,
    /// Targets that were named as impossible.
    impossible: BTreeSet<usize>,
    /// Tasks without an announced end.
    remaining: u32,
    standstill: Duration,
    limits: TaskLimits,
    awake: Arc<Awake>,
    stopped: Option<Stopped>,
    actions: Vec<Action>,
}

impl Dispatcher {
    /// The state at the start: all hosts are asked, nothing is handed out.
    pub fn new(
        run: RunId,
        plan: Arc<Plan>,
        hosts: Vec<HostState>,
        events: EventStream,
        (out, store): (OutDir, Writer),
        uploader: Uploader,
        common: &Common,
    ) -> Self {
        let mut scheduler = Scheduler::new(u32::try_from(hosts.len()).unwrap_or(u32::MAX));
        scheduler.watch(u64::try_from(common.timing.standstill.as_millis()).unwrap_or(u64::MAX));
        let requirements = requirements(&plan, &mut scheduler);
        Self {
            run,
            scheduler,
            requirements,
            hosts,
            events,
            out,
            store,
            following: BTreeMap::new(),
            ended: BTreeMap::new(),
            fetching: BTreeMap::new(),
            uploading: BTreeMap::new(),
            uploader,
            storing: BTreeMap::new(),
            stories: BTreeMap::new(),
            requeued: BTreeMap::new(),
            seen: BTreeMap::new(),
            candidates: BTreeMap::new(),
            impossible: BTreeSet::new(),
            remaining: plan.tasks(),
            standstill: common.timing.standstill,
            limits: common.limits.task,
            awake: common.awake.clone(),
            stopped: None,
            actions: Vec::new(),
            plan,
        }
    }

    /// Says that the run begins, and what a person should know of earlier ones.
    pub fn begin(&mut self, notice: Option<String>) {
        let hosts = self.hosts.iter().map(|host| host.name.clone()).collect();
        self.events.emit(EventKind::RunStarted {
            schema: crate::event::EVENT_SCHEMA,
            run: self.run.clone(),
            tasks: self.plan.tasks(),
            targets: u32::try_from(self.plan.targets().len()).unwrap_or(u32::MAX),
            commits: u32::try_from(self.plan.commits().len()).unwrap_or(u32::MAX),
            hosts,
            out: self.out.root().display().to_string(),
        });
        if let Some(text) = notice {
            self.events.emit(EventKind::Notice { text });
        }
    }

    /// Takes the tasks: those that are done are announced, candidates wait for hosts, the rest is
    /// handed out.
    pub fn add(&mut self, division: Division) {
        for (task, record) in division.done {
            self.announce(skipped(&self.plan, task, &record));
        }
        self.candidates = division.candidates;
        self.add_open(&division.open);
        if self.hosts.iter().all(|host| host.settled) {
            self.settle();
        }
    }

    /// No host is waited for any longer: candidates that nobody confirmed are built again.
    pub fn settle(&mut self) {
        let tasks: Vec<TaskId> = std::mem::take(&mut self.candidates).into_keys().collect();
        self.add_open(&tasks);
    }

    fn add_open(&mut self, tasks: &[TaskId]) {
        if !tasks.is_empty() {
            let entry = |&task| entry(&self.plan, &self.requirements, task, self.standstill);
            let entries = tasks.iter().map(entry).collect();
            self.input(Input::AddTasks(entries));
        }
    }

    /// Whether all tasks have their end.
    pub fn is_finished(&self) -> bool {
        self.remaining == 0
    }

    /// Whether so many results wait for the disk that hosts should not be listened to for a moment.
    pub fn is_backed_up(&self) -> bool {
        self.storing.len() >= STORING_MAX
    }

    /// Why the run is being stopped, if it is.
    pub fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    /// Whether no session is left, and nothing that the store is still to answer for.
    pub fn is_quiet(&self) -> bool {
        self.hosts.iter().all(|host| host.over) && self.storing.is_empty()
    }

    /// When [`Self::tick`] is due.
    pub fn next_wake(&self) -> Option<Millis> {
        self.scheduler.next_wake()
    }

    /// The time by the run's clock.
    pub fn now(&self) -> Millis {
        self.events.now()
    }

    /// Says it if this process itself stood still.
    pub fn tell_standstill(&mut self) {
        if let Some(length) = self.awake.take_untold() {
            let text = format!(
                "this boss stood still for {} s: it was stopped, or its computer slept; workers that ended meanwhile are \
                 started again",
                length.as_secs()
            );
            self.events.emit(EventKind::Notice { text });
        }
    }

    /// Time has passed.
    pub fn tick(&mut self) {
        self.input(Input::Tick);
    }

    /// Stops the run: nothing is handed out any more, sessions end in order.
    pub fn stop(&mut self, why: Stopped) {
        if self.stopped.is_some() {
            return;
        }
        let reason = match &why {
            Stopped::Interrupted => "interrupted".to_owned(),
            Stopped::Error(text) => text.clone(),
        };
        self.events.emit(EventKind::Stopping { reason });
        self.stopped = Some(why);
        self.uploading.clear();
        self.uploader.stop();
        self.input(Input::Stop);
        self.quit();
    }

    /// Ends all sessions in order.
    pub fn quit(&mut self) {
        self.hosts.iter().for_each(|host| host.order(Order::Quit));
    }

    /// Takes what a host's session has to say.
    pub fn report(&mut self, report: Report) {
        let host = report.host;
        match report.news {
            News::Connecting => {
                let host = self.name(host);
                self.events.emit(EventKind::HostConnecting { host });
            }
            News::Shipped { bytes } => {
                let host = self.name(host);
                self.events.emit(EventKind::HostShipped { host, bytes });
            }
            News::Ready { session, ready } => {
                self.hosts[host.0 as usize].session = session;
                self.ready(host, &ready);
            }
            News::Messages(messages) => messages.into_iter().for_each(|message| self.message(host, message)),
            News::RoundTrip { micros } => {
                self.hosts[host.0 as usize].round_trip_us = micros;
                self.input(Input::RoundTrip { host, micros });
            }
            News::SourceSent { tree, objects, bytes, wall_ms, check_out_ms } => {
                self.source_arrived(host);
                let host = self.name(host);
                self.events.emit(EventKind::SourceSent { host, tree, objects, bytes, wall_ms, check_out_ms });
            }
            News::Fetched { at, seen } => self.fetched(at, seen),
            News::FetchFailed { at, reason, at_boss } => self.fetch_failed(host, at, reason, at_boss),
            News::Broken { reason } => self.stop(Stopped::Error(reason)),
            News::Lost { reason, retry_ms, ours } => self.lost(host, reason, Some(retry_ms), ours),
            News::Failed { reason } => self.lost(host, reason, None, false),
            News::Quit => {
                self.hosts[host.0 as usize].over = true;
                self.hosts[host.0 as usize].settled = true;
            }
        }
    }

    /// Takes what the store has to say.
    pub fn stored(&mut self, reply: StoreReply) {
        match reply {
            StoreReply::Stored(results) => {
                for stored in results {
                    let Some(Storing { mut announce, source, since }) = self.storing.remove(&stored.task)
                    else {
                        continue;
                    };
                    announce.phases.add(Phase::Storing, since.elapsed());
                    if let Some((host, at)) = source {
                        self.send(host, ToWorker::Collected { at });
                    }
                    self.announce(announce);
                }
            }
            StoreReply::Failed(error) => {
                // It stores nothing any more, so nothing is waited for.
                self.storing.clear();
                self.stop(Stopped::Error(crate::chain(&error)));
            }
        }
    }

    /// Notes the end of the run in journal and event stream, and gives the summary.
    pub fn finish(mut self) -> Result<Summary, JournalError> {
        let mut ended = self.store.finish(&self.run, super::events::unix_ms());
        let mut summary = self.events.summary(self.stopped.take());
        if matches!(summary.stopped, Some(Stopped::Error(_))) {
            // What stopped the run has been told, and explains this too.
            ended = Ok(());
        }
        for host in &self.hosts {
            let entry: &mut HostSummary = summary.hosts.entry(host.name.clone()).or_default();
            entry.bytes_sent = host.traffic.sent.load(Ordering::Relaxed);
            entry.bytes_received = host.traffic.received.load(Ordering::Relaxed);
        }
        self.events.emit(EventKind::RunFinished(Box::new(summary.clone())));
        ended.map(|()| summary)
    }

    fn name(&self, host: HostIndex) -> HostName {
        self.hosts[host.0 as usize].name.clone()
    }

    fn send(&self, host: HostIndex, message: ToWorker) {
        self.hosts[host.0 as usize].order(Order::Send(message));
    }

    fn announce(&mut self, done: TaskDone) {
        self.remaining = self.remaining.saturating_sub(1);
        self.events.emit(EventKind::TaskDone(Box::new(done)));
    }

    fn message(&mut self, host: HostIndex, message: FromWorker) {
        match message {
            // What is told of attempts that are not there is not passed on.
            FromWorker::Phase { at, .. }
            | FromWorker::Waiting { at, .. }
            | FromWorker::GuestLoad { at, .. }
            | FromWorker::Log { at, .. }
                if !self.scheduler.holds(host, at) => {}
            FromWorker::Phase { at, phase, text } => {
                self.started(host, at);
                self.see(at, &phase);
                self.tell_phase(host, at, phase, text);
            }
            FromWorker::Waiting { at, guest, stage, until } => {
                let (host, task) = (self.name(host), at.task);
                let target = self.plan.target(task).target.name.clone();
                let commit = self.plan.commit(task).short.clone();
                self.events.emit(EventKind::TaskWaiting { host, at, target, commit, guest, stage, until });
            }
            FromWorker::GuestLoad { at, machine, load } => {
                let host = self.name(host);
                self.events.emit(EventKind::GuestLoad { host, at, machine, load });
            }
            FromWorker::Log { at, text, lost, .. } => {
                let host = self.name(host);
                self.events.emit(EventKind::TaskOutput { host, at, text, lost });
            }
            FromWorker::LongLog { at } => self.follow(host, at),
            FromWorker::Alive { load, .. } => {
                let (name, round_trip_us) = (self.name(host), self.hosts[host.0 as usize].round_trip_us);
                let free = load.disk_free;
                self.events.emit(EventKind::HostLoad { host: name, load, round_trip_us });
                self.input(Input::Disk { host, free });
            }
            FromWorker::Slots { usable } => self.input(Input::Slots { host, usable }),
            FromWorker::Done(done) => self.done(host, done),
            FromWorker::Refused { at, reason, text } => self.input(Input::Refused { host, at, reason, text }),
            FromWorker::Returned { tasks } => self.input(Input::Returned { host, tasks }),
            FromWorker::Notice { text } => {
                let host = self.name(host);
                self.events.emit(EventKind::HostNotice { host, text });
            }
            // The session takes care of these itself.
            // A run orders no bootstrap.
            FromWorker::Bootstrapped { .. } => {}
            FromWorker::Ready(_) | FromWorker::Error { .. } | FromWorker::Finished => {}
            // What it stops follows, and then the end of the session.
            FromWorker::Ending { why } => self.hosts[host.0 as usize].ending = Some(why),
        }
    }

    fn started(&mut self, host: HostIndex, at: TaskRef) {
        if !self.scheduler.awaits_start(host, at) {
            return;
        }
        self.input(Input::Started { host, at });
        let name = self.name(host);
        let target = self.plan.target(at.task).target.name.clone();
        let commit = self.plan.commit(at.task).short.clone();
        self.events.emit(EventKind::TaskStarted { host: name, at, target, commit });
    }

    fn see(&mut self, at: TaskRef, phase: &Phase) {
        // A host could fill our memory with stages that its task does not have.
        let stages = &self.plan.target(at.task).target.stages;
        if phase.stage().is_none_or(|name| stages.iter().any(|stage| stage.name == *name)) {
            self.seen.entry(at).or_default().begin(phase.clone(), Instant::now());
        }
    }

    fn tell_phase(&mut self, host: HostIndex, at: TaskRef, phase: Phase, text: String) {
        let host = self.name(host);
        self.events.emit(EventKind::TaskPhase { host, at, phase, text });
    }

    fn input(&mut self, input: Input) {
        let mut actions = std::mem::take(&mut self.actions);
        self.scheduler.handle(input, self.events.now(), &mut actions);
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send { host, at } => self.hand_out(host, at),
            Action::Recall { host, tasks } => {
                for tasks in tasks.chunks(TASKS_PER_MESSAGE_MAX) {
                    self.send(host, ToWorker::Recall { tasks: tasks.to_vec() });
                }
            }
            Action::Cancel { host, at } => self.send(host, ToWorker::Cancel { at }),
            Action::Accept { host, at } => self.accept(host, at),
            Action::Retry { host, at, reason } => {
                self.requeued.insert(at.task, self.events.now());
                self.seen.remove(&at);
                let host = self.name(host);
                let story = AttemptStory { attempt: at.attempt, host: host.clone(), reason: reason.clone() };
                self.stories.entry(at.task).or_default().push(story);
                let target = self.plan.target(at.task).target.name.clone();
                let commit = self.plan.commit(at.task).short.clone();
                self.events.emit(EventKind::TaskRetried { host, at, target, commit, reason });
            }
            Action::GiveUp { task, why, story } => self.give_up(task, &why, story),
            Action::Pause { host, for_ms, reason } => {
                let host = self.name(host);
                self.events.emit(EventKind::HostPaused { host, reason, pause_ms: for_ms });
            }
            Action::EndSession { host, reason } => {
                self.hosts[host.0 as usize].order(Order::End { reason });
            }
            Action::Out { host, reason } => {
                let name = self.name(host);
                self.events.emit(EventKind::HostFailed { host: name, reason });
                self.hosts[host.0 as usize].order(Order::Quit);
            }
        }
    }

    fn hand_out(&mut self, host: HostIndex, at: TaskRef) {
        let order = self.plan.order(at);
        let state = &mut self.hosts[host.0 as usize];
        let lacks = state.trees.insert(order.tree);
        if lacks {
            state.order(Order::Source(order.tree));
        }
        state.order(Order::Send(ToWorker::Task(order)));
        if lacks {
            self.sources(host, |under_way| under_way + 1);
        }
    }

    fn source_arrived(&mut self, host: HostIndex) {
        self.sources(host, |under_way| under_way.saturating_sub(1));
    }

    /// Lets the scheduler know how many trees are on their way. It may be in the middle of an
    /// input.
    fn sources(&mut self, host: HostIndex, change: impl FnOnce(u32) -> u32) {
        let state = &mut self.hosts[host.0 as usize];
        state.sources_under_way = change(state.sources_under_way);
        let under_way = state.sources_under_way;
        self.scheduler.note_sources(host, under_way);
    }
}

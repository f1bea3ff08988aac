//! The run loop's state: turns news from hosts and store into inputs of the scheduler, and its
//! actions into orders.
//!
//! No waiting happens here. [`super::drive`] feeds it and asks when it is over.

mod crew;
mod host;
mod matching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crewboss_protocol::limits::TASKS_PER_MESSAGE_MAX;
use crewboss_protocol::message::Done;
use crewboss_protocol::{FromWorker, HostName, Millis, Phase, RunId, TaskId, TaskRef, ToWorker};

use super::awake::Awake;
use super::collect::skipped;
use super::done::Division;
use super::events::EventStream;
use super::hosts::{Fetch, News, Order, Report};
use super::plan::Plan;
use super::results::{self, Results};
use super::session_error::stood_still;
use super::site::Common;
use super::upload::{UploadJob, Uploader, UploadsEnd};
use crate::event::{EventKind, HostSummary, Stopped, Summary, TaskDone};
use crate::scheduler::{self, Action, Ended, GiveUp, HostIndex, Input, RequirementId, Scheduler, Unfit};
use crate::store::{JournalError, OutDir, Recorded, StoreReply, Writer};

pub use host::HostState;
pub use matching::{entry, offer, requirements};

/// Results that may wait for the disk. A disk that is slower than the hosts slows them down; it
/// must not fill the memory.
const STORING_MAX: usize = 1024;

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
    results: Results,
    uploader: Uploader,
    candidates: BTreeMap<TaskId, Vec<Recorded>>,
    /// Targets that were named as impossible.
    impossible: BTreeSet<usize>,
    /// Tasks without an announced end.
    remaining: u32,
    standstill: Duration,
    awake: Arc<Awake>,
    stopped: Option<Stopped>,
    actions: Vec<Action>,
    result_actions: Vec<results::Action>,
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
        let names = hosts.iter().map(|host| host.name.clone()).collect();
        let results = Results::new(plan.clone(), names, common.limits.task);
        Self {
            run,
            scheduler,
            requirements,
            hosts,
            events,
            out,
            store,
            results,
            uploader,
            candidates: BTreeMap::new(),
            impossible: BTreeSet::new(),
            remaining: plan.tasks(),
            standstill: common.timing.standstill,
            awake: common.awake.clone(),
            stopped: None,
            actions: Vec::new(),
            result_actions: Vec::new(),
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
        self.results.storing() >= STORING_MAX
    }

    /// Why the run is being stopped, if it is.
    pub fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    /// Whether no session is left, and nothing that the store is still to answer for.
    pub fn is_quiet(&self) -> bool {
        self.hosts.iter().all(|host| host.over) && self.results.storing() == 0
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
        self.result(results::Event::Stop);
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
            News::Fetched { at, seen } => self.result(results::Event::Fetched { host, at, seen }),
            News::FetchFailed { reason, at_boss: true, .. } => self.stop(Stopped::Error(reason)),
            News::FetchFailed { at, reason, at_boss: false } => {
                self.result(results::Event::FetchFailed { host, at, reason });
            }
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
                for at in results {
                    self.result(results::Event::Stored { at });
                }
            }
            StoreReply::Failed(error) => {
                // It stores nothing any more, so nothing is waited for.
                self.result(results::Event::StoreFailed);
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
        self.order(host, Order::Send(message));
    }

    fn order(&self, host: HostIndex, order: Order) {
        self.hosts[host.0 as usize].order(order);
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
            | FromWorker::LongLog { at }
                if !self.scheduler.holds(host, at) => {}
            FromWorker::Phase { at, phase, text } => {
                self.started(host, at);
                self.result(results::Event::Seen { host, at, phase: phase.clone() });
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
            FromWorker::LongLog { at } => self.result(results::Event::LongLog { host, at }),
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

    /// An attempt has ended. If the scheduler wants its result, it is accepted; else it is
    /// discarded.
    fn done(&mut self, host: HostIndex, done: Box<Done>) {
        let at = done.at;
        let ended = match Ended::of(&done) {
            Ended::Cancelled { why, .. } => self.cancelled(host, why),
            ended => ended,
        };
        let event = match self.scheduler.holds(host, at) {
            true => results::Event::Ended { host, done },
            false => results::Event::Stray { host, at },
        };
        self.result(event);
        self.input(Input::Ended { host, at, ended });
        self.result(results::Event::Judged { at });
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

    /// Takes what became of a result's uploads.
    pub fn uploaded(&mut self, at: TaskRef, end: UploadsEnd) {
        self.result(results::Event::Uploaded { at, end });
    }

    fn result(&mut self, event: results::Event) {
        let mut actions = std::mem::take(&mut self.result_actions);
        self.results.handle(event, self.events.now(), &mut actions);
        for action in actions.drain(..) {
            self.perform_result(action);
        }
        self.result_actions = actions;
    }

    fn perform_result(&mut self, action: results::Action) {
        match action {
            results::Action::Follow { host, at } => {
                self.order(host, Order::Follow { at, part: self.out.part(at) });
            }
            results::Action::Abandon { host, at } => {
                self.order(host, Order::Abandon { at, part: self.out.part(at) });
            }
            results::Action::Fetch { host, at, missing } => {
                self.order(host, Order::Fetch(Fetch { at, part: self.out.part(at), missing }));
            }
            results::Action::Upload { at } => {
                let target = self.plan.target(at.task).target.name.clone();
                let (commit, part) = (self.plan.commit(at.task).id, self.out.part(at));
                self.uploader.start(UploadJob { at, target, commit, part });
            }
            results::Action::Store(collected) => {
                let part = self.out.part(collected.done.at);
                if !self.store.submit(collected.submission(&self.plan, &self.run, part)) {
                    // It has failed and says why.
                    self.result(results::Event::StoreFailed);
                }
            }
            results::Action::Forget { host, at } => self.send(host, ToWorker::Collected { at }),
            results::Action::Lost { host, at, reason } => self.input(Input::ResultLost { host, at, reason }),
            results::Action::Tell { host, at, phase } => self.tell_phase(host, at, phase, String::new()),
            results::Action::Announce(done) => self.announce(*done),
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
            Action::Accept { at, .. } => self.result(results::Event::Accepted { at }),
            Action::Retry { host, at, reason } => {
                self.result(results::Event::Retried { host, at, reason: reason.clone() });
                let host = self.name(host);
                let target = self.plan.target(at.task).target.name.clone();
                let commit = self.plan.commit(at.task).short.clone();
                self.events.emit(EventKind::TaskRetried { host, at, target, commit, reason });
            }
            Action::GiveUp { task, why, story } => self.give_up(task, &why, story),
            Action::Pause { host, for_ms, reason } => {
                let host = self.name(host);
                self.events.emit(EventKind::HostPaused { host, reason, pause_ms: for_ms });
            }
            Action::EndSession { host, reason } => self.order(host, Order::End { reason }),
            Action::Out { host, reason } => {
                let name = self.name(host);
                self.events.emit(EventKind::HostFailed { host: name, reason });
                self.order(host, Order::Quit);
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

    fn give_up(&mut self, task: TaskId, why: &GiveUp, story: Vec<scheduler::AttemptStory>) {
        let mut message = why.to_string();
        if let GiveUp::Impossible(reasons) = why {
            let reasons = self.reasons(reasons);
            message.extend(reasons.iter().map(|(host, why)| format!("\n{host}: {why}")));
            self.name_impossible(task, reasons);
        }
        self.result(results::Event::GivenUp { task, message, story });
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

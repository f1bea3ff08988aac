//! The run loop's state: turns news from hosts and store into inputs of the scheduler, and its
//! actions into orders.
//!
//! No waiting happens here. [`super::drive`] feeds it and asks when it is over.

mod crew;
mod host;
mod matching;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crewboss_protocol::{FromWorker, HostName, Millis, Name, Phase, RunId, TaskId, TaskRef, ToWorker};

use super::awake::Awake;
use super::collect::skipped;
use super::core::{Action, Core, Told};
use super::done::Division;
use super::events::EventStream;
use super::hosts::{Fetch, News, Order, Report};
use super::plan::Plan;
use super::results;
use super::site::Common;
use super::upload::{UploadJob, Uploader, UploadsEnd};
use crate::event::{EventKind, HostSummary, Stopped, Summary, TaskDone};
use crate::scheduler::{HostIndex, Input};
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
    core: Core,
    hosts: Vec<HostState>,
    events: EventStream,
    out: OutDir,
    store: Writer,
    uploader: Uploader,
    candidates: BTreeMap<TaskId, Vec<Recorded>>,
    /// Tasks without an announced end.
    remaining: u32,
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
        let names = hosts.iter().map(|host| host.name.clone()).collect();
        Self {
            run,
            core: Core::new(plan.clone(), names, common.limits.task, common.timing.standstill),
            hosts,
            events,
            out,
            store,
            uploader,
            candidates: BTreeMap::new(),
            remaining: plan.tasks(),
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
        self.decide(|core, now, out| core.add(&division.open, now, out));
        if self.hosts.iter().all(|host| host.settled) {
            self.settle();
        }
    }

    /// No host is waited for any longer: candidates that nobody confirmed are built again.
    pub fn settle(&mut self) {
        let tasks: Vec<TaskId> = std::mem::take(&mut self.candidates).into_keys().collect();
        self.decide(|core, now, out| core.add(&tasks, now, out));
    }

    /// Whether all tasks have their end.
    pub fn is_finished(&self) -> bool {
        self.remaining == 0
    }

    /// Whether so many results wait for the disk that hosts should not be listened to for a moment.
    pub fn is_backed_up(&self) -> bool {
        self.core.storing() >= STORING_MAX
    }

    /// Why the run is being stopped, if it is.
    pub fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    /// Whether no session is left, and nothing that the store is still to answer for.
    pub fn is_quiet(&self) -> bool {
        self.hosts.iter().all(|host| host.over) && self.core.storing() == 0
    }

    /// When [`Self::tick`] is due.
    pub fn next_wake(&self) -> Option<Millis> {
        self.core.next_wake()
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
        self.uploader.stop();
        self.decide(Core::stop);
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
                self.core.source_arrived(host);
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
                if self.stopped.is_none() {
                    self.decide(|core, now, out| core.host_left(host, now, out));
                }
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
        let shown = self.show(host, &message);
        let stood = self.awake.explains();
        self.decide(|core, now, out| core.message(host, message, stood, now, out));
        if let Some(shown) = shown {
            self.events.emit(shown);
        }
    }

    /// What people are told of a message itself. What is said of attempts that are not there is not
    /// passed on.
    fn show(&self, host: HostIndex, message: &FromWorker) -> Option<EventKind> {
        let name = self.name(host);
        match message {
            FromWorker::Phase { at, .. }
            | FromWorker::Waiting { at, .. }
            | FromWorker::GuestLoad { at, .. }
            | FromWorker::Log { at, .. }
                if !self.core.holds(host, *at) =>
            {
                None
            }
            FromWorker::Phase { at, phase, text } => {
                Some(EventKind::TaskPhase { host: name, at: *at, phase: phase.clone(), text: text.clone() })
            }
            FromWorker::Waiting { at, guest, stage, until } => Some(EventKind::TaskWaiting {
                host: name,
                at: *at,
                target: self.target(at.task),
                commit: self.commit(at.task),
                guest: guest.clone(),
                stage: stage.clone(),
                until: *until,
            }),
            FromWorker::GuestLoad { at, machine, load } => {
                Some(EventKind::GuestLoad { host: name, at: *at, machine: machine.clone(), load: *load })
            }
            FromWorker::Log { at, text, lost, .. } => {
                Some(EventKind::TaskOutput { host: name, at: *at, text: text.clone(), lost: *lost })
            }
            FromWorker::Alive { load, .. } => {
                let round_trip_us = self.hosts[host.0 as usize].round_trip_us;
                Some(EventKind::HostLoad { host: name, load: load.clone(), round_trip_us })
            }
            FromWorker::Notice { text } => Some(EventKind::HostNotice { host: name, text: text.clone() }),
            _ => None,
        }
    }

    /// Takes what became of a result's uploads.
    pub fn uploaded(&mut self, at: TaskRef, end: UploadsEnd) {
        self.result(results::Event::Uploaded { at, end });
    }

    fn result(&mut self, event: results::Event) {
        self.decide(|core, now, out| core.result(event, now, out));
    }

    fn input(&mut self, input: Input) {
        self.decide(|core, now, out| core.input(input, now, out));
    }

    /// Has something decided, and carries out what comes of it.
    fn decide(&mut self, what: impl FnOnce(&mut Core, Millis, &mut Vec<Action>)) {
        let mut actions = std::mem::take(&mut self.actions);
        what(&mut self.core, self.events.now(), &mut actions);
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Source { host, tree } => self.order(host, Order::Source(tree)),
            Action::Send { host, order } => self.send(host, ToWorker::Task(order)),
            Action::Recall { host, tasks } => self.send(host, ToWorker::Recall { tasks }),
            Action::Cancel { host, at } => self.send(host, ToWorker::Cancel { at }),
            Action::EndSession { host, reason } => self.order(host, Order::End { reason }),
            Action::Follow { host, at } => {
                self.order(host, Order::Follow { at, part: self.out.part(at) });
            }
            Action::Abandon { host, at } => {
                self.order(host, Order::Abandon { at, part: self.out.part(at) });
            }
            Action::Fetch { host, at, missing } => {
                self.order(host, Order::Fetch(Fetch { at, part: self.out.part(at), missing }));
            }
            Action::Forget { host, at } => self.send(host, ToWorker::Collected { at }),
            Action::Upload { at } => {
                let target = self.plan.target(at.task).target.name.clone();
                let (commit, part) = (self.plan.commit(at.task).id, self.out.part(at));
                self.uploader.start(UploadJob { at, target, commit, part });
            }
            Action::Store(collected) => {
                let part = self.out.part(collected.done.at);
                if !self.store.submit(collected.submission(&self.plan, &self.run, part)) {
                    // It has failed and says why.
                    self.result(results::Event::StoreFailed);
                }
            }
            Action::Out { host, reason } => {
                let name = self.name(host);
                self.events.emit(EventKind::HostFailed { host: name, reason });
                self.order(host, Order::Quit);
            }
            Action::Tell(told) => self.tell(told),
        }
    }

    fn tell(&mut self, told: Told) {
        match told {
            Told::Started { host, at } => {
                let (host, target, commit) = (self.name(host), self.target(at.task), self.commit(at.task));
                self.events.emit(EventKind::TaskStarted { host, at, target, commit });
            }
            Told::Phase { host, at, phase } => self.tell_phase(host, at, phase, String::new()),
            Told::Retried { host, at, reason } => {
                let (host, target, commit) = (self.name(host), self.target(at.task), self.commit(at.task));
                self.events.emit(EventKind::TaskRetried { host, at, target, commit, reason });
            }
            Told::Paused { host, for_ms, reason } => {
                let host = self.name(host);
                self.events.emit(EventKind::HostPaused { host, reason, pause_ms: for_ms });
            }
            Told::Impossible { task, reasons } => {
                let target = self.target(task);
                let tasks = u32::try_from(self.plan.commits().len()).unwrap_or(u32::MAX);
                self.events.emit(EventKind::TasksImpossible { target, tasks, reasons });
            }
            Told::Done(done) => self.announce(*done),
        }
    }

    fn tell_phase(&mut self, host: HostIndex, at: TaskRef, phase: Phase, text: String) {
        let host = self.name(host);
        self.events.emit(EventKind::TaskPhase { host, at, phase, text });
    }

    fn target(&self, task: TaskId) -> Name {
        self.plan.target(task).target.name.clone()
    }

    fn commit(&self, task: TaskId) -> Arc<str> {
        self.plan.commit(task).short.clone()
    }
}

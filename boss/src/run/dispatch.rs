//! The run loop's state: turns news from hosts and store into inputs of the scheduler, and its actions into orders.
//!
//! No waiting happens here. [`super::drive`] feeds it and asks when it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crewboss_protocol::limits::TASKS_PER_MESSAGE_MAX;
use crewboss_protocol::message::{Done, Ready};
use crewboss_protocol::{
    FromWorker, HostFacts, HostName, Name, RunId, TaskId, TaskRef, ToWorker, Toolchain, TreeId,
};
use tokio::sync::mpsc::UnboundedSender;

use super::collect::{Collected, given_up, skipped};
use super::done::{Division, confirmed};
use super::events::EventStream;
use super::hosts::{News, Order, Report, Traffic};
use super::plan::Plan;
use crate::event::{EventKind, HostSummary, Stopped, Summary, TaskDone};
use crate::scheduler::{
    Action, ChainId, Ended, GiveUp, HostIndex, Input, Millis, Offer, Requirement, RequirementId, Scheduler,
    TaskEntry, Unfit,
};
use crate::store::{AttemptStory, JournalError, OutDir, Recorded, StoreReply, Writer};

/// A host as the run loop sees it.
#[derive(Debug)]
pub struct HostState {
    /// Its name.
    pub name: HostName,
    /// Words that targets may ask for.
    pub tags: BTreeSet<Name>,
    /// To its session. Has no limit of its own: the scheduler limits what is under way at a host.
    pub orders: UnboundedSender<(u32, Order)>,
    /// Number of the session that orders are for.
    pub session: u32,
    /// Bytes both ways.
    pub traffic: Arc<Traffic>,
    /// Trees that are there or on their way.
    pub trees: BTreeSet<TreeId>,
    /// What it offers.
    pub toolchains: Vec<Toolchain>,
    /// Time for a line there and back, in microseconds.
    pub round_trip_us: u64,
    /// It has answered or failed once: nobody waits for its first answer any more.
    pub settled: bool,
    /// Its session will not come back.
    pub over: bool,
}

impl HostState {
    /// A host that is being connected.
    pub fn new(
        name: HostName,
        tags: BTreeSet<Name>,
        orders: UnboundedSender<(u32, Order)>,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            name,
            tags,
            orders,
            session: 0,
            traffic,
            trees: BTreeSet::new(),
            toolchains: Vec::new(),
            round_trip_us: 0,
            settled: false,
            over: false,
        }
    }

    fn order(&self, order: Order) {
        // A session that is over takes no orders; what was under way there has been put back.
        self.orders.send((self.session, order)).ok();
    }
}

/// A result that is with the store.
#[derive(Debug)]
struct Storing {
    announce: TaskDone,
    /// Who may forget it once it is in place.
    source: Option<(HostIndex, TaskRef)>,
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
    storing: BTreeMap<TaskId, Storing>,
    stories: BTreeMap<TaskId, Vec<AttemptStory>>,
    candidates: BTreeMap<TaskId, Vec<Recorded>>,
    /// Targets that were named as impossible.
    impossible: BTreeSet<usize>,
    /// Tasks without an announced end.
    remaining: u32,
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
        out: OutDir,
        store: Writer,
    ) -> Self {
        let mut scheduler = Scheduler::new(u32::try_from(hosts.len()).unwrap_or(u32::MAX));
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
            storing: BTreeMap::new(),
            stories: BTreeMap::new(),
            candidates: BTreeMap::new(),
            impossible: BTreeSet::new(),
            remaining: plan.tasks(),
            stopped: None,
            actions: Vec::new(),
            plan,
        }
    }

    /// Says that the run begins.
    pub fn begin(&mut self) {
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
    }

    /// Takes the tasks: those that are done are announced, candidates wait for hosts, the rest is handed out.
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
            let entries = tasks.iter().map(|&task| entry(&self.plan, &self.requirements, task)).collect();
            self.input(Input::AddTasks(entries));
        }
    }

    /// Whether all tasks have their end.
    pub fn is_finished(&self) -> bool {
        self.remaining == 0
    }

    /// Why the run is being stopped, if it is.
    pub fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    /// Whether no session is left.
    pub fn is_quiet(&self) -> bool {
        self.hosts.iter().all(|host| host.over)
    }

    /// When [`Self::tick`] is due.
    pub fn next_wake(&self) -> Option<Millis> {
        self.scheduler.next_wake()
    }

    /// The time by the run's clock.
    pub fn now(&self) -> Millis {
        self.events.now()
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
                let host = self.name(host);
                self.events.emit(EventKind::SourceSent { host, tree, objects, bytes, wall_ms, check_out_ms });
            }
            News::Fetched { at } => self.fetched(at),
            News::FetchFailed { at, reason, at_boss } => self.fetch_failed(host, at, reason, at_boss),
            News::Broken { reason } => self.stop(Stopped::Error(reason)),
            News::Lost { reason, retry_ms } => self.lost(host, reason, Some(retry_ms)),
            News::Failed { reason } => self.lost(host, reason, None),
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
                    let Some(Storing { announce, source }) = self.storing.remove(&stored.task) else {
                        continue;
                    };
                    if let Some((host, at)) = source {
                        self.send(host, ToWorker::Collected { at });
                    }
                    self.announce(announce);
                }
            }
            StoreReply::Failed(error) => self.stop(Stopped::Error(crate::chain(&error))),
        }
    }

    /// Notes the end of the run in journal and event stream, and gives the summary.
    pub fn finish(mut self) -> Result<Summary, JournalError> {
        let ended = self.store.finish(&self.run, super::events::unix_ms());
        let mut summary = self.events.summary(self.stopped.take());
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

    fn ready(&mut self, host: HostIndex, ready: &Ready) {
        let facts = &ready.facts;
        let state = &mut self.hosts[host.0 as usize];
        state.trees = facts.trees.iter().copied().collect();
        state.toolchains = facts.toolchains.clone();
        state.settled = true;
        let offer = offer(facts, &state.tags, &self.plan);
        self.events.emit(EventKind::HostReady {
            host: state.name.clone(),
            slots: facts.slots,
            threads: facts.threads,
            speed: facts.speed,
            toolchains: offer.toolchains.iter().cloned().collect(),
        });
        self.confirm(host);
        self.input(Input::HostUp { host, offer });
        self.settle_if_all_answered();
    }

    /// Announces the candidates that this host's toolchains confirm.
    fn confirm(&mut self, host: HostIndex) {
        let offered = &self.hosts[host.0 as usize].toolchains;
        let confirmed: Vec<TaskDone> = self
            .candidates
            .iter()
            .filter_map(|(&task, records)| {
                let record = confirmed(&self.plan, task, records, offered)?;
                Some(skipped(&self.plan, task, record))
            })
            .collect();
        for done in confirmed {
            self.candidates.remove(&done.task);
            self.announce(done);
        }
    }

    fn settle_if_all_answered(&mut self) {
        if !self.candidates.is_empty() && self.hosts.iter().all(|host| host.settled) {
            self.settle();
        }
    }

    fn lost(&mut self, host: HostIndex, reason: String, retry_ms: Option<u64>) {
        let state = &mut self.hosts[host.0 as usize];
        state.settled = true;
        state.trees.clear();
        state.over = retry_ms.is_none();
        let name = state.name.clone();
        let ending = self.stopped.is_some() || self.is_finished();
        if !ending {
            self.events.emit(match retry_ms {
                Some(_) => EventKind::HostLost { host: name, reason: reason.clone(), retry_ms },
                None => EventKind::HostFailed { host: name, reason: reason.clone() },
            });
        }
        let lost: Vec<TaskRef> =
            self.fetching.iter().filter(|(_, (from, _))| *from == host).map(|(&at, _)| at).collect();
        for at in lost {
            self.fetch_failed(host, at, reason.clone(), false);
        }
        self.input(Input::HostDown { host, reason, returns: retry_ms.is_some() });
        self.settle_if_all_answered();
    }

    fn message(&mut self, host: HostIndex, message: FromWorker) {
        match message {
            FromWorker::Started { at } => self.started(host, at),
            // What is told of attempts that are not there is not passed on.
            FromWorker::Stage { at, .. } | FromWorker::Log { at, .. } if !self.scheduler.holds(host, at) => {}
            FromWorker::Stage { at, stage } => {
                let host = self.name(host);
                self.events.emit(EventKind::TaskStage { host, at, stage });
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
            FromWorker::Done(done) => self.done(host, done),
            FromWorker::Refused { at, reason, text } => self.input(Input::Refused { host, at, reason, text }),
            FromWorker::Returned { tasks } => self.input(Input::Returned { host, tasks }),
            FromWorker::Notice { text } => {
                let host = self.name(host);
                self.events.emit(EventKind::HostNotice { host, text });
            }
            // The session takes care of these itself.
            FromWorker::Ready(_) | FromWorker::Error { .. } | FromWorker::Finished => {}
        }
    }

    fn started(&mut self, host: HostIndex, at: TaskRef) {
        let is_new = self.scheduler.awaits_start(host, at);
        self.input(Input::Started { host, at });
        if !is_new {
            return;
        }
        let name = self.name(host);
        let target = self.plan.target(at.task).target.name.clone();
        let commit = self.plan.commit(at.task).short.clone();
        self.events.emit(EventKind::TaskStarted { host: name, at, target, commit });
    }

    fn follow(&mut self, host: HostIndex, at: TaskRef) {
        if self.scheduler.holds(host, at) && self.following.insert(at, host).is_none() {
            self.hosts[host.0 as usize].order(Order::Follow { at, part: self.out.part(at) });
        }
    }

    /// An attempt has ended. If the scheduler wants its result, [`Self::accept`] follows; else it is thrown away.
    fn done(&mut self, host: HostIndex, done: Box<Done>) {
        let at = done.at;
        let ended = Ended::of(done.outcome, &done.message);
        let is_result = ended == Ended::Result;
        self.ended.insert(at, done);
        self.input(Input::Ended { host, at, ended });
        if self.ended.remove(&at).is_some() {
            self.discard(host, at);
            if !is_result {
                tracing::debug!(%at, "an attempt was not completed");
            }
        }
    }

    /// Nothing of this attempt is wanted. If the host says it a second time, the first result is still on its way.
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

    fn accept(&mut self, host: HostIndex, at: TaskRef) {
        let Some(done) = self.ended.remove(&at) else { return };
        let collected = Collected {
            done,
            host: Some(self.name(host)),
            earlier: self.stories.get(&at.task).cloned().unwrap_or_default(),
            part: self.out.part(at),
            fetched: false,
        };
        let fetch = collected.fetch();
        if fetch.is_empty() && !self.following.contains_key(&at) {
            self.submit(Some((host, at)), collected);
        } else {
            self.hosts[host.0 as usize].order(Order::Fetch(fetch));
            self.fetching.insert(at, (host, collected));
        }
    }

    fn fetched(&mut self, at: TaskRef) {
        self.following.remove(&at);
        if let Some((host, mut collected)) = self.fetching.remove(&at) {
            collected.fetched = true;
            self.submit(Some((host, at)), collected);
        }
    }

    fn fetch_failed(&mut self, host: HostIndex, at: TaskRef, reason: String, at_boss: bool) {
        self.following.remove(&at);
        let wanted = self.fetching.remove(&at).is_some();
        if at_boss {
            self.stop(Stopped::Error(reason));
        } else if wanted {
            self.input(Input::ResultLost { host, at, reason });
        }
    }

    fn submit(&mut self, source: Option<(HostIndex, TaskRef)>, collected: Collected) {
        let task = collected.done.at.task;
        let announce = collected.event(&self.plan);
        let submission = collected.submission(&self.plan, &self.run, &announce.path);
        self.stories.remove(&task);
        self.storing.insert(task, Storing { announce, source });
        self.store.submit(submission);
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
                let host = self.name(host);
                let story = AttemptStory { attempt: at.attempt, host: host.clone(), reason: reason.clone() };
                self.stories.entry(at.task).or_default().push(story);
                self.events.emit(EventKind::TaskRetried { host, at, reason });
            }
            Action::GiveUp { task, why, story } => self.give_up(task, &why, story),
            Action::Pause { host, for_ms, reason } => {
                let host = self.name(host);
                self.events.emit(EventKind::HostPaused { host, reason, pause_ms: for_ms });
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
        if state.trees.insert(order.tree) {
            state.order(Order::Source(order.tree));
        }
        state.order(Order::Send(ToWorker::Task(order)));
    }

    fn give_up(&mut self, task: TaskId, why: &GiveUp, story: Vec<crate::scheduler::AttemptStory>) {
        let attempt = story.last().map_or(crewboss_protocol::Attempt(0), |last| last.attempt);
        let at = TaskRef { task, attempt };
        let host = story.last().map(|last| self.name(last.host));
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
        let done = given_up(at, message);
        let part = self.out.part(at);
        self.submit(None, Collected { done, host, earlier, part, fetched: false });
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

/// What a host offers to the tasks of a plan.
pub fn offer(facts: &HostFacts, tags: &BTreeSet<Name>, plan: &Plan) -> Offer {
    let trees = facts.trees.iter().copied().collect();
    Offer {
        slots: facts.slots,
        speed: facts.speed,
        toolchains: facts.toolchains.iter().map(|toolchain| toolchain.name.clone()).collect(),
        features: facts.features.clone(),
        tags: tags.clone(),
        memory: facts.memory,
        disk_free: facts.disk_free,
        trees: plan.tree_indexes(&trees),
    }
}

/// The class of each target's tasks.
pub fn requirements(plan: &Plan, scheduler: &mut Scheduler) -> Vec<RequirementId> {
    plan.targets()
        .iter()
        .map(|target| scheduler.intern(Requirement::new(target.target.toolchain.clone(), &target.needs)))
        .collect()
}

/// A task as the scheduler needs to know it.
pub fn entry(plan: &Plan, requirements: &[RequirementId], task: TaskId) -> TaskEntry {
    let target = plan.target_index(task);
    let index = u32::try_from(target).unwrap_or(u32::MAX);
    TaskEntry {
        task,
        requirement: requirements[target],
        priority: plan.target(task).priority,
        expected_ms: None,
        tree: u32::try_from(plan.commit_index(task)).unwrap_or(u32::MAX),
        chain: plan.target(task).target.incremental.then_some(ChainId(index)),
    }
}

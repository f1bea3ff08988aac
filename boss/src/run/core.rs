//! The decisions of a run, pure: which task goes where ([`Scheduler`]), what becomes of its result
//! ([`Results`]), and what the two tell each other. What happened and the time go in, actions come
//! out; no clock, I/O or chance is in here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::limits::TASKS_PER_MESSAGE_MAX;
use crewboss_protocol::message::{Done, Ending, TaskLimits, TaskOrder};
use crewboss_protocol::{FromWorker, HostName, Millis, Phase, TaskId, TaskRef, TreeId};

use super::collect::{Collected, Missing};
use super::dispatch::{entry, requirements};
use super::plan::Plan;
use super::results::{self, Results};
use super::session_error::stood_still;
use crate::event::TaskDone;
use crate::scheduler::{
    self, AttemptStory, Counts, Ended, GiveUp, HostIndex, Input, Offer, RequirementId, Scheduler, Unfit,
};

/// What is to be done.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named by the sentences")]
pub enum Action {
    /// Bring the source of a tree to a host. Its tasks are sent meanwhile.
    Source { host: HostIndex, tree: TreeId },
    /// Send a task to a host.
    Send { host: HostIndex, order: TaskOrder },
    /// Ask for these back, unless they have started.
    Recall { host: HostIndex, tasks: Vec<TaskRef> },
    /// Stop a withdrawn attempt.
    Cancel { host: HostIndex, at: TaskRef },
    /// End the session of a host that stands still, as one that is lost.
    EndSession { host: HostIndex, reason: String },
    /// End the session of a host that has failed every trial.
    Out { host: HostIndex, reason: String },
    /// Begin to fetch a log that grows.
    Follow { host: HostIndex, at: TaskRef },
    /// Stop that, and remove what is here.
    Abandon { host: HostIndex, at: TaskRef },
    /// Fetch what is missing of a result.
    Fetch { host: HostIndex, at: TaskRef, missing: Missing },
    /// Tell a worker that it may forget an attempt.
    Forget { host: HostIndex, at: TaskRef },
    /// Hand over the uploads of a result.
    Upload { at: TaskRef },
    /// Store a result.
    Store(Box<Collected>),
    /// Tell people.
    Tell(Told),
}

/// What people are told.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named by the sentences")]
pub enum Told {
    /// An attempt runs.
    Started { host: HostIndex, at: TaskRef },
    /// This is done with a result.
    Phase { host: HostIndex, at: TaskRef, phase: Phase },
    /// An attempt has failed, and its task is queued again.
    Retried { host: HostIndex, at: TaskRef, reason: String },
    /// A host gets nothing for a while.
    Paused { host: HostIndex, for_ms: u64, reason: String },
    /// No host can take the tasks of a target: once for each.
    Impossible { task: TaskId, reasons: BTreeMap<HostName, String> },
    /// A task has its result.
    Done(Box<TaskDone>),
}

/// What is known of the session of one host.
#[derive(Debug, Default, Clone)]
struct Known {
    /// Trees whose source is there or on the way.
    trees: BTreeSet<TreeId>,
    /// Those that are on the way.
    under_way: u32,
    /// Why its worker ends, if it has said so.
    ending: Option<Ending>,
}

/// All that decides.
#[derive(Debug)]
pub struct Core {
    plan: Arc<Plan>,
    hosts: Vec<HostName>,
    scheduler: Scheduler,
    requirements: Vec<RequirementId>,
    results: Results,
    known: Vec<Known>,
    standstill: Duration,
    /// Targets that were named as impossible.
    impossible: BTreeSet<usize>,
    // Only to save allocations.
    scheduled: Vec<scheduler::Action>,
    resulted: Vec<results::Action>,
}

impl Core {
    /// A run of a plan on hosts of these names. A process that does one thing for longer than
    /// `standstill` stands still.
    pub fn new(plan: Arc<Plan>, hosts: Vec<HostName>, limits: TaskLimits, standstill: Duration) -> Self {
        let mut scheduler = Scheduler::new(u32::try_from(hosts.len()).unwrap_or(u32::MAX));
        scheduler.watch(u64::try_from(standstill.as_millis()).unwrap_or(u64::MAX));
        Self {
            requirements: requirements(&plan, &mut scheduler),
            scheduler,
            results: Results::new(plan.clone(), hosts.clone(), limits),
            known: vec![Known::default(); hosts.len()],
            plan,
            hosts,
            standstill,
            impossible: BTreeSet::new(),
            scheduled: Vec::new(),
            resulted: Vec::new(),
        }
    }

    /// How many results are with the store.
    pub fn storing(&self) -> usize {
        self.results.storing()
    }

    /// Whether an attempt is at a host and has not ended.
    pub fn holds(&self, host: HostIndex, at: TaskRef) -> bool {
        self.scheduler.holds(host, at)
    }

    /// How many tasks are in which state.
    pub fn counts(&self) -> Counts {
        self.scheduler.counts()
    }

    /// When [`Input::Tick`] is due.
    pub fn next_wake(&self) -> Option<Millis> {
        self.scheduler.next_wake()
    }

    /// These tasks are to be built.
    pub fn add(&mut self, tasks: &[TaskId], now: Millis, out: &mut Vec<Action>) {
        if !tasks.is_empty() {
            let entry = |&task| entry(&self.plan, &self.requirements, task, self.standstill);
            let entries = tasks.iter().map(entry).collect();
            self.input(Input::AddTasks(entries), now, out);
        }
    }

    /// A session is ready, on a host that has the source of these trees.
    pub fn host_up(
        &mut self,
        host: HostIndex,
        offer: Offer,
        trees: BTreeSet<TreeId>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        self.known[host.0 as usize] = Known { trees, ..Known::default() };
        self.input(Input::HostUp { host, offer }, now, out);
    }

    /// A session is lost, or could not be made; see [`Input::HostDown`].
    pub fn host_down(
        &mut self,
        host: HostIndex,
        reason: String,
        returns: bool,
        ours: bool,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        self.known[host.0 as usize] = Known::default();
        // First of all, so that nothing of what follows is handed to this host again.
        self.input(Input::HostDown { host, reason: reason.clone(), returns, ours }, now, out);
        self.result(results::Event::HostDown { host, reason }, now, out);
    }

    /// A session has ended in order, as it was asked to. What was still to be fetched there cannot
    /// be any more.
    pub fn host_left(&mut self, host: HostIndex, now: Millis, out: &mut Vec<Action>) {
        let reason = "its session was ended".to_owned();
        self.result(results::Event::HostDown { host, reason }, now, out);
    }

    /// A source that was on its way to a host is there.
    pub fn source_arrived(&mut self, host: HostIndex) {
        self.sources(host, |under_way| under_way.saturating_sub(1));
    }

    /// A worker has said something. `stood` is for how long this process itself stood still, if
    /// that was so lately that workers may have ended for it.
    pub fn message(
        &mut self,
        host: HostIndex,
        message: FromWorker,
        stood: Option<Duration>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        match message {
            FromWorker::Phase { at, phase, .. } => self.phase(host, at, phase, now, out),
            FromWorker::LongLog { at } => {
                if self.holds(host, at) {
                    self.result(results::Event::LongLog { host, at }, now, out);
                }
            }
            FromWorker::Alive { load, .. } => {
                self.input(Input::Disk { host, free: load.disk_free }, now, out);
            }
            FromWorker::Slots { usable } => self.input(Input::Slots { host, usable }, now, out),
            FromWorker::Done(done) => self.ended(host, done, stood, now, out),
            FromWorker::Refused { at, reason, text } => {
                self.input(Input::Refused { host, at, reason, text }, now, out);
            }
            FromWorker::Returned { tasks } => self.input(Input::Returned { host, tasks }, now, out),
            // What it stops follows, and then the end of the session.
            FromWorker::Ending { why } => self.known[host.0 as usize].ending = Some(why),
            // For people, for the session itself, or the answer to what a run never asks.
            FromWorker::Waiting { .. }
            | FromWorker::GuestLoad { .. }
            | FromWorker::Log { .. }
            | FromWorker::Notice { .. }
            | FromWorker::Ready(_)
            | FromWorker::Error { .. }
            | FromWorker::Bootstrapped { .. }
            | FromWorker::Finished => {}
        }
    }

    /// An attempt is at something. The first time it starts by that.
    fn phase(&mut self, host: HostIndex, at: TaskRef, phase: Phase, now: Millis, out: &mut Vec<Action>) {
        if self.scheduler.awaits_start(host, at) {
            self.input(Input::Started { host, at }, now, out);
            out.push(Action::Tell(Told::Started { host, at }));
        }
        if self.holds(host, at) {
            self.result(results::Event::Seen { host, at, phase }, now, out);
        }
    }

    /// An attempt has ended. If the scheduler wants its result, it is accepted; else it is
    /// discarded.
    fn ended(
        &mut self,
        host: HostIndex,
        done: Box<Done>,
        stood: Option<Duration>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let at = done.at;
        let ended = match Ended::of(&done) {
            Ended::Cancelled { why, .. } => self.cancelled(host, why, stood),
            ended => ended,
        };
        let event = match self.holds(host, at) {
            true => results::Event::Ended { host, done },
            false => results::Event::Stray { host, at },
        };
        self.result(event, now, out);
        self.input(Input::Ended { host, at, ended }, now, out);
        self.result(results::Event::Judged { at }, now, out);
    }

    /// An attempt was stopped, and not by us: its worker ends. It may be that it had not heard us
    /// for too long.
    fn cancelled(&self, host: HostIndex, otherwise: String, stood: Option<Duration>) -> Ended {
        let ending = self.known[host.0 as usize].ending.as_ref();
        match stood {
            Some(stood) => Ended::Cancelled { why: stood_still(stood), ours: true },
            None => Ended::Cancelled { why: ending.map_or(otherwise, |why| why.to_string()), ours: false },
        }
    }

    /// Nothing is handed out any more; what ends is still taken.
    pub fn stop(&mut self, now: Millis, out: &mut Vec<Action>) {
        self.result(results::Event::Stop, now, out);
        self.input(Input::Stop, now, out);
    }

    /// Something happened to a result.
    pub fn result(&mut self, event: results::Event, now: Millis, out: &mut Vec<Action>) {
        let mut actions = std::mem::take(&mut self.resulted);
        self.results.handle(event, now, &mut actions);
        for action in actions.drain(..) {
            match action {
                results::Action::Lost { host, at, reason } => {
                    self.input(Input::ResultLost { host, at, reason }, now, out);
                }
                results::Action::Follow { host, at } => out.push(Action::Follow { host, at }),
                results::Action::Abandon { host, at } => out.push(Action::Abandon { host, at }),
                results::Action::Fetch { host, at, missing } => {
                    out.push(Action::Fetch { host, at, missing });
                }
                results::Action::Upload { at } => out.push(Action::Upload { at }),
                results::Action::Store(collected) => out.push(Action::Store(collected)),
                results::Action::Forget { host, at } => out.push(Action::Forget { host, at }),
                results::Action::Tell { host, at, phase } => {
                    out.push(Action::Tell(Told::Phase { host, at, phase }))
                }
                results::Action::Announce(done) => out.push(Action::Tell(Told::Done(done))),
            }
        }
        self.resulted = actions;
    }

    /// Something happened that only the scheduler need know.
    pub fn input(&mut self, input: Input, now: Millis, out: &mut Vec<Action>) {
        let mut actions = std::mem::take(&mut self.scheduled);
        self.scheduler.handle(input, now, &mut actions);
        for action in actions.drain(..) {
            self.pass_on(action, now, out);
        }
        self.scheduled = actions;
    }

    fn pass_on(&mut self, action: scheduler::Action, now: Millis, out: &mut Vec<Action>) {
        match action {
            scheduler::Action::Send { host, at } => self.hand_out(host, at, out),
            scheduler::Action::Recall { host, tasks } => {
                let parts = tasks.chunks(TASKS_PER_MESSAGE_MAX);
                out.extend(parts.map(|tasks| Action::Recall { host, tasks: tasks.to_vec() }));
            }
            scheduler::Action::Cancel { host, at } => out.push(Action::Cancel { host, at }),
            scheduler::Action::Accept { at, .. } => self.result(results::Event::Accepted { at }, now, out),
            scheduler::Action::Retry { host, at, reason } => {
                self.result(results::Event::Retried { host, at, reason: reason.clone() }, now, out);
                out.push(Action::Tell(Told::Retried { host, at, reason }));
            }
            scheduler::Action::GiveUp { task, why, story } => self.give_up(task, &why, story, now, out),
            scheduler::Action::Pause { host, for_ms, reason } => {
                out.push(Action::Tell(Told::Paused { host, for_ms, reason }));
            }
            scheduler::Action::EndSession { host, reason } => out.push(Action::EndSession { host, reason }),
            scheduler::Action::Out { host, reason } => out.push(Action::Out { host, reason }),
        }
    }

    fn hand_out(&mut self, host: HostIndex, at: TaskRef, out: &mut Vec<Action>) {
        let order = self.plan.order(at);
        let tree = order.tree;
        let lacks = self.known[host.0 as usize].trees.insert(tree);
        if lacks {
            out.push(Action::Source { host, tree });
        }
        out.push(Action::Send { host, order });
        if lacks {
            self.sources(host, |under_way| under_way + 1);
        }
    }

    /// Lets the scheduler know how many trees are on their way. It may be in the middle of an
    /// input.
    fn sources(&mut self, host: HostIndex, change: impl FnOnce(u32) -> u32) {
        let known = &mut self.known[host.0 as usize];
        known.under_way = change(known.under_way);
        self.scheduler.note_sources(host, known.under_way);
    }

    fn give_up(
        &mut self,
        task: TaskId,
        why: &GiveUp,
        story: Vec<AttemptStory>,
        now: Millis,
        out: &mut Vec<Action>,
    ) {
        let mut message = why.to_string();
        if let GiveUp::Impossible(reasons) = why {
            let reasons = self.named(reasons);
            message.extend(reasons.iter().map(|(host, why)| format!("\n{host}: {why}")));
            if self.impossible.insert(self.plan.target_index(task)) {
                out.push(Action::Tell(Told::Impossible { task, reasons }));
            }
        }
        self.result(results::Event::GivenUp { task, message, story }, now, out);
    }

    fn named(&self, reasons: &[Unfit]) -> BTreeMap<HostName, String> {
        self.hosts.iter().zip(reasons).map(|(host, why)| (host.clone(), why.to_string())).collect()
    }
}

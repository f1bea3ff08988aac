//! The worker's decisions, pure: an event and the time go in, actions come out. No clock, file or
//! process is in here.
//!
//! The states of an attempt: waiting (for its source) -> queued -> preparing -> ready -> running ->
//! keeping (only with a warm directory) -> done (until the boss has collected it) -> gone.

mod bootstraps;
mod held_back;
mod promises;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crewboss_protocol::limits::{KILL_GRACE, QUEUED_TASKS_MAX};
use crewboss_protocol::message::{
    BootstrapEnd, BootstrapOrder, Done, Ending, LogEnd, Refusal, TaskOrder, WorkerErrorKind,
};
use crewboss_protocol::{
    Environment, FromWorker, Millis, Name, Outcome, Phase, PhaseClock, Phases, Target, TaskRef, ToWorker,
    TreeId,
};

use crate::slots::Share;
use bootstraps::Bootstraps;
pub use held_back::HOLD_BACK;
use held_back::HeldBack;
pub use promises::GRACE;
use promises::Promises;

/// Environments that are ready, or being made, beyond one per slot: snapshots are made several at
/// once, and a task may be over before the next one is ready.
pub const READY_AHEAD: usize = 16;

/// A slot that is wanted and held by others for so long is told to the boss. Shorter, it is only
/// passed on between bosses.
const SHORT_AFTER: Duration = Duration::from_millis(500);

/// What is still running this long after the worker was told to stop is left to the guardian, which
/// kills it.
pub const STOP_WITHIN: Duration = KILL_GRACE.saturating_add(Duration::from_secs(1));

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The boss said something.
    Boss(ToWorker),
    /// The boss said something that is no message.
    BadLine(String),
    /// Something is wrong with this host that there is no going on after.
    Broken {
        /// Whether its disk is full.
        full: bool,
        /// What, for a person.
        text: String,
    },
    /// The boss is gone, or somebody asked this worker to end.
    Stop(Ending),
    /// A tree's source was found on this host.
    Source(TreeId),
    /// An environment was made, or not.
    Prepared {
        /// For which attempt.
        at: TaskRef,
        /// What keeps it from running here.
        problem: Option<(Refusal, String)>,
    },
    /// The runner has ended its job; its result waits to be reported.
    Ended {
        /// Which runner.
        runner: usize,
        /// Which attempt.
        at: TaskRef,
        /// How.
        outcome: Outcome,
    },
    /// A runner says how long it may take from now until it is heard again.
    Promised {
        /// Which runner.
        runner: usize,
        /// So long.
        within: Duration,
    },
    /// A runner died, was ended, or could not be started. Nothing of its task is left.
    RunnerGone {
        /// Which runner.
        runner: usize,
        /// What the task's outcome is.
        outcome: Outcome,
        /// Why, for a person.
        text: String,
        /// Bytes of the log that its task has left.
        log: u64,
    },
    /// What an incremental attempt built has been put away.
    Kept {
        /// Of which attempt.
        at: TaskRef,
        /// What went wrong with that.
        problem: Option<String>,
    },
    /// Something went wrong that changes nothing; a person should know.
    Trouble(String),
    /// The slots that are held have changed, or what others leave us has.
    Slots {
        /// How many are held.
        held: u32,
        /// How many may be.
        share: Share,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Say this to the boss.
    Send(FromWorker),
    /// Answer a ping.
    Alive(u64),
    /// Make an environment.
    Prepare {
        /// What for.
        order: TaskOrder,
        /// Whether from and for a warm directory.
        warm: bool,
    },
    /// Give a prepared attempt to an idle runner.
    Run {
        /// Which runner.
        runner: usize,
        /// What.
        order: TaskOrder,
        /// Where its time went until now.
        phases: Phases,
    },
    /// Give a bootstrap to an idle runner.
    Bootstrap {
        /// Which runner.
        runner: usize,
        /// What.
        order: BootstrapOrder,
    },
    /// Stop a runner's job.
    CancelRun {
        /// Which runner.
        runner: usize,
        /// Which attempt.
        at: TaskRef,
    },
    /// End a runner that has not kept its promise, and all that it runs.
    EndRunner {
        /// Which runner.
        runner: usize,
        /// What the outcome of its task is.
        outcome: Outcome,
        /// What it did not keep, for a person.
        text: String,
    },
    /// Put away what an incremental attempt built; as the next one's start if it was good.
    Keep {
        /// Which attempt.
        at: TaskRef,
        /// Whether it was good.
        good: bool,
    },
    /// Send the result that a runner has left.
    Report {
        /// Of which attempt.
        at: TaskRef,
    },
    /// Throw away the result that a runner has left.
    Forget {
        /// Of which attempt.
        at: TaskRef,
    },
    /// Remove an environment.
    Remove {
        /// Of which attempt.
        at: TaskRef,
    },
    /// Try to hold this many slots.
    Slots {
        /// How many.
        want: u32,
    },
    /// Everything has stopped, or will not: clean up and exit.
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Queued,
    Preparing { unwanted: bool },
    Ready,
    Running { runner: usize },
    Keeping { collected: bool, outcome: Outcome },
    Done,
}

#[derive(Debug)]
struct Entry {
    order: TaskOrder,
    state: State,
    /// Runs until a runner has it, which goes on from there.
    clock: PhaseClock,
}

/// What this host has for tasks.
#[derive(Debug, Default)]
pub struct Offer {
    /// Toolchains of the host itself.
    pub toolchains: BTreeSet<Name>,
    /// Machines that can be used.
    pub machines: BTreeSet<Name>,
}

impl Offer {
    fn check(&self, target: &Target) -> Result<(), (Refusal, String)> {
        let Environment::Machine(machine) = &target.environment else {
            let missing = target.toolchain.as_ref().filter(|name| !self.toolchains.contains(*name));
            return missing.map_or(Ok(()), |name| {
                Err((Refusal::NoToolchain, format!("toolchain {name} is not offered here")))
            });
        };
        // The toolchain of such a target is one inside the machine.
        let auxiliary = machine.auxiliary.iter().map(|one| &one.machine);
        let missing = auxiliary.chain([&machine.name]).find(|name| !self.machines.contains(*name));
        missing
            .map_or(Ok(()), |name| Err((Refusal::NoMachine, format!("machine {name} is not offered here"))))
    }
}

/// Everything that a worker knows.
#[derive(Debug)]
pub struct Core {
    slots: u32,
    offer: Offer,
    silence: Duration,
    targets: BTreeMap<u32, Target>,
    attempts: BTreeMap<TaskRef, Entry>,
    sources: BTreeSet<TreeId>,
    queue: VecDeque<TaskRef>,
    /// Targets whose warm directory is in use, with those that wait for it.
    warm: BTreeMap<u32, VecDeque<TaskRef>>,
    ready: VecDeque<TaskRef>,
    bootstraps: Bootstraps,
    /// By when each runner that has a job will be heard.
    promises: Promises,
    idle: Vec<usize>,
    unstarted: usize,
    preparing: usize,
    held: u32,
    wanted: u32,
    share: Share,
    /// Since when fewer slots are held than could be used.
    short_since: Option<Instant>,
    /// What the boss was told of usable slots.
    told: u32,
    heard: Instant,
    held_back: HeldBack,
    stopping: Option<Instant>,
    /// Why it stops.
    ending: Option<Ending>,
    exited: bool,
}

impl Core {
    /// A worker with this many slots and toolchains. After `silence` without a word the boss counts
    /// as gone; a runner that does one thing for longer than `standstill` stands still. Without
    /// slots it takes no tasks.
    pub fn new(slots: u32, offer: Offer, silence: Duration, standstill: Duration, now: Instant) -> Self {
        Self {
            slots,
            offer,
            silence,
            targets: BTreeMap::new(),
            attempts: BTreeMap::new(),
            sources: BTreeSet::new(),
            queue: VecDeque::new(),
            warm: BTreeMap::new(),
            ready: VecDeque::new(),
            bootstraps: Bootstraps::default(),
            promises: Promises::new(standstill),
            idle: (0..slots as usize).rev().collect(),
            unstarted: 0,
            preparing: 0,
            held: 0,
            wanted: 0,
            share: Share { slots, pass_on: false },
            short_since: None,
            told: slots,
            heard: now,
            held_back: HeldBack::default(),
            stopping: None,
            ending: None,
            exited: false,
        }
    }

    /// A target that was configured.
    pub fn target(&self, number: u32) -> Option<&Target> {
        self.targets.get(&number)
    }

    /// Whether the source of a tree is known to be here.
    pub fn has_source(&self, tree: TreeId) -> bool {
        self.sources.contains(&tree)
    }

    /// The attempt that a runner runs.
    pub fn runs(&self, runner: usize) -> Option<TaskRef> {
        let running = |entry: &Entry| entry.state == State::Running { runner };
        self.attempts.iter().find(|(_, entry)| running(entry)).map(|(at, _)| *at)
    }

    /// The trees whose source is being waited for.
    pub fn missing_sources(&self) -> BTreeSet<TreeId> {
        let waiting = self.attempts.values().filter(|entry| entry.state == State::Waiting);
        waiting.map(|entry| entry.order.tree).collect()
    }

    /// How many slots are wanted.
    pub fn wanted_slots(&self) -> u32 {
        self.wanted
    }

    /// When something has to happen even if no event comes.
    pub fn deadline(&self) -> Instant {
        if let Some(since) = self.stopping {
            return since + STOP_WITHIN;
        }
        let silent = self.heard + self.silence;
        let first = [self.promises.first(), self.held_back.first()].into_iter().flatten().min();
        let silent = first.map_or(silent, |due| silent.min(due));
        let untold = self.short_since.filter(|_| self.told != self.held);
        untold.map_or(silent, |since| silent.min(since + SHORT_AFTER))
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Boss(message) => {
                self.heard = now;
                self.message(message, now, actions);
            }
            Event::BadLine(text) => self.broken(WorkerErrorKind::Protocol, text, now, actions),
            Event::Broken { full, text } => {
                let kind = if full { WorkerErrorKind::NoSpace } else { WorkerErrorKind::Internal };
                self.broken(kind, text, now, actions);
            }
            Event::Stop(why) => self.stop(why, now, actions),
            Event::Source(tree) => self.source(tree, now),
            Event::Prepared { at, problem } => self.prepared(at, problem, now, actions),
            Event::Ended { runner, at, outcome } => self.ended(runner, at, outcome, now, actions),
            Event::Promised { runner, within } => self.promises.renew(runner, within, now),
            Event::RunnerGone { runner, outcome, text, log } => {
                self.runner_gone(runner, outcome, text, log, actions);
            }
            Event::Kept { at, problem } => {
                actions.extend(problem.map(|text| Action::Send(FromWorker::Notice { text })));
                self.kept(at, now, actions);
            }
            Event::Trouble(text) => actions.push(Action::Send(FromWorker::Notice { text })),
            Event::Slots { held, share } => (self.held, self.share) = (held, share),
            Event::Tick => self.tick(now, actions),
        }
        self.advance(now, actions);
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_some() {
            return;
        }
        if now >= self.heard + self.silence {
            let ms = u64::try_from(self.silence.as_millis()).unwrap_or(u64::MAX);
            return self.stop(Ending::Silence { ms }, now, actions);
        }
        self.report_failures(now, actions);
        // A runner that is over its time stands still: it keeps the limits of its tasks itself, as
        // long as it runs.
        for (runner, outcome, text) in self.promises.overdue(now) {
            actions.push(Action::EndRunner { runner, outcome, text });
        }
    }

    fn message(&mut self, message: ToWorker, now: Instant, actions: &mut Vec<Action>) {
        match message {
            ToWorker::Hello(_) => {
                self.broken(WorkerErrorKind::Protocol, "a second hello".to_owned(), now, actions);
            }
            ToWorker::Configure { first, targets } => self.targets.extend((first..).zip(targets)),
            ToWorker::SourceReady { tree } => self.source(tree, now),
            ToWorker::Task(order) => self.order(order, now, actions),
            ToWorker::Bootstrap(order) => self.order_bootstrap(order, actions),
            ToWorker::Cancel { at } => self.cancel(at, now, actions),
            ToWorker::Recall { tasks } => {
                let tasks = tasks.into_iter().filter(|at| self.withdraw(*at, actions)).collect();
                actions.push(Action::Send(FromWorker::Returned { tasks }));
            }
            ToWorker::Collected { at } => self.collected(at, actions),
            ToWorker::Ping { number } => actions.push(Action::Alive(number)),
            ToWorker::Quit => self.stop(Ending::Asked, now, actions),
        }
    }

    fn broken(&mut self, kind: WorkerErrorKind, text: String, now: Instant, actions: &mut Vec<Action>) {
        actions.push(Action::Send(FromWorker::Error { kind, text }));
        self.stop(Ending::Broken, now, actions);
    }

    fn source(&mut self, tree: TreeId, now: Instant) {
        if !self.sources.insert(tree) {
            return;
        }
        for (at, entry) in &mut self.attempts {
            if entry.state == State::Waiting && entry.order.tree == tree {
                entry.state = State::Queued;
                entry.clock.begin(Phase::Waiting, Millis::of(now));
                self.queue.push_back(*at);
            }
        }
    }

    fn order(&mut self, order: TaskOrder, now: Instant, actions: &mut Vec<Action>) {
        let at = order.at;
        if let Err((reason, text)) = self.check(&order) {
            actions.push(Action::Send(FromWorker::Refused { at, reason, text }));
            return;
        }
        let here = self.sources.contains(&order.tree);
        let state = if here { State::Queued } else { State::Waiting };
        if here {
            self.queue.push_back(at);
        }
        self.unstarted += 1;
        let mut clock = PhaseClock::default();
        clock.begin(if here { Phase::Waiting } else { Phase::Source }, Millis::of(now));
        self.attempts.insert(at, Entry { order, state, clock });
    }

    /// Whether anything at all can be ordered by this name.
    fn check_order(&self, at: TaskRef) -> Result<(), (Refusal, String)> {
        if self.stopping.is_some() {
            return Err((Refusal::Stopping, "the worker is stopping".to_owned()));
        }
        if self.slots == 0 {
            return Err((Refusal::Stopping, "this session only looks".to_owned()));
        }
        if self.attempts.contains_key(&at) || self.bootstraps.has(at) {
            return Err((Refusal::Duplicate, format!("{at} was ordered before")));
        }
        Ok(())
    }

    fn check(&self, order: &TaskOrder) -> Result<(), (Refusal, String)> {
        self.check_order(order.at)?;
        if self.unstarted >= QUEUED_TASKS_MAX {
            return Err((Refusal::QueueFull, format!("{QUEUED_TASKS_MAX} tasks wait already")));
        }
        let Some(target) = self.targets.get(&order.target) else {
            return Err((Refusal::UnknownTarget, format!("target {} was never configured", order.target)));
        };
        self.offer.check(target)
    }

    /// Takes back an attempt that has not started. Returns false if it has, or is unknown.
    fn withdraw(&mut self, at: TaskRef, actions: &mut Vec<Action>) -> bool {
        if self.bootstraps.withdraw(at) {
            return true;
        }
        let Some(entry) = self.attempts.get_mut(&at) else { return false };
        match entry.state {
            // Whatever list it stands in passes over what is not there any more.
            State::Waiting | State::Queued => {
                self.attempts.remove(&at);
            }
            State::Preparing { unwanted: true } => return false,
            State::Preparing { .. } => entry.state = State::Preparing { unwanted: true },
            State::Ready => {
                self.ready.retain(|ready| *ready != at);
                self.forget(at, actions);
            }
            State::Running { .. } | State::Keeping { .. } | State::Done => return false,
        }
        self.unstarted -= 1;
        true
    }

    /// Removes an attempt that has an environment.
    fn forget(&mut self, at: TaskRef, actions: &mut Vec<Action>) {
        if let Some(entry) = self.attempts.remove(&at) {
            actions.push(Action::Remove { at });
            self.release_warm(&entry.order);
        }
    }

    fn cancel(&mut self, at: TaskRef, now: Instant, actions: &mut Vec<Action>) {
        if self.cancel_bootstrap(at, now, actions) {
            return;
        }
        if let Some(Entry { state: State::Running { runner }, .. }) = self.attempts.get(&at) {
            self.promises.cancel(*runner, now);
            actions.push(Action::CancelRun { runner: *runner, at });
        } else if self.withdraw(at, actions) {
            actions.push(Action::Send(ended_without_running(at, Outcome::Cancelled, String::new())));
        }
    }

    fn collected(&mut self, at: TaskRef, actions: &mut Vec<Action>) {
        match self.attempts.get_mut(&at).map(|entry| &mut entry.state) {
            Some(State::Keeping { collected, .. }) => *collected = true,
            Some(State::Done) => {
                self.attempts.remove(&at);
                actions.push(Action::Remove { at });
            }
            _ => {}
        }
    }

    fn prepared(
        &mut self,
        at: TaskRef,
        problem: Option<(Refusal, String)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.preparing -= 1;
        let Some(entry) = self.attempts.get_mut(&at) else { return };
        let unwanted = entry.state == State::Preparing { unwanted: true };
        match problem {
            None if unwanted => self.forget(at, actions),
            None => {
                entry.state = State::Ready;
                entry.clock.begin(Phase::Waiting, Millis::of(now));
                self.ready.push_back(at);
            }
            Some((reason, text)) => {
                let Some(entry) = self.attempts.remove(&at) else { return };
                self.release_warm(&entry.order);
                if !unwanted {
                    self.unstarted -= 1;
                    if reason == Refusal::NoSource {
                        // It was pruned; whoever orders it again has to send it again.
                        self.sources.remove(&entry.order.tree);
                    }
                    actions.push(Action::Send(FromWorker::Refused { at, reason, text }));
                }
            }
        }
    }

    fn ended(
        &mut self,
        runner: usize,
        at: TaskRef,
        outcome: Outcome,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.idle.push(runner);
        self.promises.kept(runner);
        self.pass_on(actions);
        if self.bootstraps.ended(at) {
            actions.push(Action::Report { at });
            return;
        }
        let Some(entry) = self.attempts.get_mut(&at) else { return };
        if is_warm(&self.targets, &entry.order) {
            entry.state = State::Keeping { collected: false, outcome };
            actions.push(Action::Keep { at, good: outcome.is_good() });
        } else {
            entry.state = State::Done;
            self.report(at, outcome, now, actions);
        }
    }

    fn runner_gone(
        &mut self,
        runner: usize,
        outcome: Outcome,
        text: String,
        log: u64,
        actions: &mut Vec<Action>,
    ) {
        self.promises.kept(runner);
        if let Some(at) = self.bootstraps.lost(runner) {
            self.idle.push(runner);
            let end = BootstrapEnd::Failed { why: text };
            actions.push(Action::Send(FromWorker::Bootstrapped { at, end }));
            return;
        }
        let running = self.attempts.iter_mut().find(|(_, entry)| entry.state == State::Running { runner });
        let Some((at, entry)) = running else { return };
        let at = *at;
        self.idle.push(runner);
        let log = LogEnd { bytes: log, text: (log == 0).then(String::new) };
        actions.push(Action::Send(FromWorker::Done(Box::new(Done {
            log,
            ..without_running(at, outcome, text)
        }))));
        if is_warm(&self.targets, &entry.order) {
            entry.state = State::Keeping { collected: false, outcome };
            actions.push(Action::Keep { at, good: false });
        } else {
            entry.state = State::Done;
        }
    }

    fn kept(&mut self, at: TaskRef, now: Instant, actions: &mut Vec<Action>) {
        let Some(entry) = self.attempts.get_mut(&at) else { return };
        let State::Keeping { collected, outcome } = entry.state else { return };
        entry.state = State::Done;
        let order = entry.order.clone();
        self.report(at, outcome, now, actions);
        self.release_warm(&order);
        if collected {
            self.collected(at, actions);
        }
    }

    /// With more bosses than slots a slot goes back after each task.
    fn pass_on(&mut self, actions: &mut Vec<Action>) {
        if self.share.pass_on {
            self.held = self.running();
            self.wanted = self.held;
            actions.push(Action::Slots { want: self.held });
        }
    }

    fn running(&self) -> u32 {
        self.slots.saturating_sub(u32::try_from(self.idle.len()).unwrap_or(u32::MAX))
    }

    fn stop(&mut self, why: Ending, now: Instant, actions: &mut Vec<Action>) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now);
        self.ending = Some(why.clone());
        if why != Ending::Asked {
            actions.push(Action::Send(FromWorker::Ending { why }));
        }
        self.report_held_back(actions);
        for (at, entry) in &self.attempts {
            if let State::Running { runner } = entry.state {
                actions.push(Action::CancelRun { runner, at: *at });
            }
        }
        let bootstraps = self.bootstraps.running();
        actions.extend(bootstraps.map(|(at, runner)| Action::CancelRun { runner, at }));
    }

    /// Does whatever can be done now.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if let Some(since) = self.stopping {
            // An environment that is just being made would be in the way of removing everything.
            let over = self.running() == 0 && self.preparing == 0;
            if !self.exited && (over || now >= since + STOP_WITHIN) {
                self.exited = true;
                actions.push(Action::Exit);
            }
            return;
        }
        self.prepare_ahead(now, actions);
        self.want_slots(actions);
        self.tell_slots(now, actions);
        while self.running() < self.held {
            let Some(at) = self.ready.pop_front() else { break };
            let (Some(entry), Some(runner)) = (self.attempts.get_mut(&at), self.idle.pop()) else { break };
            entry.state = State::Running { runner };
            self.promises.begin(runner, self.targets.get(&entry.order.target), now);
            self.unstarted -= 1;
            let phases = std::mem::take(&mut entry.clock).end(Millis::of(now));
            let phase = first_phase(self.targets.get(&entry.order.target));
            actions.push(Action::Run { runner, order: entry.order.clone(), phases });
            actions.push(Action::Send(FromWorker::Phase { at, phase, text: String::new() }));
        }
        self.start_bootstraps(now, actions);
    }

    /// Tasks that are ready go first: they are what a boss runs for.
    fn start_bootstraps(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while self.running() < self.held {
            let Some(runner) = self.idle.last().copied() else { return };
            let Some(order) = self.bootstraps.start(runner) else { return };
            self.idle.pop();
            self.promises.begin(runner, None, now);
            let at = order.at;
            actions.push(Action::Bootstrap { runner, order });
            let (phase, text) = (Phase::Machine, String::new());
            actions.push(Action::Send(FromWorker::Phase { at, phase, text }));
        }
    }

    fn prepare_ahead(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let enough = self.slots as usize + READY_AHEAD;
        while self.preparing + self.ready.len() < enough {
            let Some(at) = self.queue.pop_front() else { break };
            let Some(entry) = self.attempts.get_mut(&at) else { continue };
            let warm = is_warm(&self.targets, &entry.order);
            if warm {
                if let Some(waiting) = self.warm.get_mut(&entry.order.target) {
                    waiting.push_back(at);
                    continue;
                }
                self.warm.insert(entry.order.target, VecDeque::new());
            }
            entry.state = State::Preparing { unwanted: false };
            entry.clock.begin(Phase::Preparing, Millis::of(now));
            self.preparing += 1;
            actions.push(Action::Prepare { order: entry.order.clone(), warm });
        }
    }

    /// The warm directory of this attempt is free for the next one, which goes to the head of the
    /// queue.
    fn release_warm(&mut self, order: &TaskOrder) {
        if is_warm(&self.targets, order) {
            for at in self.warm.remove(&order.target).unwrap_or_default().into_iter().rev() {
                self.queue.push_front(at);
            }
        }
    }

    /// How many tasks could run, were there slots enough.
    fn demand(&self) -> u32 {
        let pending = self.ready.len() + self.preparing + self.bootstraps.waiting();
        let pending = u32::try_from(pending).unwrap_or(u32::MAX);
        self.running().saturating_add(pending).min(self.slots)
    }

    /// Says how many slots can be used, if others keep some of them.
    fn tell_slots(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let usable = if self.held < self.demand() {
            let since = *self.short_since.get_or_insert(now);
            if now < since + SHORT_AFTER { self.told } else { self.held }
        } else {
            self.short_since = None;
            self.slots
        };
        if usable != self.told {
            self.told = usable;
            actions.push(Action::Send(FromWorker::Slots { usable }));
        }
    }

    fn want_slots(&mut self, actions: &mut Vec<Action>) {
        let demand = self.demand();
        let want = demand.min(self.share.slots).max(self.running());
        // What is given up is not used any more from here on.
        self.held = self.held.min(want);
        if want != self.wanted {
            self.wanted = want;
            actions.push(Action::Slots { want });
        }
    }
}

fn is_warm(targets: &BTreeMap<u32, Target>, order: &TaskOrder) -> bool {
    !order.cold && targets.get(&order.target).is_some_and(|target| target.incremental)
}

/// What a task is at as soon as it has a runner.
fn first_phase(target: Option<&Target>) -> Phase {
    let stage = |target: &Target| target.stages.first().map(|stage| Phase::Stage(stage.name.clone()));
    let on_host = target.filter(|target| !matches!(target.environment, Environment::Machine(_)));
    on_host.and_then(stage).unwrap_or(Phase::Machine)
}

/// The result of an attempt of which nothing is left but how it ended.
fn without_running(at: TaskRef, outcome: Outcome, message: String) -> Done {
    let nothing = LogEnd { bytes: 0, text: Some(String::new()) };
    Done { log: nothing.clone(), err: nothing, ..Done::bare(at, outcome, message) }
}

/// The same, as a message.
fn ended_without_running(at: TaskRef, outcome: Outcome, message: String) -> FromWorker {
    FromWorker::Done(Box::new(without_running(at, outcome, message)))
}

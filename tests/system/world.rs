//! The world: hosts, links, a store, a person, and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crewboss_boss::plan::{Needs, TargetPlan};
use crewboss_boss::run::core::{Action, Core, Told};
use crewboss_boss::run::results::Event as ResultEvent;
use crewboss_boss::run::{Collected, Commit, Plan, Seen, UploadsEnd};
use crewboss_boss::scheduler::{HostIndex, Input, Offer};
use crewboss_protocol::host::Load;
use crewboss_protocol::message::{Done, Ending, LogEnd, Refusal, TaskLimits};
use crewboss_protocol::target::{Command, Stage};
use crewboss_protocol::{
    Environment, FromWorker, Millis, Outcome, Phase, StageExit, StageResult, Target, TaskId, TaskRef,
    ToWorker, TreeId,
};
use crewboss_worker::core::state::{Core as WorkerCore, Event, Offer as WorkerOffer};
use crewboss_worker::slots::Share;

use super::checker::{Checker, Left};
use super::host::{Asked, Model, Worker};

const HEARTBEAT: u64 = 2_000;
const SILENCE: u64 = 20_000;
/// How long the boss waits for sessions once it is stopped.
const STOP_WITHIN: u64 = 10_000;

const STANDSTILL: Duration = Duration::from_secs(600);

/// No run of these takes so long, in milliseconds of its own time.
const LONGEST: u64 = 7 * 24 * 3_600_000;

/// Tries before a host is given up.
const TRIES: u32 = 8;

/// Something that is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A worker is told to forget an attempt as soon as its result is fetched.
    ForgetsEarly,
    /// It is never told.
    NeverForgets,
    /// People are told of a result when the store is given it.
    AnnouncesEarly,
    /// What an earlier session sent is taken for the later one's.
    MixesSessions,
    /// A host that comes back is believed to have the sources that it had.
    RemembersSources,
    /// What a worker gives back is not heard.
    LosesReturned,
    /// What a worker refuses is not heard.
    LosesRefused,
    /// The results that were still on a lost host are not given up.
    WaitsForTheLost,
    /// A fetch that has failed is taken for one that went well.
    BelievesFetches,
    /// Nobody notices that a host has fallen silent.
    IgnoresSilence,
    /// The store answers for another attempt of the task.
    StoresAnother,
    /// What is uploaded is not waited for after all.
    ForgetsUploads,
}

impl Bug {
    pub const ALL: [Self; 12] = [
        Self::ForgetsEarly,
        Self::NeverForgets,
        Self::AnnouncesEarly,
        Self::MixesSessions,
        Self::RemembersSources,
        Self::LosesReturned,
        Self::LosesRefused,
        Self::WaitsForTheLost,
        Self::BelievesFetches,
        Self::IgnoresSilence,
        Self::StoresAnother,
        Self::ForgetsUploads,
    ];
}

/// What goes wrong by chance, per mille of lines.
#[derive(Debug, Clone, Default)]
struct Chaos {
    cut: u32,
    double: u32,
    late: u32,
}

#[derive(Debug)]
enum Happening {
    Connect(u32),
    /// A line to a worker, and one from it.
    Order(u32, u32, ToWorker),
    Report(u32, u32, FromWorker),
    Ping(u32, u32),
    /// Nothing was heard since.
    Silence(u32, u32),
    /// The boss sees that a session is over.
    Lost(u32, u32, &'static str),
    /// A link that carries nothing more, though nobody has noticed.
    Cut(u32),
    /// A host that is gone, with all that it has, for so long.
    Crash(u32, u64),
    /// A host's disk is full from now on, or has room again.
    Disk(u32, bool),
    Source(u32, u32, TreeId),
    Fetch(u32, u32, TaskRef),
    /// Something in a worker comes to its end.
    Prepared(u32, u32, TaskRef),
    Ran(u32, u32, usize, TaskRef),
    RunnerGone(u32, u32, usize, Outcome, String),
    Worker(u32, u32, Event),
    WorkerTick(u32, u32),
    Uploaded(TaskRef),
    Stored,
    Wake,
    Interrupt,
}

#[derive(Debug)]
struct Host {
    model: Model,
    /// Sessions so far.
    session: u32,
    /// The boss believes that the last of them stands.
    up: bool,
    heard: u64,
    configured: BTreeSet<u32>,
    /// Until when it is gone.
    gone_until: u64,
    disk_full: bool,
    failures: u32,
    over: bool,
}

pub struct World {
    now: u64,
    base: Instant,
    random: fastrand::Rng,
    sequence: u64,
    events: BTreeMap<(u64, u64), Happening>,
    chaos: Chaos,
    bug: Option<Bug>,
    /// Whether all that happens is printed.
    traced: bool,
    /// Whether anything may go wrong.
    faulty: bool,
    plan: Arc<Plan>,
    boss: Core,
    wake: Option<Millis>,
    hosts: Vec<Host>,
    workers: BTreeMap<(u32, u32), Worker>,
    /// Links that carry nothing more.
    cut: BTreeSet<(u32, u32)>,
    /// Logs that were fetched.
    fetched: BTreeMap<TaskRef, String>,
    storing: Vec<TaskRef>,
    /// When the boss's disk is full.
    full_at: Option<u64>,
    /// Which tasks have uploads.
    uploads: BTreeSet<TaskId>,
    durations: Vec<u64>,
    stopped_at: Option<u64>,
    quit: bool,
    checker: Checker,
}

fn plan(targets: u32, commits: u8) -> Arc<Plan> {
    let stage = || Stage { name: "make".parse().unwrap(), command: Command::Shell("make".to_owned()) };
    let target = |number: u32| TargetPlan {
        target: Target {
            name: format!("t{number}").parse().unwrap(),
            toolchain: None,
            // Of three targets, one is built in its warm directory.
            incremental: number % 3 == 2,
            environment: Environment::Directory,
            timeout_ms: 3_600_000,
            stages: vec![stage()],
            variables: BTreeMap::new(),
            artifacts: Vec::new(),
            sizes: Vec::new(),
        },
        needs: Needs::default(),
        priority: 0,
    };
    let commit = |number: u8| {
        let id = TreeId([number; 20]);
        Commit { id, tree: id, short: format!("{number}").into(), subject: "x".into() }
    };
    Arc::new(Plan::new((0..commits).map(commit).collect(), (0..targets).map(target).collect()).unwrap())
}

impl World {
    /// A world made from a number.
    pub fn random(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let faulty = random.u8(0..5) > 0;
        let plan = plan(random.u32(1..4), random.u8(1..9));
        let one_in = |random: &mut fastrand::Rng, n: u32, upto: u32| {
            if faulty && random.u32(0..n) == 0 { random.u32(1..upto) } else { 0 }
        };
        let hosts: Vec<Host> = (0..random.usize(1..5))
            .map(|_| Host {
                model: Model {
                    slots: random.u32(1..4),
                    speed: random.u32(300..3000),
                    latency: random.u64(0..100),
                    fails: one_in(&mut random, 4, 500),
                    refuses: one_in(&mut random, 5, 300),
                    runners_die: one_in(&mut random, 5, 300),
                },
                session: 0,
                up: false,
                heard: 0,
                configured: BTreeSet::new(),
                gone_until: 0,
                disk_full: false,
                failures: 0,
                over: false,
            })
            .collect();
        let names = (1..=hosts.len()).map(|number| format!("lab{number}").parse().unwrap()).collect();
        let chaos = Chaos {
            cut: one_in(&mut random, 3, 30),
            double: one_in(&mut random, 3, 200),
            late: one_in(&mut random, 3, 200),
        };
        let boss = Core::new(plan.clone(), names, TaskLimits::default(), STANDSTILL);
        let tasks: Vec<TaskId> = (0..plan.tasks()).map(TaskId).collect();
        let mut world = Self {
            now: 0,
            base: Instant::now(),
            sequence: 0,
            events: BTreeMap::new(),
            chaos,
            bug,
            traced: std::env::var_os("CREWBOSS_TRACE").is_some(),
            faulty,
            boss,
            wake: None,
            workers: BTreeMap::new(),
            cut: BTreeSet::new(),
            fetched: BTreeMap::new(),
            storing: Vec::new(),
            full_at: (faulty && random.u8(0..15) == 0).then(|| random.u64(0..60_000)),
            uploads: tasks.iter().copied().filter(|_| random.u8(0..6) == 0).collect(),
            durations: tasks.iter().map(|_| random.u64(1..20_000)).collect(),
            plan,
            hosts,
            stopped_at: None,
            quit: false,
            checker: Checker::default(),
            random,
        };
        world.checker.uploading = world.uploads.clone();
        world.misfortune(faulty);
        world.decide(|core, now, out| core.add(&tasks, now, out));
        world
    }

    /// What befalls it in the course of time.
    fn misfortune(&mut self, faulty: bool) {
        for host in 0..u32::try_from(self.hosts.len()).unwrap() {
            let at = self.random.u64(0..2_000);
            self.at(at, Happening::Connect(host));
            let mut often =
                |n: u8| if faulty && self.random.u8(0..n) == 0 { self.random.u8(1..4) } else { 0 };
            let (cuts, crashes, disks) = (often(2), often(3), often(4));
            for _ in 0..cuts {
                let at = self.random.u64(0..120_000);
                self.at(at, Happening::Cut(host));
            }
            for _ in 0..crashes {
                let (at, long) = (self.random.u64(0..120_000), self.random.u64(0..60_000));
                self.at(at, Happening::Crash(host, long));
            }
            for _ in 0..disks {
                let at = self.random.u64(0..120_000);
                let until = at + self.random.u64(0..60_000);
                self.at(at, Happening::Disk(host, true));
                self.at(until, Happening::Disk(host, false));
            }
        }
        if faulty && self.random.u8(0..20) == 0 {
            let at = self.random.u64(0..120_000);
            self.at(at, Happening::Interrupt);
        }
    }

    fn at(&mut self, time: u64, what: Happening) {
        self.sequence += 1;
        self.events.insert((time, self.sequence), what);
    }

    fn after(&mut self, upto: u64, what: Happening) {
        let time = self.now + self.random.u64(0..=upto);
        self.at(time, what);
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.random.u32(0..1000) < per_mille
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    /// Runs until nothing happens any more, and looks whether all is as it should be.
    pub fn run(mut self) {
        while let Some(((time, _), what)) = self.events.pop_first() {
            self.now = self.now.max(time);
            if self.traced {
                println!("{:>9} {what:?}", self.now);
            }
            assert!(self.now < LONGEST, "the run does not end: {:?}", self.boss.counts());
            if self.stopped_at.is_some_and(|stopped| self.now > stopped + STOP_WITHIN) {
                // The boss waits no longer for anything.
                break;
            }
            self.happen(what);
            if self.boss.next_wake() != self.wake {
                self.wake = self.boss.next_wake();
                if let Some(Millis(wake)) = self.wake {
                    self.at(wake, Happening::Wake);
                }
            }
            if self.checker.announced() == self.plan.tasks() as usize && !self.quit {
                self.part();
            }
        }
        self.checker.finish();
        if self.stopped_at.is_none() {
            let announced = self.checker.announced();
            assert_eq!(announced, self.plan.tasks() as usize, "tasks are left: {:?}", self.boss.counts());
        }
        if !self.faulty {
            let bad = self.checker.outcomes().values().find(|outcome| **outcome != Outcome::Success);
            assert_eq!(bad, None, "nothing went wrong");
        }
    }

    /// The run is over: once the last lines have arrived, workers have nothing left.
    fn part(&mut self) {
        self.quit = true;
        for host in 0..u32::try_from(self.hosts.len()).unwrap() {
            if self.hosts[host as usize].up {
                // Behind all that is under way.
                let session = self.hosts[host as usize].session;
                self.at(self.now + 5_000, Happening::Order(host, session, ToWorker::Quit));
            }
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Connect(host) => self.connect(host),
            Happening::Order(host, session, message) => self.order(host, session, message),
            Happening::Report(host, session, message) => self.report(host, session, message),
            Happening::Ping(host, session) => self.ping(host, session),
            Happening::Silence(..) if self.is(Bug::IgnoresSilence) => {}
            Happening::Silence(host, session) => {
                if self.is_up(host, session) && self.now >= self.hosts[host as usize].heard + SILENCE {
                    self.lose(host, session, "nothing was heard");
                }
            }
            Happening::Lost(host, session, why) => self.lose(host, session, why),
            Happening::Cut(host) => self.sever(host),
            Happening::Crash(host, long) => self.crash(host, long),
            Happening::Disk(host, full) => self.hosts[host as usize].disk_full = full,
            Happening::Source(host, session, tree) => self.source(host, session, tree),
            Happening::Fetch(host, session, at) => self.fetch(host, session, at),
            Happening::Prepared(host, session, at) => self.prepared(host, session, at),
            Happening::Ran(host, session, runner, at) => self.ran(host, session, runner, at),
            Happening::RunnerGone(host, session, runner, outcome, text) => {
                self.runner_gone(host, session, runner, outcome, text);
            }
            Happening::Worker(host, session, event) => self.work(host, session, event),
            Happening::WorkerTick(host, session) => self.worker_tick(host, session),
            Happening::Uploaded(at) => self.uploaded(at),
            Happening::Stored => self.stored(),
            Happening::Wake => self.decide(|core, now, out| core.input(Input::Tick, now, out)),
            Happening::Interrupt => self.stop(),
        }
    }

    fn decide(&mut self, what: impl FnOnce(&mut Core, Millis, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        what(&mut self.boss, Millis(self.now), &mut actions);
        for action in actions {
            self.perform(action);
        }
    }

    fn result(&mut self, event: ResultEvent) {
        self.decide(|core, now, out| core.result(event, now, out));
    }
}

/// The boss's side.
impl World {
    fn is_up(&self, host: u32, session: u32) -> bool {
        let host = &self.hosts[host as usize];
        host.up && host.session == session
    }

    fn connect(&mut self, index: u32) {
        if self.stopped_at.is_some() || self.quit || self.hosts[index as usize].over {
            return;
        }
        let (now, base) = (self.now, self.instant());
        let host = &mut self.hosts[index as usize];
        if now < host.gone_until {
            host.failures += 1;
            return self.failed(index, "no route to host".to_owned());
        }
        (host.failures, host.session, host.up, host.heard) = (0, host.session + 1, true, now);
        host.configured.clear();
        let (session, model, free) = (host.session, host.model.clone(), u64::from(!host.disk_full));
        // A worker that starts ends those of the same boss that stand before it.
        self.workers.retain(|(other, _), _| *other != index);
        let core = WorkerCore::new(
            model.slots,
            WorkerOffer::default(),
            Duration::from_millis(SILENCE),
            STANDSTILL,
            base,
        );
        self.workers.insert((index, session), Worker::new(core, model.slots));
        self.at(now + HEARTBEAT, Happening::Ping(index, session));
        self.at(now + SILENCE, Happening::Silence(index, session));
        let (slots, speed) = (model.slots, model.speed);
        let offer = Offer { slots, speed, memory: 1 << 30, disk_free: free << 40, ..Offer::default() };
        let host = HostIndex(index);
        let kept = if self.is(Bug::RemembersSources) { self.known_trees() } else { BTreeSet::new() };
        self.decide(|core, now, out| core.host_up(host, offer, kept, now, out));
        let micros = model.latency * 2_000;
        self.decide(|core, now, out| core.input(Input::RoundTrip { host, micros }, now, out));
    }

    fn known_trees(&self) -> BTreeSet<TreeId> {
        self.plan.commits().iter().map(|commit| commit.tree).collect()
    }

    fn failed(&mut self, index: u32, reason: String) {
        let returns = self.hosts[index as usize].failures < TRIES;
        self.hosts[index as usize].over = !returns;
        if returns {
            let wait = self.random.u64(1_000..30_000);
            self.at(self.now + wait, Happening::Connect(index));
        }
        let host = HostIndex(index);
        let before = self.fetching(index);
        if self.is(Bug::WaitsForTheLost) && before {
            let input = Input::HostDown { host, reason, returns, ours: false };
            return self.decide(|core, now, out| core.input(input, now, out));
        }
        self.decide(|core, now, out| core.host_down(host, reason, returns, false, now, out));
    }

    fn fetching(&self, index: u32) -> bool {
        self.events.values().any(|what| matches!(what, Happening::Fetch(host, ..) if *host == index))
    }

    fn lose(&mut self, index: u32, session: u32, why: &str) {
        if !self.is_up(index, session) {
            return;
        }
        self.cut.insert((index, session));
        self.hosts[index as usize].up = false;
        self.hosts[index as usize].failures += 1;
        self.close(index, session);
        if !self.quit {
            self.failed(index, why.to_owned());
        }
    }

    fn ping(&mut self, host: u32, session: u32) {
        if self.is_up(host, session) {
            self.send(host, ToWorker::Ping { number: 1 });
            self.at(self.now + HEARTBEAT, Happening::Ping(host, session));
        }
    }

    /// Sends a line, with the misfortunes of the way.
    fn send(&mut self, host: u32, message: ToWorker) {
        let session = self.hosts[host as usize].session;
        let travel = self.travel(host, session);
        if self.chance(self.chaos.double) {
            let later = travel + self.random.u64(0..500);
            self.at(self.now + later, Happening::Order(host, session, message.clone()));
        }
        self.at(self.now + travel, Happening::Order(host, session, message));
    }

    fn travel(&mut self, host: u32, session: u32) -> u64 {
        if self.chance(self.chaos.cut) {
            let what = match self.random.bool() {
                true => Happening::Lost(host, session, "connection reset"),
                false => Happening::Cut(host),
            };
            self.after(100, what);
        }
        let latency = self.hosts[host as usize].model.latency;
        if self.chance(self.chaos.late) { latency + self.random.u64(1..2_000) } else { latency }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Source { host, tree } => {
                let session = self.hosts[host.0 as usize].session;
                self.after(3_000, Happening::Source(host.0, session, tree));
            }
            Action::Send { host, order } => {
                if self.hosts[host.0 as usize].configured.insert(order.target) {
                    let targets = vec![self.plan.targets()[order.target as usize].target.clone()];
                    self.send(host.0, ToWorker::Configure { first: order.target, targets });
                }
                self.send(host.0, ToWorker::Task(order));
            }
            Action::Recall { host, tasks } => self.send(host.0, ToWorker::Recall { tasks }),
            Action::Cancel { host, at } => self.send(host.0, ToWorker::Cancel { at }),
            // Nothing in these worlds stands still and answers all the same.
            Action::EndSession { host, reason } => panic!("host {} is ended: {reason}", host.0),
            Action::Out { host, .. } => {
                self.hosts[host.0 as usize].over = true;
                self.send(host.0, ToWorker::Quit);
            }
            Action::Follow { .. } | Action::Abandon { .. } => {}
            Action::Fetch { host, at, .. } => {
                let session = self.hosts[host.0 as usize].session;
                if self.is(Bug::ForgetsEarly) {
                    self.forget(host, at);
                }
                self.after(5_000, Happening::Fetch(host.0, session, at));
            }
            Action::Forget { .. } if self.is(Bug::NeverForgets) => {}
            Action::Forget { host, at } => self.forget(host, at),
            Action::Upload { at } if self.is(Bug::ForgetsUploads) => {
                self.result(ResultEvent::Uploaded { at, end: UploadsEnd::default() });
            }
            Action::Upload { at } => self.after(3_000, Happening::Uploaded(at)),
            Action::Store(collected) => self.store(&collected),
            Action::Tell(told) => self.tell(told),
        }
    }

    fn forget(&mut self, host: HostIndex, at: TaskRef) {
        self.checker.forget(host, at);
        self.send(host.0, ToWorker::Collected { at });
    }

    fn tell(&mut self, told: Told) {
        match told {
            Told::Done(done) => self.checker.announce(&done, self.now),
            Told::Started { .. }
            | Told::Phase { .. }
            | Told::Retried { .. }
            | Told::Paused { .. }
            | Told::Impossible { .. } => {}
        }
    }

    fn source(&mut self, index: u32, session: u32, tree: TreeId) {
        if self.is_up(index, session) && !self.cut.contains(&(index, session)) {
            self.boss.source_arrived(HostIndex(index));
            self.send(index, ToWorker::SourceReady { tree });
        }
    }

    fn fetch(&mut self, index: u32, session: u32, at: TaskRef) {
        if !self.is_up(index, session) {
            return;
        }
        if self.cut.contains(&(index, session)) {
            // It stalls, until that or the silence of the host is noticed.
            if self.random.bool() {
                return self.fetch_failed(index, at);
            }
            return self.at(self.now + SILENCE, Happening::Fetch(index, session, at));
        }
        let Some(worker) = self.workers.get(&(index, session)) else { return self.fetch_failed(index, at) };
        let Some(log) = worker.logs.get(&at) else { panic!("{at} is to be fetched and is gone") };
        self.fetched.insert(at, log.clone());
        self.all_fetched(index, at);
    }

    fn all_fetched(&mut self, index: u32, at: TaskRef) {
        let seen = Seen { tail: String::new(), uploads: self.uploads.contains(&at.task) };
        self.result(ResultEvent::Fetched { host: HostIndex(index), at, seen });
    }

    fn fetch_failed(&mut self, index: u32, at: TaskRef) {
        if self.is(Bug::BelievesFetches) {
            return self.all_fetched(index, at);
        }
        let (host, reason) = (HostIndex(index), "channel closed".to_owned());
        self.result(ResultEvent::FetchFailed { host, at, reason });
    }

    fn uploaded(&mut self, at: TaskRef) {
        let failed = self.faulty && self.random.u8(0..5) == 0;
        let stage = StageResult {
            name: "upload".parse().unwrap(),
            exit: StageExit::Code(u8::from(failed)),
            wall_ms: 1,
            cpu_ms: 0,
        };
        let failure = failed.then(|| "exit code 1".to_owned());
        self.checker.uploaded(at, failed);
        let end = UploadsEnd { stage: Some(stage), failure, output: String::new() };
        self.result(ResultEvent::Uploaded { at, end });
    }

    fn store(&mut self, collected: &Collected) {
        let at = collected.done.at;
        let named = |name: &crewboss_protocol::HostName| {
            (0..self.hosts.len()).find(|index| format!("lab{}", index + 1) == name.as_str())
        };
        let host = collected.host.as_ref().and_then(named).map(|index| u32::try_from(index).unwrap());
        let log = match &collected.done.log.text {
            Some(text) => Some(text.clone()),
            None if collected.fetched.is_some() => Some(self.fetched.get(&at).cloned().unwrap_or_default()),
            None => None,
        };
        self.checker.give(collected, host, log.as_deref());
        if self.storing.is_empty() {
            self.after(500, Happening::Stored);
        }
        self.storing.push(at);
        if self.is(Bug::AnnouncesEarly) {
            self.checker.announce(&collected.event(&self.plan), self.now);
        }
    }

    fn stored(&mut self) {
        if self.full_at.is_some_and(|full| self.now >= full) {
            self.storing.clear();
            self.result(ResultEvent::StoreFailed);
            return self.stop();
        }
        for mut at in std::mem::take(&mut self.storing) {
            self.checker.store(at);
            if self.is(Bug::StoresAnother) && at.attempt.0 > 1 {
                at.attempt.0 -= 1;
            }
            self.result(ResultEvent::Stored { at });
        }
    }

    fn stop(&mut self) {
        if self.stopped_at.is_none() {
            self.stopped_at = Some(self.now);
            self.decide(Core::stop);
            (0..u32::try_from(self.hosts.len()).unwrap()).for_each(|host| self.send(host, ToWorker::Quit));
        }
    }

    fn report(&mut self, host: u32, session: u32, message: FromWorker) {
        let current =
            self.is_up(host, session) || (self.is(Bug::MixesSessions) && self.hosts[host as usize].up);
        if !current || (self.cut.contains(&(host, session)) && !self.is(Bug::MixesSessions)) {
            return;
        }
        self.hosts[host as usize].heard = self.now;
        let due = self.now + SILENCE;
        self.at(due, Happening::Silence(host, session));
        match &message {
            FromWorker::Returned { .. } if self.is(Bug::LosesReturned) => return,
            FromWorker::Refused { .. } if self.is(Bug::LosesRefused) => return,
            FromWorker::Finished => {
                self.hosts[host as usize].up = false;
                if self.stopped_at.is_none() && !self.quit && !self.hosts[host as usize].over {
                    self.hosts[host as usize].failures += 1;
                    self.failed(host, "its worker has ended".to_owned());
                } else if self.stopped_at.is_none() {
                    self.decide(|core, now, out| core.host_left(HostIndex(host), now, out));
                }
                return;
            }
            _ => {}
        }
        self.decide(|core, now, out| core.message(HostIndex(host), message, None, now, out));
    }
}

/// The hosts' side.
impl World {
    /// The link to a host carries nothing more, and both ends find out in their own time.
    fn sever(&mut self, index: u32) {
        let session = self.hosts[index as usize].session;
        if session > 0 && self.cut.insert((index, session)) && self.random.bool() {
            self.after(SILENCE, Happening::Lost(index, session, "connection reset"));
        }
    }

    /// The worker of a session sees its input closed, sooner or later.
    fn close(&mut self, index: u32, session: u32) {
        let event = Event::Stop(Ending::Closed);
        self.after(SILENCE, Happening::Worker(index, session, event));
    }

    fn crash(&mut self, index: u32, long: u64) {
        self.workers.retain(|(host, _), _| *host != index);
        self.hosts[index as usize].gone_until = self.now + long;
        self.sever(index);
    }

    fn order(&mut self, host: u32, session: u32, message: ToWorker) {
        if !self.cut.contains(&(host, session)) {
            self.work(host, session, Event::Boss(message));
        }
    }

    fn work(&mut self, host: u32, session: u32, event: Event) {
        let now = self.instant();
        let Some(worker) = self.workers.get_mut(&(host, session)) else { return };
        let asked = worker.handle(event, now);
        let deadline = worker.deadline();
        for one in asked {
            self.carry_out(host, session, one);
        }
        let due = u64::try_from(deadline.saturating_duration_since(self.base).as_millis()).unwrap();
        self.at(due.max(self.now) + 1, Happening::WorkerTick(host, session));
    }

    fn worker_tick(&mut self, host: u32, session: u32) {
        let now = self.instant();
        if self.workers.get(&(host, session)).is_some_and(|worker| worker.deadline() <= now) {
            self.work(host, session, Event::Tick);
        }
    }

    fn say(&mut self, host: u32, session: u32, message: FromWorker) {
        let travel = self.travel(host, session);
        if self.chance(self.chaos.double) {
            let later = travel + self.random.u64(0..500);
            self.at(self.now + later, Happening::Report(host, session, message.clone()));
        }
        self.at(self.now + travel, Happening::Report(host, session, message));
    }

    fn carry_out(&mut self, host: u32, session: u32, asked: Asked) {
        match asked {
            Asked::Say(message) => self.say(host, session, message),
            Asked::Alive(number) => {
                let free = if self.hosts[host as usize].disk_full { 0 } else { 1 << 40 };
                let load = Load { disk_free: free, ..Load::default() };
                self.say(host, session, FromWorker::Alive { number, load });
            }
            Asked::Prepare(at) => self.after(300, Happening::Prepared(host, session, at)),
            Asked::Run { runner, at } => {
                let speed = u64::from(self.hosts[host as usize].model.speed);
                let wall = self.durations[at.task.0 as usize] * 1000 / speed;
                if self.chance(self.hosts[host as usize].model.runners_die) {
                    let text = "its runner was killed by signal 9".to_owned();
                    let gone = Happening::RunnerGone(host, session, runner, Outcome::Infrastructure, text);
                    return self.after(wall, gone);
                }
                self.at(self.now + wall, Happening::Ran(host, session, runner, at));
            }
            Asked::Cancel { runner, at } => self.after(2_000, Happening::Ran(host, session, runner, at)),
            Asked::EndRunner { runner, outcome, text } => {
                self.after(100, Happening::RunnerGone(host, session, runner, outcome, text));
            }
            Asked::Keep(at) => {
                self.after(200, Happening::Worker(host, session, Event::Kept { at, problem: None }));
            }
            Asked::Slots(want) => {
                let share = Share { slots: self.hosts[host as usize].model.slots, pass_on: false };
                let event = Event::Slots { held: want, share };
                // In the order in which they were wanted.
                self.at(self.now + 20, Happening::Worker(host, session, event));
            }
            Asked::Exit => self.exit(host, session),
        }
    }

    fn exit(&mut self, host: u32, session: u32) {
        let Some(worker) = self.workers.get(&(host, session)) else { return };
        let in_order = self.quit
            && self.stopped_at.is_none()
            && self.is_up(host, session)
            && !self.cut.contains(&(host, session));
        let quiet = self.chaos.double + self.chaos.late == 0;
        if in_order && quiet && !self.hosts[host as usize].over {
            assert!(
                worker.is_empty(),
                "something is left at {host}: {:?} {:?}",
                worker.prepared,
                worker.logs
            );
        }
        self.say(host, session, FromWorker::Finished);
        self.workers.remove(&(host, session));
    }

    fn prepared(&mut self, host: u32, session: u32, at: TaskRef) {
        let refused = self.chance(self.hosts[host as usize].model.refuses);
        let full = self.hosts[host as usize].disk_full;
        let Some(worker) = self.workers.get_mut(&(host, session)) else { return };
        let problem = match (full, refused) {
            (true, _) => Some((Refusal::NoSpace, "no space".to_owned())),
            (_, true) => Some((Refusal::Environment, "no".to_owned())),
            _ => None,
        };
        if problem.is_none() {
            worker.prepared.insert(at);
        }
        self.work(host, session, Event::Prepared { at, problem });
    }

    /// A runner comes to the end of its job.
    fn ran(&mut self, host: u32, session: u32, runner: usize, at: TaskRef) {
        let fails = self.chance(self.hosts[host as usize].model.fails);
        let long = self.random.u8(0..3) == 0;
        let Some(worker) = self.workers.get_mut(&(host, session)) else { return };
        if worker.running.get(&runner) != Some(&at) {
            return;
        }
        worker.running.remove(&runner);
        let outcome = match worker.cancelled.remove(&at) {
            true => Outcome::Cancelled,
            false if fails => Outcome::Infrastructure,
            false => Outcome::Success,
        };
        let text = format!("{at} on {host} in session {session}");
        let done = done(at, outcome, (!long).then(|| text.clone()), text.len() as u64);
        worker.leave(done, long.then(|| text.clone()));
        self.checker.left(host, at, Left { outcome, log: text });
        let phase = Phase::Stage("make".parse().unwrap());
        self.say(host, session, FromWorker::Phase { at, phase, text: String::new() });
        self.work(host, session, Event::Ended { runner, at, outcome });
    }

    fn runner_gone(&mut self, host: u32, session: u32, runner: usize, outcome: Outcome, text: String) {
        let Some(worker) = self.workers.get_mut(&(host, session)) else { return };
        let Some(at) = worker.running.remove(&runner) else { return };
        worker.cancelled.remove(&at);
        self.checker.left(host, at, Left { outcome, log: String::new() });
        self.work(host, session, Event::RunnerGone { runner, outcome, text, log: 0 });
    }
}

fn done(at: TaskRef, outcome: Outcome, text: Option<String>, bytes: u64) -> Box<Done> {
    Box::new(Done { log: LogEnd { bytes, text }, ..Done::bare(at, outcome, String::new()) })
}

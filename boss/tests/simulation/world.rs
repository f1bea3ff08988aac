//! A crew in virtual time: hosts with slots, speed and latency, and links that lose sessions, delay
//! and double lines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crewboss_boss::scheduler::{Action, Ended, HostIndex, Input, Offer, RequirementId, Scheduler, TaskEntry};
use crewboss_protocol::message::Refusal;
use crewboss_protocol::{Millis, TaskId, TaskRef};

use super::checker::Checker;

/// What one host is like.
#[derive(Debug, Clone)]
pub struct HostModel {
    pub offer: Offer,
    /// True speed in thousandths, whatever it offers.
    pub speed: u64,
    /// One way.
    pub latency_ms: u64,
    /// Per cent of attempts that end as infrastructure.
    pub fails_percent: u32,
    /// Per cent of orders that are refused.
    pub refuses_percent: u32,
    /// Requirements that it never meets, whatever it offers: such an attempt ends at once, and
    /// lastingly.
    pub never: BTreeSet<RequirementId>,
    /// When the first session is up.
    pub up_at: u64,
    /// Whether it comes back after a loss, and how long that takes.
    pub back_after: Option<u64>,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Chaos {
    /// Per mille of lines that take the session with them.
    pub cut: u32,
    /// Per mille of lines that arrive twice, the second time later.
    pub double: u32,
    /// Per mille of lines that are late, so that others overtake them.
    pub late: u32,
    /// Per mille of accepted results that cannot be fetched.
    pub result_lost: u32,
    /// Tasks that take every host down on which they start.
    pub killers: BTreeSet<TaskId>,
}

#[derive(Debug, Clone)]
enum Happening {
    Up(u32),
    /// A line to a worker.
    Order(u32, u64, Line),
    /// A line from a worker.
    Report(u32, u64, Input),
    Finish(u32, u64, TaskRef),
    /// The boss notices that a session is gone.
    Lost(u32, u64),
    /// A person or an operator does something.
    Outside(Input),
    Wake,
}

#[derive(Debug, Clone)]
enum Line {
    Task(TaskRef),
    Recall(Vec<TaskRef>),
    Cancel(TaskRef),
}

#[derive(Debug, Default)]
struct WorkerState {
    /// The session at the worker; 0 is none.
    session: u64,
    queue: VecDeque<TaskRef>,
    running: BTreeSet<TaskRef>,
}

pub struct World {
    now: u64,
    pub scheduler: Scheduler,
    pub checker: Checker,
    pub models: Vec<HostModel>,
    /// True duration of each task on speed 1000.
    pub durations: BTreeMap<TaskId, u64>,
    pub chaos: Chaos,
    /// Whether the checker looks after every step.
    pub checked: bool,
    workers: Vec<WorkerState>,
    /// The session as the boss knows it.
    believed: Vec<u64>,
    sessions: u64,
    events: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    random: fastrand::Rng,
    entries: BTreeMap<TaskId, TaskEntry>,
    /// Attempts that the boss knows to run, or to have run.
    started: BTreeSet<TaskRef>,
    /// When the last result was accepted.
    pub finished_at: u64,
    steps: u64,
    wake_at: Option<u64>,
    /// What each host has started, in order.
    pub ran: BTreeMap<u32, Vec<TaskId>>,
    /// What each session of a host has started and never can finish.
    pub lasting: BTreeMap<(u32, u64), Vec<TaskId>>,
    /// Hosts that were paused.
    pub paused: BTreeSet<HostIndex>,
}

impl World {
    pub fn new(seed: u64, models: Vec<HostModel>) -> Self {
        let count = u32::try_from(models.len()).unwrap();
        let mut world = Self {
            now: 0,
            scheduler: Scheduler::new(count),
            checker: Checker::default(),
            durations: BTreeMap::new(),
            chaos: Chaos::default(),
            checked: true,
            workers: models.iter().map(|_| WorkerState::default()).collect(),
            believed: vec![0; models.len()],
            models,
            sessions: 0,
            events: BTreeMap::new(),
            sequence: 0,
            random: fastrand::Rng::with_seed(seed),
            entries: BTreeMap::new(),
            started: BTreeSet::new(),
            finished_at: 0,
            steps: 0,
            wake_at: None,
            ran: BTreeMap::new(),
            lasting: BTreeMap::new(),
            paused: BTreeSet::new(),
        };
        for host in 0..count {
            let at = world.models[host as usize].up_at;
            world.at(at, Happening::Up(host));
        }
        world
    }

    pub fn add(&mut self, entries: Vec<TaskEntry>) {
        for entry in &entries {
            self.checker.tasks.insert(entry.task);
            self.entries.insert(entry.task, entry.clone());
        }
        self.input(Input::AddTasks(entries));
    }

    pub fn outside(&mut self, at: u64, input: Input) {
        self.at(at, Happening::Outside(input));
    }

    /// A host loses its session at a time.
    pub fn cut(&mut self, at: u64, host: u32) {
        self.at(at, Happening::Lost(host, u64::MAX));
    }

    fn at(&mut self, time: u64, what: Happening) {
        self.sequence += 1;
        self.events.insert((time, self.sequence), what);
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.random.u32(0..1000) < per_mille
    }

    /// Runs until nothing happens any more.
    pub fn run(&mut self) {
        while let Some(((time, _), what)) = self.events.pop_first() {
            self.now = self.now.max(time);
            self.steps += 1;
            assert!(self.steps < 20_000_000, "the run does not end");
            self.happen(what);
            if self.wake_at != self.scheduler.next_wake().map(|wake| wake.0) {
                self.wake_at = self.scheduler.next_wake().map(|wake| wake.0);
                if let Some(wake) = self.wake_at {
                    self.at(wake, Happening::Wake);
                }
            }
        }
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        let before: Vec<TaskRef> = self.leaving(&input);
        if let Input::Started { host, at } = &input
            && self.checker.live.get(&at.task) == Some(&(*host, *at))
        {
            self.started.insert(*at);
        }
        if let Input::ResultLost { at, .. } = &input {
            self.checker.reopen(at.task);
        }
        self.checker.stopped |= input == Input::Stop;
        self.scheduler.handle(input, Millis(self.now), &mut out);
        let silently = |at: &&TaskRef| !out.iter().any(|action| names(action, **at));
        before.iter().filter(silently).for_each(|at| self.checker.gone(*at));
        self.checker.actions(&out);
        out.into_iter().for_each(|action| self.act(action));
        if self.checked {
            let hosts = u32::try_from(self.models.len()).unwrap();
            self.checker.rest(&self.scheduler, hosts);
        }
    }

    /// Live attempts that this input may end without an action that says so.
    fn leaving(&self, input: &Input) -> Vec<TaskRef> {
        let held = |host: &HostIndex| {
            let live = self.checker.live.values();
            live.filter(|(there, _)| there == host).map(|(_, at)| *at).collect::<Vec<_>>()
        };
        match input {
            Input::HostDown { host, .. } => held(host),
            Input::Returned { host, tasks } => {
                // A doubled order can be given back although the first is known to run.
                let back = |at: &TaskRef| tasks.contains(at) && !self.started.contains(at);
                held(host).into_iter().filter(back).collect()
            }
            Input::Refused { host, at, .. } => held(host).into_iter().filter(|held| held == at).collect(),
            _ => Vec::new(),
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Up(host) => self.come_up(host),
            Happening::Wake => self.input(Input::Tick),
            Happening::Outside(input) => self.input(input),
            Happening::Lost(host, session) => self.lose(host, session),
            Happening::Order(host, session, line) => self.order(host, session, line),
            Happening::Report(host, session, input) if self.believed[host as usize] == session => {
                self.input(input);
            }
            Happening::Report(..) => {}
            Happening::Finish(host, session, at) => self.finish(host, session, at),
        }
    }

    fn come_up(&mut self, host: u32) {
        self.sessions += 1;
        self.believed[host as usize] = self.sessions;
        self.workers[host as usize] = WorkerState { session: self.sessions, ..WorkerState::default() };
        let model = self.models[host as usize].clone();
        self.input(Input::HostUp { host: HostIndex(host), offer: model.offer });
        let micros = model.latency_ms * 2000;
        self.input(Input::RoundTrip { host: HostIndex(host), micros });
    }

    fn lose(&mut self, host: u32, session: u64) {
        let believed = self.believed[host as usize];
        if believed == 0 || (session != believed && session != u64::MAX) {
            return;
        }
        self.believed[host as usize] = 0;
        self.workers[host as usize] = WorkerState::default();
        let back = self.models[host as usize].back_after;
        if let Some(after) = back {
            self.at(self.now + after, Happening::Up(host));
        }
        let input = Input::HostDown {
            host: HostIndex(host),
            reason: "cut".to_owned(),
            returns: back.is_some(),
            ours: false,
        };
        self.input(input);
    }

    fn travel(&mut self, host: u32) -> u64 {
        let latency = self.models[host as usize].latency_ms;
        if self.chance(self.chaos.late) { latency + self.random.u64(1..200) } else { latency }
    }

    fn act(&mut self, action: Action) {
        let (host, line) = match action {
            Action::Send { host, at } => (host.0, Line::Task(at)),
            Action::Recall { host, tasks } => (host.0, Line::Recall(tasks)),
            Action::Cancel { host, at } => (host.0, Line::Cancel(at)),
            Action::Accept { host, at } => {
                self.finished_at = self.now;
                if self.chance(self.chaos.result_lost) {
                    let reason = "channel closed".to_owned();
                    let lost = Input::ResultLost { at, host, reason };
                    self.at(self.now + 1, Happening::Outside(lost));
                }
                return;
            }
            // The boss sees to it that the session is lost.
            Action::EndSession { host, .. } => {
                let session = self.believed[host.0 as usize];
                return self.at(self.now, Happening::Lost(host.0, session));
            }
            Action::Out { host, .. } => {
                self.believed[host.0 as usize] = 0;
                self.workers[host.0 as usize] = WorkerState::default();
                let gone: Vec<_> =
                    self.checker.live.values().filter(|(h, _)| *h == host).map(|(_, at)| *at).collect();
                gone.into_iter().for_each(|at| self.checker.gone(at));
                return;
            }
            Action::Pause { host, .. } => {
                self.paused.insert(host);
                return;
            }
            Action::Retry { .. } | Action::GiveUp { .. } => return,
        };
        let session = self.believed[host as usize];
        if self.chance(self.chaos.cut) {
            self.at(self.now + 50, Happening::Lost(host, session));
            return;
        }
        let travel = self.travel(host);
        self.at(self.now + travel, Happening::Order(host, session, line.clone()));
        if self.chance(self.chaos.double) {
            let travel = travel + self.random.u64(0..300);
            self.at(self.now + travel, Happening::Order(host, session, line));
        }
    }

    fn report(&mut self, host: u32, input: Input) {
        let session = self.workers[host as usize].session;
        if self.chance(self.chaos.cut) {
            self.at(self.now + 50, Happening::Lost(host, session));
            return;
        }
        let travel = self.travel(host);
        if self.chance(self.chaos.double) {
            let travel = travel + self.random.u64(0..300);
            self.at(self.now + travel, Happening::Report(host, session, input.clone()));
        }
        self.at(self.now + travel, Happening::Report(host, session, input));
    }

    fn order(&mut self, host: u32, session: u64, line: Line) {
        if self.workers[host as usize].session != session || session == 0 {
            return;
        }
        match line {
            Line::Task(at) => {
                if self.chance(self.models[host as usize].refuses_percent * 10) {
                    let (reason, text) = (Refusal::Environment, "no".to_owned());
                    return self.report(host, Input::Refused { host: HostIndex(host), at, reason, text });
                }
                let worker = &mut self.workers[host as usize];
                // What was doubled on the way and has ended before is run again: this worker keeps
                // no memory.
                if !worker.queue.contains(&at) && !worker.running.contains(&at) {
                    worker.queue.push_back(at);
                }
                self.start(host);
            }
            Line::Recall(tasks) => {
                let worker = &mut self.workers[host as usize];
                let back: Vec<TaskRef> = tasks.into_iter().filter(|at| worker.queue.contains(at)).collect();
                worker.queue.retain(|at| !back.contains(at));
                self.report(host, Input::Returned { host: HostIndex(host), tasks: back });
            }
            Line::Cancel(at) => {
                let worker = &mut self.workers[host as usize];
                worker.queue.retain(|other| *other != at);
                worker.running.remove(&at);
                self.report(host, Input::Ended { host: HostIndex(host), at, ended: Ended::Result });
                self.start(host);
            }
        }
    }

    fn start(&mut self, host: u32) {
        let slots = self.models[host as usize].offer.slots as usize;
        while self.workers[host as usize].running.len() < slots {
            let Some(at) = self.workers[host as usize].queue.pop_front() else { return };
            let session = self.workers[host as usize].session;
            self.workers[host as usize].running.insert(at);
            self.one_of_a_chain(host, at.task);
            self.ran.entry(host).or_default().push(at.task);
            if self.chaos.killers.contains(&at.task) {
                self.at(self.now + 20, Happening::Lost(host, session));
            }
            if self.never(host, at.task) {
                self.lasting.entry((host, session)).or_default().push(at.task);
            }
            self.report(host, Input::Started { host: HostIndex(host), at });
            let speed = self.models[host as usize].speed;
            let wall = self.durations.get(&at.task).copied().unwrap_or(100) * 1000 / speed;
            self.at(self.now + wall, Happening::Finish(host, session, at));
        }
    }

    fn never(&self, host: u32, task: TaskId) -> bool {
        self.entries
            .get(&task)
            .is_some_and(|entry| self.models[host as usize].never.contains(&entry.requirement))
    }

    /// Never two tasks of a chain at once on a host (with honest lines: a doubled order can run an
    /// old task again).
    fn one_of_a_chain(&self, host: u32, task: TaskId) {
        let chain = |task: &TaskId| self.entries.get(task).and_then(|entry| entry.chain);
        let Some(own) = chain(&task).filter(|_| self.chaos.double == 0 && self.chaos.late == 0) else {
            return;
        };
        let running = self.workers[host as usize].running.iter();
        let same = running.filter(|at| chain(&at.task) == Some(own)).count();
        assert_eq!(same, 1, "two tasks of {own:?} run on host {host}");
    }

    fn finish(&mut self, host: u32, session: u64, at: TaskRef) {
        let worker = &mut self.workers[host as usize];
        if worker.session != session || !worker.running.remove(&at) {
            return;
        }
        let fails = self.models[host as usize].fails_percent * 10;
        let ended = if self.never(host, at.task) {
            Ended::Lasting("suspended".to_owned())
        } else if self.chance(fails) {
            Ended::Infrastructure("mis-boot".to_owned())
        } else {
            Ended::Result
        };
        self.report(host, Input::Ended { host: HostIndex(host), at, ended });
        self.start(host);
    }
}

fn names(action: &Action, at: TaskRef) -> bool {
    match action {
        Action::Retry { at: other, .. } => *other == at,
        Action::GiveUp { task, .. } => *task == at.task,
        _ => false,
    }
}

//! The loop around the pure core: turns the world into events, and actions into the world.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use crewboss_host::layout::Layout;
use crewboss_host::process::{kill_all_descendants, kill_orphans};
use crewboss_host::storage::is_no_space;
use crewboss_host::sys;
use crewboss_machine::images::directory::Machines;
use crewboss_protocol::machine::MachineState;
use crewboss_protocol::message::{BootstrapOrder, Ending, Hello, TaskOrder};
use crewboss_protocol::{
    Environment, FromWorker, HostFacts, Load, Outcome, Phases, SessionId, SlotHolder, TaskRef, ToWorker,
    chain,
};
use rustix::event::{PollFd, PollFlags};

use super::output::FULL_BYTES;
use super::pool::{Finished, Guests, Pool, Work};
use super::queue::Queue;
use super::runners::Runner;
use super::session::Session;
use super::state::{Action, Core, Event, Offer};
use super::{Channel, machine, variables};
use crate::environment::{EnvRequest, Prepared, Preparer, WarmKey};
use crate::runner::message::{FromRunner, Job};
use crate::sender;
use crate::slots::{LOOK, Share, Slots};
use crate::source;

/// How often sources that are waited for are looked for, besides being told of them.
const SOURCES_EVERY: Duration = Duration::from_secs(2);

/// Held guests whose time may be over are looked for.
const EXPIRY_EVERY: Duration = Duration::from_secs(60);

/// Between two rounds of the loop this process does nothing that takes longer, unless something it
/// waits for hangs.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

struct Held {
    prepared: Box<Prepared>,
    /// Whether `succeed` or `fail` was called.
    kept: bool,
}

/// The worker proper at work.
pub struct Shell {
    layout: Layout,
    hello: Hello,
    facts: HostFacts,
    session: Option<Session>,
    core: Core,
    pool: Option<Pool>,
    slots: Option<Slots>,
    runners: Vec<Option<Runner>>,
    prepared: BTreeMap<TaskRef, Held>,
    reports: BTreeMap<TaskRef, Vec<u8>>,
    keys: BTreeMap<u32, WarmKey>,
    load: Option<(Instant, Load)>,
    share: Share,
    queue: Queue,
    next_look: Instant,
    next_sources: Instant,
    next_expiry: Instant,
    events: VecDeque<Event>,
    exit: bool,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Shell {
    /// Everything is made here that a session with tasks needs; a session that only looks needs
    /// nothing.
    ///
    /// # Errors
    /// A sentence for a person if the work directory cannot be used.
    pub fn new(
        layout: &Layout,
        hello: &Hello,
        facts: HostFacts,
        mut session: Option<Session>,
    ) -> Result<Self, String> {
        let (total, mut pool, mut slots) = (facts.slots, None, None);
        if let Some(session) = &mut session {
            let preparer = Preparer::new(layout.clone()).map_err(|error| chain(&error))?;
            pool = Some(Pool::new(preparer, session.take_aside()).map_err(|error| error.to_string())?);
            let holder = SlotHolder {
                slot: 0,
                boss: hello.boss.clone(),
                run: hello.run.clone(),
                host: hello.host.clone(),
                pid: std::process::id(),
                priority: hello.priority,
            };
            let made = Slots::new(layout, &hello.session, holder, total);
            slots = Some(made.map_err(|error| format!("{}: {error}", layout.locks().display()))?);
        }
        let now = Instant::now();
        let offered = if session.is_some() { total } else { 0 };
        let (silence, standstill) = (hello.silence_ms, hello.standstill_ms);
        let [silence, standstill] = [silence, standstill].map(Duration::from_millis);
        let core = Core::new(offered, offer(&facts), silence, standstill, now);
        Ok(Self {
            layout: layout.clone(),
            hello: hello.clone(),
            facts,
            session,
            core,
            pool,
            slots,
            runners: (0..offered).map(|_| None).collect(),
            prepared: BTreeMap::new(),
            reports: BTreeMap::new(),
            keys: BTreeMap::new(),
            load: None,
            share: Share { slots: total, pass_on: false },
            queue: Queue::default(),
            next_look: now,
            next_sources: now,
            // The sweep at the beginning has just looked.
            next_expiry: now + EXPIRY_EVERY,
            events: VecDeque::new(),
            exit: false,
        })
    }

    /// Runs until the session is over and nothing of its tasks runs any more.
    pub fn run(&mut self, channel: &mut Channel) {
        for text in self.pool.as_ref().map(Pool::notices).unwrap_or_default() {
            channel.output.send(&FromWorker::Notice { text });
        }
        self.hear(channel);
        let silence = Duration::from_millis(self.hello.silence_ms);
        while !self.exit {
            channel.pulse.beat(Instant::now(), ROUND_WITHIN.max(silence * 2));
            self.settle(channel);
            channel.write();
            if self.exit {
                break;
            }
            if channel.output.is_broken() {
                self.events.push_back(Event::Stop(Ending::Closed));
            }
            if self.wait(channel).is_err() {
                // Without poll there is no going on; the guardian does the rest.
                break;
            }
        }
    }

    /// Ends what still runs and removes everything. Returns what could not be done.
    pub fn end(&mut self) -> Vec<String> {
        let pool = self.pool.take().inspect(Pool::close);
        for runner in self.runners.drain(..).flatten() {
            let _ended = runner.end();
        }
        kill_all_descendants(|_| ());
        self.prepared.clear();
        self.slots = None;
        // Who hangs in the kernel makes nothing any more either, once the session's directory is
        // gone.
        let _idle = pool.is_none_or(|pool| pool.wait());
        self.session.take().map(|session| session.end().errors).unwrap_or_default()
    }

    /// Handles events until no action brings about another one.
    fn settle(&mut self, channel: &mut Channel) {
        let now = Instant::now();
        self.look_at_slots(now);
        self.look_for_sources(now);
        self.look_at_held_guests(now);
        self.handle_all(now, channel);
        // Time comes last: whoever stood still itself must first take what came meanwhile.
        if now >= self.core.deadline() {
            self.events.push_back(Event::Tick);
            self.handle_all(now, channel);
        }
    }

    fn handle_all(&mut self, now: Instant, channel: &mut Channel) {
        let mut actions = Vec::new();
        while let Some(event) = self.events.pop_front() {
            self.core.handle(event, now, &mut actions);
            for action in actions.drain(..) {
                self.act(action, now, channel);
            }
        }
    }

    fn wait(&mut self, channel: &mut Channel) -> io::Result<()> {
        if !self.events.is_empty() {
            return Ok(());
        }
        let timeout = self.timeout(Instant::now(), channel);
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let full = channel.output.len() > FULL_BYTES;
        let mut talking = Vec::new();
        let mut fds = vec![PollFd::new(channel.signals.fd(), PollFlags::IN)];
        let out = if channel.output.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
        fds.push(PollFd::new(&stdout, out));
        let closed = if channel.ended { PollFlags::empty() } else { PollFlags::IN };
        fds.push(PollFd::new(&stdin, closed));
        if let Some(pool) = &self.pool {
            fds.push(PollFd::new(pool.fd(), PollFlags::IN));
        }
        let fixed = fds.len();
        for (index, runner) in self.runners.iter().enumerate().filter(|_| !full) {
            if let Some(runner) = runner {
                talking.push(index);
                fds.push(PollFd::new(runner.fd(), PollFlags::IN));
            }
        }
        sys::poll(&mut fds, Some(timeout))?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0]
            && let Some((signal, sender)) = channel.signals.take_with_sender()
        {
            let by = sender::story(sender, self.session.as_ref().map(Session::guardian));
            self.events.push_back(Event::Stop(Ending::Signal { number: signal.unsigned_abs(), by }));
        }
        // Runners first: what they say may make room for what the boss says.
        for (index, ready) in talking.into_iter().zip(&ready[fixed..]) {
            if *ready {
                self.listen(index, channel);
            }
        }
        if fixed > 3 && ready[3] {
            self.collect();
        }
        if ready[2] && !channel.ended {
            channel.read();
            self.hear(channel);
        }
        Ok(())
    }

    fn timeout(&self, now: Instant, channel: &Channel) -> Duration {
        let mut until = self.core.deadline();
        if let Some(slots) = &self.slots {
            if slots.held() > 0 {
                until = until.min(self.next_look);
            }
            until = slots.next_try().map_or(until, |next| until.min(next));
            until = until.min(self.next_sources).min(self.next_expiry);
        }
        until = until.min(channel.pulse.due());
        // A closed standard output shows without being asked for; it must not make this loop hot.
        let shortest = if channel.output.is_broken() { Duration::from_millis(10) } else { Duration::ZERO };
        until.saturating_duration_since(now).max(shortest)
    }

    fn hear(&mut self, channel: &mut Channel) {
        while let Some(line) = channel.next_message() {
            if let Some(session) = &mut self.session {
                session.heard(Instant::now());
            }
            match line {
                Ok(ToWorker::Task(order)) => {
                    self.see_source(&order);
                    self.events.push_back(Event::Boss(ToWorker::Task(order)));
                }
                Ok(message) => self.events.push_back(Event::Boss(message)),
                Err(text) => {
                    self.events.push_back(Event::BadLine(text));
                    break;
                }
            }
        }
        if channel.ended {
            self.events.push_back(Event::Stop(Ending::Closed));
        }
    }

    fn see_source(&mut self, order: &TaskOrder) {
        if !self.core.has_source(order.tree) && source::has(&self.layout, order.tree) {
            self.events.push_back(Event::Source(order.tree));
        }
    }

    fn look_for_sources(&mut self, now: Instant) {
        if now < self.next_sources {
            return;
        }
        self.next_sources = now + SOURCES_EVERY;
        for tree in self.core.missing_sources() {
            if source::has(&self.layout, tree) {
                self.events.push_back(Event::Source(tree));
            }
        }
    }

    fn look_at_slots(&mut self, now: Instant) {
        let Some(slots) = &mut self.slots else { return };
        if slots.held() > 0 && now >= self.next_look {
            self.next_look = now + LOOK;
            let share = slots.share();
            if share != self.share {
                self.share = share;
                self.events.push_back(Event::Slots { held: slots.held(), share });
            }
        }
        let waits = slots.held() == 0 && slots.is_waiting();
        if slots.next_try().is_some_and(|next| now >= next) {
            self.aim(self.core.wanted_slots(), now);
        }
        if self.queue.is_due(waits, now) {
            if let Some(pool) = &self.pool {
                pool.submit(Work::Abandoned(self.layout.clone(), self.hello.session.clone()));
            }
            let told = self.queue.tell(&self.layout, self.facts.slots);
            self.events.extend(told.map(Event::Trouble));
        }
    }

    fn aim(&mut self, want: u32, now: Instant) {
        let Some(slots) = &mut self.slots else { return };
        let before = slots.held();
        if let Err(error) = slots.aim(want, now) {
            let text = format!("the slots in {} cannot be used: {error}", self.layout.locks().display());
            self.events.push_back(Event::Broken { full: is_no_space(&error), text });
        }
        if slots.held() != before {
            self.events.push_back(Event::Slots { held: slots.held(), share: self.share });
        }
    }

    fn listen(&mut self, index: usize, channel: &mut Channel) {
        let Some(runner) = &mut self.runners[index] else { return };
        let (events, reports) = (&mut self.events, &mut self.reports);
        let mut sane = true;
        let lives = runner.read(|line| match FromRunner::parse(line) {
            Some(FromRunner::Live { at, bytes, line }) => channel.output.live(at, bytes, line),
            Some(FromRunner::Forward { line }) => channel.output.forward(line),
            Some(FromRunner::Within { ms }) => {
                events.push_back(Event::Promised { runner: index, within: Duration::from_millis(ms) });
            }
            Some(FromRunner::Done { at, outcome, line }) => {
                channel.output.ended(at);
                reports.insert(at, line.to_vec());
                events.push_back(Event::Ended { runner: index, at, outcome });
            }
            None => sane = false,
        });
        if !lives || !sane {
            self.lose(index, Outcome::Infrastructure, "its runner was killed");
        }
    }

    /// A runner is gone, or goes now: what it ran has come to us, and goes as well.
    fn lose(&mut self, index: usize, outcome: Outcome, why: &str) {
        let runner = self.runners[index].take().and_then(Runner::end);
        let spared = self.runners.iter().flatten().map(Runner::pid).collect();
        let gone = kill_orphans(&spared);
        let text = if gone { why.to_owned() } else { format!("{why}, and some of its processes live on") };
        let log = self.core.runs(index).map_or(0, |at| self.log_left(at));
        self.events.push_back(Event::RunnerGone { runner: index, outcome, text, log });
        // Its guests are dead by now; what lies on the disk of them goes, too.
        if let Some(runner) = runner {
            self.remove_guests(Guests::Of(runner));
        }
    }

    /// How much a runner that is gone has stored of an attempt's log.
    fn log_left(&self, at: TaskRef) -> u64 {
        let log = self.layout.attempt(&self.hello.session, at).join("log");
        let there = std::fs::symlink_metadata(log).ok().filter(std::fs::Metadata::is_file);
        there.map_or(0, |meta| meta.len())
    }

    fn remove_guests(&self, which: Guests) {
        let machines = Machines::new(machine::directory(&self.layout, &self.hello));
        if let Some(pool) = self.pool.as_ref().filter(|_| machines.guests().is_dir()) {
            pool.submit(Work::Guests(machines, which));
        }
    }

    fn look_at_held_guests(&mut self, now: Instant) {
        if self.session.is_some() && now >= self.next_expiry {
            self.next_expiry = now + EXPIRY_EVERY;
            self.remove_guests(Guests::Expired);
        }
    }

    fn collect(&mut self) {
        for finished in self.pool.as_ref().map(Pool::take).unwrap_or_default() {
            match finished {
                Finished::Prepared(at, Ok(prepared)) => {
                    self.prepared.insert(at, Held { prepared, kept: false });
                    self.events.push_back(Event::Prepared { at, problem: None });
                }
                Finished::Prepared(at, Err(problem)) => {
                    self.events.push_back(Event::Prepared { at, problem: Some(problem) });
                }
                Finished::Kept(at, prepared, problem) => {
                    self.prepared.insert(at, Held { prepared, kept: true });
                    self.events.push_back(Event::Kept { at, problem });
                }
                Finished::NotRemoved(_, problem) => self.events.push_back(Event::Trouble(problem)),
                Finished::Panicked => {
                    let text = "crewboss has a fault there, which the host's log tells of".to_owned();
                    self.events.push_back(Event::Broken { full: false, text });
                }
                Finished::Left(problems) | Finished::NotPruned(problems) => {
                    self.events.extend(problems.into_iter().map(Event::Trouble));
                }
            }
        }
    }

    fn act(&mut self, action: Action, now: Instant, channel: &mut Channel) {
        match action {
            Action::Send(message) => channel.output.send(&message),
            Action::Alive(number) => {
                let load = self.load(now);
                channel.output.send(&FromWorker::Alive { number, load });
            }
            Action::Prepare { order, warm } => self.prepare(&order, warm),
            Action::Run { runner, order, phases } => self.start(runner, &order, phases),
            Action::Bootstrap { runner, order } => self.bootstrap(runner, order),
            Action::CancelRun { runner, at } => {
                if let Some(Some(runner)) = self.runners.get_mut(runner) {
                    runner.cancel(at);
                }
            }
            Action::EndRunner { runner, outcome, text } => self.lose(runner, outcome, &text),
            Action::Keep { at, good } => match (&self.pool, self.prepared.remove(&at)) {
                (Some(pool), Some(held)) => pool.submit(Work::Keep(at, held.prepared, good)),
                _ => self.events.push_back(Event::Kept { at, problem: None }),
            },
            Action::Report { at } => {
                if let Some(line) = self.reports.remove(&at) {
                    channel.output.forward(&line);
                }
            }
            Action::Forget { at } => {
                self.reports.remove(&at);
            }
            Action::Remove { at } => {
                if let (Some(pool), Some(held)) = (&self.pool, self.prepared.remove(&at)) {
                    pool.submit(Work::Remove(at, held.prepared, held.kept));
                }
            }
            Action::Slots { want } => self.aim(want, now),
            Action::Exit => self.exit = true,
        }
    }

    fn prepare(&mut self, order: &TaskOrder, warm: bool) {
        let environment =
            self.core.target(order.target).map_or(Environment::Snapshot, |target| target.environment.clone());
        let request = EnvRequest {
            attempt_dir: self.layout.attempt(&self.hello.session, order.at),
            tree: order.tree,
            environment,
            warm: warm.then(|| self.key(order.target)).flatten(),
        };
        if let Some(pool) = &self.pool {
            pool.submit(Work::Prepare(order.at, request));
        }
    }

    /// Names the warm directory of a target: another definition or another compiler starts from
    /// nothing.
    fn key(&mut self, number: u32) -> Option<WarmKey> {
        if let Some(key) = self.keys.get(&number) {
            return Some(key.clone());
        }
        let spec = variables::spec(self.core.target(number)?, &self.facts, &self.hello);
        let text = serde_json::to_vec(&(&spec.target, &spec.toolchain)).ok()?;
        let key: WarmKey = blake3::hash(&text).to_hex()[..32].parse().ok()?;
        self.keys.insert(number, key.clone());
        Some(key)
    }

    fn start(&mut self, index: usize, order: &TaskOrder, phases: Phases) {
        let (Some(held), Some(target)) = (self.prepared.get(&order.at), self.core.target(order.target))
        else {
            return self.lose(index, Outcome::Infrastructure, "its environment is not there");
        };
        let prepared = &held.prepared;
        let in_out = target.environment == Environment::Directory && !target.incremental;
        let job = Job {
            at: order.at,
            phases,
            target: order.target,
            commit: order.commit,
            warm: prepared.warm,
            dir: prepared.dir.clone(),
            src: prepared.src.clone(),
            out: prepared.out.clone(),
            way: self.session.as_ref().and_then(Session::short).map(|short| short.join(index.to_string())),
            cwd: if in_out { prepared.out.clone() } else { prepared.src.clone() },
            machine: machine::job(order, target, prepared, &self.layout, &self.hello, &self.facts),
        };
        if let Err(error) = have_runner(&mut self.runners[index], &self.hello.session) {
            return self.no_runner(index, &error);
        }
        let Some(runner) = &mut self.runners[index] else { return };
        if let Err(error) = runner.run(job, || variables::spec(target, &self.facts, &self.hello)) {
            self.deaf_runner(index, &error);
        }
    }

    fn bootstrap(&mut self, index: usize, order: BootstrapOrder) {
        let job = machine::bootstrap_job(order, &self.layout, &self.hello, &self.facts);
        let none = "this host has no QEMU that can be used";
        let Some(job) = job else { return self.lose(index, Outcome::Infrastructure, none) };
        if let Err(error) = have_runner(&mut self.runners[index], &self.hello.session) {
            return self.no_runner(index, &error);
        }
        if let Some(runner) = &mut self.runners[index]
            && let Err(error) = runner.bootstrap(job)
        {
            self.deaf_runner(index, &error);
        }
    }

    fn no_runner(&mut self, index: usize, error: &io::Error) {
        self.lose(index, Outcome::Infrastructure, &format!("no runner can be started: {error}"));
    }

    /// A runner did not take its job.
    fn deaf_runner(&mut self, index: usize, error: &io::Error) {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock => "its runner stood still and did not take it",
            _ => "its runner was killed",
        };
        self.lose(index, Outcome::Infrastructure, why);
    }

    /// The host's state, not older than a heartbeat.
    fn load(&mut self, now: Instant) -> Load {
        let fresh = Duration::from_millis(self.hello.heartbeat_ms / 2);
        match &self.load {
            Some((at, load)) if now.duration_since(*at) < fresh => load.clone(),
            _ => {
                let load = crate::probe::load(&self.layout);
                self.load = Some((now, load.clone()));
                load
            }
        }
    }
}

fn have_runner(place: &mut Option<Runner>, session: &SessionId) -> io::Result<()> {
    if place.is_none() {
        *place = Some(Runner::start(session)?);
    }
    Ok(())
}

/// What the core may promise of this host.
fn offer(facts: &HostFacts) -> Offer {
    let usable = facts.machines.iter().filter(|machine| machine.state == MachineState::Usable);
    let machines = if facts.emulator.is_some() {
        usable.map(|machine| machine.name.clone()).collect()
    } else {
        BTreeSet::new()
    };
    Offer { toolchains: facts.toolchains.iter().map(|one| one.name.clone()).collect(), machines }
}

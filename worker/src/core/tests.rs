use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crewboss_protocol::message::{BootstrapOrder, Ending, Refusal, TaskOrder};
use crewboss_protocol::target::{Command, Stage};
use crewboss_protocol::{Environment, FromWorker, Outcome, Phase, Phases, Target, TaskRef, ToWorker, TreeId};
use proptest::prelude::*;

use super::state::{Action, Core, Event, GRACE, HOLD_BACK, Offer, READY_AHEAD, STOP_WITHIN};
use crate::slots::Share;

const SLOTS: u32 = 2;
const TREE: TreeId = TreeId([1; 20]);
const SILENCE: Duration = Duration::from_secs(2_000);
const STANDSTILL: Duration = Duration::from_secs(600);
/// Of each task.
const LIMIT: Duration = Duration::from_secs(60);

fn target(name: &str, incremental: bool) -> Target {
    let stage = Stage { name: "s".parse().unwrap(), command: Command::Words(vec!["/bin/true".to_owned()]) };
    Target {
        name: name.parse().unwrap(),
        toolchain: None,
        incremental,
        environment: Environment::Directory,
        timeout_ms: 60_000,
        stages: vec![stage],
        variables: BTreeMap::new(),
        artifacts: Vec::new(),
        sizes: Vec::new(),
    }
}

/// The world around a core: does what it asks, when the test says so, and checks what must always
/// hold.
struct World {
    core: Core,
    now: Instant,
    preparing: Vec<(TaskRef, u32, bool)>,
    prepared: BTreeMap<TaskRef, u32>,
    running: BTreeMap<usize, TaskRef>,
    cancelled: BTreeSet<TaskRef>,
    killed: Vec<(usize, Outcome, String)>,
    keeping: Vec<TaskRef>,
    reports: BTreeMap<TaskRef, Outcome>,
    ended: BTreeMap<TaskRef, &'static str>,
    held: u32,
    want: u32,
    share: Share,
    sent: Vec<FromWorker>,
    /// Where the time of what runs went before.
    phases: BTreeMap<TaskRef, Phases>,
    exit: bool,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut world = Self {
            core: Core::new(SLOTS, Offer::default(), SILENCE, STANDSTILL, now),
            now,
            preparing: Vec::new(),
            prepared: BTreeMap::new(),
            running: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            killed: Vec::new(),
            keeping: Vec::new(),
            reports: BTreeMap::new(),
            ended: BTreeMap::new(),
            held: 0,
            want: 0,
            share: Share { slots: SLOTS, pass_on: false },
            sent: Vec::new(),
            phases: BTreeMap::new(),
            exit: false,
        };
        world.boss(ToWorker::Configure {
            first: 0,
            targets: vec![target("fresh", false), target("warm", true)],
        });
        world
    }

    fn boss(&mut self, message: ToWorker) {
        self.feed(Event::Boss(message));
    }

    fn order(&mut self, number: u32, target: u32) -> TaskRef {
        let at: TaskRef = format!("{number}.1").parse().unwrap();
        self.boss(ToWorker::Task(TaskOrder {
            at,
            target,
            tree: TREE,
            commit: TREE,
            cold: false,
            hold: Default::default(),
            pause: None,
        }));
        at
    }

    fn bootstrap(&mut self, number: u32) -> TaskRef {
        let at: TaskRef = format!("{number}.2").parse().unwrap();
        let (machine, toolchain) = ("debian".parse().unwrap(), "default".parse().unwrap());
        self.boss(ToWorker::Bootstrap(BootstrapOrder { at, machine, toolchain, force: false }));
        at
    }

    fn feed(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.core.handle(event, self.now, &mut actions);
        for action in actions {
            self.act(action);
        }
    }

    fn settle(&mut self, at: TaskRef, how: &'static str) {
        let before = self.ended.insert(at, how);
        assert_eq!(before, None, "{at} has ended twice, now {how}");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(message) => {
                match &message {
                    FromWorker::Done(done) => self.settle(done.at, "done"),
                    FromWorker::Bootstrapped { at, .. } => self.settle(*at, "done"),
                    FromWorker::Refused { reason: Refusal::Duplicate, .. } => {}
                    FromWorker::Refused { at, .. } => self.settle(*at, "refused"),
                    FromWorker::Returned { tasks } => {
                        tasks.iter().for_each(|at| self.settle(*at, "returned"))
                    }
                    _ => {}
                }
                self.sent.push(message);
            }
            Action::Prepare { order, warm } => {
                let busy = self.preparing.iter().any(|(_, _, other)| *other && warm)
                    || self.prepared.iter().any(|(at, target)| {
                        *target == 1 && warm && !self.reports.contains_key(at) && !self.ended.contains_key(at)
                    })
                    || (warm && !self.keeping.is_empty());
                assert!(!busy, "two attempts in one warm directory");
                self.preparing.push((order.at, order.target, warm));
                assert!(self.preparing.len() <= SLOTS as usize + READY_AHEAD);
            }
            Action::Run { runner, order, phases } => {
                self.phases.insert(order.at, phases);
                assert!(self.prepared.contains_key(&order.at), "{} runs without an environment", order.at);
                assert!(self.running.insert(runner, order.at).is_none(), "runner {runner} runs two");
                assert!(self.running.len() <= self.held as usize, "more tasks than slots");
            }
            Action::Bootstrap { runner, order } => {
                assert!(self.running.insert(runner, order.at).is_none(), "runner {runner} runs two");
                assert!(self.running.len() <= self.held as usize, "more bootstraps than slots");
            }
            Action::CancelRun { runner, at } => {
                assert_eq!(self.running.get(&runner), Some(&at));
                self.cancelled.insert(at);
            }
            Action::EndRunner { runner, outcome, text } => {
                assert!(self.running.contains_key(&runner), "runner {runner} runs nothing");
                self.killed.push((runner, outcome, text));
            }
            Action::Forget { at } => {
                self.reports.remove(&at);
            }
            Action::Keep { at, .. } => self.keeping.push(at),
            Action::Report { at } => {
                if self.reports.remove(&at).is_some() {
                    self.settle(at, "done");
                }
            }
            Action::Remove { at } => {
                assert!(self.prepared.remove(&at).is_some(), "{at} has no environment to remove");
                assert!(
                    !self.running.values().any(|running| *running == at),
                    "{at} is removed while it runs"
                );
            }
            Action::Slots { want } => {
                self.want = want;
                self.held = self.held.min(want);
                assert!(self.running.len() <= self.held as usize, "a slot in use was given up");
            }
            Action::Exit => self.exit = true,
            Action::Alive(_) => {}
        }
    }

    fn take_slots(&mut self) {
        if self.held < self.want {
            self.held = self.want;
            self.feed(Event::Slots { held: self.held, share: self.share });
        }
    }

    fn prepare_one(&mut self, problem: Option<Refusal>) {
        if self.preparing.is_empty() {
            return;
        }
        let (at, target, _) = self.preparing.remove(0);
        if problem.is_none() {
            self.prepared.insert(at, target);
        }
        self.feed(Event::Prepared { at, problem: problem.map(|reason| (reason, String::new())) });
    }

    fn end_one(&mut self, outcome: Outcome) {
        if let Some((runner, at)) = self.running.pop_first() {
            let outcome = if self.cancelled.contains(&at) { Outcome::Cancelled } else { outcome };
            self.reports.insert(at, outcome);
            self.feed(Event::Ended { runner, at, outcome });
        }
    }

    fn lose_one(&mut self) {
        if let Some((runner, _)) = self.running.pop_first() {
            let outcome = Outcome::Infrastructure;
            self.feed(Event::RunnerGone { runner, outcome, text: String::new(), log: 0 });
        }
    }

    /// Nothing happens for so long.
    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.feed(Event::Tick);
    }

    /// The runners that were to be ended have been.
    fn end_killed(&mut self) {
        for (runner, outcome, text) in std::mem::take(&mut self.killed) {
            self.running.remove(&runner);
            self.feed(Event::RunnerGone { runner, outcome, text, log: 7 });
        }
    }

    fn keep_one(&mut self) {
        if !self.keeping.is_empty() {
            let at = self.keeping.remove(0);
            self.feed(Event::Kept { at, problem: None });
        }
    }

    fn collect_all(&mut self) {
        let done: Vec<TaskRef> = self.ended.keys().copied().collect();
        for at in done {
            self.boss(ToWorker::Collected { at });
        }
    }

    /// Lets everything go well until nothing is left to do.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            self.boss(ToWorker::SourceReady { tree: TREE });
            self.take_slots();
            self.prepare_one(None);
            self.take_slots();
            self.end_one(Outcome::Success);
            self.keep_one();
            let idle = self.preparing.is_empty() && self.running.is_empty() && self.keeping.is_empty();
            // Failures are told late.
            self.wait(HOLD_BACK);
            if idle && self.held >= self.want {
                return;
            }
        }
        panic!("it never comes to an end");
    }
}

#[test]
fn a_task_waits_for_its_source_then_runs_and_its_directory_goes_when_collected() {
    let mut world = World::new();
    let at = world.order(1, 0);
    assert!(world.preparing.is_empty() && world.want == 0);
    assert_eq!(world.core.missing_sources(), BTreeSet::from([TREE]));
    world.drain();
    assert_eq!(world.ended.get(&at), Some(&"done"));
    assert!(world.prepared.contains_key(&at));
    world.boss(ToWorker::Collected { at });
    world.boss(ToWorker::Collected { at });
    assert!(world.prepared.is_empty());
}

#[test]
fn what_a_task_does_before_it_runs_is_measured_and_the_first_that_it_does_is_said() {
    let mut world = World::new();
    let passes = |world: &mut World, ms| world.now += Duration::from_millis(ms);
    let at = world.order(1, 0);
    passes(&mut world, 100);
    world.boss(ToWorker::SourceReady { tree: TREE });
    passes(&mut world, 20);
    world.prepare_one(None);
    passes(&mut world, 30);
    world.take_slots();
    let mut expected = Phases::default();
    for (phase, ms) in [(Phase::Source, 100), (Phase::Waiting, 30), (Phase::Preparing, 20)] {
        expected.add(phase, Duration::from_millis(ms));
    }
    assert_eq!(world.phases.get(&at), Some(&expected));
    let phase = Phase::Stage("s".parse().unwrap());
    assert_eq!(world.sent, [FromWorker::Phase { at, phase, text: String::new() }]);
}

#[test]
fn impossible_orders_are_refused_with_the_reason() {
    let mut world = World::new();
    let reason = |world: &World| match world.sent.last() {
        Some(FromWorker::Refused { reason, .. }) => Some(*reason),
        _ => None,
    };
    world.order(1, 9);
    assert_eq!(reason(&world), Some(Refusal::UnknownTarget));
    world.order(2, 0);
    world.order(2, 0);
    assert_eq!(reason(&world), Some(Refusal::Duplicate));
    let asks = Target { toolchain: Some("vax".parse().unwrap()), ..target("vax", false) };
    world.boss(ToWorker::Configure { first: 2, targets: vec![asks] });
    world.order(3, 2);
    assert_eq!(reason(&world), Some(Refusal::NoToolchain));
    let many = u32::try_from(crewboss_protocol::limits::QUEUED_TASKS_MAX).unwrap();
    for number in 10..10 + many {
        world.order(number, 0);
    }
    assert_eq!(reason(&world), Some(Refusal::QueueFull));
    world.boss(ToWorker::Quit);
    world.order(5_000, 0);
    assert_eq!(reason(&world), Some(Refusal::Stopping));
}

#[test]
fn silence_ends_the_session_and_a_task_that_will_not_die_does_not_hold_it_up() {
    let mut world = World::new();
    world.boss(ToWorker::SourceReady { tree: TREE });
    world.order(1, 0);
    world.prepare_one(None);
    world.take_slots();
    assert_eq!(world.running.len(), 1);
    world.wait(SILENCE);
    assert!(world.cancelled.len() == 1 && !world.exit);
    world.now += STOP_WITHIN;
    world.feed(Event::Tick);
    assert!(world.exit);
}

/// A world in which one task runs.
fn running() -> (World, TaskRef) {
    let mut world = World::new();
    world.boss(ToWorker::SourceReady { tree: TREE });
    let at = world.order(1, 0);
    world.prepare_one(None);
    world.take_slots();
    assert_eq!(world.running.len(), 1);
    (world, at)
}

#[test]
fn a_runner_that_stands_still_is_ended_when_the_time_of_its_task_is_over_and_the_slot_serves_on() {
    let (mut world, at) = running();
    assert_eq!(world.core.deadline(), world.now + LIMIT + GRACE);
    world.wait(LIMIT + GRACE - Duration::from_millis(1));
    assert!(world.killed.is_empty(), "it had time left");
    world.wait(Duration::from_millis(1));
    assert_eq!(world.killed.len(), 1);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.killed.len(), 1, "it is ended once");
    world.end_killed();
    let Some(FromWorker::Done(done)) = world.sent.last() else { panic!("{:?}", world.sent) };
    assert_eq!((done.at, done.outcome, done.log.bytes, &done.log.text), (at, Outcome::Timeout, 7, &None));
    assert!(done.message.starts_with("stopped after 60000 ms; its runner stood still"), "{}", done.message);
    world.order(2, 0);
    world.drain();
    assert_eq!(world.ended.len(), 2);
}

#[test]
fn a_runner_is_left_alone_as_long_as_it_keeps_what_it_promised() {
    let (mut world, _) = running();
    world.wait(LIMIT);
    world.feed(Event::Promised { runner: *world.running.keys().next().unwrap(), within: STANDSTILL });
    world.wait(STANDSTILL);
    assert!(world.killed.is_empty());
    world.wait(GRACE);
    let (_, outcome, text) = &world.killed[0];
    assert_eq!(*outcome, Outcome::Infrastructure, "the task did not do this");
    assert!(text.contains("stood still: it would be heard within 600000 ms"), "{text}");
    world.end_killed();
    world.feed(Event::Promised { runner: 0, within: LIMIT });
    assert!(world.core.deadline() > world.now + LIMIT + GRACE, "who has no job promises nothing");
}

#[test]
fn whoever_is_cancelled_and_does_not_end_is_ended_soon() {
    let (mut world, at) = running();
    world.boss(ToWorker::Cancel { at });
    world.wait(STOP_WITHIN + GRACE);
    assert_eq!(world.killed.len(), 1);
    world.end_killed();
    let bootstrap = world.bootstrap(4);
    world.take_slots();
    world.wait(STANDSTILL + GRACE);
    world.end_killed();
    assert_eq!(world.ended.get(&bootstrap), Some(&"done"));
}

#[test]
fn a_failure_is_told_late_and_holds_up_nothing_and_a_success_is_told_at_once() {
    let (mut world, at) = running();
    world.end_one(Outcome::Failure);
    assert!(world.ended.is_empty());
    let other = world.order(2, 0);
    world.prepare_one(None);
    world.take_slots();
    assert_eq!(world.running.values().collect::<Vec<_>>(), [&other], "the slot was free at once");
    world.end_one(Outcome::Success);
    assert_eq!(world.ended.keys().collect::<Vec<_>>(), [&other]);
    assert_eq!(world.core.deadline(), world.now + HOLD_BACK);
    world.wait(HOLD_BACK);
    assert_eq!(world.ended.get(&at), Some(&"done"));
}

#[test]
fn a_failure_just_before_the_end_of_the_worker_is_none_unless_the_boss_wants_that_end() {
    let signal = Event::Stop(Ending::Signal { number: 15, by: String::new() });
    for (asked, how, outcome) in
        [(false, signal, Outcome::Cancelled), (true, Event::Boss(ToWorker::Quit), Outcome::Failure)]
    {
        let mut world = World::new();
        world.boss(ToWorker::SourceReady { tree: TREE });
        let both = [world.order(1, 0), world.order(2, 0)];
        (0..2).for_each(|_| world.prepare_one(None));
        world.take_slots();
        world.end_one(Outcome::Failure);
        world.feed(how);
        assert_eq!(world.sent.iter().any(|sent| matches!(sent, FromWorker::Ending { .. })), !asked);
        // The other one dies of the same, just when it is asked to end.
        let (runner, at) = world.running.pop_first().unwrap();
        world.reports.insert(at, Outcome::Failure);
        world.feed(Event::Ended { runner, at, outcome: Outcome::Failure });
        assert_eq!(world.ended.keys().copied().collect::<Vec<_>>(), both);
        let told = world.sent.iter().filter_map(|sent| match sent {
            FromWorker::Done(done) => Some(done.outcome),
            _ => None,
        });
        let cancelled = told.filter(|told| *told == Outcome::Cancelled).count();
        assert_eq!(cancelled, if outcome == Outcome::Cancelled { 2 } else { 0 });
        assert!(world.reports.is_empty() && world.exit);
    }
}

#[test]
fn a_slot_is_kept_between_tasks_and_given_up_for_others() {
    let mut world = World::new();
    world.boss(ToWorker::SourceReady { tree: TREE });
    for number in 0..6 {
        world.order(number, 0);
    }
    (0..6).for_each(|_| world.prepare_one(None));
    world.take_slots();
    world.end_one(Outcome::Success);
    assert_eq!((world.held, world.running.len()), (2, 2));
    world.share = Share { slots: 1, pass_on: false };
    world.feed(Event::Slots { held: 2, share: world.share });
    world.end_one(Outcome::Success);
    assert_eq!((world.held, world.running.len()), (1, 1));
    world.share.pass_on = true;
    world.feed(Event::Slots { held: 1, share: world.share });
    world.end_one(Outcome::Success);
    assert_eq!((world.held, world.want, world.running.len()), (0, 1, 0));
}

#[test]
fn a_bootstrap_takes_a_slot_and_needs_nothing_else() {
    let mut world = World::new();
    let many: Vec<TaskRef> = (0..3).map(|number| world.bootstrap(number)).collect();
    world.take_slots();
    assert_eq!(world.running.len(), 2, "as many as there are slots");
    world.boss(ToWorker::Cancel { at: many[2] });
    assert_eq!(world.ended.get(&many[2]), Some(&"done"), "it had not started");
    world.boss(ToWorker::Cancel { at: many[1] });
    assert!(world.cancelled.contains(&many[1]));
    world.lose_one();
    world.drain();
    assert_eq!(world.ended.keys().copied().collect::<Vec<_>>(), many);
    world.collect_all();
    let again = world.bootstrap(4);
    world.take_slots();
    world.bootstrap(5);
    world.boss(ToWorker::Quit);
    assert!(world.cancelled.contains(&again) && !world.exit, "it ends what runs first");
    world.end_one(Outcome::Cancelled);
    world.end_one(Outcome::Cancelled);
    assert!(world.exit);
    world.bootstrap(6);
    assert!(matches!(world.sent.last(), Some(FromWorker::Refused { reason: Refusal::Stopping, .. })));
}

#[derive(Debug, Clone)]
enum Step {
    Order(u32, u32),
    Bootstrap(u32),
    Source,
    Prepare,
    FailToPrepare,
    TakeSlots,
    End(Outcome),
    Lose,
    Keep,
    Cancel(u32),
    Recall(Vec<u32>),
    Collect,
    Share(u32, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0_u32..30;
    prop_oneof![
        4 => (number.clone(), 0_u32..3).prop_map(|(number, target)| Step::Order(number, target)),
        1 => number.clone().prop_map(Step::Bootstrap),
        1 => Just(Step::Source),
        4 => Just(Step::Prepare),
        1 => Just(Step::FailToPrepare),
        3 => Just(Step::TakeSlots),
        3 => prop_oneof![Just(Outcome::Success), Just(Outcome::Failure)].prop_map(Step::End),
        1 => Just(Step::Lose),
        2 => Just(Step::Keep),
        1 => number.clone().prop_map(Step::Cancel),
        1 => prop::collection::vec(number, 0..5).prop_map(Step::Recall),
        1 => Just(Step::Collect),
        1 => (1_u32..=SLOTS, any::<bool>()).prop_map(|(slots, pass_on)| Step::Share(slots, pass_on)),
    ]
}

proptest! {
    /// Whatever happens in whatever order: every order is answered exactly once, no slot is
    /// over-filled, no warm directory is used twice at a time, and in the end nothing is left.
    #[test]
    fn every_order_is_answered_once_and_nothing_is_left(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        let mut ordered = BTreeSet::new();
        let at = |number: u32| -> TaskRef { format!("{number}.1").parse().unwrap() };
        let bootstrap_at = |number: u32| -> TaskRef { format!("{number}.2").parse().unwrap() };
        let mut bootstraps = BTreeSet::new();
        for step in steps {
            match step {
                // A boss never uses a number twice.
                Step::Order(number, target) => if ordered.insert(number) {
                    world.order(number, target);
                },
                Step::Bootstrap(number) => if bootstraps.insert(number) {
                    world.bootstrap(number);
                },
                Step::Source => world.boss(ToWorker::SourceReady { tree: TREE }),
                Step::Prepare => world.prepare_one(None),
                Step::FailToPrepare => world.prepare_one(Some(Refusal::Environment)),
                Step::TakeSlots => world.take_slots(),
                Step::End(outcome) => world.end_one(outcome),
                Step::Lose => world.lose_one(),
                Step::Keep => world.keep_one(),
                Step::Cancel(number) => {
                    world.boss(ToWorker::Cancel { at: at(number) });
                    world.boss(ToWorker::Cancel { at: bootstrap_at(number) });
                }
                Step::Recall(numbers) => {
                    let both = numbers.into_iter().flat_map(|number| [at(number), bootstrap_at(number)]);
                    let tasks: BTreeSet<TaskRef> = both.collect();
                    world.boss(ToWorker::Recall { tasks: tasks.into_iter().collect() });
                }
                Step::Collect => world.collect_all(),
                Step::Share(slots, pass_on) => {
                    world.share = Share { slots, pass_on };
                    world.feed(Event::Slots { held: world.held, share: world.share });
                }
            }
        }
        world.drain();
        let bootstraps = bootstraps.into_iter().map(bootstrap_at);
        let ordered: BTreeSet<TaskRef> = ordered.into_iter().map(at).chain(bootstraps).collect();
        prop_assert_eq!(world.ended.keys().copied().collect::<BTreeSet<_>>(), ordered);
        world.collect_all();
        prop_assert!(world.prepared.is_empty(), "left: {:?}", world.prepared);
        world.boss(ToWorker::Quit);
        prop_assert!(world.exit);
    }
}

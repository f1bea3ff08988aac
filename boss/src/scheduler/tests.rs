//! One test per rule.

use crewboss_protocol::machine::MachineRole;
use crewboss_protocol::message::Refusal;
use crewboss_protocol::{Attempt, Feature, Name, TaskId, TaskRef};
use proptest::prelude::*;

use super::*;

const HOST: HostIndex = HostIndex(0);
const OTHER: HostIndex = HostIndex(1);

/// A scheduler and a clock.
struct Desk {
    scheduler: Scheduler,
    now: u64,
    class: RequirementId,
}

impl Desk {
    fn new(hosts: u32) -> Self {
        let mut scheduler = Scheduler::new(hosts);
        let class = scheduler.intern(Requirement::default());
        Self { scheduler, now: 0, class }
    }

    fn say(&mut self, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        self.scheduler.handle(input, Millis(self.now), &mut out);
        out
    }

    fn up(&mut self, host: HostIndex, slots: u32, speed: u32) -> Vec<Action> {
        self.say(Input::HostUp { host, offer: offer(slots, speed) })
    }

    fn down(&mut self, host: HostIndex) -> Vec<Action> {
        self.say(Input::HostDown { host, reason: "cut".to_owned(), returns: true, ours: false })
    }

    fn entry(&self, task: u32) -> TaskEntry {
        TaskEntry {
            task: TaskId(task),
            requirement: self.class,
            priority: 0,
            expected_ms: None,
            limit_ms: None,
            tree: 0,
            chain: None,
        }
    }

    fn add(&mut self, count: u32) -> Vec<Action> {
        let entries = (0..count).map(|task| self.entry(task)).collect();
        self.say(Input::AddTasks(entries))
    }

    fn started(&mut self, host: HostIndex, at: TaskRef) -> Vec<Action> {
        self.say(Input::Started { host, at })
    }

    fn done(&mut self, host: HostIndex, at: TaskRef) -> Vec<Action> {
        self.say(Input::Ended { host, at, ended: Ended::Result })
    }

    fn failed(&mut self, host: HostIndex, at: TaskRef) -> Vec<Action> {
        self.say(Input::Ended { host, at, ended: Ended::Infrastructure("mis-boot".to_owned()) })
    }
}

fn offer(slots: u32, speed: u32) -> Offer {
    Offer { slots, speed, memory: 1000, disk_free: 1000, ..Offer::default() }
}

fn at(task: u32, attempt: u32) -> TaskRef {
    TaskRef { task: TaskId(task), attempt: Attempt(attempt) }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn sends(actions: &[Action]) -> Vec<(u32, u32)> {
    let send = |action: &Action| match action {
        Action::Send { host, at } => Some((host.0, at.task.0)),
        _ => None,
    };
    actions.iter().filter_map(send).collect()
}

fn given_up(actions: &[Action]) -> Vec<(u32, GiveUp, usize)> {
    let give_up = |action: &Action| match action {
        Action::GiveUp { task, why, story } => Some((task.0, why.clone(), story.len())),
        _ => None,
    };
    actions.iter().filter_map(give_up).collect()
}

/// The words by which a host is said not to take a class.
fn unfit(desk: &Desk, class: RequirementId) -> String {
    match &desk.scheduler.explain_class(class)[0] {
        Ok(()) => "takes it".to_owned(),
        Err(why) => why.to_string(),
    }
}

#[test]
fn a_refused_machine_is_dropped_and_other_machines_of_the_host_are_not() {
    let mut desk = Desk::new(2);
    let need = |name_: &str| MachineNeed { role: MachineRole::Build, name: name(name_), toolchain: None };
    let machines = |names: &[&str]| Requirement {
        machines: names.iter().map(|name| need(name)).collect(),
        ..Requirement::default()
    };
    let gone = desk.scheduler.intern(machines(&["debian"]));
    let there = desk.scheduler.intern(machines(&["windows"]));
    let offered = ["debian", "windows"].map(|one| ((MachineRole::Build, name(one)), MachineOffer::default()));
    let with = Offer { machines: offered.into(), ..offer(2, 1000) };
    desk.say(Input::HostUp { host: HOST, offer: with.clone() });
    desk.say(Input::HostUp { host: OTHER, offer: offer(2, 1000) });
    let entry = TaskEntry { requirement: gone, ..desk.entry(0) };
    assert_eq!(sends(&desk.say(Input::AddTasks(vec![entry]))), [(0, 0)], "the other host has no machines");
    let refused =
        Input::Refused { host: HOST, at: at(0, 1), reason: Refusal::NoMachine, text: "withdrawn".to_owned() };
    let actions = desk.say(refused);
    assert_eq!(given_up(&actions).len(), 1, "nobody else has it: {actions:?}");
    assert_eq!(unfit(&desk, gone), "cannot use machine debian: withdrawn");
    assert_eq!(unfit(&desk, there), "takes it");
    desk.down(HOST);
    desk.say(Input::HostUp { host: HOST, offer: with });
    assert_eq!(unfit(&desk, gone), "takes it", "a new session offers it again");
}

#[test]
fn what_was_killed_from_outside_is_tried_once_more_and_is_then_a_result() {
    let mut desk = Desk::new(1);
    desk.up(HOST, 1, 1000);
    let killed = || Ended::Killed("signal 9".to_owned());
    let first = desk.add(1);
    let [Action::Send { at, .. }] = first[..] else { panic!("{first:?}") };
    desk.started(HOST, at);
    let again = desk.say(Input::Ended { host: HOST, at, ended: killed() });
    let [Action::Retry { at: failed, .. }, Action::Send { at: second, .. }] = again[..] else {
        panic!("{again:?}")
    };
    assert_eq!(failed, at);
    desk.started(HOST, second);
    let over = desk.say(Input::Ended { host: HOST, at: second, ended: killed() });
    assert_eq!(over, [Action::Accept { host: HOST, at: second }]);
}

#[test]
fn what_is_not_to_be_had_on_a_host_is_asked_of_it_once_and_costs_it_nothing() {
    let mut desk = Desk::new(1);
    let need = MachineNeed { role: MachineRole::Build, name: name("debian"), toolchain: None };
    let class = desk.scheduler.intern(Requirement { machines: vec![need], ..Requirement::default() });
    let machines = [((MachineRole::Build, name("debian")), MachineOffer::default())].into();
    desk.say(Input::HostUp { host: HOST, offer: Offer { machines, ..offer(1, 1000) } });
    let entries: Vec<_> = (0..8).map(|task| TaskEntry { requirement: class, ..desk.entry(task) }).collect();
    let sent = sends(&desk.say(Input::AddTasks(entries)));
    desk.started(HOST, at(0, 1));
    let ended = Ended::Lasting("debian is suspended".to_owned());
    let actions = desk.say(Input::Ended { host: HOST, at: at(0, 1), ended });
    let story = actions.iter().find_map(|action| match action {
        Action::GiveUp { task, story, .. } if task.0 == 0 => Some(story.clone()),
        _ => None,
    });
    assert_eq!(story.unwrap().len(), 1, "{actions:?}");
    let recalled = actions.iter().any(|action| matches!(action, Action::Recall { .. }));
    assert_eq!(recalled, sent.len() > 1, "what else was sent is asked back: {actions:?}");
    let left = desk.scheduler.counts().sent as usize;
    assert_eq!(given_up(&actions).len() + left, 8, "the others need not be tried: {actions:?}");
    let waiting: Vec<TaskRef> = (1..8).map(|task| at(task, 1)).collect();
    assert_eq!(given_up(&desk.say(Input::Returned { host: HOST, tasks: waiting })).len(), left);
    assert!(desk.scheduler.is_finished());
    assert!(!actions.iter().any(|action| matches!(action, Action::Pause { .. })));
}

#[test]
fn what_somebody_else_stopped_is_tried_again_and_what_we_stopped_is_a_result() {
    let mut desk = Desk::new(1);
    desk.up(HOST, 1, 1000);
    let first = desk.add(1);
    let [Action::Send { at, .. }] = first[..] else { panic!("{first:?}") };
    desk.started(HOST, at);
    let again = desk.say(Input::Ended { host: HOST, at, ended: cancelled() });
    assert!(matches!(again[..], [Action::Retry { .. }]), "that worker takes nothing any more: {again:?}");
    desk.down(HOST);
    let next = desk.up(HOST, 1, 1000);
    let [Action::Send { at, .. }] = next[..] else { panic!("{next:?}") };
    assert_eq!(at.attempt, Attempt(2));
    desk.started(HOST, at);
    desk.say(Input::Stop);
    let last = desk.say(Input::Ended { host: HOST, at, ended: cancelled() });
    assert_eq!(last, [Action::Accept { host: HOST, at }]);
}

#[test]
fn slots_are_filled_in_plan_order_and_one_task_is_sent_ahead() {
    let mut desk = Desk::new(1);
    desk.add(5);
    assert_eq!(sends(&desk.up(HOST, 2, 1000)), [(0, 0), (0, 1), (0, 2)]);
    assert_eq!(sends(&desk.done(HOST, at(0, 1))), [(0, 3)]);
}

#[test]
fn work_is_spread_by_weight_before_anything_is_sent_ahead() {
    let mut desk = Desk::new(2);
    desk.up(HOST, 4, 1000);
    desk.up(OTHER, 4, 3000);
    let sent = sends(&desk.add(4));
    assert_eq!(sent.iter().filter(|(host, _)| *host == 1).count(), 3);
    assert_eq!(sent.len(), 4);
}

#[test]
fn priority_goes_before_rarity_before_length() {
    let mut desk = Desk::new(2);
    let rare = desk.scheduler.intern(Requirement { toolchain: Some(name("arm")), ..Requirement::default() });
    let common = desk.entry(0);
    let entries = vec![
        TaskEntry { expected_ms: Some(10), ..common.clone() },
        TaskEntry { task: TaskId(1), expected_ms: Some(500), ..common.clone() },
        TaskEntry { task: TaskId(2), expected_ms: Some(5), requirement: rare, ..common.clone() },
        TaskEntry { task: TaskId(3), expected_ms: Some(1), priority: 1, ..common },
    ];
    desk.say(Input::AddTasks(entries));
    let offer = Offer { toolchains: [name("arm")].into(), ..offer(3, 1000) };
    let sent = sends(&desk.say(Input::HostUp { host: HOST, offer }));
    assert_eq!(sent.iter().map(|(_, task)| *task).collect::<Vec<_>>(), [3, 1, 0, 2]);
    let mut desk = Desk::new(2);
    let rare = desk.scheduler.intern(Requirement { toolchain: Some(name("arm")), ..Requirement::default() });
    desk.up(OTHER, 1, 1000);
    let entries = (0..5).map(|task| match task {
        4 => TaskEntry { requirement: rare, ..desk.entry(task) },
        _ => desk.entry(task),
    });
    let entries = entries.collect();
    desk.say(Input::AddTasks(entries));
    let offer = Offer { toolchains: [name("arm")].into(), ..offer_one() };
    assert_eq!(sends(&desk.say(Input::HostUp { host: HOST, offer }))[0], (0, 4));
}

fn offer_one() -> Offer {
    offer(1, 1000)
}

#[test]
fn among_equals_a_tree_that_is_there_goes_first() {
    let mut desk = Desk::new(1);
    let entries = (0..4).map(|task| TaskEntry { tree: task, ..desk.entry(task) }).collect();
    desk.say(Input::AddTasks(entries));
    let offer = Offer { trees: [2].into(), ..offer_one() };
    assert_eq!(sends(&desk.say(Input::HostUp { host: HOST, offer })), [(0, 2), (0, 0)]);
}

#[test]
fn an_idle_host_gets_back_what_waits_elsewhere_and_asks_once() {
    let mut desk = Desk::new(2);
    desk.add(2);
    desk.up(HOST, 1, 1000);
    desk.started(HOST, at(0, 1));
    let recall = Action::Recall { host: HOST, tasks: vec![at(1, 1)] };
    assert_eq!(desk.up(OTHER, 2, 1000), [recall]);
    assert_eq!(desk.say(Input::RoundTrip { host: OTHER, micros: 10 }), []);
    // It stays where it is until the host answers.
    assert_eq!(desk.scheduler.counts().sent, 1);
    let returned = Input::Returned { host: HOST, tasks: vec![at(1, 1)] };
    assert_eq!(desk.say(returned.clone()), [Action::Send { host: OTHER, at: at(1, 2) }]);
    assert_eq!(desk.say(returned), []);
    assert_eq!(desk.scheduler.counts().stale, 1);
}

#[test]
fn a_recall_that_comes_too_late_changes_nothing() {
    let mut desk = Desk::new(2);
    desk.add(2);
    desk.up(HOST, 1, 1000);
    desk.started(HOST, at(0, 1));
    desk.up(OTHER, 1, 1000);
    desk.done(HOST, at(0, 1));
    desk.started(HOST, at(1, 1));
    assert_eq!(desk.say(Input::Returned { host: HOST, tasks: vec![] }), []);
    assert_eq!(desk.done(HOST, at(1, 1)), [Action::Accept { host: HOST, at: at(1, 1) }]);
    assert!(desk.scheduler.is_finished());
}

#[test]
fn a_host_that_was_told_no_asks_again_next_time() {
    let mut desk = Desk::new(2);
    desk.add(2);
    desk.up(HOST, 1, 1000);
    desk.started(HOST, at(0, 1));
    assert_eq!(desk.up(OTHER, 1, 1000).len(), 1, "it asks for task 1");
    desk.done(HOST, at(0, 1));
    desk.started(HOST, at(1, 1));
    let entries = (2..4).map(|task| desk.entry(task)).collect();
    assert_eq!(sends(&desk.say(Input::AddTasks(entries))), [(1, 2), (0, 3)]);
    let out = desk.done(OTHER, at(2, 1));
    assert!(out.contains(&Action::Recall { host: HOST, tasks: vec![at(3, 1)] }), "{out:?}");
}

#[test]
fn near_the_end_a_slow_host_takes_what_it_can_finish_in_time() {
    let mut desk = Desk::new(2);
    desk.up(HOST, 1, 500);
    desk.up(OTHER, 1, 4000);
    let known = |(task, ms)| TaskEntry { expected_ms: Some(ms), ..desk.entry(task) };
    let entries = (0..).zip([5000, 100, 2000, 3000, 20]).map(known).collect();
    // What is left takes 1.1 s in all; the slow host would need 6 s for task 3.
    assert_eq!(sends(&desk.say(Input::AddTasks(entries)))[..2], [(1, 0), (0, 1)]);
    // It takes a long one rather than nothing.
    let mut desk = Desk::new(2);
    desk.up(HOST, 1, 500);
    desk.up(OTHER, 1, 4000);
    let known = |(task, ms)| TaskEntry { expected_ms: Some(ms), ..desk.entry(task) };
    let entries = (0..).zip([5000, 3000]).map(known).collect();
    assert_eq!(sends(&desk.say(Input::AddTasks(entries))), [(1, 0), (0, 1)]);
}

#[test]
fn more_is_sent_ahead_the_faster_tasks_end() {
    let mut desk = Desk::new(1);
    desk.add(2000);
    let mut queue: Vec<(u32, u32)> = sends(&desk.up(HOST, 1, 1000));
    desk.say(Input::RoundTrip { host: HOST, micros: 20_000 });
    for _ in 0..200 {
        desk.now += 1;
        let (_, task) = queue.remove(0);
        queue.extend(sends(&desk.done(HOST, at(task, 1))));
    }
    // 1,000 a second over 45 ms.
    let ahead = desk.scheduler.host_view(HOST).unwrap().ahead;
    assert!((40..=50).contains(&ahead), "{ahead}");
}

#[test]
fn old_attempts_and_wrong_hosts_are_ignored() {
    let mut desk = Desk::new(2);
    desk.add(1);
    desk.up(HOST, 1, 1000);
    desk.down(HOST);
    assert_eq!(sends(&desk.up(OTHER, 1, 1000)), [(1, 0)]);
    for (host, at) in [(HOST, at(0, 1)), (OTHER, at(0, 1)), (HOST, at(0, 2)), (OTHER, at(9, 1))] {
        assert_eq!(desk.done(host, at), []);
        assert_eq!(desk.started(host, at), []);
    }
    assert_eq!(desk.done(HostIndex(77), at(0, 2)), []);
    assert_eq!(desk.scheduler.counts().stale, 9);
    assert_eq!(desk.done(OTHER, at(0, 2)), [Action::Accept { host: OTHER, at: at(0, 2) }]);
    assert_eq!(desk.done(OTHER, at(0, 2)), []);
}

#[test]
fn a_lost_host_fails_what_may_have_started_and_only_that() {
    let mut desk = Desk::new(1);
    desk.add(3);
    desk.up(HOST, 1, 1000);
    desk.started(HOST, at(0, 1));
    let retried = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::Retry { .. })).count();
    assert_eq!(retried(&desk.down(HOST)), 2);
    let mut desk = Desk::new(1);
    desk.add(10);
    desk.up(HOST, 1, 1000);
    for task in 0..5 {
        desk.now += 1;
        desk.done(HOST, at(task, 1));
    }
    assert_eq!(retried(&desk.down(HOST)), 1);
}

#[test]
fn three_failed_attempts_end_a_task_with_the_story_of_each() {
    let mut desk = Desk::new(2);
    desk.up(HOST, 1, 1000);
    desk.up(OTHER, 1, 1000);
    assert_eq!(sends(&desk.add(1)), [(0, 0)]);
    assert_eq!(sends(&desk.failed(HOST, at(0, 1))), [(1, 0)], "elsewhere first");
    assert_eq!(sends(&desk.failed(OTHER, at(0, 2))), [(0, 0)], "there is no elsewhere left");
    assert_eq!(given_up(&desk.failed(HOST, at(0, 3))), [(0, GiveUp::Attempts, 3)]);
    assert!(desk.scheduler.is_finished());
}

#[test]
fn a_task_that_is_never_started_ends_some_time() {
    let mut desk = Desk::new(1);
    desk.add(1);
    desk.up(HOST, 1, 1000);
    for attempt in 1..20 {
        let gone = desk.say(Input::Returned { host: HOST, tasks: vec![at(0, attempt)] });
        if !given_up(&gone).is_empty() {
            assert_eq!(attempt, u32::from(LOST_MAX));
            return;
        }
    }
    panic!("it goes round for ever");
}

#[test]
fn a_host_that_fails_is_paused_longer_each_time_tried_with_one_task_and_then_dropped() {
    let mut desk = Desk::new(1);
    desk.add(100);
    let mut held: Vec<TaskRef> = desk.up(HOST, 2, 1000).iter().filter_map(sent_at).collect();
    let mut pauses = Vec::new();
    for _ in 0..100 {
        let Some(first) = held.first().copied() else {
            desk.now = desk.scheduler.next_wake().unwrap().0;
            held = desk.say(Input::Tick).iter().filter_map(sent_at).collect();
            assert_eq!(held.len(), 1, "a trial is one task");
            continue;
        };
        held.remove(0);
        for action in desk.failed(HOST, first) {
            match action {
                Action::Pause { for_ms, .. } => pauses.push(for_ms),
                Action::Recall { tasks, .. } => {
                    desk.say(Input::Returned { host: HOST, tasks });
                    held.clear();
                }
                Action::Out { .. } => {
                    assert_eq!(pauses, [10_000, 20_000, 40_000, 80_000, 160_000]);
                    assert!(desk.scheduler.is_finished(), "nobody is left to do the rest");
                    return;
                }
                other => held.extend(sent_at(&other)),
            }
        }
    }
    panic!("the host is never dropped: {pauses:?}");
}

fn sent_at(action: &Action) -> Option<TaskRef> {
    match action {
        Action::Send { at, .. } => Some(*at),
        _ => None,
    }
}

#[test]
fn a_good_trial_makes_a_host_well_again() {
    let mut desk = Desk::new(1);
    desk.add(20);
    desk.up(HOST, 3, 1000);
    (0..3).for_each(|task| drop(desk.failed(HOST, at(task, 1))));
    assert_eq!(desk.scheduler.host_view(HOST).unwrap().capacity, 0);
    let left: Vec<TaskRef> = (0..20).map(|task| at(task, 1)).chain((0..3).map(|task| at(task, 2))).collect();
    desk.say(Input::Returned { host: HOST, tasks: left });
    desk.now = desk.scheduler.next_wake().unwrap().0;
    let trial = desk.say(Input::Tick);
    let trial: Vec<TaskRef> = trial.iter().filter_map(sent_at).collect();
    assert_eq!(trial.len(), 1);
    desk.done(HOST, trial[0]);
    assert_eq!(desk.scheduler.host_view(HOST).unwrap().capacity, 3);
}

#[test]
fn failures_with_results_between_them_do_not_pause_a_host() {
    let mut desk = Desk::new(1);
    desk.add(20);
    desk.up(HOST, 1, 1000);
    let mut held = vec![at(0, 1), at(1, 1)];
    for round in 0..12 {
        let first = held.remove(0);
        let out = if round % 3 == 2 { desk.done(HOST, first) } else { desk.failed(HOST, first) };
        assert!(!out.iter().any(|action| matches!(action, Action::Pause { .. })), "round {round}: {out:?}");
        held.extend(out.iter().filter_map(sent_at));
    }
}

#[test]
fn a_machine_that_fails_again_and_again_is_dropped_and_its_host_is_not_paused() {
    let mut desk = Desk::new(1);
    let machine = |name_: &str| Requirement {
        machines: vec![MachineNeed { role: MachineRole::Build, name: name(name_), toolchain: None }],
        ..Requirement::default()
    };
    let [bad, good] = ["bad", "good"].map(|name| desk.scheduler.intern(machine(name)));
    let offered = ["bad", "good"].map(|one| ((MachineRole::Build, name(one)), MachineOffer::default()));
    desk.say(Input::HostUp { host: HOST, offer: Offer { machines: offered.into(), ..offer(1, 1000) } });
    let entry = |desk: &Desk, task, requirement| TaskEntry { requirement, ..desk.entry(task) };
    let entries = (0..9).map(|task| entry(&desk, task, bad)).chain([entry(&desk, 9, good)]).collect();
    let mut held: Vec<TaskRef> = desk.say(Input::AddTasks(entries)).iter().filter_map(sent_at).collect();
    let (mut failed, mut done) = (0, 0);
    while let Some(at) = held.pop() {
        let is_good = at.task == TaskId(9);
        let bad = Ended::Machines("mis-boot".to_owned());
        let out = desk.say(Input::Ended { host: HOST, at, ended: if is_good { Ended::Result } else { bad } });
        if is_good {
            done += 1
        } else {
            failed += 1
        }
        assert!(!out.iter().any(|action| matches!(action, Action::Pause { .. })), "{out:?}");
        held.extend(out.iter().filter_map(sent_at));
    }
    assert_eq!(done, 1);
    assert!((3..9).contains(&failed), "what was sent before may fail, and nothing more: {failed}");
    assert!(unfit(&desk, bad).starts_with("cannot use machine bad: "), "{}", unfit(&desk, bad));
    assert!(desk.scheduler.is_finished());
}

#[test]
fn a_task_refused_everywhere_is_given_up() {
    let mut desk = Desk::new(2);
    desk.up(HOST, 1, 1000);
    desk.up(OTHER, 1, 1000);
    desk.add(1);
    let refuse =
        |host, at| Input::Refused { host, at, reason: Refusal::Environment, text: "no overlay".to_owned() };
    assert_eq!(sends(&desk.say(refuse(HOST, at(0, 1)))), [(1, 0)]);
    assert_eq!(given_up(&desk.say(refuse(OTHER, at(0, 2)))), [(0, GiveUp::Refused, 2)]);
}

#[test]
fn a_toolchain_that_turns_out_to_be_missing_is_struck_off() {
    let mut desk = Desk::new(1);
    let arm = desk.scheduler.intern(Requirement { toolchain: Some(name("arm")), ..Requirement::default() });
    let entries = (0..3).map(|task| TaskEntry { requirement: arm, ..desk.entry(task) }).collect();
    desk.say(Input::AddTasks(entries));
    let offer = Offer { toolchains: [name("arm")].into(), ..offer_one() };
    desk.say(Input::HostUp { host: HOST, offer });
    let (reason, text) = (Refusal::NoToolchain, "gone".to_owned());
    let out = desk.say(Input::Refused { host: HOST, at: at(0, 1), reason, text });
    assert_eq!(given_up(&out).len(), 2, "what waited");
    assert!(matches!(desk.scheduler.explain(TaskId(1))[0], Err(Unfit::NoToolchain { .. })));
}

#[test]
fn what_no_host_can_take_is_named_with_reasons_once_all_are_known() {
    let mut desk = Desk::new(3);
    let needs = Requirement { toolchain: Some(name("aarch64")), memory: 10, ..Requirement::default() };
    let class = desk.scheduler.intern(needs);
    let entries = (0..2).map(|task| TaskEntry { requirement: class, ..desk.entry(task) }).collect();
    desk.say(Input::AddTasks(entries));
    let native = Offer { toolchains: [name("native")].into(), ..offer_one() };
    desk.say(Input::HostUp { host: HOST, offer: native });
    let small = Offer { toolchains: [name("aarch64")].into(), memory: 1, ..offer_one() };
    assert_eq!(given_up(&desk.say(Input::HostUp { host: OTHER, offer: small })), [], "one is unknown");
    assert!(desk.scheduler.impossible().is_empty());
    let gone =
        Input::HostDown { host: HostIndex(2), reason: "no route".to_owned(), returns: false, ours: false };
    let reasons: Vec<String> =
        desk.scheduler.explain(TaskId(0)).iter().map(|r| r.as_ref().unwrap_err().to_string()).collect();
    assert_eq!(
        reasons,
        [
            "no toolchain aarch64 (has: native)",
            "memory of 1 bytes is less than the 10 needed",
            "still connecting"
        ]
    );
    let out = desk.say(gone);
    assert_eq!(given_up(&out).len(), 2);
    let Action::GiveUp { why: GiveUp::Impossible(reasons), .. } = &out[0] else { panic!("{out:?}") };
    assert_eq!(reasons[2].to_string(), "not reachable: no route");
}

#[test]
fn each_need_is_checked() {
    let all = Requirement {
        machines: Vec::new(),
        toolchain: Some(name("arm")),
        features: [Feature::Kvm].into(),
        tags: [name("big")].into(),
        memory: 100,
        disk: 100,
    };
    let mut offer = Offer::default();
    assert!(matches!(fits(&all, &offer), Err(Unfit::NoToolchain { .. })));
    offer.toolchains.insert(name("arm"));
    assert_eq!(fits(&all, &offer).unwrap_err().to_string(), "lacks the feature kvm");
    offer.features.insert(Feature::Kvm);
    assert_eq!(fits(&all, &offer).unwrap_err().to_string(), "has no tag big (has: none)");
    offer.tags.insert(name("big"));
    assert!(matches!(fits(&all, &offer), Err(Unfit::Memory { .. })));
    offer.memory = 100;
    assert!(matches!(fits(&all, &offer), Err(Unfit::Disk { .. })));
    offer.disk_free = 100;
    assert_eq!(fits(&all, &offer), Ok(()));
}

#[test]
fn space_that_runs_out_holds_tasks_back_while_something_runs_there() {
    let mut desk = Desk::new(1);
    let class = desk.scheduler.intern(Requirement { disk: 500, ..Requirement::default() });
    let entries = (0..4).map(|task| TaskEntry { requirement: class, ..desk.entry(task) }).collect();
    desk.say(Input::AddTasks(entries));
    desk.up(HOST, 1, 1000);
    assert_eq!(desk.say(Input::Disk { host: HOST, free: 10 }), []);
    assert_eq!(sends(&desk.done(HOST, at(0, 1))), []);
    assert_eq!(sends(&desk.say(Input::Disk { host: HOST, free: 600 })), [(0, 2)]);
    desk.say(Input::Disk { host: HOST, free: 10 });
    desk.done(HOST, at(1, 1));
    assert_eq!(given_up(&desk.done(HOST, at(2, 1))).len(), 1, "nothing runs that could free space");
}

#[test]
fn a_chain_runs_in_order_one_at_a_time_and_stays() {
    let mut desk = Desk::new(1);
    let chained = |desk: &Desk, task| TaskEntry { chain: Some(ChainId(0)), ..desk.entry(task) };
    let entries = (0..3).map(|task| chained(&desk, task)).chain([desk.entry(3)]).collect();
    desk.say(Input::AddTasks(entries));
    assert_eq!(sends(&desk.up(HOST, 4, 1000)), [(0, 0), (0, 3)]);
    assert_eq!(sends(&desk.done(HOST, at(0, 1))), [(0, 1)]);
    assert_eq!(sends(&desk.done(HOST, at(1, 1))), [(0, 2)]);
    desk.done(HOST, at(3, 1));
    desk.done(HOST, at(2, 1));
    assert!(desk.scheduler.is_finished());
}

#[test]
fn a_lost_result_of_a_chain_is_made_again_alone() {
    let mut desk = Desk::new(1);
    let entries = (0..3).map(|task| TaskEntry { chain: Some(ChainId(0)), ..desk.entry(task) }).collect();
    desk.say(Input::AddTasks(entries));
    desk.up(HOST, 1, 1000);
    desk.done(HOST, at(0, 1));
    let reason = "cut".to_owned();
    desk.say(Input::ResultLost { host: HOST, at: at(0, 1), reason });
    assert_eq!(sends(&desk.done(HOST, at(1, 1))), [(0, 2)]);
    assert_eq!(sends(&desk.done(HOST, at(2, 1))), [(0, 0)]);
    desk.done(HOST, at(0, 2));
    assert!(desk.scheduler.is_finished());
}

#[test]
fn withdrawn_tasks_are_neither_sent_nor_accepted() {
    let mut desk = Desk::new(1);
    desk.up(HOST, 1, 1000);
    desk.add(4);
    let out = desk.say(Input::Withdraw { tasks: vec![TaskId(0), TaskId(3), TaskId(99)] });
    assert_eq!(out, [Action::Cancel { host: HOST, at: at(0, 1) }]);
    assert_eq!(sends(&desk.done(HOST, at(0, 1))), [(0, 2)]);
    assert_eq!(desk.scheduler.counts().withdrawn, 2);
}

#[test]
fn an_empty_crew_gives_everything_up_at_once() {
    let mut desk = Desk::new(0);
    assert_eq!(given_up(&desk.add(2)).len(), 2);
    assert!(desk.scheduler.is_finished());
}

/// The orders for one host, as they stand in the actions.
fn orders(actions: &[Action], wanted: HostIndex) -> Vec<TaskRef> {
    let order = |action: &Action| match action {
        Action::Send { host, at } if *host == wanted => Some(*at),
        _ => None,
    };
    actions.iter().filter_map(order).collect()
}

#[test]
fn what_waits_behind_a_task_that_takes_long_is_asked_back() {
    let mut desk = Desk::new(2);
    desk.up(HOST, 1, 1000);
    let mut held = orders(&desk.add(1200), HOST);
    // Quick tasks make the host look quick, and much is sent ahead to it.
    while desk.scheduler.counts().done < 1180 {
        let at = held.remove(0);
        desk.started(HOST, at);
        desk.now += 2;
        held.extend(orders(&desk.done(HOST, at), HOST));
    }
    desk.started(HOST, held[0]);
    // A slower host comes. For all that is known the rest is done soonest where it is; only time
    // shows otherwise.
    let mut actions = desk.up(OTHER, 1, 300);
    for _ in 0..2000 {
        for action in std::mem::take(&mut actions) {
            actions.extend(match action {
                Action::Send { host: OTHER, at } => {
                    let mut more = desk.started(OTHER, at);
                    more.extend(desk.done(OTHER, at));
                    more
                }
                Action::Recall { host: HOST, tasks } => desk.say(Input::Returned { host: HOST, tasks }),
                _ => Vec::new(),
            });
        }
        if actions.is_empty() {
            let Some(Millis(wake)) = desk.scheduler.next_wake() else { break };
            desk.now = desk.now.max(wake);
            actions = desk.say(Input::Tick);
        }
    }
    assert_eq!(desk.scheduler.counts().done, 1199, "all but the long one are done");
}

#[test]
fn what_waits_for_slots_that_others_hold_is_asked_back() {
    let mut desk = Desk::new(2);
    desk.up(HOST, 2, 1000);
    let sent = sends(&desk.add(3));
    assert_eq!(sent.len(), 3, "two for the slots, one ahead");
    desk.up(OTHER, 2, 1000);
    // HOST has told nothing yet, so only what is ahead of its slots can be better off elsewhere.
    let back = desk.say(Input::Slots { host: HOST, usable: 0 });
    let recalled: usize = back
        .iter()
        .map(|action| match action {
            Action::Recall { host: HOST, tasks } => tasks.len(),
            _ => 0,
        })
        .sum();
    assert!(recalled >= 1, "{back:?}");
    assert_eq!(desk.scheduler.host_view(HOST).unwrap().capacity, 0);
    // One task still waits at a host without usable slots, so that it starts as soon as there is
    // one.
    assert_eq!(desk.scheduler.host_view(HOST).unwrap().ahead, 1);
    desk.say(Input::Slots { host: HOST, usable: 9 });
    assert_eq!(desk.scheduler.host_view(HOST).unwrap().capacity, 2);
}

/// What an attempt that its worker stopped looks like.
fn cancelled() -> Ended {
    Ended::Cancelled { why: "the worker got signal 15".to_owned(), ours: false }
}

/// The hosts whose session is to be ended.
fn stuck(actions: &[Action]) -> Vec<HostIndex> {
    let ends = actions.iter().filter_map(|action| match action {
        Action::EndSession { host, .. } => Some(*host),
        _ => None,
    });
    ends.collect()
}

impl Desk {
    fn later(&mut self, ms: u64) -> Vec<Action> {
        self.now += ms;
        self.say(Input::Tick)
    }
}

#[test]
fn a_host_that_answers_and_never_starts_anything_loses_its_session() {
    let mut desk = Desk::new(1);
    desk.scheduler.watch(600_000);
    desk.up(HOST, 2, 1000);
    desk.later(600_000);
    assert!(stuck(&desk.add(4)).is_empty(), "it had nothing to start");
    desk.started(HOST, at(0, 1));
    desk.later(300_000);
    // What is on its way there may be what is waited for.
    desk.scheduler.note_sources(HOST, 1);
    assert!(stuck(&desk.later(900_000)).is_empty());
    desk.scheduler.note_sources(HOST, 0);
    assert!(stuck(&desk.later(599_999)).is_empty());
    assert_eq!(desk.scheduler.next_wake(), Some(Millis(desk.now + 1)));
    let ended = desk.later(1);
    assert_eq!(stuck(&ended), [HOST]);
    let [Action::EndSession { reason, .. }] = &ended[..] else { panic!("{ended:?}") };
    assert!(reason.contains("has started none for 600 s") && reason.contains("`standstill`"), "{reason}");
    assert!(stuck(&desk.later(6_000_000)).is_empty(), "it is told once");
    desk.down(HOST);
    desk.up(HOST, 2, 1000);
    assert_eq!(stuck(&desk.later(600_000)), [HOST], "a new session has its own time");
}

#[test]
fn a_host_whose_slots_are_all_in_use_does_not_stand_still() {
    let mut desk = Desk::new(1);
    desk.scheduler.watch(600_000);
    desk.up(HOST, 1, 1000);
    desk.add(3);
    desk.started(HOST, at(0, 1));
    assert!(stuck(&desk.later(6_000_000)).is_empty(), "one runs, and it has no limit");
    desk.say(Input::Slots { host: HOST, usable: 0 });
    desk.done(HOST, at(0, 1));
    assert!(stuck(&desk.later(6_000_000)).is_empty(), "others have the slot");
}

#[test]
fn an_attempt_that_nobody_ends_ends_the_session() {
    let mut desk = Desk::new(1);
    desk.up(HOST, 1, 1000);
    let entry = TaskEntry { limit_ms: Some(5000), ..desk.entry(0) };
    desk.say(Input::AddTasks(vec![entry]));
    desk.later(10_000);
    desk.started(HOST, at(0, 1));
    assert!(stuck(&desk.later(4999)).is_empty());
    let ended = desk.later(1);
    assert_eq!(stuck(&ended), [HOST]);
    let lost = desk.down(HOST);
    assert!(matches!(lost[..], [Action::Retry { .. }]), "{lost:?}");
    desk.up(HOST, 1, 1000);
    desk.started(HOST, at(0, 2));
    desk.done(HOST, at(0, 2));
    assert!(stuck(&desk.later(50_000)).is_empty(), "it has ended");
}

#[test]
fn what_ends_since_the_boss_stood_still_is_nobodys_failure() {
    let mut desk = Desk::new(1);
    desk.add(3);
    for _ in 0..2 * ATTEMPTS_MAX {
        let up = desk.up(HOST, 1, 1000);
        assert!(!up.iter().any(|action| matches!(action, Action::Pause { .. })), "{up:?}");
        let Some(Action::Send { at, .. }) = up.first() else { panic!("{up:?}") };
        desk.started(HOST, *at);
        let ended = Ended::Cancelled { why: "this boss stood still".to_owned(), ours: true };
        let first = desk.say(Input::Ended { host: HOST, at: *at, ended });
        let rest = desk.say(Input::HostDown {
            host: HOST,
            reason: "the same".to_owned(),
            returns: true,
            ours: true,
        });
        assert!(given_up(&first).is_empty() && given_up(&rest).is_empty(), "{first:?} {rest:?}");
    }
    let up = desk.up(HOST, 3, 1000);
    assert_eq!(sends(&up).len(), 3, "{up:?}");
}

/// Anything at all, also what no session would ever say.
fn any_input() -> impl Strategy<Value = Input> {
    let host = (0..4_u32).prop_map(HostIndex);
    let task = (0..12_u32, 0..5_u32).prop_map(|(task, attempt)| at(task, attempt));
    let why = prop_oneof![Just(Refusal::QueueFull), Just(Refusal::NoSpace), Just(Refusal::NoToolchain)];
    let ended = prop_oneof![
        4 => Just(Ended::Result),
        1 => Just(Ended::Interrupted),
        1 => Just(cancelled()),
        1 => Just(Ended::Infrastructure("bad".to_owned())), 1 => Just(Ended::Machines("bad".to_owned()))
    ];
    prop_oneof![
        (host.clone(), prop_oneof![0..4_u32, Just(u32::MAX)], prop_oneof![0..3000_u32, Just(u32::MAX)])
            .prop_map(|(host, slots, speed)| Input::HostUp { host, offer: offer(slots, speed) }),
        (host.clone(), any::<bool>(), any::<bool>()).prop_map(|(host, returns, ours)| Input::HostDown {
            host,
            reason: "cut".to_owned(),
            returns,
            ours
        }),
        (host.clone(), task.clone()).prop_map(|(host, at)| Input::Started { host, at }),
        (host.clone(), task.clone(), ended).prop_map(|(host, at, ended)| Input::Ended { host, at, ended }),
        (host.clone(), task.clone(), why).prop_map(|(host, at, reason)| Input::Refused {
            host,
            at,
            reason,
            text: String::new()
        }),
        (host.clone(), proptest::collection::vec(task.clone(), 0..4))
            .prop_map(|(host, tasks)| Input::Returned { host, tasks }),
        (host.clone(), task).prop_map(|(host, at)| Input::ResultLost { at, host, reason: String::new() }),
        (host.clone(), any::<u64>()).prop_map(|(host, micros)| Input::RoundTrip { host, micros }),
        (host.clone(), 0..5_u32).prop_map(|(host, usable)| Input::Slots { host, usable }),
        (host, 0..1000_u64).prop_map(|(host, free)| Input::Disk { host, free }),
        (0..12_u32).prop_map(|task| Input::Withdraw { tasks: vec![TaskId(task)] }),
        Just(Input::Tick),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_inputs_breaks_the_books(inputs in proptest::collection::vec(any_input(), 1..200)) {
        let mut desk = Desk::new(3);
        let space = desk.scheduler.intern(Requirement { disk: 500, ..Requirement::default() });
        let entries = (0..10).map(|task| TaskEntry {
            chain: (task % 3 == 0).then_some(ChainId(task % 2)),
            requirement: if task % 4 == 1 { space } else { desk.class },
            expected_ms: (task % 2 == 0).then_some(u64::from(task)),
            ..desk.entry(task)
        });
        let entries = entries.collect();
        desk.say(Input::AddTasks(entries));
        let mut last = [0; 12];
        for input in inputs {
            desk.now += 37;
            for action in desk.say(input) {
                if let Action::Send { at, .. } = action {
                    let seen = &mut last[at.task.0 as usize];
                    prop_assert!(at.attempt.0 > *seen);
                    *seen = at.attempt.0;
                }
            }
            let c = desk.scheduler.counts();
            prop_assert_eq!(c.waiting + c.sent + c.running + c.done + c.given_up + c.withdrawn, c.total);
            let views = (0..3).filter_map(|host| desk.scheduler.host_view(HostIndex(host)));
            let (sent, running) = views.fold((0, 0), |sum, view| (sum.0 + view.sent, sum.1 + view.running));
            prop_assert_eq!((sent, running), (c.sent, c.running));
        }
    }
}

use std::collections::BTreeMap;

use crewboss_protocol::message::ArtifactCount;
use crewboss_protocol::target::{Command, Stage};
use crewboss_protocol::{Environment, StageExit, StageResult, Target, TreeId};

use super::super::plan::Commit;
use super::*;
use crate::plan::{Needs, TargetPlan};

const LAB1: HostIndex = HostIndex(0);
const LAB2: HostIndex = HostIndex(1);

const TASKS: u32 = 3;

fn at(text: &str) -> TaskRef {
    text.parse().unwrap()
}

fn plan() -> Arc<Plan> {
    let stage = Stage { name: "make".parse().unwrap(), command: Command::Shell("make".to_owned()) };
    let target = Target {
        name: "native".parse().unwrap(),
        toolchain: None,
        incremental: false,
        environment: Environment::Directory,
        timeout_ms: 60_000,
        stages: vec![stage],
        variables: BTreeMap::new(),
        artifacts: Vec::new(),
        sizes: Vec::new(),
    };
    let commit = |number: u32| {
        let id = TreeId([u8::try_from(number).unwrap(); 20]);
        Commit { id, tree: id, short: format!("{number}").into(), subject: "x".into() }
    };
    let target = TargetPlan { target, needs: Needs::default(), priority: 0 };
    Arc::new(Plan::new((0..TASKS).map(commit).collect(), vec![target]).unwrap())
}

/// The pipeline and a clock. What it asks for is compared as short words.
struct Desk {
    results: Results,
    now: u64,
    announced: Vec<TaskDone>,
    stored: Vec<Collected>,
}

impl Desk {
    fn new() -> Self {
        let hosts = ["lab1", "lab2"].map(|name| name.parse().unwrap()).to_vec();
        let results = Results::new(plan(), hosts, TaskLimits::default());
        Self { results, now: 0, announced: Vec::new(), stored: Vec::new() }
    }

    fn say(&mut self, event: Event) -> Vec<String> {
        let mut out = Vec::new();
        self.results.handle(event, Millis(self.now), &mut out);
        out.into_iter().map(|action| self.word(action)).collect()
    }

    fn word(&mut self, action: Action) -> String {
        match action {
            Action::Follow { host, at } => format!("follow {at} on {}", host.0),
            Action::Abandon { host, at } => format!("abandon {at} on {}", host.0),
            Action::Fetch { host, at, .. } => format!("fetch {at} from {}", host.0),
            Action::Upload { at } => format!("upload {at}"),
            Action::Store(collected) => {
                let word = format!("store {}", collected.done.at);
                self.stored.push(*collected);
                word
            }
            Action::Forget { host, at } => format!("forget {at} on {}", host.0),
            Action::Lost { host, at, reason } => format!("lost {at} on {}: {reason}", host.0),
            Action::Tell { at, phase, .. } => format!("tell {at} {phase}"),
            Action::Announce(done) => {
                let word = format!("announce {}.{} {}", done.task, done.attempt, done.outcome);
                self.announced.push(*done);
                word
            }
        }
    }

    fn ended(&mut self, host: HostIndex, done: Box<Done>) {
        assert_eq!(self.say(Event::Ended { host, done }), [""; 0]);
    }
}

fn done(at: TaskRef, outcome: Outcome) -> Box<Done> {
    let mut done = given_up(at, String::new());
    done.outcome = outcome;
    done
}

fn long(at: TaskRef, outcome: Outcome) -> Box<Done> {
    let log = LogEnd { bytes: 1 << 20, text: None };
    Box::new(Done { log, ..*done(at, outcome) })
}

fn seen(uploads: bool) -> Seen {
    Seen { tail: String::new(), uploads }
}

#[test]
fn a_small_result_is_stored_at_once_and_forgotten_once_it_is_in_place() {
    let mut desk = Desk::new();
    let at = at("1.1");
    desk.ended(LAB1, done(at, Outcome::Success));
    assert_eq!(desk.say(Event::Accepted { at }), ["tell 1.1 storing", "store 1.1"]);
    assert_eq!(desk.say(Event::Judged { at }), [""; 0]);
    assert_eq!(desk.results.storing(), 1);
    desk.now = 30;
    assert_eq!(desk.say(Event::Stored { at }), ["forget 1.1 on 0", "announce 1.1 success"]);
    assert_eq!(desk.say(Event::Stored { at }), [""; 0]);
    assert_eq!(desk.results.storing(), 0);
    assert!(desk.results.attempts.is_empty());
    assert_eq!(desk.announced[0].phases.iter().last().unwrap().wall_ms, 30, "storing");
}

#[test]
fn what_nobody_wants_is_discarded() {
    let mut desk = Desk::new();
    let at = at("1.1");
    assert_eq!(desk.say(Event::LongLog { host: LAB1, at }), ["follow 1.1 on 0"]);
    assert_eq!(desk.say(Event::LongLog { host: LAB1, at }), [""; 0]);
    desk.ended(LAB1, long(at, Outcome::Success));
    assert_eq!(desk.say(Event::Judged { at }), ["abandon 1.1 on 0", "forget 1.1 on 0"]);
    assert_eq!(desk.say(Event::Judged { at }), [""; 0]);
}

#[test]
fn what_is_said_twice_is_not_forgotten_before_it_is_in_place() {
    let mut desk = Desk::new();
    let at = at("1.1");
    desk.ended(LAB1, long(at, Outcome::Success));
    desk.say(Event::Accepted { at });
    for step in ["fetching", "uploading", "storing"] {
        assert_eq!(desk.say(Event::Stray { host: LAB1, at }), [""; 0], "{step}");
        assert_eq!(desk.say(Event::Stray { host: LAB2, at }), ["forget 1.1 on 1"], "{step}");
        match step {
            "fetching" => desk.say(Event::Fetched { host: LAB1, at, seen: seen(true) }),
            "uploading" => desk.say(Event::Uploaded { at, end: UploadsEnd::default() }),
            _ => desk.say(Event::Stored { at }),
        };
    }
    assert_eq!(desk.say(Event::Stray { host: LAB1, at }), ["forget 1.1 on 0"]);
}

#[test]
fn a_result_that_cannot_be_fetched_is_lost_unless_its_task_was_given_up() {
    let mut desk = Desk::new();
    let first = at("1.1");
    desk.ended(LAB1, long(first, Outcome::Failure));
    let fetch = ["tell 1.1 collecting", "fetch 1.1 from 0"];
    assert_eq!(desk.say(Event::Accepted { at: first }), fetch);
    let failed = |host, at| Event::FetchFailed { host, at, reason: "cut".to_owned() };
    assert_eq!(desk.say(failed(LAB2, first)), [""; 0], "it is not there");
    assert_eq!(desk.say(failed(LAB1, first)), ["lost 1.1 on 0: cut"]);
    assert_eq!(desk.say(failed(LAB1, first)), [""; 0]);

    let again = |at| Event::Retried { host: LAB1, at, reason: "cut".to_owned() };
    desk.say(again(first));
    let last = at("1.2");
    desk.ended(LAB2, long(last, Outcome::Infrastructure));
    let one = |host, number: u32, reason: &str| scheduler::AttemptStory {
        attempt: Attempt(number),
        host,
        reason: reason.to_owned(),
    };
    let story = vec![one(LAB1, 1, "cut"), one(LAB2, 2, "no boot")];
    let given_up = Event::GivenUp { task: last.task, message: "every attempt failed".to_owned(), story };
    assert_eq!(desk.say(given_up), ["tell 1.2 collecting", "fetch 1.2 from 1"], "its log says more");
    assert_eq!(desk.say(Event::Judged { at: last }), [""; 0]);
    assert_eq!(desk.say(failed(LAB2, last)), ["store 1.2"]);
    assert_eq!(desk.say(Event::Stored { at: last }), ["announce 1.2 infrastructure"]);
    let message = "every attempt failed\nattempt 1 on lab1: cut\nattempt 2 on lab2: no boot";
    assert_eq!(desk.announced[0].message, message);
    assert_eq!(desk.stored[0].earlier.len(), 2);
}

#[test]
fn uploads_come_before_the_store_and_a_failed_one_is_a_failed_task() {
    let upload = |desk: &mut Desk, at| {
        desk.ended(LAB1, long(at, Outcome::Success));
        desk.say(Event::Accepted { at });
        desk.say(Event::Fetched { host: LAB1, at, seen: seen(true) })
    };
    let mut desk = Desk::new();
    let (first, second) = (at("1.1"), at("2.1"));
    assert_eq!(upload(&mut desk, first), ["tell 1.1 stage upload", "upload 1.1"]);
    let stage =
        StageResult { name: "upload".parse().unwrap(), exit: StageExit::Code(3), wall_ms: 1, cpu_ms: 0 };
    let failure = Some("upload p/a failed: exit code 3".to_owned());
    let end = UploadsEnd { stage: Some(stage), failure, output: String::new() };
    assert_eq!(desk.say(Event::Uploaded { at: first, end }), ["tell 1.1 storing", "store 1.1"]);
    desk.say(Event::Stored { at: first });
    assert_eq!(desk.announced[0].outcome, Outcome::Failure);

    // A run that is stopped uploads nothing more; its worker keeps the result until it ends.
    upload(&mut desk, second);
    assert_eq!(desk.say(Event::Stop), [""; 0]);
    assert_eq!(desk.say(Event::Uploaded { at: second, end: UploadsEnd::default() }), [""; 0]);
    assert_eq!(upload(&mut desk, at("0.1")), [""; 0]);
    assert!(desk.results.attempts.is_empty());
}

#[test]
fn a_result_over_the_limits_is_not_fetched() {
    let mut desk = Desk::new();
    let at = at("1.1");
    desk.say(Event::LongLog { host: LAB1, at });
    let mut much = done(at, Outcome::Success);
    much.artifacts = ArtifactCount { files: u32::MAX, directories: 0, bytes: 0 };
    desk.ended(LAB1, much);
    let actions = desk.say(Event::Accepted { at });
    assert_eq!(actions[0], "abandon 1.1 on 0");
    assert!(actions[1].starts_with("lost 1.1 on 0: it has left more than 1000000 artifacts"), "{actions:?}");
}

#[test]
fn a_lost_host_takes_only_what_is_still_there() {
    let mut desk = Desk::new();
    for (text, last) in [("0.1", "fetching"), ("1.1", "uploading"), ("2.1", "storing")] {
        let at = at(text);
        desk.ended(LAB1, long(at, Outcome::Success));
        desk.say(Event::Accepted { at });
        if last != "fetching" {
            desk.say(Event::Fetched { host: LAB1, at, seen: seen(last == "uploading") });
        }
    }
    desk.say(Event::Seen { host: LAB2, at: at("2.2"), phase: Phase::Booting });
    let down = Event::HostDown { host: LAB1, reason: "silent".to_owned() };
    assert_eq!(desk.say(down), ["lost 0.1 on 0: silent"]);
    let left: Vec<String> = desk.results.attempts.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["1.1", "2.1", "2.2"]);
}

#[test]
fn what_was_seen_of_a_lost_attempt_is_told_and_waiting_counts_from_the_last_failure() {
    let mut desk = Desk::new();
    let (first, last) = (at("1.1"), at("1.2"));
    let seen = |at, phase| Event::Seen { host: LAB1, at, phase };
    desk.now = 1000;
    desk.say(seen(first, Phase::Booting));
    desk.now = 3000;
    desk.say(Event::Retried { host: LAB1, at: first, reason: "cut".to_owned() });
    desk.now = 4000;
    desk.say(seen(last, Phase::Preparing));
    desk.now = 4100;
    let (make, other) = ("make".parse().unwrap(), "no-stage-of-it".parse().unwrap());
    desk.say(seen(last, Phase::Stage(make)));
    desk.say(seen(last, Phase::Stage(other)));
    desk.now = 9000;
    let story = vec![scheduler::AttemptStory { attempt: Attempt(2), host: LAB1, reason: String::new() }];
    desk.say(Event::GivenUp { task: last.task, message: String::new(), story });
    let collected = &desk.stored[0];
    let phases: Vec<(String, u64)> =
        collected.done.phases.iter().map(|one| (one.phase.to_string(), one.wall_ms)).collect();
    let expected = [("waiting", 1000), ("preparing", 100), ("stage make", 4900)];
    assert_eq!(phases, expected.map(|(phase, ms)| (phase.to_owned(), ms)));
    assert_eq!(collected.done.stages[0].exit, StageExit::Lost);
}

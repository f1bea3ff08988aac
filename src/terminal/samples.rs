//! A small run with everything in it, for the tests of everything that shows one.

use std::collections::BTreeMap;

use crewboss_boss::event::{EVENT_SCHEMA, Event, EventKind, HostSummary, Summary, TaskDone};
use crewboss_protocol::{Attempt, HostName, Load, Name, Outcome, TaskId, TaskRef};

/// A host's name.
pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// A target's or toolchain's name.
pub fn name(name: &str) -> Name {
    name.parse().unwrap()
}

fn at(task: u32, attempt: u32) -> TaskRef {
    TaskRef { task: TaskId(task), attempt: Attempt(attempt) }
}

fn done(task: u32, target: &str, outcome: Outcome, tail: &str) -> EventKind {
    EventKind::TaskDone(Box::new(TaskDone {
        task: TaskId(task),
        target: name(target),
        commit: "1a2b3c4d".into(),
        attempt: Attempt(1),
        host: Some(host("lab1")),
        outcome,
        recorded: None,
        wall_ms: 1_200 * u64::from(task + 1),
        bytes: 2_048,
        message: String::new(),
        tail: tail.to_owned(),
        path: format!("1_of_1_g1a2b3c4d_subject/{target}").into(),
    }))
}

fn skipped() -> EventKind {
    let EventKind::TaskDone(mut task) = done(4, "riscv64", Outcome::Skipped, "") else { unreachable!() };
    task.recorded = Some(Outcome::Failure);
    task.attempt = Attempt(0);
    task.host = None;
    task.bytes = 0;
    EventKind::TaskDone(task)
}

fn impossible() -> EventKind {
    let EventKind::TaskDone(mut task) = done(5, "sparc", Outcome::Infrastructure, "") else { unreachable!() };
    task.attempt = Attempt(0);
    task.host = None;
    task.message = "no host of the crew can take it".to_owned();
    EventKind::TaskDone(task)
}

fn beginning() -> Vec<EventKind> {
    let run_started = EventKind::RunStarted {
        schema: EVENT_SCHEMA,
        run: "20260102-030405-1".parse().unwrap(),
        tasks: 6,
        targets: 6,
        commits: 1,
        hosts: vec![host("lab1"), host("lab2")],
        out: "/src/crewboss-results".to_owned(),
    };
    let ready = EventKind::HostReady {
        host: host("lab1"),
        slots: 4,
        threads: 8,
        speed: 1000,
        toolchains: vec![name("native"), name("aarch64")],
    };
    vec![
        run_started,
        EventKind::HostConnecting { host: host("lab1") },
        EventKind::HostConnecting { host: host("lab2") },
        EventKind::HostShipped { host: host("lab1"), bytes: 4_000_000 },
        ready,
        EventKind::HostNotice {
            host: host("lab1"),
            text: "no btrfs here:\x1b[2J copies are made".to_owned(),
        },
        EventKind::TasksImpossible {
            target: name("sparc"),
            tasks: 1,
            reasons: BTreeMap::from([(host("lab1"), "no toolchain sparc".to_owned())]),
        },
        skipped(),
        impossible(),
        EventKind::SourceSent {
            host: host("lab1"),
            tree: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            objects: 12,
            bytes: 34_567,
            wall_ms: 89,
            check_out_ms: 0,
        },
    ]
}

fn middle() -> Vec<EventKind> {
    let started = |task, target: &str| EventKind::TaskStarted {
        host: host("lab1"),
        at: at(task, 1),
        target: name(target),
        commit: "1a2b3c4d".into(),
    };
    vec![
        started(0, "native"),
        started(1, "aarch64"),
        EventKind::TaskStage { host: host("lab1"), at: at(0, 1), stage: name("test") },
        EventKind::TaskOutput {
            host: host("lab1"),
            at: at(0, 1),
            text: "cc -c main.c\n".to_owned(),
            lost: 0,
        },
        EventKind::HostLost {
            host: host("lab2"),
            reason: "connection refused".to_owned(),
            retry_ms: Some(2_000),
        },
        EventKind::HostFailed {
            host: host("lab2"),
            reason: "cannot connect to lab2: connection refused\nhint: is sshd running there?".to_owned(),
        },
        done(0, "native", Outcome::Success, ""),
        done(1, "aarch64", Outcome::Warning, "main.c:3: warning: unused variable\n"),
        EventKind::TaskRetried {
            host: host("lab1"),
            at: at(2, 1),
            target: name("arm64"),
            commit: "abc1234".into(),
            reason: "the disk is full".to_owned(),
        },
        done(
            2,
            "arm",
            Outcome::Failure,
            "cc -c main.c\r\n\x1b[31mmain.c:3: error: \x1b]0;owned\x07no such thing\n",
        ),
        done(3, "x86", Outcome::Success, ""),
    ]
}

/// The events of the run, 100 ms apart.
pub fn run() -> Vec<Event> {
    let mut kinds = beginning();
    kinds.append(&mut middle());
    kinds.push(EventKind::HostLoad { host: host("lab1"), load: Load::default(), round_trip_us: 300 });
    kinds.push(EventKind::RunFinished(Box::new(summary())));
    (1_700_000_000_000_u64..).step_by(100).zip(kinds).map(|(time_ms, kind)| Event { time_ms, kind }).collect()
}

/// What the run came to.
pub fn summary() -> Summary {
    let lab1 = HostSummary { tasks: 4, bytes_sent: 4_034_567, bytes_received: 8_192, lost: 0 };
    let lab2 = HostSummary { lost: 1, ..HostSummary::default() };
    Summary {
        outcomes: BTreeMap::from([
            (Outcome::Success, 2),
            (Outcome::Warning, 1),
            (Outcome::Failure, 1),
            (Outcome::Infrastructure, 1),
            (Outcome::Skipped, 1),
        ]),
        recorded: BTreeMap::from([(Outcome::Failure, 1)]),
        unfinished: 0,
        wall_ms: 2_200,
        slowest: vec![("arm@1a2b3c4d".to_owned(), 3_600), ("aarch64@1a2b3c4d".to_owned(), 2_400)],
        hosts: BTreeMap::from([(host("lab1"), lab1), (host("lab2"), lab2)]),
        stopped: None,
    }
}

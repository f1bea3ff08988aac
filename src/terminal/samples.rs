//! A small run with everything in it, for the tests of everything that shows one.

use std::collections::BTreeMap;
use std::time::Duration;

use crewboss_boss::event::{
    EVENT_SCHEMA, Event, EventKind, HeldSummary, HostSummary, Matched, Summary, TaskDone,
};
use crewboss_boss::store::{MachineInputs, TaskKey};
use crewboss_protocol::guest::GuestLoad;
use crewboss_protocol::host::{BrokenToolchain, SpeedSource};
use crewboss_protocol::machine::{
    Accelerator, CopyFacts, CopyState, Emulator, HeldGuest, MachineFacts, MachineHolder, MachineRole,
    MachineState, Visitor,
};
use crewboss_protocol::overview::{Overview, RunningGuest, RunningTask, Waiting};
use crewboss_protocol::{
    Attempt, Feature, HostFacts, HostName, Load, Name, Outcome, Phase, Phases, SlotHolder, TaskId, TaskRef,
    Toolchain, TreeId,
};

/// The time at which everything here is looked at, in seconds since 1970.
pub const NOW: u64 = 1_783_166_400;

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
        matched: None,
        held: None,
        wall_ms: 1_200 * u64::from(task + 1),
        phases: Phases::default(),
        bytes: 2_048,
        message: String::new(),
        tail: tail.to_owned(),
        path: format!("1_of_1_g1a2b3c4d_subject/{target}").into(),
    }))
}

/// The same, its guest kept.
fn held(done: EventKind) -> EventKind {
    let EventKind::TaskDone(mut task) = done else { unreachable!() };
    task.held = Some(Box::new(held_guest()));
    for (phase, ms) in [(Phase::Waiting, 7), (Phase::Booting, 2100), (Phase::Stage(name("test")), 1500)] {
        task.phases.add(phase, Duration::from_millis(ms));
    }
    EventKind::TaskDone(task)
}

fn skipped() -> EventKind {
    let EventKind::TaskDone(mut task) = done(4, "riscv64", Outcome::Skipped, "") else { unreachable!() };
    task.recorded = Some(Outcome::Failure);
    task.matched = Some(Box::new(Matched {
        tree: TreeId([7; 20]),
        key: TaskKey([1; 32]),
        toolchain: None,
        machine: Some(MachineInputs {
            name: name("debian12"),
            id: "debian12-7".to_owned(),
            toolchain_id: "8d2f0c".to_owned(),
            agent: 1,
            auxiliary: Vec::new(),
        }),
    }));
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
        EventKind::Notice { text: "the journal is damaged in line 3".to_owned() },
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
    let phase = |task, phase, text: &str| EventKind::TaskPhase {
        host: host("lab1"),
        at: at(task, 1),
        phase,
        text: text.to_owned(),
    };
    let started = |task, target: &str| EventKind::TaskStarted {
        host: host("lab1"),
        at: at(task, 1),
        target: name(target),
        commit: "1a2b3c4d".into(),
    };
    vec![
        started(0, "native"),
        started(1, "aarch64"),
        phase(0, Phase::Stage(name("test")), ""),
        phase(1, Phase::Booting, ""),
        phase(1, Phase::Booting, "debian12\x1b[2J boots"),
        EventKind::GuestLoad {
            host: host("lab1"),
            at: at(2, 1),
            machine: name("debian12"),
            load: GuestLoad { load_percent: 125, memory_available: 900_000_000, disk_free: 2_000_000_000 },
        },
        EventKind::TaskWaiting {
            host: host("lab1"),
            at: at(3, 1),
            target: name("x86"),
            commit: "1a2b3c4d".into(),
            guest: name("debian12-gcc12-p0q1"),
            stage: Some(name("check")),
            until: 1_700_000_000 + 1801,
        },
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
        held(done(
            2,
            "arm",
            Outcome::Failure,
            "cc -c main.c\r\n\x1b[31mmain.c:3: error: \x1b]0;owned\x07no such thing\n",
        )),
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
        held: vec![HeldSummary { host: host("lab1"), guest: held_guest(), commit: "1a2b3c4d".into() }],
        stopped: None,
    }
}

/// A host without machines.
pub fn host_facts() -> HostFacts {
    let native = Toolchain {
        name: name("native"),
        version: "gcc (Debian 12.2.0-14) 12.2.0\x1b[2J".to_owned(),
        compiler: "/usr/bin/gcc".to_owned(),
        prefix: String::new(),
    };
    let holder = SlotHolder {
        slot: 0,
        boss: "ann@laptop".to_owned(),
        run: "20260102-030405-1".parse().unwrap(),
        host: host("lab1"),
        pid: 4711,
        priority: 0,
    };
    let broken = BrokenToolchain {
        name: name("arm"),
        compiler: "/usr/bin/arm-linux-gnueabi-gcc".to_owned(),
        why: "cannot find crt1.o\n".to_owned(),
    };
    HostFacts {
        kernel: "Linux 6.1.0-18-amd64".to_owned(),
        architecture: "x86_64".to_owned(),
        threads: 16,
        memory: 64 << 30,
        disk_free: 500 << 30,
        work: "/srv/crewboss".to_owned(),
        slots: 16,
        speed: 1234,
        speed_source: SpeedSource::Measured,
        toolchains: vec![native.clone(), Toolchain { name: name("x86_64"), ..native }],
        broken_toolchains: vec![broken],
        features: [Feature::Btrfs, Feature::Cgroup, Feature::Unknown].into(),
        load: Load { load_percent: 125, ..Load::default() },
        holders: vec![holder],
        trees: Vec::new(),
        emulator: None,
        no_emulator: String::new(),
        guest_memory: 7 << 30,
        machines: Vec::new(),
        held: Vec::new(),
    }
}

/// What it runs guests with.
pub fn emulator() -> Emulator {
    let why = "KVM: a trial guest hung in it".to_owned();
    Emulator { version: "7.2.22".to_owned(), accelerator: Accelerator::Tcg, why }
}

/// A guest that is kept.
pub fn held_guest() -> HeldGuest {
    HeldGuest {
        id: name("debian12-gcc12-k3x9"),
        machine: name("debian12"),
        target: name("arm"),
        commit: TreeId([0x1a; 20]),
        at: at(2, 1),
        stage: Some(name("test")),
        outcome: Outcome::Timeout,
        boss: "ann@laptop".to_owned(),
        run: "20260102-030405-1".parse().unwrap(),
        since: NOW - 120,
        until: NOW + 3480,
        memory: true,
        entered: None,
    }
}

/// A host with a slot in use, a guest that runs, one that waits and one that is kept.
pub fn overview() -> Overview {
    let user = MachineHolder {
        boss: "ann@laptop".to_owned(),
        run: "20260102-030405-1".parse().unwrap(),
        host: host("lab1"),
        pid: 4711,
        priority: 0,
        task: Some(at(3, 1)),
        since: NOW - 60,
    };
    let waiting = Waiting {
        target: name("x86"),
        commit: TreeId([0x1a; 20]),
        at: at(3, 1),
        stage: Some(name("check")),
        until: NOW + 1800,
        entered: Some(Visitor {
            person: "eve@desk".to_owned(),
            from: Some("192.0.2.7".to_owned()),
            pid: 4712,
            since: NOW - 130,
        }),
    };
    let guest = |id, step, waiting| RunningGuest {
        id: name(id),
        machine: name("debian12"),
        step: name(step),
        user: Some(user.clone()),
        waiting,
    };
    let task = |task, target, machine, phase, for_ms| RunningTask {
        boss: "ann@laptop".to_owned(),
        run: "20260102-030405-1".parse().unwrap(),
        at: at(task, 1),
        target,
        commit: Some(TreeId([0x1a; 20])),
        machine,
        phase,
        for_ms,
    };
    let machine = || Some(name("debian12"));
    Overview {
        slots: host_facts().holders,
        tasks: vec![
            task(2, Some(name("arm")), None, Phase::Stage(name("test")), 130_000),
            task(3, Some(name("x86")), machine(), Phase::Booting, 4_000),
            task(1, None, machine(), Phase::Bootstrapping, 3_600_000),
        ],
        guests: vec![
            guest("debian12-gcc12-p0q1r2", "waiting", Some(waiting)),
            guest("debian12-gcc12-s3t4u5", "booting", None),
        ],
        held: vec![held_guest()],
    }
}

fn copy(toolchain: &str, state: CopyState, users: usize) -> CopyFacts {
    let holder = MachineHolder {
        boss: "bob@ci".to_owned(),
        run: "20260102-020000-1".parse().unwrap(),
        host: host("lab1"),
        pid: 4711,
        priority: 100,
        task: Some(at(7, 1)),
        since: NOW - 60,
    };
    CopyFacts {
        toolchain: name(toolchain),
        toolchain_id: "8d2f0c".to_owned(),
        state,
        made: 0,
        versions: BTreeMap::from([("gcc".to_owned(), "12.2.0".to_owned())]),
        holders: vec![holder; users],
    }
}

/// Machines in every state.
pub fn machines() -> Vec<MachineFacts> {
    let why = |text: &str| text.to_owned();
    let debian = MachineFacts {
        volume: name("default"),
        name: name("debian12"),
        role: MachineRole::Build,
        id: "debian12-7".to_owned(),
        summary: "Debian 12, gcc".to_owned(),
        state: MachineState::Usable,
        copies: vec![
            copy("clang", CopyState::Ready, 0),
            copy("default", CopyState::Bootstrapping, 0),
            copy("gcc11", CopyState::Newer { agent: 2 }, 0),
            copy("gcc12", CopyState::Ready, 2),
            copy("gcc13", CopyState::NeedsBootstrap { why: why("its toolchain has changed") }, 0),
            copy("gcc14", CopyState::Suspended { why: why("it did not boot, 3 times") }, 0),
        ],
        memory_min: 256 << 20,
        memory_max: Some(1 << 30),
    };
    let other = |text: &str, role, state| MachineFacts {
        name: name(text),
        role,
        id: format!("{text}-1"),
        state,
        copies: Vec::new(),
        memory_max: None,
        ..debian.clone()
    };
    let little = MachineState::LittleMemory { needs: 128 << 30, has: 64 << 30 };
    let unusable = MachineState::Unusable { why: why("/m/v/win/win-1:\x1b[2J leads nowhere") };
    let others = [
        other("postgres15", MachineRole::Auxiliary, MachineState::Usable),
        other("hurd", MachineRole::Build, little),
        other("win", MachineRole::Build, unusable),
    ];
    std::iter::once(debian.clone()).chain(others).collect()
}

//! One of each message, for the reference and as seeds for the robustness tests.
#![allow(dead_code, clippy::unwrap_used)]

pub mod guest;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crewboss_protocol::bulk::{BulkAnswer, BulkErrorKind, BulkRequest, LogStream};
use crewboss_protocol::clean::{CleanReport, LeftAlone, WhyLeft};
use crewboss_protocol::guest::{GuestLoad, GuestStream};
use crewboss_protocol::host::{BrokenToolchain, SpeedSource};
use crewboss_protocol::machine::{
    AccelChoice, Accelerator, Auxiliary, AuxiliaryResult, CopyFacts, CopyState, Emulator, HeldGuest,
    MachineFacts, MachineHolder, MachineResult, MachineRole, MachineState, MachineUse, Visitor,
};
use crewboss_protocol::message::{
    ArtifactCount, BootstrapEnd, BootstrapOrder, Cause, Done, Ending, Hello, Hold, LogEnd, Pause, Ready,
    Refusal, TaskOrder, WorkerErrorKind,
};
use crewboss_protocol::overview::{Overview, RunningGuest, RunningTask, Waiting};
use crewboss_protocol::visit::{Bytes, FromPerson, ToPerson};
use crewboss_protocol::{
    Command, Environment, Feature, FromWorker, HostFacts, Load, Outcome, PROTOCOL_VERSION, Phase, Phases,
    SlotHolder, Stage, StageExit, StageResult, Target, TaskRef, ToWorker, Toolchain, TreeId,
};

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

fn at() -> TaskRef {
    name("12.1")
}

fn tree() -> TreeId {
    name("4b825dc642cb6eb9a060e54bf8d69288fbee4904")
}

pub fn target() -> Target {
    Target {
        name: name("qemu_arm64"),
        toolchain: Some(name("aarch64")),
        incremental: true,
        environment: Environment::Snapshot,
        timeout_ms: 1_800_000,
        stages: vec![
            Stage {
                name: name("configure"),
                command: Command::Shell("make O=$CREWBOSS_OUT defconfig".to_owned()),
            },
            Stage { name: name("check"), command: Command::Words(vec!["/bin/true".to_owned()]) },
        ],
        variables: BTreeMap::from([("V".to_owned(), "1".to_owned())]),
        artifacts: vec!["u-boot.bin".to_owned()],
        sizes: vec!["u-boot".to_owned()],
    }
}

/// The same in a guest.
fn machine_target() -> Target {
    Target {
        name: name("unit_tests"),
        toolchain: Some(name("gcc12")),
        incremental: false,
        environment: Environment::Machine(MachineUse {
            name: name("debian12"),
            auxiliary: vec![Auxiliary { name: name("db"), machine: name("postgres15") }],
        }),
        ..target()
    }
}

pub fn to_worker() -> Vec<ToWorker> {
    vec![
        ToWorker::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            build: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
            boss: "ada@laptop".to_owned(),
            run: name("20260704-120000-3f2a"),
            session: name("20260704-120000-3f2a.0.1"),
            host: name("lab1"),
            priority: 0,
            heartbeat_ms: 5000,
            silence_ms: 20_000,
            standstill_ms: 600_000,
            limits: Default::default(),
            slots: Some(8),
            toolchains: BTreeMap::from([(name("riscv"), "/opt/riscv/bin/riscv64-elf-gcc".to_owned())]),
            machines: Some("/srv/machines".to_owned()),
            accel: AccelChoice::Only(Accelerator::Kvm),
            probe_only: false,
            refresh: false,
        }),
        ToWorker::Configure { first: 0, targets: vec![target(), machine_target()] },
        ToWorker::SourceReady { tree: tree() },
        ToWorker::Task(TaskOrder {
            at: at(),
            target: 0,
            tree: tree(),
            commit: tree(),
            cold: false,
            hold: Hold::default(),
            pause: None,
        }),
        ToWorker::Task(TaskOrder {
            at: name("13.1"),
            target: 1,
            tree: tree(),
            commit: tree(),
            cold: false,
            hold: Hold { for_ms: 7_200_000, failure: true },
            pause: Some(Pause { before: Some(name("check")), on_failure: false, limit_ms: 1_800_000 }),
        }),
        ToWorker::Bootstrap(BootstrapOrder {
            at: name("14.1"),
            machine: name("debian12"),
            toolchain: name("gcc13"),
            force: true,
        }),
        ToWorker::Cancel { at: at() },
        ToWorker::Recall { tasks: vec![at(), name("13.1")] },
        ToWorker::Collected { at: at() },
        ToWorker::Ping { number: 7 },
        ToWorker::Quit,
    ]
}

fn facts() -> HostFacts {
    HostFacts {
        kernel: "Linux 6.1.0-30-amd64".to_owned(),
        architecture: "x86_64".to_owned(),
        threads: 16,
        memory: 33_554_432_000,
        disk_free: 107_374_182_400,
        work: "/srv/crewboss".to_owned(),
        slots: 8,
        speed: 1040,
        speed_source: SpeedSource::Measured,
        toolchains: vec![Toolchain {
            name: name("aarch64"),
            version: "aarch64-linux-gnu-gcc (Debian 12.2.0-14) 12.2.0".to_owned(),
            compiler: "/usr/bin/aarch64-linux-gnu-gcc".to_owned(),
            prefix: "aarch64-linux-gnu-".to_owned(),
        }],
        broken_toolchains: vec![BrokenToolchain {
            name: name("sparc64"),
            compiler: "/usr/bin/sparc64-linux-gnu-gcc".to_owned(),
            why: "cannot execute `cc1'".to_owned(),
        }],
        features: BTreeSet::from([Feature::Btrfs, Feature::Reflink, Feature::Cgroup]),
        load: Load {
            load_percent: 125,
            memory_available: 30_000_000_000,
            disk_free: 107_374_182_400,
            cpu_pressure: Some(230),
            temperature: Some(54_000),
        },
        holders: vec![SlotHolder {
            slot: 0,
            boss: "bob@ci".to_owned(),
            run: name("20260704-113000-77c1"),
            host: name("lab1"),
            pid: 4711,
            priority: 100,
        }],
        trees: vec![tree()],
        emulator: Some(Emulator {
            version: "7.2.22".to_owned(),
            accelerator: Accelerator::Kvm,
            why: "a trial guest ran in it".to_owned(),
        }),
        no_emulator: String::new(),
        guest_memory: 3_774_873_600,
        machines: machines(),
        held: vec![held()],
    }
}

fn machines() -> Vec<MachineFacts> {
    let database = MachineFacts {
        volume: name("default"),
        name: name("postgres15"),
        role: MachineRole::Auxiliary,
        id: "postgres15-3".to_owned(),
        summary: String::new(),
        state: MachineState::LittleMemory { needs: 68_719_476_736, has: 33_554_432_000 },
        copies: vec![],
        memory_min: 68_719_476_736,
        memory_max: None,
    };
    let broken = MachineFacts {
        name: name("windows"),
        role: MachineRole::Build,
        id: String::new(),
        state: MachineState::Unusable {
            why: "/srv/machines/default/windows/windows-1: no such file".to_owned(),
        },
        memory_min: 0,
        ..database.clone()
    };
    vec![debian(), database, broken]
}

fn debian() -> MachineFacts {
    let copy = |toolchain, state| CopyFacts {
        toolchain: name(toolchain),
        toolchain_id: "8d2f0c".to_owned(),
        state,
        made: 0,
        versions: BTreeMap::new(),
        holders: vec![],
    };
    let holder = MachineHolder {
        boss: "bob@ci".to_owned(),
        run: name("20260704-113000-77c1"),
        host: name("lab1"),
        pid: 4711,
        priority: 100,
        task: Some(name("7.1")),
        since: 1_783_166_400,
    };
    let ready = CopyFacts {
        made: 1_783_080_000,
        versions: BTreeMap::from([("gcc".to_owned(), "12.2.0".to_owned())]),
        holders: vec![holder.clone()],
        ..copy("gcc12", CopyState::Ready)
    };
    MachineFacts {
        volume: name("default"),
        name: name("debian12"),
        role: MachineRole::Build,
        id: "debian12-7".to_owned(),
        summary: "Debian 12, gcc".to_owned(),
        state: MachineState::Usable,
        copies: vec![
            ready,
            copy("gcc13", CopyState::NeedsBootstrap { why: "the machine is new".to_owned() }),
            CopyFacts {
                holders: vec![MachineHolder { task: None, ..holder }],
                ..copy("gcc14", CopyState::Bootstrapping)
            },
            copy("clang", CopyState::Suspended { why: "it did not boot 3 times".to_owned() }),
            copy("next", CopyState::Newer { agent: 2 }),
        ],
        memory_min: 268_435_456,
        memory_max: Some(1_073_741_824),
    }
}

fn held() -> HeldGuest {
    HeldGuest {
        id: name("debian12-gcc12-k3x9"),
        machine: name("debian12"),
        target: name("unit_tests"),
        commit: tree(),
        at: name("13.1"),
        stage: Some(name("check")),
        outcome: Outcome::Timeout,
        boss: "ada@laptop".to_owned(),
        run: name("20260704-120000-3f2a"),
        since: 1_783_166_400,
        until: 1_783_170_000,
        memory: true,
        entered: Some(Visitor {
            person: "ada@laptop".to_owned(),
            from: Some("192.0.2.7".to_owned()),
            pid: 4812,
            since: 1_783_166_700,
        }),
    }
}

fn phases(times: &[(Phase, u64)]) -> Phases {
    let mut phases = Phases::default();
    times.iter().for_each(|(phase, ms)| phases.add(phase.clone(), Duration::from_millis(*ms)));
    phases
}

fn machine_done() -> Done {
    Done {
        at: name("13.1"),
        outcome: Outcome::Timeout,
        stages: vec![StageResult {
            name: name("check"),
            exit: StageExit::Timeout,
            wall_ms: 1_800_000,
            cpu_ms: 0,
        }],
        phases: phases(&[
            (Phase::Waiting, 40),
            (Phase::Preparing, 310),
            (Phase::Booting, 2100),
            (Phase::Stage(name("check")), 1_800_000),
            (Phase::Holding, 4200),
        ]),
        rss_kib_max: 51_200,
        log: LogEnd { bytes: 0, text: Some(String::new()) },
        err: LogEnd { bytes: 0, text: Some(String::new()) },
        sizes: String::new(),
        artifacts: ArtifactCount::default(),
        toolchain: None,
        warm: false,
        machine: Some(Box::new(MachineResult {
            name: name("debian12"),
            id: "debian12-7".to_owned(),
            toolchain_id: "8d2f0c".to_owned(),
            agent: 1,
            accelerator: Accelerator::Kvm,
            memory: 1_073_741_824,
            processors: 2,
            boot_ms: 2100,
            warm: true,
            boots: 1,
            versions: BTreeMap::from([("gcc".to_owned(), "12.2.0".to_owned())]),
            auxiliary: vec![AuxiliaryResult {
                name: name("db"),
                machine: name("postgres15"),
                id: "postgres15-3".to_owned(),
                toolchain_id: "af1349".to_owned(),
                memory: 268_435_456,
            }],
        })),
        held: Some(Box::new(held())),
        cause: Cause::default(),
        message: "the time limit of 30 min ran out".to_owned(),
    }
}

pub fn from_worker() -> Vec<FromWorker> {
    vec![
        FromWorker::Ready(Box::new(Ready {
            protocol: PROTOCOL_VERSION,
            build: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
            pid: 4242,
            facts: facts(),
        })),
        FromWorker::Phase { at: at(), phase: Phase::Stage(name("check")), text: String::new() },
        FromWorker::Phase { at: name("13.1"), phase: Phase::Booting, text: "debian12 boots".to_owned() },
        FromWorker::Waiting {
            at: name("13.1"),
            guest: name("debian12-gcc12-k3x9"),
            stage: Some(name("check")),
            until: 1_783_168_200,
        },
        FromWorker::GuestLoad {
            at: name("13.1"),
            machine: name("debian12"),
            load: GuestLoad { load_percent: 125, memory_available: 900_000_000, disk_free: 2_000_000_000 },
        },
        FromWorker::Log { at: at(), seq: 0, text: "  CC      main.o\n".to_owned(), lost: 0 },
        FromWorker::LongLog { at: at() },
        FromWorker::Alive { number: 7, load: facts().load },
        FromWorker::Slots { usable: 6 },
        FromWorker::Done(Box::new(Done {
            at: at(),
            outcome: Outcome::Failure,
            stages: vec![StageResult {
                name: name("configure"),
                exit: StageExit::Code(2),
                wall_ms: 1840,
                cpu_ms: 1700,
            }],
            phases: phases(&[
                (Phase::Source, 900),
                (Phase::Preparing, 12),
                (Phase::Stage(name("configure")), 1841),
                (Phase::Collecting, 3),
            ]),
            rss_kib_max: 51_200,
            log: LogEnd { bytes: 6, text: Some("oops!\n".to_owned()) },
            err: LogEnd { bytes: 90_000, text: None },
            sizes: String::new(),
            artifacts: ArtifactCount { files: 1, directories: 0, bytes: 650_000 },
            toolchain: Some("aarch64-linux-gnu-gcc (Debian 12.2.0-14) 12.2.0".to_owned()),
            warm: true,
            machine: None,
            held: None,
            cause: Cause::default(),
            message: String::new(),
        })),
        FromWorker::Done(Box::new(machine_done())),
        FromWorker::Bootstrapped {
            at: name("14.1"),
            end: BootstrapEnd::Made {
                versions: BTreeMap::from([("gcc".to_owned(), "13.1.0".to_owned())]),
                took_ms: 61_000,
            },
        },
        FromWorker::Bootstrapped {
            at: name("15.1"),
            end: BootstrapEnd::Suspended { why: "debian12 did not boot, 3 times".to_owned() },
        },
        FromWorker::Refused {
            at: at(),
            reason: Refusal::NoSpace,
            text: "/srv/crewboss: no space left on device".to_owned(),
        },
        FromWorker::Returned { tasks: vec![name("13.1")] },
        FromWorker::Notice { text: "/srv/crewboss is not on btrfs: sources are copied".to_owned() },
        FromWorker::Error {
            kind: WorkerErrorKind::Version,
            text: "this worker speaks version 1, the boss 2".to_owned(),
        },
        FromWorker::Ending {
            why: Ending::Signal {
                number: 15,
                by: "process 4711 (bash) of the user ann (1000); ask them".to_owned(),
            },
        },
        FromWorker::Finished,
    ]
}

pub fn bulk_request() -> Vec<BulkRequest> {
    vec![
        BulkRequest::Have { trees: vec![tree()] },
        BulkRequest::Pack,
        BulkRequest::File { id: tree(), bytes: 20_000_000 },
        BulkRequest::CheckOut { tree: tree(), near: None },
        BulkRequest::Log { at: at(), stream: LogStream::Log },
        BulkRequest::LogEnds { bytes: 90_000 },
        BulkRequest::Artifacts { at: at() },
    ]
}

pub fn bulk_answer() -> Vec<BulkAnswer> {
    vec![
        BulkAnswer::Open,
        BulkAnswer::Has { trees: vec![] },
        BulkAnswer::Working,
        BulkAnswer::Stored,
        BulkAnswer::CheckedOut { tree: tree() },
        BulkAnswer::Artifact { path: name("u-boot.bin"), bytes: 650_000, mode: 0o644 },
        BulkAnswer::Checksum {
            blake3: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262".to_owned(),
        },
        BulkAnswer::Complete,
        BulkAnswer::Failed {
            kind: BulkErrorKind::Missing,
            text: "there is no attempt 12.1 of this session".to_owned(),
        },
    ]
}

pub fn clean_report() -> Vec<CleanReport> {
    vec![CleanReport {
        ended: vec![],
        removed: vec![name("20260704-113000-77c1.0.1")],
        left: vec![LeftAlone {
            session: name("20260704-120000-3f2a.0.1"),
            boss: "ada@laptop".to_owned(),
            run: name("20260704-120000-3f2a"),
            why: WhyLeft::BossAlive,
        }],
        processes: 3,
        directories: 1,
        guests: 1,
        held_ended: vec![],
        held_left: vec![],
        subvolumes: 4,
        locks: 0,
        errors: vec![],
        purged: "/srv/crewboss".to_owned(),
        kept: vec!["machines".to_owned()],
    }]
}

pub fn overview() -> Vec<Overview> {
    vec![Overview {
        slots: vec![],
        tasks: vec![RunningTask {
            boss: "ada@laptop".to_owned(),
            run: name("20260704-120000-3f2a"),
            at: name("3.1"),
            target: Some(name("unzip")),
            commit: Some(TreeId([0x1a; 20])),
            machine: Some(name("debian12")),
            phase: Phase::Stage(name("check")),
            for_ms: 130_000,
        }],
        guests: vec![RunningGuest {
            id: name("debian12-gcc12-p0q1r2"),
            machine: name("debian12"),
            step: name("waiting"),
            user: None,
            waiting: Some(Waiting {
                target: name("unzip"),
                commit: TreeId([0x1a; 20]),
                at: name("3.1"),
                stage: Some(name("check")),
                until: 1_783_170_000,
                entered: None,
            }),
        }],
        held: vec![],
    }]
}

pub fn from_person() -> Vec<FromPerson> {
    vec![
        FromPerson::Here,
        FromPerson::Size { rows: 24, columns: 80 },
        FromPerson::Variable { name: "TOKEN".to_owned(), value: "a=b".to_owned() },
        FromPerson::Typed(Bytes(b"echo \xc3\xa9\r".to_vec())),
    ]
}

pub fn to_person() -> Vec<ToPerson> {
    vec![
        ToPerson::Here,
        ToPerson::Said("restores debian12-gcc12-k3x9".to_owned()),
        ToPerson::Inside(true),
        ToPerson::Shown { stream: GuestStream::Out, bytes: Bytes(b"\x1b[1mhello\x1b[0m\r\n".to_vec()) },
        ToPerson::Command("vncviewer localhost:5900".to_owned()),
        ToPerson::Failed("there is no guest debian12-gcc12-k3x9".to_owned()),
    ]
}

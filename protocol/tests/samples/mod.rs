//! One of each message, for the reference and as seeds for the robustness tests.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use crewboss_protocol::bulk::{BulkAnswer, BulkErrorKind, BulkRequest, LogStream};
use crewboss_protocol::clean::{CleanReport, LeftAlone, WhyLeft};
use crewboss_protocol::host::{BrokenToolchain, SpeedSource};
use crewboss_protocol::message::{
    ArtifactCount, Done, Hello, LogEnd, Ready, Refusal, TaskOrder, WorkerErrorKind,
};
use crewboss_protocol::{
    Command, Environment, Feature, FromWorker, HostFacts, Load, Outcome, PROTOCOL_VERSION, SlotHolder, Stage,
    StageExit, StageResult, Target, TaskRef, ToWorker, Toolchain, TreeId,
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
            slots: Some(8),
            toolchains: BTreeMap::from([(name("riscv"), "/opt/riscv/bin/riscv64-elf-gcc".to_owned())]),
            probe_only: false,
            refresh: false,
        }),
        ToWorker::Configure { first: 0, targets: vec![target()] },
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
        FromWorker::Started { at: at() },
        FromWorker::Stage { at: at(), stage: name("check") },
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
            rss_kib_max: 51_200,
            log: LogEnd { bytes: 6, text: Some("oops!\n".to_owned()) },
            err: LogEnd { bytes: 90_000, text: None },
            sizes: String::new(),
            artifacts: ArtifactCount { files: 1, bytes: 650_000 },
            toolchain: Some("aarch64-linux-gnu-gcc (Debian 12.2.0-14) 12.2.0".to_owned()),
            warm: true,
            message: String::new(),
        })),
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
        FromWorker::Finished,
    ]
}

pub fn bulk_request() -> Vec<BulkRequest> {
    vec![
        BulkRequest::Have { trees: vec![tree()] },
        BulkRequest::Pack,
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
        BulkAnswer::Stored,
        BulkAnswer::CheckedOut { tree: tree() },
        BulkAnswer::Artifact { path: name("u-boot.bin"), bytes: 650_000, executable: false },
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
    }]
}

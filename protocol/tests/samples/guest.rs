//! One of each message and document between a host and a guest.

use std::collections::BTreeMap;

use crewboss_protocol::guest::{
    Ending, FromGuest, GuestLoad, GuestStream, Identity, ResultDocument, Served, TaskDocument, ToGuest,
    network_address,
};
use crewboss_protocol::{Command, Stage, StageExit, StageResult};

use super::{at, name, tree};

fn task() -> TaskDocument {
    TaskDocument {
        at: at(),
        target: name("unit_tests"),
        commit: tree(),
        jobs: 2,
        variables: vec![("V".to_owned(), "1".to_owned())],
        served: vec![Served {
            name: name("db"),
            variables: vec![
                ("DB_ADDRESS".to_owned(), "10.77.0.2".to_owned()),
                ("DB_PORT".to_owned(), "5432".to_owned()),
            ],
        }],
        stages: vec![
            Stage { name: name("build"), command: Command::Shell("make \\\n  all".to_owned()) },
            Stage {
                name: name("check"),
                command: Command::Words(vec!["./check".to_owned(), "--fast".to_owned()]),
            },
        ],
        artifacts: vec!["*.bin".to_owned()],
        sizes: vec!["u-boot".to_owned()],
    }
}

fn ended() -> StageResult {
    StageResult { name: name("build"), exit: StageExit::Code(0), wall_ms: 1840, cpu_ms: 1700 }
}

fn result() -> ResultDocument {
    let check = StageResult { name: name("check"), exit: StageExit::Signal(9), wall_ms: 20, cpu_ms: 10 };
    ResultDocument {
        stages: vec![ended(), check],
        rss_kib_max: 51_200,
        sizes: "text 512\ndata 12".to_owned(),
        problems: vec!["out/link leads out".to_owned()],
        message: String::new(),
    }
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn identity() -> Identity {
    Identity {
        clock_ms: 1_783_166_400_000,
        seed: "00ff".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        host_name: name("debian12-gcc12-k3x9"),
        mac: Some("52:54:00:12:34:56".to_owned()),
    }
}

/// Every document as it is written, with its beginning `crewboss-<kind>` left in.
pub fn documents() -> Vec<String> {
    vec![
        task().to_text(),
        result().to_text(),
        Ending::Bootstrapped.to_text(&pairs(&[("gcc", "12.2.0")])),
        Ending::Environment.to_text(&pairs(&[("PORT", "5432"), ("USER", "ci")])),
    ]
}

pub fn to_guest() -> Vec<ToGuest> {
    vec![
        ToGuest::Bootstrap { toolchain: name("gcc12") },
        ToGuest::Network { mac: "52:54:01:12:34:56".to_owned(), address: network_address(0) },
        ToGuest::Task { document: task().to_text() },
        ToGuest::Serve { name: name("db") },
        ToGuest::Stage { name: name("build"), variables: BTreeMap::new(), wipe: false },
        ToGuest::Stage { name: name("check"), variables: pairs(&[("V", "1")]), wipe: true },
        ToGuest::Cancel,
        ToGuest::Collect,
        ToGuest::Renew(identity()),
        ToGuest::Ping { number: 7 },
        ToGuest::PowerOff,
    ]
}

pub fn from_guest() -> Vec<FromGuest> {
    vec![
        FromGuest::Ready { agent: 1 },
        FromGuest::Bootstrapped { versions: pairs(&[("gcc", "12.2.0")]) },
        FromGuest::Networked,
        FromGuest::Prepared,
        FromGuest::Environment { variables: pairs(&[("PORT", "5432")]) },
        FromGuest::Log { stream: GuestStream::Err, bytes: 512 },
        FromGuest::Ended { result: ended(), rss_kib_max: 51_200, stopped: false },
        FromGuest::Collected { document: result().to_text(), bytes: 650_240 },
        FromGuest::Renewed(identity()),
        FromGuest::Alive {
            number: 7,
            load: GuestLoad { load_percent: 125, memory_available: 900_000_000, disk_free: 2_000_000_000 },
            busy: true,
        },
        FromGuest::Failed { text: "/crewboss/src: no space left on device".to_owned(), full: false },
    ]
}

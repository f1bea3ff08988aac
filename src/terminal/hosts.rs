//! What `crewboss hosts` shows: of each host what it can do and who uses it, when it has answered,
//! and a table of all.

use crewboss_protocol::host::SpeedSource;
use crewboss_protocol::machine::{HeldGuest, MachineState};
use crewboss_protocol::{Feature, HostFacts, HostName, Toolchain, json};
use serde::Serialize;

use super::table::Table;
use super::text::{Palette, bytes, duration, one_line, shortened, tail};
use super::way_in::enter;

/// Longest version of a toolchain in the table; `--json` has them in full.
const VERSION_CHARS_MAX: usize = 48;

/// A host and what it said, or why it said nothing.
#[derive(Debug)]
pub struct HostReport {
    /// Its name in the crew file.
    pub name: HostName,
    /// What it told, or why it could not be asked.
    pub facts: Result<HostFacts, String>,
}

/// All hosts, a line for each.
pub fn table(reports: &[HostReport]) -> String {
    let heading = [
        "host",
        "state",
        "slots",
        "threads",
        "speed",
        "memory",
        "disk free",
        "load",
        "arch",
        "kernel",
        "guests",
        "machines",
        "features",
    ];
    let mut table = Table::new(&heading);
    for report in reports {
        table.row(match &report.facts {
            Ok(facts) => row(&report.name, facts),
            Err(_) => vec![report.name.to_string(), "away".to_owned()],
        });
    }
    table.render("")
}

fn row(name: &HostName, facts: &HostFacts) -> Vec<String> {
    // Bogomips are a guess, which the mark says.
    let mark = if facts.speed_source == SpeedSource::Bogomips { "~" } else { "" };
    let features: Vec<&str> = facts.features.iter().filter_map(|feature| feature_word(*feature)).collect();
    vec![
        name.to_string(),
        if facts.holders.is_empty() { "free".to_owned() } else { "in use".to_owned() },
        format!("{}/{}", facts.holders.len(), facts.slots),
        facts.threads.to_string(),
        format!("{}.{:02}{mark}", facts.speed / 1000, facts.speed % 1000 / 10),
        bytes(facts.memory),
        bytes(facts.disk_free),
        format!("{}.{:02}", facts.load.load_percent / 100, facts.load.load_percent % 100),
        shortened(&one_line(&facts.architecture), 16),
        shortened(&kernel(&facts.kernel), 20),
        facts.emulator.as_ref().map_or("none", |emulator| emulator.accelerator.as_str()).to_owned(),
        machine_count(facts),
        features.join(","),
    ]
}

fn feature_word(feature: Feature) -> Option<&'static str> {
    match feature {
        Feature::Btrfs => Some("btrfs"),
        Feature::Reflink => Some("reflink"),
        Feature::Cgroup => Some("cgroup"),
        Feature::Kvm => Some("kvm"),
        Feature::Namespaces => Some("namespaces"),
        Feature::Unknown => None,
    }
}

/// How many machines can be used, of how many.
fn machine_count(facts: &HostFacts) -> String {
    let usable = facts.machines.iter().filter(|machine| machine.state == MachineState::Usable).count();
    if facts.machines.is_empty() { String::new() } else { format!("{usable}/{}", facts.machines.len()) }
}

/// `Linux 6.1.0-18-amd64` without what nearly all have in common.
fn kernel(text: &str) -> String {
    let line = one_line(text);
    line.strip_prefix("Linux ").map(str::to_owned).unwrap_or(line)
}

/// One host, with an empty line behind it.
pub fn details(report: &HostReport, palette: Palette, now: u64) -> String {
    let name = palette.strong(&report.name);
    let facts = match &report.facts {
        Ok(facts) => facts,
        Err(reason) => return format!("{name}\n{}\n", tail(reason, "  ")),
    };
    let mut table = Table::new(&[]);
    table.row(["work".to_owned(), one_line(&facts.work)]);
    if facts.toolchains.is_empty() {
        table.row(["toolchains".to_owned(), "none".to_owned()]);
    }
    for (names, toolchain) in compilers(&facts.toolchains) {
        let version = shortened(&one_line(&toolchain.version), VERSION_CHARS_MAX);
        table.row([names, format!("{}  {version}", one_line(&toolchain.compiler))]);
    }
    for broken in &facts.broken_toolchains {
        let why = shortened(&one_line(&broken.why), 500);
        table.row([broken.name.to_string(), format!("does not work: {}: {why}", one_line(&broken.compiler))]);
    }
    if let Some(emulator) = &facts.emulator {
        let (version, accelerator) = (one_line(&emulator.version), emulator.accelerator.as_str());
        let why = shortened(&one_line(&emulator.why), 160);
        table.row(["guests".to_owned(), format!("QEMU {version} with {accelerator}: {why}")]);
    }
    if !facts.no_emulator.is_empty() {
        let why = shortened(&one_line(&facts.no_emulator), 160);
        table.row(["guests".to_owned(), format!("none can run: {why}")]);
    }
    for guest in &facts.held {
        table.row(["held".to_owned(), held(&report.name, guest, now)]);
    }
    for holder in &facts.holders {
        let run = &holder.run;
        let who = shortened(&one_line(&holder.boss), 60);
        table.row([
            format!("slot {}", holder.slot),
            format!("{who}, run {run}, priority {}, pid {}", holder.priority, holder.pid),
        ]);
    }
    format!("{name}\n{}\n", table.render("  "))
}

/// A guest that is kept for a person, and how to get in.
pub fn held(host: &HostName, guest: &HeldGuest, now: u64) -> String {
    let stage = guest.stage.as_ref().map(|stage| format!(" in stage {stage}")).unwrap_or_default();
    let left = match guest.until.saturating_sub(now) {
        0 => "its time is over".to_owned(),
        left => format!("{} left", duration(left.saturating_mul(1000))),
    };
    let entered = guest
        .entered
        .as_ref()
        .map(|visitor| format!(", entered by {}", visitor.told(now)))
        .unwrap_or_default();
    let who = shortened(&one_line(&guest.boss), 60);
    format!(
        "{}@{:.8} of {who}: {}{stage}, {left}{entered}: {}",
        guest.target,
        guest.commit,
        guest.outcome,
        enter(host, &guest.id)
    )
}

/// Each compiler once, with all names under which it is offered.
fn compilers(toolchains: &[Toolchain]) -> Vec<(String, &Toolchain)> {
    let mut found: Vec<(String, &Toolchain)> = Vec::new();
    for toolchain in toolchains {
        match found.iter_mut().find(|(_, first)| first.compiler == toolchain.compiler) {
            Some((names, _)) => names.push_str(&format!(", {}", toolchain.name)),
            None => found.push((toolchain.name.to_string(), toolchain)),
        }
    }
    found
}

#[derive(Serialize)]
struct Row<'a> {
    host: &'a HostName,
    #[serde(flatten)]
    facts: Option<&'a HostFacts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Everything for a program: an array with an object per host. One that could not be asked has only
/// `host` and `error`.
pub fn json(reports: &[HostReport]) -> serde_json::Result<String> {
    let rows: Vec<Row<'_>> = reports
        .iter()
        .map(|report| Row {
            host: &report.name,
            facts: report.facts.as_ref().ok(),
            error: report.facts.as_ref().err().map(String::as_str),
        })
        .collect();
    json::pretty(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::{NOW, emulator, held_guest, host, host_facts, machines};

    fn reports() -> Vec<HostReport> {
        let facts = || HostFacts {
            emulator: Some(emulator()),
            machines: machines(),
            held: vec![held_guest()],
            ..host_facts()
        };
        let small = HostFacts {
            slots: 2,
            threads: 2,
            memory: 2 << 30,
            speed: 87,
            speed_source: SpeedSource::Bogomips,
            toolchains: Vec::new(),
            broken_toolchains: Vec::new(),
            holders: Vec::new(),
            emulator: None,
            machines: Vec::new(),
            held: Vec::new(),
            ..facts()
        };
        let away = "cannot connect to pod: connection refused\nhint: is it running?".to_owned();
        vec![
            HostReport { name: host("lab1"), facts: Ok(facts()) },
            HostReport { name: host("board"), facts: Ok(small) },
            HostReport { name: host("pod"), facts: Err(away) },
        ]
    }

    #[test]
    fn the_table_of_hosts() {
        let reports = reports();
        let shown: String = reports.iter().map(|report| details(report, Palette::PLAIN, NOW)).collect();
        insta::assert_snapshot!(shown + &table(&reports), @r"
lab1
  work            /srv/crewboss
  native, x86_64  /usr/bin/gcc  gcc (Debian 12.2.0-14) 12.2.0
  arm             does not work: /usr/bin/arm-linux-gnueabi-gcc: cannot find crt1.o
  guests          QEMU 7.2.22 with tcg: KVM: a trial guest hung in it
  held            arm@1a1a1a1a of ann@laptop: timeout in stage test, 58m 00s left: crewboss enter lab1/debian12-gcc12-k3x9
  slot 0          ann@laptop, run 20260102-030405-1, priority 0, pid 4711

board
  work        /srv/crewboss
  toolchains  none

pod
  cannot connect to pod: connection refused
  hint: is it running?

HOST   STATE   SLOTS  THREADS  SPEED    MEMORY  DISK FREE  LOAD  ARCH    KERNEL          GUESTS  MACHINES  FEATURES
lab1   in use   1/16       16   1.23  64.0 GiB  500.0 GiB  1.25  x86_64  6.1.0-18-amd64  tcg          2/4  btrfs,cgroup
board  free      0/2        2  0.08~   2.0 GiB  500.0 GiB  1.25  x86_64  6.1.0-18-amd64  none              btrfs,cgroup
pod    away
");
    }

    #[test]
    fn hosts_as_json() {
        let value: serde_json::Value = serde_json::from_str(&json(&reports()).unwrap()).unwrap();
        assert_eq!(value[0]["host"], "lab1");
        assert_eq!(value[0]["threads"], 16);
        assert_eq!(value[0]["emulator"]["accelerator"], "tcg");
        assert_eq!(value[0]["held"][0]["id"], "debian12-gcc12-k3x9");
        assert_eq!(value[0]["error"], serde_json::Value::Null);
        assert_eq!(value[2].as_object().unwrap().len(), 2);
        assert!(value[2]["error"].as_str().unwrap().contains("refused"));
    }
}

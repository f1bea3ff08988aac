//! The table of `crewboss machines`: what state each machine is in, and who uses it.

use crewboss_protocol::machine::{
    CopyFacts, CopyState, Emulator, HeldGuest, MachineFacts, MachineHolder, MachineRole, MachineState,
};
use crewboss_protocol::{HostName, json};
use serde::Serialize;

use super::hosts::{HostReport, held};
use super::table::Table;
use super::text::{Palette, bytes, one_line, put, shortened, tail};

/// Longest reason in the table; `--json` has them in full.
const REASON_CHARS_MAX: usize = 160;

/// Everything for a person.
pub fn render(reports: &[HostReport], palette: Palette, now: u64) -> String {
    let mut table = Table::new(&["host", "machine", "role", "toolchain", "memory", "id", "state", "details"]);
    let mut any = false;
    for report in reports {
        let Ok(facts) = &report.facts else { continue };
        for machine in &facts.machines {
            any = true;
            rows(&report.name, machine, &mut table);
        }
        for guest in &facts.held {
            any = true;
            let details = held(&report.name, guest, now);
            table.row(cells(&report.name, guest.machine.as_str(), ["", "", "", "", "held", &details]));
        }
    }
    let mut text = if any { table.render("") } else { String::new() };
    for report in reports {
        notes(report, palette, &mut text);
    }
    text
}

fn cells(host: &HostName, machine: &str, rest: [&str; 6]) -> Vec<String> {
    [host.as_str(), machine].into_iter().chain(rest).map(str::to_owned).collect()
}

/// A row for the machine, and below it one for each copy of which there is something to say.
/// Toolchains for which there is nothing but a bootstrap to be made share one, and so do those that
/// cannot be used.
fn rows(host: &HostName, machine: &MachineFacts, table: &mut Table) {
    let role = match machine.role {
        MachineRole::Build => "build",
        MachineRole::Auxiliary => "auxiliary",
    };
    let memory = match machine.memory_max {
        Some(max) => format!("{} to {}", bytes(machine.memory_min), bytes(max)),
        None => format!("from {}", bytes(machine.memory_min)),
    };
    let id = shortened(&one_line(&machine.id), 40);
    let reason = |why: &str| shortened(&one_line(why), REASON_CHARS_MAX);
    let (state, details) = match &machine.state {
        MachineState::LittleMemory { needs, has } => {
            ("too little memory", format!("needs {}, a slot of the host has {}", bytes(*needs), bytes(*has)))
        }
        MachineState::Unusable { why } => ("unusable", reason(why)),
        MachineState::Usable => ("usable", reason(&machine.summary)),
    };
    let name = machine.name.as_str();
    table.row(cells(host, name, [role, "", &memory, &id, state, &details]));
    let mut below = |toolchain: &str, state: &str, details: &str| {
        table.row(cells(host, &format!("  {name}"), ["", toolchain, "", "", state, details]));
    };
    let mut alike: Vec<(&str, String, Vec<&str>)> = Vec::new();
    for copy in &machine.copies {
        let (state, details) = of_copy(copy);
        let shared = matches!(copy.state, CopyState::NeedsBootstrap { .. } | CopyState::NoToolchain { .. });
        match alike.iter_mut().find(|(other, why, _)| shared && (*other, why) == (state, &details)) {
            Some((.., toolchains)) => toolchains.push(copy.toolchain.as_str()),
            None => alike.push((state, details, vec![copy.toolchain.as_str()])),
        }
    }
    for (state, details, toolchains) in alike {
        below(&toolchains.join(", "), state, &details);
    }
}

/// The word for the state of a copy, and what there is to say of it.
fn of_copy(copy: &CopyFacts) -> (&'static str, String) {
    let users: Vec<String> = copy.holders.iter().map(user).collect();
    let users = users.join("; ");
    let reason = |why: &str| shortened(&one_line(why), REASON_CHARS_MAX);
    match &copy.state {
        CopyState::Ready if users.is_empty() => {
            let versions: Vec<String> = copy
                .versions
                .iter()
                .map(|(name, version)| format!("{} {}", one_line(name), one_line(version)))
                .collect();
            ("ready", reason(&versions.join(", ")))
        }
        CopyState::Ready => ("busy", users),
        // Whoever uses it began before it had to be made again.
        CopyState::NeedsBootstrap { why } if users.is_empty() => ("needs bootstrap", reason(why)),
        CopyState::NeedsBootstrap { why } => ("needs bootstrap", format!("{}; {users}", reason(why))),
        CopyState::Bootstrapping => ("bootstrapping", users),
        CopyState::NoToolchain { why } => ("no toolchain", reason(why)),
        CopyState::Suspended { why } => ("suspended", reason(why)),
        CopyState::Newer { agent } => ("newer", format!("a newer crewboss made it (guest agent {agent})")),
    }
}

fn user(holder: &MachineHolder) -> String {
    let who = shortened(&one_line(&holder.boss), 60);
    let task = holder.task.map(|task| format!(", task {task}")).unwrap_or_default();
    format!("{who}, run {}, priority {}{task}, pid {}", holder.run, holder.priority, holder.pid)
}

/// What cannot be said in a row: hosts that have no machines, cannot run any, or could not be
/// asked.
fn notes(report: &HostReport, palette: Palette, text: &mut String) {
    let name = palette.strong(&report.name);
    match &report.facts {
        Err(reason) => {
            put(text, format_args!("\n{name}\n"));
            text.push_str(&tail(reason, "  "));
        }
        Ok(facts) if facts.machines.is_empty() => put(text, format_args!("\n{name} has no machines\n")),
        Ok(facts) if facts.emulator.is_none() => {
            let why = shortened(&one_line(&facts.no_emulator), REASON_CHARS_MAX);
            put(text, format_args!("\n{name} has no QEMU that can be used: {why}\n"));
        }
        Ok(_) => {}
    }
}

#[derive(Serialize)]
struct Row<'a> {
    host: &'a HostName,
    #[serde(flatten)]
    machines: Option<Machines<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Machines<'a> {
    emulator: Option<&'a Emulator>,
    machines: &'a [MachineFacts],
    held: &'a [HeldGuest],
}

/// Everything for a program: an array with an object per host. One that could not be asked has only
/// `host` and `error`.
pub fn json(reports: &[HostReport]) -> serde_json::Result<String> {
    let rows = reports.iter().map(|HostReport { name, facts }| {
        let machines = facts.as_ref().ok().map(|facts| Machines {
            emulator: facts.emulator.as_ref(),
            machines: &facts.machines,
            held: &facts.held,
        });
        Row { host: name, machines, error: facts.as_ref().err().map(String::as_str) }
    });
    json::pretty(&rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::{NOW, emulator, held_guest, host, host_facts, machines};
    use crewboss_protocol::HostFacts;

    fn reports() -> Vec<HostReport> {
        let lab1 = HostFacts {
            emulator: Some(emulator()),
            machines: machines(),
            held: vec![held_guest()],
            ..host_facts()
        };
        let board = HostFacts {
            machines: vec![machines().swap_remove(1)],
            no_emulator: "there is none".to_owned(),
            ..host_facts()
        };
        vec![
            HostReport { name: host("lab1"), facts: Ok(lab1) },
            HostReport { name: host("board"), facts: Ok(board) },
            HostReport { name: host("pod"), facts: Ok(host_facts()) },
            HostReport {
                name: host("away"),
                facts: Err("connection refused\nhint: is it running?".to_owned()),
            },
        ]
    }

    #[test]
    fn the_table_of_machines() {
        insta::assert_snapshot!(render(&reports(), Palette::PLAIN, NOW), @r"
HOST   MACHINE     ROLE       TOOLCHAIN  MEMORY                ID            STATE              DETAILS
lab1   debian12    build                 256.0 MiB to 1.0 GiB  debian12-7    usable             Debian 12, gcc
lab1     debian12             clang                                          ready              gcc 12.2.0
lab1     debian12             default                                        bootstrapping
lab1     debian12             gcc11                                          newer              a newer crewboss made it (guest agent 2)
lab1     debian12             gcc12                                          busy               bob@ci, run 20260102-020000-1, priority 100, task 7.1, pid 4711; bob@ci, run 20260102-020000-1, priority 100, task 7.1, pid 4711
lab1     debian12             gcc13                                          needs bootstrap    its toolchain has changed
lab1     debian12             gcc14                                          suspended          it did not boot, 3 times
lab1   postgres15  auxiliary             from 256.0 MiB        postgres15-1  usable             Debian 12, gcc
lab1   hurd        build                 from 256.0 MiB        hurd-1        too little memory  needs 128.0 GiB, a slot of the host has 64.0 GiB
lab1   win         build                 from 256.0 MiB        win-1         unusable           /m/v/win/win-1: leads nowhere
lab1   debian12                                                              held               arm@1a1a1a1a of ann@laptop: timeout in stage test, 58m 00s left: crewboss enter lab1/debian12-gcc12-k3x9
board  postgres15  auxiliary             from 256.0 MiB        postgres15-1  usable             Debian 12, gcc

board has no QEMU that can be used: there is none

pod has no machines

away
  connection refused
  hint: is it running?
");
    }

    #[test]
    fn machines_as_json() {
        let value: serde_json::Value = serde_json::from_str(&json(&reports()).unwrap()).unwrap();
        assert_eq!(value[0]["machines"][0]["name"], "debian12");
        assert_eq!(value[0]["machines"][0]["copies"][3]["holders"][0]["boss"], "bob@ci");
        assert_eq!(value[0]["emulator"]["why"], "KVM: a trial guest hung in it");
        assert_eq!(value[1]["emulator"], serde_json::Value::Null);
        assert_eq!(value[3].as_object().unwrap().len(), 2);
    }
}

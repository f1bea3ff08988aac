//! What `crewboss machines bootstrap` shows: what goes on, and in the end a line for each machine
//! of each host.

use std::collections::BTreeMap;

use crewboss_boss::bootstrap::{Bootstrapped, Line, Progress, Verdict};
use crewboss_protocol::message::BootstrapEnd;
use crewboss_protocol::{HostName, Name, json};
use serde::Serialize;

use super::Verbosity;
use super::table::Table;
use super::text::{Palette, duration, one_line, put, shortened, tail};

/// Longest reason in the table; `--json` has them in full.
const REASON_CHARS_MAX: usize = 300;

/// What goes on, as lines.
pub fn progress(progress: &Progress, verbosity: Verbosity) -> Option<String> {
    match progress {
        Progress::Step { host, machine, text } if verbosity >= Verbosity::Normal => {
            Some(format!("{host}/{machine}: {}\n", one_line(text)))
        }
        Progress::Output { text, .. } if verbosity >= Verbosity::Verbose => Some(tail(text, "    | ")),
        Progress::Notice { host, text } if verbosity >= Verbosity::Normal => {
            Some(format!("host {host}: {}\n", one_line(text)))
        }
        _ => None,
    }
}

/// A row for each machine of each host.
pub fn render(hosts: &[Bootstrapped], palette: Palette) -> String {
    let mut table = Table::new(&["host", "machine", "toolchain", "state", "details"]);
    let mut any = false;
    for (host, lines) in hosts {
        for line in lines.iter().flatten() {
            any = true;
            let (state, details) = of_line(line);
            let details = shortened(&one_line(&details), REASON_CHARS_MAX);
            let cells = [host.as_str(), line.machine.as_str(), line.toolchain.as_str(), state, &details];
            table.row(cells.map(str::to_owned));
        }
    }
    let mut text = if any { table.render("") } else { String::new() };
    for (host, lines) in hosts {
        let name = palette.strong(host);
        match lines {
            Err(reason) => {
                put(&mut text, format_args!("\n{name}\n"));
                text.push_str(&tail(reason, "  "));
            }
            Ok(lines) if lines.is_empty() => {
                put(&mut text, format_args!("\n{name} has none of these machines\n"));
            }
            Ok(_) => {}
        }
    }
    text
}

fn of_line(line: &Line) -> (&'static str, String) {
    match &line.verdict {
        Verdict::Skipped { why } => ("skipped", why.clone()),
        Verdict::Ended(BootstrapEnd::Made { versions, took_ms }) => {
            let versions = shown(versions);
            let colon = if versions.is_empty() { "" } else { ": " };
            ("ready", format!("bootstrapped in {}{colon}{versions}", duration(*took_ms)))
        }
        Verdict::Ended(BootstrapEnd::Ready { versions }) => ("already ready", shown(versions)),
        Verdict::Ended(BootstrapEnd::Suspended { why }) => ("suspended", why.clone()),
        Verdict::Ended(BootstrapEnd::Abnormal { why }) => ("abnormal", why.clone()),
        Verdict::Ended(BootstrapEnd::Failed { why }) => ("failed", why.clone()),
        Verdict::Ended(BootstrapEnd::Cancelled) => ("cancelled", String::new()),
    }
}

fn shown(versions: &BTreeMap<String, String>) -> String {
    // Most programs begin with their name when they are asked for their version.
    let one = |(name, version): (&String, &String)| {
        if version.starts_with(name.as_str()) { version.clone() } else { format!("{name} {version}") }
    };
    versions.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[derive(Serialize)]
struct Host<'a> {
    host: &'a HostName,
    #[serde(skip_serializing_if = "Option::is_none")]
    machines: Option<Vec<Machine<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Machine<'a> {
    machine: &'a Name,
    toolchain: &'a Name,
    good: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'a BootstrapEnd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'a str>,
}

/// Everything for a program: an array with an object per host. One that could not be asked has only
/// `host` and `error`.
pub fn json(hosts: &[Bootstrapped]) -> serde_json::Result<String> {
    let hosts: Vec<Host<'_>> = hosts
        .iter()
        .map(|(host, lines)| Host {
            host,
            machines: lines.as_ref().ok().map(|lines| lines.iter().map(machine_of).collect()),
            error: lines.as_ref().err().map(String::as_str),
        })
        .collect();
    json::pretty(&hosts)
}

fn machine_of(line: &Line) -> Machine<'_> {
    let (end, skipped) = match &line.verdict {
        Verdict::Ended(end) => (Some(end), None),
        Verdict::Skipped { why } => (None, Some(why.as_str())),
    };
    Machine { machine: &line.machine, toolchain: &line.toolchain, good: line.is_good(), end, skipped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::host;

    fn hosts() -> Vec<Bootstrapped> {
        let versions = BTreeMap::from([("gcc".to_owned(), "12.2.0".to_owned())]);
        let line = |machine: &str, verdict| Line {
            machine: machine.parse().unwrap(),
            toolchain: "default".parse().unwrap(),
            verdict,
        };
        let why = || "it did not boot, 3 times:\n\u{1b}[1mpanic".to_owned();
        vec![
            (
                host("lab1"),
                Ok(vec![
                    line(
                        "debian12",
                        Verdict::Ended(BootstrapEnd::Made { versions: versions.clone(), took_ms: 61_000 }),
                    ),
                    line("postgres15", Verdict::Ended(BootstrapEnd::Ready { versions })),
                    line("hurd", Verdict::Ended(BootstrapEnd::Suspended { why: why() })),
                    line("win", Verdict::Ended(BootstrapEnd::Failed { why: "no disk".to_owned() })),
                    line(
                        "shot",
                        Verdict::Ended(BootstrapEnd::Abnormal { why: "signal 9\nsignal 9".to_owned() }),
                    ),
                    line("big", Verdict::Skipped { why: "it needs 64 GiB".to_owned() }),
                    line("late", Verdict::Ended(BootstrapEnd::Cancelled)),
                ]),
            ),
            (host("pod"), Ok(vec![])),
            (host("away"), Err("connection refused\nhint: is it running?".to_owned())),
        ]
    }

    #[test]
    fn a_line_for_each_machine() {
        insta::assert_snapshot!(render(&hosts(), Palette::PLAIN), @r"
HOST  MACHINE     TOOLCHAIN  STATE          DETAILS
lab1  debian12    default    ready          bootstrapped in 1m 01s: gcc 12.2.0
lab1  postgres15  default    already ready  gcc 12.2.0
lab1  hurd        default    suspended      it did not boot, 3 times: panic
lab1  win         default    failed         no disk
lab1  shot        default    abnormal       signal 9 signal 9
lab1  big         default    skipped        it needs 64 GiB
lab1  late        default    cancelled

pod has none of these machines

away
  connection refused
  hint: is it running?
");
    }

    #[test]
    fn the_same_as_json() {
        let value: serde_json::Value = serde_json::from_str(&json(&hosts()).unwrap()).unwrap();
        assert_eq!(value[0]["machines"][0]["end"]["made"]["took_ms"], 61_000);
        assert_eq!(value[0]["machines"][2]["good"], false);
        assert_eq!(value[0]["machines"][5]["skipped"], "it needs 64 GiB");
        assert_eq!(value[2].as_object().unwrap().len(), 2);
    }

    #[test]
    fn progress_is_said_in_lines_that_do_no_harm() {
        let (host, machine) = (host("lab1"), "debian12".parse::<Name>().unwrap());
        let step = Progress::Step {
            host: host.clone(),
            machine: machine.clone(),
            text: "boots\u{1b}[2J\n".to_owned(),
        };
        assert_eq!(progress(&step, Verbosity::Normal).as_deref(), Some("lab1/debian12: boots\n"));
        assert_eq!(progress(&step, Verbosity::Quiet), None);
        let output = Progress::Output { host, machine, text: "a\nb\n".to_owned() };
        assert_eq!(progress(&output, Verbosity::Normal), None);
        assert_eq!(progress(&output, Verbosity::Verbose).as_deref(), Some("    | a\n    | b\n"));
    }
}

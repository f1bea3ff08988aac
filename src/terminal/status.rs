//! The overview of `crewboss status`, and the list of guests of `crewboss enter`.

use crewboss_boss::report::Answer;
use crewboss_protocol::overview::{Overview, RunningGuest, Waiting};
use crewboss_protocol::{HostName, json};
use serde::Serialize;

use super::hosts::held;
use super::table::Table;
use super::text::{Palette, counted, duration, one_line, put, shortened, tail};
use super::way_in::enter;

/// Everything for a person.
pub fn render(hosts: &[Answer<Overview>], palette: Palette, now: u64) -> String {
    let mut text = String::new();
    for (host, answer) in hosts {
        let name = palette.strong(host);
        match answer {
            Ok(overview) => {
                put(&mut text, format_args!("{name}: {}\n", counts(overview)));
                let mut table = Table::new(&[]);
                slots(overview, &mut table);
                tasks(overview, &mut table);
                guest_rows(host, overview, true, now, &mut table);
                text.push_str(&table.render("  "));
            }
            Err(reason) => {
                put(&mut text, format_args!("{name}: away\n"));
                text.push_str(&tail(reason, "  "));
            }
        }
    }
    text
}

/// The guests that a person can enter.
pub fn guests(hosts: &[Answer<Overview>], palette: Palette, now: u64) -> String {
    let (mut text, mut any) = (String::new(), false);
    for (host, answer) in hosts {
        let mut table = Table::new(&[]);
        match answer {
            Ok(overview) => {
                guest_rows(host, overview, false, now, &mut table);
                let rows = table.render("");
                any |= !rows.is_empty();
                text.push_str(&rows);
            }
            Err(reason) => {
                put(&mut text, format_args!("{}: away\n", palette.strong(host)));
                text.push_str(&tail(reason, "  "));
            }
        }
    }
    if any { text } else { format!("no guest is kept, and none waits for you\n{text}") }
}

fn counts(overview: &Overview) -> String {
    let count = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
    let counts = [
        (count(overview.slots.len()), "slot", "in use"),
        (count(overview.guests.len()), "guest", "running"),
        (count(overview.held.len()), "guest", "kept"),
    ];
    let some: Vec<String> = counts
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, noun, what)| format!("{} {what}", counted(count, noun)))
        .collect();
    if some.is_empty() { "free".to_owned() } else { some.join(", ") }
}

fn slots(overview: &Overview, table: &mut Table) {
    for holder in &overview.slots {
        let who = shortened(&one_line(&holder.boss), 60);
        table.row([
            format!("slot {}", holder.slot),
            format!("{who}, run {}, priority {}", holder.run, holder.priority),
        ]);
    }
}

fn tasks(overview: &Overview, table: &mut Table) {
    for task in &overview.tasks {
        let who = shortened(&one_line(&task.boss), 60);
        let what = match (&task.target, task.commit, &task.machine) {
            (Some(target), Some(commit), Some(machine)) => {
                format!("{target}@{commit:.8} of {who} in {machine}")
            }
            (Some(target), Some(commit), None) => format!("{target}@{commit:.8} of {who}"),
            (.., Some(machine)) => format!("bootstrap of {machine} for {who}"),
            _ => format!("task {} of {who}", task.at),
        };
        let long = duration(task.for_ms);
        table.row(["task".to_owned(), format!("{what}: {}, for {long}", task.phase)]);
    }
}

fn guest_rows(host: &HostName, overview: &Overview, all: bool, now: u64, table: &mut Table) {
    for guest in &overview.guests {
        match &guest.waiting {
            Some(waits) => table.row(["waits".to_owned(), waiting(host, guest, waits, now)]),
            None if all => table.row(["runs".to_owned(), running(guest)]),
            None => {}
        }
    }
    for guest in &overview.held {
        table.row(["kept".to_owned(), held(host, guest, now)]);
    }
}

fn running(guest: &RunningGuest) -> String {
    let user = guest.user.as_ref().map(|user| {
        let task = user.task.map(|task| format!(", task {task}")).unwrap_or_default();
        format!(" for {}{task}", shortened(&one_line(&user.boss), 60))
    });
    format!("{}{}: {}", guest.id, user.unwrap_or_default(), guest.step)
}

fn waiting(host: &HostName, guest: &RunningGuest, waiting: &Waiting, now: u64) -> String {
    let Waiting { target, commit, stage, until, entered, .. } = waiting;
    let stage = stage.as_ref().map(|stage| format!(" at stage {stage}")).unwrap_or_default();
    let user = guest.user.as_ref().map(|user| format!(" of {}", shortened(&one_line(&user.boss), 60)));
    let left = duration(until.saturating_sub(now).saturating_mul(1000));
    let entered =
        entered.as_ref().map(|visitor| format!(", entered by {}", visitor.told(now))).unwrap_or_default();
    let (user, command) = (user.unwrap_or_default(), enter(host, &guest.id));
    format!("{target}@{commit:.8}{user}: for you{stage}, {left} left{entered}: {command}")
}

#[derive(Serialize)]
struct Row<'a> {
    host: &'a HostName,
    #[serde(flatten)]
    overview: Option<&'a Overview>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Everything for a program: an array with an object per host. One that could not be asked has only
/// `host` and `error`.
pub fn json(hosts: &[Answer<Overview>]) -> serde_json::Result<String> {
    let row = |(host, answer): &'_ Answer<Overview>| {
        let (overview, error) = (answer.as_ref().ok(), answer.as_ref().err().map(String::as_str));
        serde_json::to_value(Row { host, overview, error })
    };
    let rows: Vec<serde_json::Value> = hosts.iter().map(row).collect::<Result<_, _>>()?;
    json::pretty(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::{NOW, host, overview};

    fn hosts() -> Vec<Answer<Overview>> {
        vec![
            (host("lab1"), Ok(overview())),
            (host("lab2"), Ok(Overview::default())),
            (host("pod"), Err("cannot connect to pod: connection refused".to_owned())),
        ]
    }

    #[test]
    fn the_overview() {
        insta::assert_snapshot!(render(&hosts(), Palette::PLAIN, NOW), @r"
        lab1: 1 slot in use, 2 guests running, 1 guest kept
          slot 0  ann@laptop, run 20260102-030405-1, priority 0
          task    arm@1a1a1a1a of ann@laptop: stage test, for 2m 10s
          task    x86@1a1a1a1a of ann@laptop in debian12: booting, for 4.0s
          task    bootstrap of debian12 for ann@laptop: bootstrapping, for 1h 00m
          waits   x86@1a1a1a1a of ann@laptop: for you at stage check, 30m 00s left, entered by eve@desk from 192.0.2.7, for 2 min, process 4712: crewboss enter lab1/debian12-gcc12-p0q1r2
          runs    debian12-gcc12-s3t4u5 for ann@laptop, task 3.1: booting
          kept    arm@1a1a1a1a of ann@laptop: timeout in stage test, 58m 00s left: crewboss enter lab1/debian12-gcc12-k3x9
        lab2: free
        pod: away
          cannot connect to pod: connection refused
        ");
    }

    #[test]
    fn the_guests_that_can_be_entered() {
        insta::assert_snapshot!(guests(&hosts(), Palette::PLAIN, NOW), @r"
        waits  x86@1a1a1a1a of ann@laptop: for you at stage check, 30m 00s left, entered by eve@desk from 192.0.2.7, for 2 min, process 4712: crewboss enter lab1/debian12-gcc12-p0q1r2
        kept   arm@1a1a1a1a of ann@laptop: timeout in stage test, 58m 00s left: crewboss enter lab1/debian12-gcc12-k3x9
        pod: away
          cannot connect to pod: connection refused
        ");
        let nothing = [(host("lab2"), Ok(Overview::default()))];
        assert_eq!(guests(&nothing, Palette::PLAIN, NOW), "no guest is kept, and none waits for you\n");
    }

    #[test]
    fn the_overview_as_json() {
        let value: serde_json::Value = serde_json::from_str(&json(&hosts()).unwrap()).unwrap();
        assert_eq!(value[0]["host"], "lab1");
        assert_eq!(value[0]["guests"][0]["waiting"]["target"], "x86");
        assert_eq!(value[2].as_object().unwrap().len(), 2);
    }
}

//! What `crewboss kill-workers` did, host by host.

use crewboss_protocol::clean::{CleanReport, WhyLeft};
use crewboss_protocol::machine::HeldGuest;
use crewboss_protocol::{HostName, SessionId, json};
use serde::Serialize;

use super::text::{Palette, counted, one_line, tail};
use crate::commands::now;

/// A host and what cleaning it came to, or why it could not be cleaned.
#[derive(Debug, Serialize)]
pub struct CleanedHost {
    /// The host.
    pub host: HostName,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<CleanReport>,
    /// Why nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl CleanedHost {
    /// Whether everything that was to be done has been done.
    pub fn is_good(&self) -> bool {
        self.error.is_none() && self.report.as_ref().is_none_or(|report| report.errors.is_empty())
    }
}

/// One host for a person.
pub fn render(host: &CleanedHost, palette: Palette) -> String {
    let name = palette.strong(&host.host);
    match (&host.report, &host.error) {
        (Some(report), None) => format!("{name}: {}", lines(report)),
        (_, error) => {
            format!("{name}: could not be cleaned\n{}", tail(error.as_deref().unwrap_or_default(), "  "))
        }
    }
}

fn lines(report: &CleanReport) -> String {
    let number = |sessions: &[SessionId]| u32::try_from(sessions.len()).unwrap_or(u32::MAX);
    let counts = [
        (number(&report.ended), "live session", "ended"),
        (number(&report.removed), "dead session", "removed"),
        (report.processes, "process", "killed"),
        (report.directories, "directory", "removed"),
        (report.guests, "guest", "removed"),
        (report.subvolumes, "subvolume", "removed"),
        (report.locks, "lock", "removed"),
    ];
    let done: Vec<String> = counts
        .iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, noun, verb)| counted_well(*count, noun, verb))
        .collect();
    let mut text = if done.is_empty() { "nothing to clean".to_owned() } else { done.join(", ") };
    text.push('\n');
    if !report.purged.is_empty() {
        let kept: Vec<String> = report.kept.iter().map(|name| one_line(name)).collect();
        let but = if kept.is_empty() { String::new() } else { format!(", but for {}", kept.join(", ")) };
        text.push_str(&format!("  removed: {}{but}\n", one_line(&report.purged)));
    }
    for left in &report.left {
        let why = match left.why {
            WhyLeft::BossAlive => "its boss is alive; --force ends it",
            WhyLeft::OtherUser => "it belongs to another user",
        };
        let boss = one_line(&left.boss);
        text.push_str(&format!("  left alone: {} of {boss}, run {}: {why}\n", left.session, left.run));
    }
    for held in &report.held_ended {
        text.push_str(&format!("  ended: the held guest {}\n", held_guest(held)));
    }
    for held in &report.held_left {
        let why = match &held.entered {
            Some(visitor) => format!("{} is in it; --force ends it", visitor.told(now())),
            None => "its boss is alive; --force ends it".to_owned(),
        };
        text.push_str(&format!("  left alone: the held guest {}: {why}\n", held_guest(held)));
    }
    for error in &report.errors {
        text.push_str(&format!("  error: {}\n", one_line(error)));
    }
    text
}

fn held_guest(held: &HeldGuest) -> String {
    let HeldGuest { id, target, at, boss, .. } = held;
    format!("{id} (task {}, target {target}) of {}", at.task, one_line(boss))
}

fn counted_well(count: u32, noun: &str, verb: &str) -> String {
    let noun = match (count, noun) {
        (2.., "process") => "processes".to_owned(),
        (2.., "directory") => "directories".to_owned(),
        _ => return format!("{} {verb}", counted(count, noun)),
    };
    format!("{count} {noun} {verb}")
}

/// Everything for a program: an array with an object per host.
pub fn json(hosts: &[CleanedHost]) -> serde_json::Result<String> {
    json::pretty(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::host;
    use crewboss_protocol::clean::LeftAlone;

    #[test]
    fn what_was_cleaned() {
        let left = LeftAlone {
            session: "20260102-030405-1.2".parse().unwrap(),
            boss: "ann@laptop".to_owned(),
            run: "20260102-030405-1".parse().unwrap(),
            why: WhyLeft::BossAlive,
        };
        let busy = CleanReport {
            ended: vec!["r.1".parse().unwrap()],
            removed: vec!["r.2".parse().unwrap(), "r.3".parse().unwrap()],
            left: vec![left],
            processes: 5,
            directories: 1,
            errors: vec!["cannot remove /srv/x: \x1b[2Jdenied".to_owned()],
            ..CleanReport::default()
        };
        let purged = CleanReport {
            purged: "/srv/crewboss".to_owned(),
            kept: vec!["machines".to_owned()],
            ..CleanReport::default()
        };
        let hosts = [
            CleanedHost { host: host("lab1"), report: Some(busy), error: None },
            CleanedHost { host: host("lab2"), report: Some(CleanReport::default()), error: None },
            CleanedHost { host: host("lab3"), report: Some(purged), error: None },
            CleanedHost { host: host("pod"), report: None, error: Some("connection refused".to_owned()) },
        ];
        assert_eq!(hosts.each_ref().map(CleanedHost::is_good), [false, true, true, false]);
        let text: String = hosts.iter().map(|host| render(host, Palette::PLAIN)).collect();
        insta::assert_snapshot!(text, @r"
lab1: 1 live session ended, 2 dead sessions removed, 5 processes killed, 1 directory removed
  left alone: 20260102-030405-1.2 of ann@laptop, run 20260102-030405-1: its boss is alive; --force ends it
  error: cannot remove /srv/x: denied
lab2: nothing to clean
lab3: nothing to clean
  removed: /srv/crewboss, but for machines
pod: could not be cleaned
  connection refused
");
    }
}

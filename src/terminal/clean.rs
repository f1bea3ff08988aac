//! What `crewboss kill-workers` did, host by host.

use crewboss_protocol::HostName;
use serde::Serialize;

use super::text::{Palette, counted, one_line, tail};

/// What cleaning a host came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    /// Live sessions that were ended.
    pub ended: u32,
    /// Sessions, live or dead, that were removed.
    pub removed: u32,
    /// Sessions that were left alone.
    pub left: Vec<LeftAlone>,
    /// Processes that were killed.
    pub processes: u32,
    /// Directories that were removed.
    pub directories: u32,
    /// Subvolumes that were removed.
    pub subvolumes: u32,
    /// What could not be done.
    pub errors: Vec<String>,
}

/// A session that was left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftAlone {
    /// The session.
    pub session: String,
    /// Who started its boss, as `user@computer`.
    pub boss: String,
    /// The boss's run.
    pub run: String,
    /// Why.
    pub why: String,
}

/// A host and what cleaning it came to, or why it could not be cleaned.
#[derive(Debug, Serialize)]
pub struct CleanedHost {
    /// The host.
    pub host: HostName,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleaned: Option<Cleaned>,
    /// Why nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl CleanedHost {
    /// Whether everything that was to be done has been done.
    pub fn is_good(&self) -> bool {
        self.error.is_none() && self.cleaned.as_ref().is_none_or(|cleaned| cleaned.errors.is_empty())
    }
}

/// Everything for a person.
pub fn render(hosts: &[CleanedHost], palette: Palette) -> String {
    let mut text = String::new();
    for host in hosts {
        let name = palette.strong(&host.host);
        match (&host.cleaned, &host.error) {
            (Some(cleaned), None) => text.push_str(&format!("{name}: {}", cleaned_lines(cleaned))),
            (_, error) => {
                text.push_str(&format!("{name}: could not be cleaned\n"));
                text.push_str(&tail(error.as_deref().unwrap_or_default(), "  "));
            }
        }
    }
    text
}

fn cleaned_lines(cleaned: &Cleaned) -> String {
    let counts = [
        (cleaned.ended, "live session", "ended"),
        (cleaned.removed, "session", "removed"),
        (cleaned.processes, "process", "killed"),
        (cleaned.directories, "directory", "removed"),
        (cleaned.subvolumes, "subvolume", "removed"),
    ];
    let done: Vec<String> = counts
        .iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, noun, verb)| counted_well(*count, noun, verb))
        .collect();
    let mut text = if done.is_empty() { "nothing to clean".to_owned() } else { done.join(", ") };
    text.push('\n');
    for left in &cleaned.left {
        let line = format!(
            "  left alone: {} of {}, run {}: {}\n",
            one_line(&left.session),
            one_line(&left.boss),
            one_line(&left.run),
            one_line(&left.why)
        );
        text.push_str(&line);
    }
    for error in &cleaned.errors {
        text.push_str(&format!("  error: {}\n", one_line(error)));
    }
    text
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
    serde_json::to_string_pretty(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::host;

    #[test]
    fn what_was_cleaned() {
        let left = LeftAlone {
            session: "20260102-030405-1.2".to_owned(),
            boss: "ann@laptop".to_owned(),
            run: "20260102-030405-1".to_owned(),
            why: "its boss is alive; --force ends it".to_owned(),
        };
        let busy = Cleaned {
            ended: 1,
            removed: 2,
            left: vec![left],
            processes: 5,
            directories: 1,
            subvolumes: 0,
            errors: vec!["cannot remove /srv/x: \x1b[2Jdenied".to_owned()],
        };
        let hosts = [
            CleanedHost { host: host("lab1"), cleaned: Some(busy), error: None },
            CleanedHost { host: host("lab2"), cleaned: Some(Cleaned::default()), error: None },
            CleanedHost { host: host("pod"), cleaned: None, error: Some("connection refused".to_owned()) },
        ];
        assert_eq!(hosts.each_ref().map(CleanedHost::is_good), [false, true, false]);
        insta::assert_snapshot!(render(&hosts, Palette::PLAIN), @r"
lab1: 1 live session ended, 2 sessions removed, 5 processes killed, 1 directory removed
  left alone: 20260102-030405-1.2 of ann@laptop, run 20260102-030405-1: its boss is alive; --force ends it
  error: cannot remove /srv/x: denied
lab2: nothing to clean
pod: could not be cleaned
  connection refused
");
    }
}

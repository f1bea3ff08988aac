//! What is said at the end of a run.

use std::path::Path;

use crewboss_boss::event::{HeldSummary, Stopped, Summary};
use crewboss_protocol::Outcome;

use super::Verbosity;
use super::table::Table;
use super::text::{Palette, bytes, counted, duration, one_line, put};
use super::way_in::enter;

/// The summary: outcomes, slowest tasks, hosts, and where the results are.
pub fn render(summary: &Summary, out: &Path, verbosity: Verbosity, palette: Palette) -> String {
    let mut text = String::new();
    outcomes(summary, palette, &mut text);
    if verbosity > Verbosity::Quiet {
        slowest(summary, &mut text);
        hosts(summary, &mut text);
    }
    held(summary, &mut text);
    match &summary.stopped {
        Some(Stopped::Interrupted) => {
            text.push_str("\nstopped on request; the same command goes on from here\n");
        }
        Some(Stopped::Error(why)) => {
            text.push_str("\nthe run could not go on: ");
            text.push_str(&one_line(why));
            text.push('\n');
        }
        None => {}
    }
    put(&mut text, format_args!("\nresults: {}\n", one_line(&out.display().to_string())));
    text
}

fn outcomes(summary: &Summary, palette: Palette, text: &mut String) {
    let total: u64 =
        summary.outcomes.values().map(|count| u64::from(*count)).sum::<u64>() + u64::from(summary.unfinished);
    text.push('\n');
    text.push_str(&palette.strong(format_args!(
        "{} in {}",
        counted(total, "task"),
        duration(summary.wall_ms)
    )));
    text.push('\n');
    for outcome in Outcome::ALL {
        let Some(count) = summary.outcomes.get(&outcome).filter(|count| **count > 0) else { continue };
        let word = palette.outcome(outcome, format_args!("{outcome:<14}"));
        let mut line = format!("  {word} {count:>7}");
        if outcome == Outcome::Skipped {
            let recorded: Vec<String> = Outcome::ALL
                .iter()
                .filter_map(|outcome| Some((outcome, summary.recorded.get(outcome)?)))
                .map(|(outcome, count)| format!("{count} {outcome}"))
                .collect();
            line.push_str(&format!("  (done before: {})", recorded.join(", ")));
        }
        text.push_str(&line);
        text.push('\n');
    }
    if summary.unfinished > 0 {
        text.push_str(&format!("  {:<14} {:>7}\n", "not done", summary.unfinished));
    }
}

fn slowest(summary: &Summary, text: &mut String) {
    if summary.slowest.is_empty() {
        return;
    }
    text.push_str("\nslowest tasks\n");
    let mut table = Table::new(&[]);
    for (label, ms) in &summary.slowest {
        table.row([one_line(label), duration(*ms)]);
    }
    text.push_str(&table.render("  "));
}

fn hosts(summary: &Summary, text: &mut String) {
    if summary.hosts.is_empty() {
        return;
    }
    text.push('\n');
    let mut table = Table::new(&["host", "tasks", "sent", "received", "lost"]);
    for (host, done) in &summary.hosts {
        let lost = if done.lost == 0 { String::new() } else { counted(done.lost, "time") };
        let cells = [
            host.to_string(),
            done.tasks.to_string(),
            bytes(done.bytes_sent),
            bytes(done.bytes_received),
            lost,
        ];
        table.row(cells);
    }
    text.push_str(&table.render("  "));
}

/// Guests that wait for a person. Also said quietly: nobody else will remember them.
fn held(summary: &Summary, text: &mut String) {
    if summary.held.is_empty() {
        return;
    }
    text.push_str("\nguests that are kept\n");
    let mut table = Table::new(&[]);
    for HeldSummary { host, guest, commit } in &summary.held {
        table.row([
            format!("{}@{commit}", guest.target),
            guest.outcome.to_string(),
            format!("for {}", duration(guest.until.saturating_sub(guest.since).saturating_mul(1000))),
            enter(host, &guest.id),
        ]);
    }
    text.push_str(&table.render("  "));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::summary;

    #[test]
    fn a_summary_in_full() {
        let text = render(&summary(), Path::new("/src/crewboss-results"), Verbosity::Normal, Palette::PLAIN);
        insta::assert_snapshot!(text, @r"

6 tasks in 2.2s
  success              2
  warning              1
  failure              1
  infrastructure       1
  skipped              1  (done before: 1 failure)

slowest tasks
  arm@1a2b3c4d      3.6s
  aarch64@1a2b3c4d  2.4s

  HOST  TASKS     SENT  RECEIVED    LOST
  lab1      4  3.8 MiB   8.0 KiB
  lab2      0      0 B       0 B  1 time

guests that are kept
  arm@1a2b3c4d  timeout  for 1h 00m  crewboss enter lab1/debian12-gcc12-k3x9

results: /src/crewboss-results
");
    }

    #[test]
    fn a_quiet_summary_of_a_stopped_run() {
        let stopped = Summary { unfinished: 7, stopped: Some(Stopped::Interrupted), ..summary() };
        let text = render(&stopped, Path::new("/o\x1b[2J"), Verbosity::Quiet, Palette::PLAIN);
        insta::assert_snapshot!(text, @r"

13 tasks in 2.2s
  success              2
  warning              1
  failure              1
  infrastructure       1
  skipped              1  (done before: 1 failure)
  not done             7

guests that are kept
  arm@1a2b3c4d  timeout  for 1h 00m  crewboss enter lab1/debian12-gcc12-k3x9

stopped on request; the same command goes on from here

results: /o
");
    }

    #[test]
    fn a_run_without_tasks() {
        let text = render(&Summary::default(), Path::new("/o"), Verbosity::Normal, Palette::PLAIN);
        insta::assert_snapshot!(text, @r"

0 tasks in 0.0s

results: /o
");
    }
}

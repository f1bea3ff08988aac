//! Progress without a terminal: plain lines that read well in the log of a CI job.

use std::io::Write;

use crewboss_boss::event::{Event, EventKind, EventSink, TaskDone};
use crewboss_protocol::{HostName, Outcome};

use super::Verbosity;
use super::progress::Progress;
use super::text::{Palette, bytes, counted, duration, one_line, put, tail};
use super::way_in::{enter, here};

/// After so long without a line, one says how far the run is. Short enough that no CI service takes
/// the job for hung.
const QUIET_MS_MAX: u64 = 60_000;

macro_rules! line {
    ($into:expr, $($format:tt)*) => {{
        put($into, format_args!($($format)*));
        $into.push('\n');
    }};
}

/// Phases that are shorter than this are not worth a word.
const SHORT_MS: u64 = 100;

/// Kinds of phases of running tasks that are told in one line.
const PHASES_MAX: usize = 4;

/// Writes lines as things happen.
#[derive(Debug)]
pub struct Plain<W: Write> {
    out: W,
    lines: Lines,
    said_ms: u64,
    progress: Progress,
}

impl<W: Write> Plain<W> {
    /// A reporter that writes to `out`. If that fails, nothing is shown: the run and its results
    /// matter more.
    pub fn new(out: W, verbosity: Verbosity, palette: Palette) -> Self {
        let lines = Lines { verbosity, palette, good_tasks: verbosity > Verbosity::Quiet };
        Self { out, lines, said_ms: 0, progress: Progress::default() }
    }

    fn say_progress(&self, into: &mut String) {
        let progress = &self.progress;
        let left =
            progress.remaining_ms().map(|ms| format!(", about {} left", duration(ms))).unwrap_or_default();
        line!(
            into,
            "{} of {} done, {} running{}, {} failed, {} gone{left}",
            progress.tally.done(),
            counted(progress.total, "task"),
            progress.running(),
            at_what(progress),
            progress.tally.fail,
            duration(progress.elapsed_ms()),
        );
    }
}

impl<W: Write> EventSink for Plain<W> {
    fn event(&mut self, event: &Event) {
        self.progress.note(event);
        let mut text = String::new();
        self.lines.event(event, &self.progress, &mut text);
        if !text.is_empty() || self.said_ms == 0 {
            self.said_ms = event.time_ms;
        } else if self.lines.verbosity > Verbosity::Quiet
            && event.time_ms.saturating_sub(self.said_ms) >= QUIET_MS_MAX
        {
            self.say_progress(&mut text);
            self.said_ms = event.time_ms;
        }
        drop(self.out.write_all(text.as_bytes()));
    }
}

/// Turns events into lines; also for what is printed above the bars of a terminal.
#[derive(Debug, Clone, Copy)]
pub struct Lines {
    /// How much is said.
    pub verbosity: Verbosity,
    /// In which colours.
    pub palette: Palette,
    /// Whether a task that went well has a line.
    pub good_tasks: bool,
}

impl Lines {
    /// Adds the lines for an event, if it has any.
    pub fn event(self, event: &Event, progress: &Progress, into: &mut String) {
        match &event.kind {
            EventKind::TaskDone(done) => self.task(done, progress, into),
            EventKind::HostFailed { host, reason } => self.host(host, "out of this run", reason, into),
            EventKind::Stopping { reason } => line!(into, "stopping: {}", one_line(reason)),
            EventKind::TasksImpossible { target, tasks, reasons } => {
                line!(into, "no host can build {target} ({}):", counted(*tasks, "task"));
                for (host, reason) in reasons {
                    line!(into, "    {host}: {}", here(&one_line(reason)));
                }
            }
            EventKind::TaskWaiting { host, target, commit, guest, stage, until, .. } => {
                let stage = stage.as_ref().map(|stage| format!(" at stage {stage}")).unwrap_or_default();
                let left = until.saturating_mul(1000).saturating_sub(event.time_ms);
                let waits = self.palette.strong("waits for you");
                line!(
                    into,
                    "{target}@{commit} {waits}{stage} for {}: {}",
                    duration(left),
                    enter(host, guest)
                );
            }
            kind if self.verbosity >= Verbosity::Normal => self.normal(kind, into),
            _ => {}
        }
    }

    fn normal(self, kind: &EventKind, into: &mut String) {
        match kind {
            EventKind::RunStarted { run, tasks, targets, commits, hosts, out, .. } => line!(
                into,
                "run {run}: {} ({} at {}) on {}, results in {}",
                counted(*tasks, "task"),
                counted(*targets, "target"),
                counted(*commits, "commit"),
                counted(hosts.len() as u64, "host"),
                one_line(out),
            ),
            EventKind::HostReady { host, slots, threads, speed, toolchains } => line!(
                into,
                "host {host}: ready, {}, {}, speed {}.{:02}, {}",
                counted(*slots, "slot"),
                counted(*threads, "thread"),
                speed / 1000,
                speed % 1000 / 10,
                counted(toolchains.len() as u64, "toolchain"),
            ),
            EventKind::HostLost { host, reason, retry_ms } => {
                let again = retry_ms.map(|ms| format!("lost, tried again in {}", duration(ms)));
                self.host(host, again.as_deref().unwrap_or("lost"), reason, into);
            }
            EventKind::HostPaused { host, reason, pause_ms } => {
                self.host(host, &format!("gets nothing for {}", duration(*pause_ms)), reason, into);
            }
            EventKind::Notice { text } => line!(into, "{}", one_line(text)),
            EventKind::HostNotice { host, text } => line!(into, "host {host}: {}", one_line(text)),
            EventKind::TaskRetried { host, target, commit, reason, .. } => {
                line!(
                    into,
                    "{target}@{commit} did not come to its end on {host}, tried again: {}",
                    one_line(reason)
                );
            }
            kind if self.verbosity >= Verbosity::Verbose => verbose(kind, into),
            _ => {}
        }
    }

    fn host(self, host: &HostName, what: &str, reason: &str, into: &mut String) {
        line!(into, "host {host}: {}", self.palette.strong(what));
        into.push_str(&tail(reason, "    "));
    }

    fn task(self, done: &TaskDone, progress: &Progress, into: &mut String) {
        let good = done.outcome.is_good();
        if good && !self.good_tasks {
            return;
        }
        // Tasks done before, and those that never ran since no host could take them or none was
        // left, are counted in the summary, and the reason has been told once; a line for each
        // would bury the rest.
        let ran = done.attempt.0 > 0 && done.outcome != Outcome::Skipped;
        if !ran && self.verbosity < Verbosity::Verbose {
            return;
        }
        let place = done.host.as_ref().map(|host| format!(" on {host}")).unwrap_or_default();
        let recorded =
            done.recorded.map(|recorded| format!(" (done before: {recorded})")).unwrap_or_default();
        line!(
            into,
            "[{}/{}] {} {}@{}{place} {}{recorded}",
            progress.tally.done(),
            progress.total,
            self.palette.outcome(done.outcome, format_args!("{:<8}", done.outcome)),
            done.target,
            done.commit,
            duration(done.wall_ms),
        );
        if !done.message.is_empty() {
            into.push_str(&tail(&here(&done.message), "    "));
        }
        if !good || self.verbosity >= Verbosity::Verbose {
            times(done, into);
        }
        if let Some(matched) = &done.matched {
            line!(into, "    unchanged: {}", one_line(&matched.to_string()));
        }
        if !good {
            into.push_str(&tail(&done.tail, "    | "));
            if ran {
                line!(into, "    see {}", one_line(&done.path));
            }
        }
        if let (Some(host), Some(held)) = (&done.host, &done.held) {
            let time = duration(held.until.saturating_sub(held.since).saturating_mul(1000));
            line!(into, "    its guest is kept for {time}: {}", enter(host, &held.id));
        }
    }
}

/// Where the time of a task went, unless all of it went to one thing.
fn times(done: &TaskDone, into: &mut String) {
    let long = done.phases.iter().filter(|one| one.wall_ms >= SHORT_MS);
    let long: Vec<String> = long.map(|one| format!("{} {}", one.phase, duration(one.wall_ms))).collect();
    if long.len() > 1 {
        line!(into, "    {}", long.join(", "));
    }
}

/// What the running tasks are at, as far as a line has room.
fn at_what(progress: &Progress) -> String {
    let mut phases = progress.phases();
    let rest: usize = phases.drain(PHASES_MAX.min(phases.len())..).map(|(_, count)| count).sum();
    let mut parts: Vec<String> = phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    if rest > 0 {
        parts.push(format!("{rest} elsewhere"));
    }
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

fn verbose(kind: &EventKind, into: &mut String) {
    match kind {
        EventKind::HostConnecting { host } => line!(into, "host {host}: connecting"),
        EventKind::HostShipped { host, bytes: size } => {
            line!(into, "host {host}: crewboss itself was sent ({})", bytes(*size));
        }
        EventKind::SourceSent { host, tree, objects, bytes: size, wall_ms, check_out_ms } => line!(
            into,
            "host {host}: source {tree} is there: {}, {}, {}",
            counted(*objects, "object"),
            bytes(*size),
            duration(wall_ms + check_out_ms),
        ),
        EventKind::TaskStarted { host, at, target, commit } => {
            line!(into, "{target}@{commit} starts on {host} (task {}, attempt {})", at.task, at.attempt);
        }
        EventKind::TaskPhase { host, at, phase, text } if text.is_empty() => {
            line!(into, "task {} on {host}: {phase}", at.task);
        }
        EventKind::TaskPhase { host, at, text, .. } => {
            line!(into, "task {} on {host}: {}", at.task, one_line(text));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::samples::run;

    fn shown(verbosity: Verbosity) -> String {
        let mut plain = Plain::new(Vec::new(), verbosity, Palette::PLAIN);
        run().iter().for_each(|event| plain.event(event));
        String::from_utf8(plain.out).unwrap()
    }

    #[test]
    fn lines_of_a_run() {
        insta::assert_snapshot!(shown(Verbosity::Normal), @r"
run 20260102-030405-1: 6 tasks (6 targets at 1 commit) on 2 hosts, results in /src/crewboss-results
host lab1: ready, 4 slots, 8 threads, speed 1.00, 2 toolchains
host lab1: no btrfs here: copies are made
the journal is damaged in line 3
no host can build sparc (1 task):
    lab1: no toolchain sparc
x86@1a2b3c4d waits for you at stage check for 29m 59s: crewboss enter lab1/debian12-gcc12-p0q1
host lab2: lost, tried again in 2.0s
    connection refused
host lab2: out of this run
    cannot connect to lab2: connection refused
    hint: is sshd running there?
[3/6] success  native@1a2b3c4d on lab1 1.2s
[4/6] warning  aarch64@1a2b3c4d on lab1 2.4s
arm64@abc1234 did not come to its end on lab1, tried again: the disk is full
[5/6] failure  arm@1a2b3c4d on lab1 3.6s
    booting 2.1s, stage test 1.5s
    | cc -c main.c
    | main.c:3: error: no such thing
    see 1_of_1_g1a2b3c4d_subject/arm
    its guest is kept for 1h 00m: crewboss enter lab1/debian12-gcc12-k3x9
[6/6] success  x86@1a2b3c4d on lab1 4.8s
");
    }

    #[test]
    fn lines_of_a_quiet_run() {
        insta::assert_snapshot!(shown(Verbosity::Quiet), @r"
no host can build sparc (1 task):
    lab1: no toolchain sparc
x86@1a2b3c4d waits for you at stage check for 29m 59s: crewboss enter lab1/debian12-gcc12-p0q1
host lab2: out of this run
    cannot connect to lab2: connection refused
    hint: is sshd running there?
[5/6] failure  arm@1a2b3c4d on lab1 3.6s
    booting 2.1s, stage test 1.5s
    | cc -c main.c
    | main.c:3: error: no such thing
    see 1_of_1_g1a2b3c4d_subject/arm
    its guest is kept for 1h 00m: crewboss enter lab1/debian12-gcc12-k3x9
");
    }

    #[test]
    fn a_verbose_run_says_what_starts() {
        let text = shown(Verbosity::Verbose);
        for part in [
            "lab1: connecting",
            "was sent (3.8 MiB)",
            "12 objects",
            "starts on lab1",
            "stage test",
            "done before: failure",
            "unchanged: tree 070707070707, target definition, machine debian12 (debian12-7), toolchain id 8d2f0c",
            "task 0 on lab1: stage test",
            "task 1 on lab1: booting\n",
            "task 1 on lab1: debian12 boots",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_long_silence_is_broken_by_a_line() {
        let mut plain = Plain::new(Vec::new(), Verbosity::Normal, Palette::PLAIN);
        let events = run();
        plain.event(&events[0]);
        let mut load = events[events.len() - 2].clone();
        for seconds in 1..=125 {
            load.time_ms = events[0].time_ms + seconds * 1000;
            plain.event(&load);
        }
        let text = String::from_utf8(plain.out).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.ends_with("0 of 6 tasks done, 0 running, 0 failed, 2m 00s gone\n"), "{text}");
    }
}

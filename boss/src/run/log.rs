//! `boss.log`: what happened, for people, and a status line per host and minute.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::path::Path;

use crewboss_ground::Open;
use crewboss_protocol::{HostName, Outcome};

use crate::event::{Event, EventKind, EventSink, TaskDone};
use crate::one_line;
use crate::outlet::{Kind, Outlet, Weight};
use crate::store::StoreError;

/// Time between two status lines of a host.
const STATUS_INTERVAL_MS: u64 = 60_000;

/// What may wait for a disk that is slow or stands still. The run goes on; the log says what it
/// lacks.
const WAITING: Kind =
    Kind { room: 4 << 20, gap: |lines| format!("... ({lines} lines left out: the disk was too slow)\n") };

/// An outlet into a log.
pub(super) fn outlet(
    path: &Path,
    open: impl FnOnce() -> io::Result<File> + Send + 'static,
) -> io::Result<Outlet> {
    Outlet::start(path.display().to_string(), WAITING, open)
}

/// The log file.
#[derive(Debug)]
pub struct BossLog {
    out: Outlet,
    hosts: BTreeMap<HostName, HostStatus>,
    /// Bytes that a host may say of its own accord.
    room: u64,
}

/// What is said of a host in place of more that it says.
const FULL: &str =
    "the rest of what it says is not written down: that is as much as it may be (`host_log` in [limits])";

#[derive(Debug, Default)]
struct HostStatus {
    /// Bytes of what it said of its own accord.
    said: u64,
    /// Lines of that which are not here.
    left_out: u64,
    running: u32,
    done: u32,
    failed: u32,
    status_ms: u64,
}

impl BossLog {
    /// Opens `boss.log` in the result directory for appending. A host can say as much as it likes;
    /// no more than `room` bytes of it are written down.
    pub fn open(root: &Path, room: u64) -> Result<Self, StoreError> {
        let path = root.join("boss.log");
        let file = Open::append().path(&path)?;
        let out = outlet(&path, || Ok(file)).map_err(StoreError::io("start a thread for", &path))?;
        Ok(Self::into(out, room))
    }

    fn into(out: Outlet, room: u64) -> Self {
        Self { out, hosts: BTreeMap::new(), room }
    }

    /// A line that a host has caused of its own accord, as often as it likes.
    fn said(&mut self, time_ms: u64, host: &HostName, text: fmt::Arguments<'_>) {
        let text = text.to_string();
        let status = self.hosts.entry(host.clone()).or_default();
        status.said = status.said.saturating_add(text.len() as u64);
        if status.said <= self.room {
            return self.line(time_ms, format_args!("{text}"));
        }
        status.left_out += 1;
        if status.left_out == 1 {
            self.line(time_ms, format_args!("{host}: {FULL}"));
        }
    }

    /// Says at the end what is not here.
    fn tell_left_out(&mut self, time_ms: u64) {
        let left_out = |(host, status): (&HostName, &HostStatus)| (host.clone(), status.left_out);
        let all: Vec<_> = self.hosts.iter().map(left_out).filter(|(_, lines)| *lines > 0).collect();
        for (host, lines) in all {
            self.line(time_ms, format_args!("{host}: {lines} lines of what it said were not written down"));
        }
    }

    fn line(&mut self, time_ms: u64, text: fmt::Arguments<'_>) {
        let time = i64::try_from(time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let time = time.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ");
        let line = format!("{time} {}\n", one_line(&text.to_string()));
        self.out.put(Weight::News, line.as_bytes());
    }

    fn done(&mut self, time_ms: u64, done: &TaskDone) {
        if let Some(host) = &done.host
            && done.outcome != Outcome::Skipped
        {
            let status = self.hosts.entry(host.clone()).or_default();
            status.running = status.running.saturating_sub(1);
            status.done += 1;
            status.failed += u32::from(!done.outcome.is_good());
        }
        if let (Some(host), Some(held)) = (&done.host, &done.held) {
            let line =
                format_args!("{} @ {}: its guest is kept: {host}/{}", done.target, done.commit, held.id);
            self.line(time_ms, line);
        }
        if !done.outcome.is_good() {
            let mut text = format!("{} {} @ {}", done.outcome, done.target, done.commit);
            if let Some(host) = &done.host {
                write!(text, " on {host}").ok();
            }
            if !done.message.is_empty() {
                write!(text, ": {}", done.message).ok();
            }
            self.line(time_ms, format_args!("{text}"));
        }
    }

    /// Says how a host is doing, at most once a minute.
    fn status(&mut self, time_ms: u64, event: &EventKind) {
        let EventKind::HostLoad { host, load, round_trip_us } = event else { return };
        let status = self.hosts.entry(host.clone()).or_default();
        if time_ms.saturating_sub(status.status_ms) < STATUS_INTERVAL_MS {
            return;
        }
        status.status_ms = time_ms;
        let (running, done, failed) = (status.running, status.done, status.failed);
        let (whole, hundredths) = (load.load_percent / 100, load.load_percent % 100);
        let (memory, disk) = (load.memory_available >> 20, load.disk_free >> 20);
        self.line(
            time_ms,
            format_args!(
                "{host}: {running} running, {done} done, {failed} not good; load {whole}.{hundredths:02}, \
                 {memory} MiB memory and {disk} MiB disk free, round trip {round_trip_us} us"
            ),
        );
    }
}

impl EventSink for BossLog {
    fn event(&mut self, event: &Event) {
        let at = event.time_ms;
        match &event.kind {
            EventKind::RunStarted { run, tasks, targets, commits, .. } => self
                .line(at, format_args!("run {run}: {tasks} tasks, {targets} targets at {commits} commits")),
            EventKind::HostShipped { host, bytes } => {
                self.line(at, format_args!("{host}: sent the worker, {bytes} bytes"));
            }
            EventKind::HostReady { host, slots, threads, speed, .. } => {
                self.hosts.entry(host.clone()).or_default().running = 0;
                self.line(at, format_args!("{host}: ready, {slots} slots, {threads} threads, speed {speed}"));
            }
            EventKind::HostLost { host, reason, .. } => self.line(at, format_args!("{host}: lost: {reason}")),
            EventKind::HostFailed { host, reason } => {
                self.line(at, format_args!("{host}: out of the run: {reason}"))
            }
            EventKind::HostPaused { host, reason, pause_ms } => {
                self.line(at, format_args!("{host}: paused for {pause_ms} ms: {reason}"));
            }
            EventKind::Notice { text } => self.line(at, format_args!("{text}")),
            EventKind::HostNotice { host, text } => self.said(at, host, format_args!("{host}: {text}")),
            EventKind::SourceSent { host, tree, objects, bytes, wall_ms, check_out_ms } => self.line(
                at,
                format_args!(
                    "{host}: source {tree:.12}: {objects} objects, {bytes} bytes in {wall_ms} ms, \
                     checked out in {check_out_ms} ms"
                ),
            ),
            EventKind::TasksImpossible { target, tasks, .. } => {
                self.line(at, format_args!("{target}: no host can take its {tasks} tasks"));
            }
            EventKind::TaskStarted { host, .. } => self.hosts.entry(host.clone()).or_default().running += 1,
            EventKind::TaskRetried { host, at: task, target, commit, reason } => {
                let status = self.hosts.entry(host.clone()).or_default();
                status.running = status.running.saturating_sub(1);
                self.line(
                    at,
                    format_args!(
                        "{host}: {target}@{commit}, attempt {}, could not be completed: {reason}",
                        task.attempt
                    ),
                );
            }
            EventKind::TaskDone(done) => self.done(at, done),
            EventKind::Stopping { reason } => self.line(at, format_args!("stopping: {reason}")),
            EventKind::RunFinished(summary) => {
                self.tell_left_out(at);
                self.line(at, format_args!("finished after {} ms", summary.wall_ms));
            }
            kind @ EventKind::HostLoad { .. } => self.status(at, kind),
            EventKind::TaskPhase { host, at: task, text, .. } if !text.is_empty() => {
                self.said(at, host, format_args!("{host}: task {task}: {text}"));
            }
            EventKind::TaskWaiting { host, target, commit, guest, .. } => {
                let text = format_args!("{target} @ {commit} waits for a person in {host}/{guest}");
                self.said(at, host, text);
            }
            EventKind::HostConnecting { .. }
            | EventKind::TaskPhase { .. }
            | EventKind::TaskOutput { .. }
            | EventKind::GuestLoad { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a log becomes of these events.
    fn logged(kinds: impl IntoIterator<Item = EventKind>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut log = BossLog::open(dir.path(), 1000).unwrap();
        kinds.into_iter().for_each(|kind| log.event(&Event { time_ms: 0, kind }));
        assert!(log.out.settle(&mut |still| still.as_secs() > 60).is_none());
        std::fs::read_to_string(dir.path().join("boss.log")).unwrap()
    }

    #[test]
    fn what_hosts_say_stays_on_a_line_of_its_own_with_our_time() {
        let host: HostName = "lab1".parse().unwrap();
        let forged = "gone\r\n1999-01-01T00:00:00Z lab2: lost: \x1b[2J\x1b]0;title\x07nothing\rHIDDEN\u{202e}\u{9b}31m\n";
        let text = logged([
            EventKind::HostLost { host: host.clone(), reason: forged.to_owned(), retry_ms: None },
            EventKind::HostNotice { host, text: "\rover".to_owned() },
        ]);
        assert_eq!(
            text,
            "1970-01-01T00:00:00Z lab1: lost: gone; 1999-01-01T00:00:00Z lab2: lost: nothing; HIDDEN\n\
             1970-01-01T00:00:00Z lab1: ; over\n"
        );
    }

    #[test]
    fn what_one_host_says_without_end_is_cut_and_counted_and_leaves_room_for_others() {
        let [talker, other]: [HostName; 2] = ["lab1", "lab2"].map(|name| name.parse().unwrap());
        let notice = |host: &HostName| EventKind::HostNotice { host: host.clone(), text: "x".repeat(94) };
        let flood = (0..5000).map(|_| notice(&talker));
        let lost = EventKind::HostLost { host: talker.clone(), reason: "gone".to_owned(), retry_ms: None };
        let end = EventKind::RunFinished(Box::default());
        let text = logged(flood.chain([notice(&other), lost, end]));
        assert_eq!(text.matches("lab1: xxx").count(), 10, "{text}");
        assert_eq!(text.matches("(`host_log` in [limits])").count(), 1, "{text}");
        for words in
            ["lab2: xxx", "lab1: lost: gone", "lab1: 4990 lines of what it said were not written down"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn a_disk_that_stands_still_holds_up_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        let out = Outlet::start("boss.log", Kind { room: 10_000, ..WAITING }, move || Ok(writer)).unwrap();
        let mut log = BossLog::into(out, 1 << 30);
        let host: HostName = "lab1".parse().unwrap();
        for _ in 0..2000 {
            let kind = EventKind::HostNotice { host: host.clone(), text: "x".repeat(100) };
            log.event(&Event { time_ms: 0, kind });
        }
        drop(log);
        let text = io::read_to_string(reader).unwrap();
        assert!(text.lines().any(|line| line.ends_with("lines left out: the disk was too slow)")), "{text}");
    }
}

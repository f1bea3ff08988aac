//! Counts what a run comes to, from the same events that everybody sees.

use crewboss_protocol::Outcome;
use crewboss_protocol::machine::HeldGuest;

use crate::event::{Event, EventKind, EventSink, HeldSummary, Stopped, Summary, TaskDone};

/// Entries in the list of slowest tasks.
const SLOWEST_MAX: usize = 10;

/// Builds a [`Summary`].
#[derive(Debug, Default)]
pub struct Tally {
    summary: Summary,
    started_ms: u64,
    tasks: u32,
    finished: u32,
}

impl Tally {
    /// The summary as of now.
    pub fn summary(&self, now_ms: u64, stopped: Option<Stopped>) -> Summary {
        let mut summary = self.summary.clone();
        summary.wall_ms = now_ms.saturating_sub(self.started_ms);
        summary.unfinished = self.tasks - self.finished;
        summary.stopped = stopped;
        summary
    }

    fn done(&mut self, done: &TaskDone) {
        self.finished += 1;
        *self.summary.outcomes.entry(done.outcome).or_default() += 1;
        if let Some(recorded) = done.recorded {
            *self.summary.recorded.entry(recorded).or_default() += 1;
        }
        if done.outcome == Outcome::Skipped {
            return;
        }
        if let Some(host) = &done.host {
            self.summary.hosts.entry(host.clone()).or_default().tasks += 1;
        }
        if let (Some(host), Some(held)) = (&done.host, &done.held) {
            let (host, guest, commit) = (host.clone(), HeldGuest::clone(held), done.commit.clone());
            self.summary.held.push(HeldSummary { host, guest, commit });
        }
        let slowest = &mut self.summary.slowest;
        let place = slowest.partition_point(|(_, wall_ms)| *wall_ms >= done.wall_ms);
        if place < SLOWEST_MAX {
            slowest.insert(place, (format!("{} @ {}", done.target, done.commit), done.wall_ms));
            slowest.truncate(SLOWEST_MAX);
        }
    }
}

impl EventSink for Tally {
    fn event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { tasks, hosts, .. } => {
                self.started_ms = event.time_ms;
                self.tasks = *tasks;
                for host in hosts {
                    self.summary.hosts.entry(host.clone()).or_default();
                }
            }
            EventKind::TaskDone(done) => self.done(done),
            EventKind::HostLost { host, .. } => self.summary.hosts.entry(host.clone()).or_default().lost += 1,
            _ => {}
        }
    }
}

//! The one ordered stream of events, and the clocks of a run.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crewboss_protocol::Millis;

use crate::event::{Event, EventKind, EventSink, Stopped, Summary};
use crate::run::awake::Awake;
use crate::run::log::BossLog;
use crate::run::tally::Tally;

/// Gives every event its time and hands it to every sink, in the same order.
pub struct EventStream {
    tally: Tally,
    log: Option<BossLog>,
    sinks: Vec<Box<dyn EventSink + Send>>,
    started: Instant,
    awake: Arc<Awake>,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("sinks", &self.sinks.len()).finish_non_exhaustive()
    }
}

impl EventStream {
    /// A stream into these sinks.
    pub fn new(sinks: Vec<Box<dyn EventSink + Send>>, awake: Arc<Awake>) -> Self {
        Self { tally: Tally::default(), log: None, sinks, started: Instant::now(), awake }
    }

    /// Adds `boss.log`, which needs the result directory.
    pub fn log_to(&mut self, log: BossLog) {
        self.log = Some(log);
    }

    /// Something has happened now.
    pub fn emit(&mut self, kind: EventKind) {
        let event = Event { time_ms: unix_ms(), kind };
        self.tally.event(&event);
        if let Some(log) = &mut self.log {
            log.event(&event);
        }
        for sink in &mut self.sinks {
            sink.event(&event);
        }
    }

    /// The summary as of now.
    pub fn summary(&self, stopped: Option<Stopped>) -> Summary {
        self.tally.summary(unix_ms(), stopped)
    }

    /// Time since the start of the run in which this process ran: what the scheduler counts in.
    pub fn now(&self) -> Millis {
        let ran = self.started.elapsed().saturating_sub(self.awake.stood());
        Millis(u64::try_from(ran.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Milliseconds since 1970, UTC. A clock set before that counts as 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

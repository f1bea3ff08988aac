//! What the parts of a session with one host have in common.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crewboss_protocol::limits::{KILL_GRACE, STOP_WITHIN};
use crewboss_protocol::{RunId, SessionId};
use tokio::sync::OnceCell;

use super::awake::Awake;
use super::hosts::Traffic;
use super::plan::Plan;
use crate::bulk::Bulk;
use crate::crew::{Limits, Timing};
use crate::link::{Connector, Link, OwnBinary, ShipError};
use crate::scheduler::HostIndex;
use crate::source::Source;

/// How long a host may take to end a session in order. The boss itself needs a moment after that.
pub(super) const QUIT_WITHIN: Duration = STOP_WITHIN.saturating_sub(Duration::from_millis(800));
const _: () = assert!(QUIT_WITHIN.as_millis() > KILL_GRACE.as_millis());

/// A log is cut at the end of a piece, and the result says so in a line.
pub(super) const LOG_SLACK: u64 = 1 << 20;

/// What all sessions of a run share.
#[derive(Debug)]
pub struct Common {
    /// Makes connections.
    pub connector: Connector,
    /// What is sent to hosts; see [`Self::binary`].
    pub binary: OnceCell<OwnBinary>,
    /// The run.
    pub run: RunId,
    /// Who started it, as `user@computer`.
    pub boss: String,
    /// Priority of the run.
    pub priority: u32,
    /// Heartbeats.
    pub timing: Timing,
    /// How much is taken from hosts.
    pub limits: Limits,
    /// Whether this process itself stood still.
    pub awake: Arc<Awake>,
    /// Only ask what hosts are.
    pub probe_only: bool,
    /// Have hosts measure everything anew.
    pub refresh: bool,
}

impl Common {
    /// This program's own file. Reading it takes about as long as a login, so it happens at the
    /// same time.
    pub async fn binary(&self) -> Result<&OwnBinary, ShipError> {
        let read = || async {
            let read = tokio::task::spawn_blocking(OwnBinary::current).await;
            read.unwrap_or_else(|error| {
                Err(ShipError::OwnBinary { path: "/proc/self/exe".into(), source: error.into() })
            })
        };
        self.binary.get_or_try_init(read).await
    }
}

/// What a session works on, known once the plan is made.
#[derive(Debug)]
pub struct Work {
    /// What is built.
    pub plan: Arc<Plan>,
    /// Where git objects come from.
    pub source: Source,
    /// Where logs of hosts go.
    pub root: PathBuf,
}

/// A host during one session: what helpers of the session need.
#[derive(Debug)]
pub struct Site {
    /// Its place in the crew.
    pub index: HostIndex,
    /// Bytes both ways.
    pub traffic: Arc<Traffic>,
    pub(super) common: Arc<Common>,
    pub(super) work_dir: Option<String>,
    pub(super) session: SessionId,
    pub(super) link: Link,
}

impl Site {
    /// Opens a bulk channel.
    pub async fn open_bulk(&self) -> Result<Bulk, ShipError> {
        let binary = self.common.binary().await?;
        let work = self.work_dir.as_deref();
        let mut bulk = Bulk::open(&self.link, binary, &self.session, work, &self.common.timing).await?;
        bulk.limit_logs(self.common.limits.task.log_bytes.saturating_add(LOG_SLACK));
        Ok(bulk)
    }
}

//! The beginning of a run: what is asked for, what is read, who is started.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crewboss_protocol::RunId;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::awake::Awake;
use super::dispatch::{Dispatcher, HostState};
use super::done::{Division, Force, divide};
use super::events::{EventStream, unix_ms};
use super::log::BossLog;
use super::plan::{Commit, Guests, Plan, PlanError};
use super::session::Supervisor;
use super::site::{Common, Work};
use super::upload::Uploader;
use super::{Inbox, Traffic};
use crate::crew::Crew;
use crate::descriptors::{self, TooFew};
use crate::event::{EventSink, Summary};
use crate::link::{Connector, LinkError, ShipError};
use crate::plan::{Selection, TargetPlan, Uploads};
use crate::scheduler::HostIndex;
use crate::source::{Source, SourceError};
use crate::store::{History, Journal, JournalError, OutDir, StoreError, Writer};

/// Reports that may wait for the run loop; each holds what one read brought. Sessions wait when it
/// is full.
const REPORTS_WAITING: usize = 256;

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The hosts.
    pub crew: Crew,
    /// Some path in the repository.
    pub repository: PathBuf,
    /// Which commits.
    pub selection: Selection,
    /// Which targets.
    pub targets: Vec<TargetPlan>,
    /// The result directory.
    pub out: PathBuf,
    /// Which recorded results are built again.
    pub force: Force,
    /// What is asked of guests for a person.
    pub guests: Guests,
    /// What is done with uploads.
    pub uploads: Uploads,
    /// Priority of the run; 0 is ordinary.
    pub priority: u32,
    /// Who asks, as `user@computer`.
    pub boss: String,
}

/// Why a run cannot begin, or not end in order.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The repository or the selection.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The result directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Open files.
    #[error(transparent)]
    Descriptors(#[from] TooFew),
    /// ssh's surroundings.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// This program's own file.
    #[error(transparent)]
    Ship(#[from] ShipError),
    /// It was asked to stop while the source was read.
    #[error("interrupted before anything was started")]
    Interrupted,
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl RunError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Source(error) => error.hint(),
            Self::Link(error) => error.hint().map(Cow::Borrowed),
            Self::Ship(error) => error.hint().map(Cow::Borrowed),
            Self::Descriptors(_) => Some(Cow::Borrowed(
                "have the limit raised (`nofile` in /etc/security/limits.conf), or use fewer hosts at once (--host)",
            )),
            Self::Store(error) => error.hint().map(Cow::Borrowed),
            Self::Plan(_) | Self::Journal(_) | Self::Thread(_) | Self::Interrupted => None,
        }
    }
}

/// A run under way.
pub(super) struct Started {
    pub(super) dispatcher: Dispatcher,
    pub(super) inbox: Inbox,
    supervisors: JoinSet<()>,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").finish_non_exhaustive()
    }
}

impl Started {
    /// Ends the sessions, then the record.
    pub(super) async fn finish(mut self) -> Result<Summary, RunError> {
        self.dispatcher.quit();
        self.inbox.reports.close();
        let all = async { while self.supervisors.join_next().await.is_some() {} };
        if timeout(crewboss_protocol::limits::STOP_WITHIN, all).await.is_err() {
            tracing::warn!("not every session ended in time");
        }
        Ok(self.dispatcher.finish()?)
    }
}

/// A new run's id: the time, and something that tells apart runs of the same second.
pub(crate) fn run_id() -> RunId {
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let text = format!("{time}-{:08x}", fastrand::u32(..));
    text.parse().unwrap_or_else(|_| unreachable!("{text:?} is made of digits and dashes"))
}

pub(super) async fn start(
    request: RunRequest,
    sinks: Vec<Box<dyn EventSink + Send>>,
    stop: &mut watch::Receiver<bool>,
) -> Result<Started, RunError> {
    descriptors::provide(request.crew.hosts.len())?;
    let awake = Awake::watching(request.crew.timing.silence);
    let mut events = EventStream::new(sinks, awake.clone());
    let run = run_id();
    let common = Common {
        connector: Connector::new(&request.crew.ssh, &request.crew.timing)?,
        binary: OnceCell::new(),
        run: run.clone(),
        boss: request.boss,
        priority: request.priority,
        timing: request.crew.timing,
        limits: request.crew.limits,
        awake: awake.clone(),
        probe_only: false,
        refresh: false,
    };
    // What can be refused is refused before anything is started anywhere.
    let planned = make_plan(request.repository, request.selection, request.targets);
    let (source, plan) = tokio::select! {
        biased;
        Ok(_) = stop.wait_for(|&asked| asked) => return Err(RunError::Interrupted),
        planned = planned => planned?,
    };
    let common = Arc::new(common);
    let Sessions { hosts, reports, work, supervisors } = Sessions::start(&request.crew, common.clone());
    let plan = plan.with_guests(request.guests);
    let (place, force, this) = (request.out, request.force, run.clone());
    let log_room = request.crew.limits.host_log;
    // The disk may stand still, and hosts are told meanwhile that we are there.
    let opened = tokio::task::spawn_blocking(move || Record::open(&place, &this, plan, force, log_room));
    let opened = tokio::select! {
        biased;
        Ok(_) = stop.wait_for(|&asked| asked) => return Err(RunError::Interrupted),
        opened = opened => opened.map_err(|error| RunError::Thread(std::io::Error::other(error)))?,
    };
    let Record { out, journal, log, plan, division, damage } = opened?;
    events.log_to(log);
    let (replies, stored) = mpsc::unbounded_channel();
    let store = Writer::start(out.root().to_owned(), journal, move |reply| {
        // If the run loop is gone, the process is about to end.
        replies.send(reply).ok();
    });
    let store = store?;
    let (ends, uploaded) = mpsc::unbounded_channel();
    let uploader = Uploader::new(request.uploads, ends);
    let plan = Arc::new(plan);
    work.send_replace(Some(Arc::new(Work { plan: plan.clone(), source, root: out.root().to_owned() })));
    let mut dispatcher = Dispatcher::new(run, plan, hosts, events, (out, store), uploader, &common);
    dispatcher.begin(damage);
    dispatcher.add(division);
    Ok(Started { dispatcher, inbox: Inbox { reports, stored, uploaded }, supervisors })
}

/// What is open for the whole of a run, and what it says of earlier ones.
struct Record {
    out: OutDir,
    journal: Journal,
    log: BossLog,
    plan: Plan,
    division: Division,
    damage: Option<String>,
}

impl Record {
    fn open(place: &Path, run: &RunId, plan: Plan, force: Force, log_room: u64) -> Result<Self, RunError> {
        let out = OutDir::open(place, run)?;
        let (mut journal, History { recorded, damage }) = Journal::open(out.root())?;
        journal.begin(run, unix_ms())?;
        let log = BossLog::open(out.root(), log_room)?;
        // Reads a result of each task that is done.
        let division = divide(&plan, &recorded, out.root(), force);
        Ok(Self { out, journal, log, plan, division, damage })
    }
}

/// Reads the repository on a thread that may wait.
pub(crate) async fn make_plan(
    repository: PathBuf,
    selection: Selection,
    targets: Vec<TargetPlan>,
) -> Result<(Source, Plan), RunError> {
    let (done, result) = oneshot::channel();
    let read = move || {
        let made = Source::open(&repository, &selection).map_err(RunError::from).and_then(|source| {
            let commits = source.commits().iter().map(Commit::from).collect();
            Ok((Plan::new(commits, targets)?, source))
        });
        // Nobody waits if the run was dropped.
        done.send(made.map(|(plan, source)| (source, plan))).ok();
    };
    std::thread::Builder::new().name("plan".to_owned()).spawn(read).map_err(RunError::Thread)?;
    match result.await {
        Ok(made) => made,
        Err(_) => Err(RunError::Thread(std::io::Error::other("the planning thread ended"))),
    }
}

/// All hosts of a crew, being connected.
pub(crate) struct Sessions {
    pub(crate) hosts: Vec<HostState>,
    pub(crate) reports: mpsc::Receiver<super::Report>,
    pub(crate) work: watch::Sender<Option<Arc<Work>>>,
    pub(crate) supervisors: JoinSet<()>,
}

impl Sessions {
    pub(crate) fn start(crew: &Crew, common: Arc<Common>) -> Self {
        let (work, working) = watch::channel(None);
        let (reports, inbox) = mpsc::channel(REPORTS_WAITING);
        let mut supervisors = JoinSet::new();
        let mut hosts = Vec::new();
        for (index, host) in (0..).map(HostIndex).zip(&crew.hosts) {
            // The scheduler limits what is under way at a host.
            let (orders, obeying) = mpsc::unbounded_channel();
            let traffic = Arc::new(Traffic::default());
            hosts.push(HostState::new(host.name.clone(), host.tags.clone(), orders, traffic.clone()));
            let supervisor = Supervisor::new(
                common.clone(),
                working.clone(),
                index,
                host.clone(),
                traffic,
                obeying,
                reports.clone(),
            );
            supervisors.spawn(supervisor.run());
        }
        Self { hosts, reports: inbox, work, supervisors }
    }
}

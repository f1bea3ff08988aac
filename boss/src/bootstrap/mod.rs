//! Has machines bootstrapped ahead of time, on all hosts at once. Each host does as many at a time
//! as it has slots.

mod choice;
mod host;

use std::sync::Arc;

use crewboss_protocol::message::BootstrapEnd;
use crewboss_protocol::{HostFacts, HostName, Name};
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use choice::Wanted;

use crate::crew::Crew;
use crate::descriptors;
use crate::link::Connector;
use crate::run::{Awake, Common, Opening, RunError, run_id};
use crate::scheduler::HostIndex;
use host::{Orders, keep_host};

/// How it went with one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As the host says, or as it would have.
    Ended(BootstrapEnd),
    /// It was not asked for by name, and this host cannot run it.
    Skipped {
        /// Why.
        why: String,
    },
}

/// A machine of a host and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The machine.
    pub machine: Name,
    /// The toolchain that it was to be given.
    pub toolchain: Name,
    /// How it went.
    pub verdict: Verdict,
}

impl Line {
    /// Whether nothing is left to be done.
    pub fn is_good(&self) -> bool {
        let good = |end: &BootstrapEnd| matches!(end, BootstrapEnd::Made { .. } | BootstrapEnd::Ready { .. });
        match &self.verdict {
            Verdict::Ended(end) => good(end),
            Verdict::Skipped { .. } => true,
        }
    }
}

/// A host with its machines, or why it could not be asked.
pub type Bootstrapped = (HostName, Result<Vec<Line>, String>);

/// What goes on, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A machine: what is being done with it.
    Step {
        /// On this host.
        host: HostName,
        /// The machine.
        machine: Name,
        /// What.
        text: String,
    },
    /// What its guest prints.
    Output {
        /// On this host.
        host: HostName,
        /// The machine.
        machine: Name,
        /// The output.
        text: String,
    },
    /// Something about a host.
    Notice {
        /// Which.
        host: HostName,
        /// What.
        text: String,
    },
}

/// Why nothing was begun.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A name that no host has.
    #[error("no host has a {what} {name}")]
    Unknown {
        /// What it would be the name of.
        what: &'static str,
        /// The name.
        name: Name,
    },
    /// This computer cannot connect to anybody.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Bootstraps what is wanted. When `stop` becomes true, everything is stopped. Returns the hosts in
/// the order of the crew.
///
/// # Errors
/// If this computer cannot connect to anybody, or a name is unknown. What is wrong with a host is
/// its answer.
pub async fn bootstrap(
    crew: &Crew,
    wanted: &Wanted,
    boss: String,
    stop: watch::Receiver<bool>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Bootstrapped>, BootstrapError> {
    descriptors::provide(crew.hosts.len()).map_err(RunError::from)?;
    let common = Arc::new(Common {
        connector: Connector::new(&crew.ssh, &crew.timing).map_err(RunError::from)?,
        binary: OnceCell::new(),
        run: run_id(),
        boss,
        priority: 0,
        timing: crew.timing,
        limits: crew.limits,
        awake: Awake::watching(crew.timing.silence),
        probe_only: false,
        refresh: false,
    });
    let (tell, mut told) = mpsc::unbounded_channel();
    let (mut hosts, mut asked) = (JoinSet::new(), Vec::new());
    for (index, host) in (0..).map(HostIndex).zip(&crew.hosts) {
        let opening = Opening { common: common.clone(), host: host.clone(), index, session: 1 };
        let (facts, answer) = oneshot::channel();
        let (order, orders) = oneshot::channel();
        let kept = keep_host(opening, facts, orders, stop.clone(), tell.clone());
        hosts.spawn(async move { (index, kept.await) });
        asked.push((answer, order));
    }
    drop(tell);
    let mut answers = Vec::new();
    for (answer, order) in asked {
        answers.push((answer.await.ok(), order));
    }
    let answered = answers.iter().filter_map(|(facts, _)| facts.as_ref());
    // A host that could not be asked may be the one that has it.
    if answers.iter().all(|(facts, _)| facts.is_some())
        && let Some((what, name)) = wanted.unknown(answered)
    {
        let name = name.clone();
        drop(answers);
        while hosts.join_next().await.is_some() {}
        return Err(BootstrapError::Unknown { what, name });
    }
    for (facts, order) in answers {
        // One that has no facts has ended, and says why.
        let chosen = facts.map(|facts: HostFacts| wanted.choose(&facts));
        order.send(Orders { chosen: chosen.unwrap_or_default(), force: wanted.force }).ok();
    }
    while let Some(one) = told.recv().await {
        progress(one);
    }
    let mut all: Vec<_> =
        crew.hosts.iter().map(|host| (host.name.clone(), Err("no answer".to_owned()))).collect();
    while let Some(joined) = hosts.join_next().await {
        if let Ok((index, kept)) = joined {
            all[index.0 as usize].1 = kept;
        }
    }
    Ok(all)
}

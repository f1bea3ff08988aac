//! Asks every host of a crew what it is and who uses it. Nothing is left there but the worker's
//! binary and what it remembers of its measurements.

use std::sync::Arc;

use crewboss_protocol::HostFacts;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::crew::Crew;
use crate::descriptors;
use crate::link::Connector;
use crate::report::{Answer, Heard, gather};
use crate::run::{Awake, Common, Opening, RunError, run_id};
use crate::scheduler::HostIndex;

/// A host, and what it says or why it does not.
pub type Probed = Answer<HostFacts>;

/// Asks all hosts at once; one that is slow delays only the end. In the order of the crew; `told`
/// hears each when it has answered.
///
/// With `refresh`, hosts measure and try everything anew.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub async fn probe(
    crew: &Crew,
    boss: String,
    refresh: bool,
    told: &mut dyn FnMut(Heard<'_, HostFacts>),
) -> Result<Vec<Probed>, RunError> {
    descriptors::provide(crew.hosts.len())?;
    let common = Arc::new(Common {
        connector: Connector::new(&crew.ssh, &crew.timing)?,
        binary: OnceCell::new(),
        run: run_id(),
        boss,
        priority: 0,
        timing: crew.timing,
        limits: crew.limits,
        awake: Awake::watching(crew.timing.silence),
        probe_only: true,
        refresh,
    });
    let mut asked = JoinSet::new();
    for (index, host) in (0..).map(HostIndex).zip(&crew.hosts) {
        let opening = Opening { common: common.clone(), host: host.clone(), index, session: 1 };
        asked.spawn(async move { (index.0 as usize, ask(opening).await) });
    }
    Ok(gather(&crew.hosts, asked, told).await)
}

async fn ask(opening: Opening) -> Result<HostFacts, String> {
    match opening.greet().await {
        Ok(greeting) => {
            let facts = greeting.ready.facts.clone();
            greeting.part().await;
            Ok(facts)
        }
        Err(error) => Err(error.story(&opening.host.name)),
    }
}

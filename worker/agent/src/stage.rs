//! Running one stage, as a host runs it.

use std::collections::BTreeMap;
use std::io;

use crewboss_host::process::kill_all_descendants;
use crewboss_host::program::command::{NOT_FOUND, command};
use crewboss_host::program::run::Ended;
use crewboss_host::text::millis;
use crewboss_protocol::guest::{FromGuest, TaskDocument};
use crewboss_protocol::target::Stage;
use crewboss_protocol::{Name, StageExit, StageResult};

use super::error::AgentError;
use super::job::Reporter;
use super::place::Place;
use super::{source, variables};

/// What the host asked for.
pub(super) struct Order {
    pub(super) stage: Stage,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) wipe: bool,
}

/// Runs it to its end. Nothing of it is left then.
pub(super) fn run(
    reporter: &mut Reporter,
    place: &Place,
    task: &TaskDocument,
    order: &Order,
) -> Result<FromGuest, AgentError> {
    if order.wipe {
        source::renew(place)?;
    }
    let name = &order.stage.name;
    match start(reporter, place, task, order) {
        Ok(ended) if ended.unkillable => Err(AgentError::Unkillable { what: format!("stage {name}") }),
        Ok(ended) => {
            // Also when it ended because nobody took its output any more: that is only waited for
            // until it is cancelled.
            let stopped = ended.stopped.is_some() || reporter.is_cancelled();
            Ok(told(name, &ended, stopped))
        }
        Err(error) => {
            kill_all_descendants(|_| ());
            reporter.tell(&format!("stage {name} cannot be started: {error}"));
            Ok(FromGuest::Ended { result: result(name, NOT_FOUND, 0, 0), rss_kib_max: 0, stopped: false })
        }
    }
}

fn start(reporter: &mut Reporter, place: &Place, task: &TaskDocument, order: &Order) -> io::Result<Ended> {
    std::env::set_current_dir(place.src())?;
    let variables = variables::of_task(place, task, &order.variables);
    let mut command = command(&order.stage.command, &mut BTreeMap::new(), &variables).map_err(|program| {
        io::Error::new(io::ErrorKind::NotFound, format!("{program} is not on the PATH"))
    })?;
    variables::set(&mut command, &variables);
    reporter.run(command, task.at)
}

fn told(name: &Name, ended: &Ended, stopped: bool) -> FromGuest {
    let result = result(name, ended.exit, millis(ended.wall), millis(ended.cpu));
    FromGuest::Ended { result, rss_kib_max: ended.rss_kib, stopped }
}

fn result(name: &Name, exit: StageExit, wall_ms: u64, cpu_ms: u64) -> StageResult {
    StageResult { name: name.clone(), exit, wall_ms, cpu_ms }
}

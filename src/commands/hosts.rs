//! `crewboss hosts`: asks every host and shows what it says.

use std::io::IsTerminal;

use crewboss_boss::crew::Crew;
use crewboss_boss::probe::probe;

use super::build::in_runtime;
use super::{CommandError, crew, finish, now, palette, whoami};
use crate::cli::HostsArgs;
use crate::exit::Exit;
use crate::output::print;
use crate::terminal::hosts::{self, HostReport};

/// Runs the command. A host that cannot be asked makes the exit code 102.
pub fn run(arguments: &HostsArgs) -> Exit {
    finish(try_run(arguments))
}

fn try_run(arguments: &HostsArgs) -> Result<Exit, CommandError> {
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let reports = in_runtime(ask(crew, arguments.refresh))?;
    if arguments.json {
        let json = hosts::json(&reports)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    } else {
        let palette = palette(&arguments.common, std::io::stdout().is_terminal());
        print(&hosts::render(&reports, palette, now()));
    }
    let all = reports.iter().all(|report| report.facts.is_ok());
    Ok(if all { Exit::Good } else { Exit::CouldNotRun })
}

/// Asks all hosts of a crew.
pub async fn ask(crew: Crew, refresh: bool) -> Result<Vec<HostReport>, CommandError> {
    let answers = probe(&crew, whoami(), refresh).await?;
    Ok(answers.into_iter().map(|(name, facts)| HostReport { name, facts }).collect())
}

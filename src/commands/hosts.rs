//! `crewboss hosts`: asks every host and shows what it says.

use std::io::IsTerminal;

use crewboss_boss::crew::Crew;
use crewboss_boss::probe::probe;
use crewboss_boss::report::Heard;
use crewboss_protocol::HostFacts;

use super::build::in_runtime;
use super::{CommandError, crew, finish, now, palette, whoami};
use crate::cli::HostsArgs;
use crate::exit::Exit;
use crate::output::{print, show, waiting_for};
use crate::terminal::hosts::{self, HostReport};

/// Runs the command. A host that cannot be asked makes the exit code 102.
pub fn run(arguments: &HostsArgs) -> Exit {
    finish(try_run(arguments))
}

fn try_run(arguments: &HostsArgs) -> Result<Exit, CommandError> {
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let palette = palette(&arguments.common, std::io::stdout().is_terminal());
    let mut told = |report: &HostReport| {
        if !arguments.json {
            show(&hosts::details(report, palette, now()));
        }
    };
    let reports = in_runtime(ask(crew, arguments.refresh, &mut told))?;
    if arguments.json {
        let json = hosts::json(&reports)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    } else {
        print(&hosts::table(&reports));
    }
    let all = reports.iter().all(|report| report.facts.is_ok());
    Ok(if all { Exit::Good } else { Exit::CouldNotRun })
}

/// Asks all hosts of a crew; `told` hears each when it has answered.
pub async fn ask(
    crew: Crew,
    refresh: bool,
    told: &mut dyn FnMut(&HostReport),
) -> Result<Vec<HostReport>, CommandError> {
    let report = |(name, facts)| HostReport { name, facts };
    let mut heard = |heard: Heard<'_, HostFacts>| match heard {
        Heard::Answer(answer) => told(&report(answer.clone())),
        Heard::Waiting(hosts) => waiting_for(hosts),
    };
    let answers = probe(&crew, whoami(), refresh, &mut heard).await?;
    Ok(answers.into_iter().map(report).collect())
}

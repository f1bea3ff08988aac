//! `crewboss kill-workers`: cleans every host and shows what was done.

use std::io::IsTerminal;

use crewboss_boss::clean::clean;
use crewboss_boss::crew::Crew;

use super::build::in_runtime;
use super::{CommandError, crew, finish, palette};
use crate::cli::KillWorkersArgs;
use crate::exit::Exit;
use crate::output::print;
use crate::terminal::clean::{self as table, CleanedHost};

/// Runs the command. A host that could not be cleaned wholly makes the exit code 102.
pub fn run(arguments: &KillWorkersArgs) -> Exit {
    finish(try_run(arguments))
}

fn try_run(arguments: &KillWorkersArgs) -> Result<Exit, CommandError> {
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let hosts = in_runtime(sweep(crew, arguments.force))?;
    if arguments.json {
        let json = table::json(&hosts)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    } else {
        print(&table::render(&hosts, palette(&arguments.common, std::io::stdout().is_terminal())));
    }
    let all = hosts.iter().all(CleanedHost::is_good);
    Ok(if all { Exit::Good } else { Exit::CouldNotRun })
}

async fn sweep(crew: Crew, force: bool) -> Result<Vec<CleanedHost>, CommandError> {
    let answers = clean(&crew, force).await?;
    let hosts = answers.into_iter().map(|(host, answer)| {
        let (report, error) = match answer {
            Ok(report) => (Some(report), None),
            Err(error) => (None, Some(error)),
        };
        CleanedHost { host, report, error }
    });
    Ok(hosts.collect())
}

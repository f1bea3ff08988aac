//! `crewboss kill-workers`: cleans every host and shows what was done.

use std::io::IsTerminal;

use crewboss_boss::crew::Crew;

use super::build::in_runtime;
use super::{CommandError, crew, finish, palette};
use crate::cli::KillWorkersArgs;
use crate::exit::Exit;
use crate::output::print;
use crate::terminal::clean::{self, CleanedHost};

/// Runs the command. A host that could not be cleaned wholly makes the exit code 102.
pub fn run(arguments: &KillWorkersArgs) -> Exit {
    finish(try_run(arguments))
}

fn try_run(arguments: &KillWorkersArgs) -> Result<Exit, CommandError> {
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let hosts = in_runtime(sweep(crew, arguments.force))?;
    if arguments.json {
        let json = clean::json(&hosts)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    } else {
        print(&clean::render(&hosts, palette(&arguments.common, std::io::stdout().is_terminal())));
    }
    let all = hosts.iter().all(CleanedHost::is_good);
    Ok(if all { Exit::Good } else { Exit::CouldNotRun })
}

// The one place where the command meets the boss's cleaning of hosts.
async fn sweep(_: Crew, _: bool) -> Result<Vec<CleanedHost>, CommandError> {
    Err(CommandError::NotWired("cleaning hosts"))
}

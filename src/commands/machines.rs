//! `crewboss machines`: asks every host for its virtual machines and shows them.

use std::io::IsTerminal;

use super::build::in_runtime;
use super::hosts::ask;
use super::{CommandError, crew, finish, now, palette};
use crate::cli::{MachinesArgs, MachinesCommand};
use crate::exit::Exit;
use crate::output::print;
use crate::terminal::machines;

/// Runs the command. A host that cannot be asked makes the exit code 102.
pub fn run(arguments: &MachinesArgs) -> Exit {
    match &arguments.command {
        Some(MachinesCommand::Bootstrap(arguments)) => super::bootstrap::run(arguments),
        None => finish(try_run(arguments)),
    }
}

fn try_run(arguments: &MachinesArgs) -> Result<Exit, CommandError> {
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let reports = in_runtime(ask(crew, false, &mut |_| ()))?;
    if arguments.json {
        let json = machines::json(&reports)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    } else {
        let palette = palette(&arguments.common, std::io::stdout().is_terminal());
        print(&machines::render(&reports, palette, now()));
    }
    let all = reports.iter().all(|report| report.facts.is_ok());
    Ok(if all { Exit::Good } else { Exit::CouldNotRun })
}

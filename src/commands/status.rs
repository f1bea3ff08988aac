//! `crewboss status`: in short, who uses the hosts.

use std::io::IsTerminal as _;

use crewboss_boss::person::overview;
use crewboss_boss::report::Heard;
use crewboss_protocol::overview::Overview;

use super::build::in_runtime;
use super::{CommandError, crew, finish, now, palette};
use crate::cli::StatusArgs;
use crate::exit::Exit;
use crate::output::{print, show, waiting_for};
use crate::terminal::status;
pub use crate::terminal::status::guests;

/// Runs the command. A host that cannot be asked makes the exit code 102.
pub fn run(arguments: &StatusArgs) -> Exit {
    finish(try_run(arguments))
}

fn try_run(arguments: &StatusArgs) -> Result<Exit, CommandError> {
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let palette = palette(&arguments.common, std::io::stdout().is_terminal());
    let mut told = |heard: Heard<'_, Overview>| match heard {
        Heard::Answer(answer) if !arguments.json => {
            show(&status::render(std::slice::from_ref(answer), palette, now()))
        }
        Heard::Answer(_) => {}
        Heard::Waiting(hosts) => waiting_for(hosts),
    };
    let hosts = in_runtime(async { Ok(overview(&crew, &mut told).await?) })?;
    if arguments.json {
        let json = status::json(&hosts)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    }
    Ok(if hosts.iter().all(|(_, answer)| answer.is_ok()) { Exit::Good } else { Exit::CouldNotRun })
}

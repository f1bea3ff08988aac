//! `crewboss kill-workers`: cleans every host and shows what was done.

use std::io::IsTerminal;

use crewboss_boss::clean::{Thoroughly, clean};
use crewboss_boss::report::{Answer, Heard};
use crewboss_protocol::clean::CleanReport;

use super::build::in_runtime;
use super::{CommandError, crew, finish, palette, whoami};
use crate::cli::KillWorkersArgs;
use crate::exit::Exit;
use crate::output::{print, show, waiting_for};
use crate::terminal::clean::{self as table, CleanedHost};

/// Runs the command. A host that could not be cleaned wholly makes the exit code 102.
pub fn run(arguments: &KillWorkersArgs) -> Exit {
    finish(try_run(arguments))
}

fn try_run(arguments: &KillWorkersArgs) -> Result<Exit, CommandError> {
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let palette = palette(&arguments.common, std::io::stdout().is_terminal());
    let mut told = |heard: Heard<'_, CleanReport>| match heard {
        Heard::Answer(answer) if !arguments.json => show(&table::render(&cleaned(answer.clone()), palette)),
        Heard::Answer(_) => {}
        Heard::Waiting(hosts) => waiting_for(hosts),
    };
    let how = Thoroughly { force: arguments.force, purge: arguments.purge };
    let answers = in_runtime(async { Ok(clean(&crew, how, &whoami(), &mut told).await?) })?;
    let hosts: Vec<CleanedHost> = answers.into_iter().map(cleaned).collect();
    if arguments.json {
        let json = table::json(&hosts)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    }
    let all = hosts.iter().all(CleanedHost::is_good);
    Ok(if all { Exit::Good } else { Exit::CouldNotRun })
}

fn cleaned((host, answer): Answer<CleanReport>) -> CleanedHost {
    let (report, error) = match answer {
        Ok(report) => (Some(report), None),
        Err(error) => (None, Some(error)),
    };
    CleanedHost { host, report, error }
}

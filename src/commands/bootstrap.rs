//! `crewboss machines bootstrap`: makes machines ready ahead of the first task that needs them.

use std::io::IsTerminal;

use crewboss_boss::bootstrap::{BootstrapError, Bootstrapped, Line, Progress, Wanted, bootstrap};
use crewboss_boss::crew::Crew;
use crewboss_boss::outlet::Weight;
use crewboss_protocol::Name;

use super::build::in_runtime;
use super::{CommandError, crew, finish, palette, whoami};
use crate::cli::BootstrapArgs;
use crate::exit::Exit;
use crate::interrupt::{self, Hangup};
use crate::output::{Stream, print};
use crate::terminal::Verbosity;
use crate::terminal::bootstrap as table;

/// Runs the command. A machine that is not ready afterwards, or a host that could not be asked,
/// makes the exit code 102.
pub fn run(arguments: &BootstrapArgs) -> Exit {
    finish(try_run(arguments))
}

fn try_run(arguments: &BootstrapArgs) -> Result<Exit, CommandError> {
    let wanted = wanted(arguments)?;
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let verbosity = match (arguments.quiet, arguments.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, false) => Verbosity::Normal,
        (false, true) => Verbosity::Verbose,
    };
    let (hosts, interrupted) = in_runtime(carry_out(crew, wanted, verbosity))?;
    if arguments.json {
        let json = table::json(&hosts)
            .map_err(|error| CommandError::System { what: "write JSON", source: error.into() })?;
        print(&json);
        print("\n");
    } else {
        print(&table::render(&hosts, palette(&arguments.common, std::io::stdout().is_terminal())));
    }
    let good = |(_, lines): &Bootstrapped| lines.as_ref().is_ok_and(|lines| lines.iter().all(Line::is_good));
    Ok(match interrupted {
        true => Exit::Interrupted,
        false if hosts.iter().all(good) => Exit::Good,
        false => Exit::CouldNotRun,
    })
}

fn wanted(arguments: &BootstrapArgs) -> Result<Wanted, CommandError> {
    let name = |what: &str, text: &String| {
        text.parse::<Name>().map_err(|error| CommandError::Usage(format!("{what} {text:?}: {error}")))
    };
    let machines = arguments.machines.iter().map(|text| name("the machine", text));
    let toolchain = arguments.toolchain.as_ref().map(|text| name("the toolchain", text));
    Ok(Wanted {
        machines: machines.collect::<Result<_, _>>()?,
        toolchain: toolchain.transpose()?,
        force: arguments.force,
    })
}

async fn carry_out(
    crew: Crew,
    wanted: Wanted,
    verbosity: Verbosity,
) -> Result<(Vec<Bootstrapped>, bool), CommandError> {
    let stop = interrupt::listen(Hangup::UnlessIgnored)
        .map_err(|source| CommandError::System { what: "listen for signals", source })?;
    // Progress is no result, so it does not go where results go. If nobody wants to read it,
    // nothing is lost.
    let mut show = |progress: Progress| {
        if let Some(text) = table::progress(&progress, verbosity) {
            Stream::Err.put(Weight::News, text.as_bytes());
        }
    };
    let hosts = bootstrap(&crew, &wanted, whoami(), stop.clone(), &mut show).await;
    let hosts = hosts.map_err(|error| match error {
        BootstrapError::Run(error) => CommandError::Run(error),
        unknown => CommandError::Usage(unknown.to_string()),
    })?;
    let interrupted = *stop.borrow();
    Ok((hosts, interrupted))
}

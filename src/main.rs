//! `crewboss`: one binary that is boss, worker, and whatever a worker needs on its host.
//!
//! This package reads the command line and the configuration, and is the only place that prints.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod cli;
mod commands;
mod config;
mod exit;
mod interrupt;
mod logging;
mod output;
mod roles;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    crewboss_ground::set_signals();
    if let Some(role) = roles::recognise(std::env::args_os().skip(1)) {
        return roles::run(role);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody may be there to read it.
            drop(error.print());
            return if error.exit_code() == 0 { Exit::Good } else { Exit::Usage }.into();
        }
    };
    if let Err(source) = output::start() {
        output::complain(&commands::CommandError::System { what: "start a thread for output", source });
        return Exit::CouldNotRun.into();
    }
    // The results of a run are in its directory, whatever became of the lines about them.
    let is_run = matches!(&cli.command, Command::Build(arguments) if !arguments.dry_run);
    let mut exit = run(cli);
    if !output::finish() && !is_run && exit == Exit::Good {
        exit = Exit::CouldNotRun;
    }
    // Threads that still wait for something keep what they have until they are gone, and nobody
    // drops it then.
    crewboss_boss::link::abandon();
    exit.into()
}

fn run(cli: Cli) -> Exit {
    if let Err(error) = logging::start() {
        output::complain(&error);
        return Exit::Usage;
    }
    match cli.command {
        Command::Build(arguments) => commands::build::run(arguments),
        Command::Hosts(arguments) => commands::hosts::run(&arguments),
        Command::Machines(arguments) => commands::machines::run(&arguments),
        Command::Status(arguments) => commands::status::run(&arguments),
        Command::Enter(arguments) => commands::person::enter(&arguments),
        Command::Release(arguments) => commands::person::release(&arguments),
        Command::Retry(arguments) => commands::person::retry(&arguments),
        Command::KillWorkers(arguments) => commands::kill_workers::run(&arguments),
    }
}

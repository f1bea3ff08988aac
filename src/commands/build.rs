//! `crewboss build`: from the arguments to a run and its exit code.

use std::io::IsTerminal;
use std::path::PathBuf;

use crewboss_boss::dry_run::{DryTarget, dry_run as plan_run};
use crewboss_boss::event::{EventSink, Summary};
use crewboss_boss::plan::Uploads;
use crewboss_boss::run::{self, Force, RunRequest};
use tokio::sync::watch;

use super::guests::guests;
use super::{CommandError, crew, finish, palette, whoami, working_directory};
use crate::cli::BuildArgs;
use crate::config;
use crate::exit::Exit;
use crate::interrupt::{self, Hangup};
use crate::output::{Stream, complain, patience, print};
use crate::terminal::Verbosity;
use crate::terminal::bars::Bars;
use crate::terminal::events::{Events, EventsEnd};
use crate::terminal::plain::{Lines, Plain};
use crate::terminal::plan::{self, PlannedTarget};
use crate::terminal::screen;
use crate::terminal::summary;
use crate::terminal::text::{Palette, one_line};

/// The directory of results beside build.toml.
const OUT_DEFAULT: &str = "crewboss-results";

type Sinks = Vec<Box<dyn EventSink + Send>>;

/// Runs the command.
pub fn run(arguments: BuildArgs) -> Exit {
    finish(try_run(&arguments))
}

fn try_run(arguments: &BuildArgs) -> Result<Exit, CommandError> {
    let request = request(arguments)?;
    tracing::debug!(
        hosts = request.crew.hosts.len(),
        repository = %request.repository.display(),
        selection = ?request.selection,
        targets = request.targets.len(),
        out = %request.out.display(),
        force = ?request.force,
        priority = request.priority,
    );
    if arguments.dry_run {
        return dry_run(request);
    }
    let fail_on_warnings = arguments.fail_on_warnings;
    let verbosity = verbosity(arguments);
    let palette = palette(&arguments.common, std::io::stdout().is_terminal());
    let (sinks, end) = sinks(arguments, verbosity, palette)?;
    let out = request.out.clone();
    let summary = in_runtime(async move {
        let stop = interrupt::listen(Hangup::UnlessIgnored)
            .map_err(|source| CommandError::System { what: "listen for signals", source })?;
        execute(request, sinks, stop).await
    })?;
    print(&summary::render(&summary, &out, verbosity, palette));
    if let Some(Err(error)) = end.map(|end| end.result(patience())) {
        // The results are complete all the same, so this does not change the exit code.
        complain(&error);
    }
    Ok(Exit::of_run(&summary, fail_on_warnings))
}

/// Reads arguments and files into what a run has to know.
fn request(arguments: &BuildArgs) -> Result<RunRequest, CommandError> {
    let from = working_directory()?;
    let found = config::find_build(arguments.file.as_deref(), &from)?;
    let directory = from.join(found.file.directory());
    let mut build = config::load_build(found.file)?;
    build.select(&arguments.targets)?;
    let guests = guests(arguments, &build)?;
    let interactive = guests.pause.as_ref().map(|pause| pause.on_failure);
    let crew = crew(&arguments.common, &arguments.hosts)?;
    let selection = match &arguments.commits {
        Some(range) => {
            config::selection(range).map_err(|why| CommandError::Usage(format!("--commits: {why}")))?
        }
        None => build.selection,
    };
    let out = match &arguments.out {
        Some(out) => from.join(out),
        None => own_directory(directory.join(OUT_DEFAULT))?,
    };
    Ok(RunRequest {
        crew,
        selection,
        targets: build.targets,
        guests,
        uploads: Uploads { directory, commands: build.uploads },
        out,
        repository: found.repository,
        force: match interactive {
            // Nobody can be let into a task that is not run.
            Some(false) => Force::Everything,
            _ if arguments.force => Force::Everything,
            Some(true) => Force::Failed,
            None if arguments.force_failed => Force::Failed,
            None => Force::Nothing,
        },
        priority: arguments.priority,
        boss: whoami(),
    })
}

/// What nobody has named is not to lead elsewhere: it may have come with the repository.
fn own_directory(path: PathBuf) -> Result<PathBuf, CommandError> {
    if !path.is_symlink() {
        return Ok(path);
    }
    let why = format!(
        "{} is a symbolic link\n  hint: if results should go there, name it with --out",
        path.display()
    );
    Err(CommandError::Usage(why))
}

fn verbosity(arguments: &BuildArgs) -> Verbosity {
    match (arguments.quiet, arguments.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, false) => Verbosity::Normal,
        (false, true) => Verbosity::Verbose,
    }
}

/// Whoever is to hear of what happens: the terminal or plain lines, and the event file.
fn sinks(
    arguments: &BuildArgs,
    verbosity: Verbosity,
    palette: Palette,
) -> Result<(Sinks, Option<EventsEnd>), CommandError> {
    let mut sinks: Sinks = Vec::new();
    let mut end = None;
    if let Some(path) = &arguments.events {
        let (events, its_end) = Events::create(path)?;
        sinks.push(Box::new(events));
        end = Some(its_end);
    }
    // Bars are drawn on standard error. If either of the two goes into a file, plain lines are what
    // is wanted.
    let watched = std::io::stdout().is_terminal() && screen::can_draw() && verbosity > Verbosity::Quiet;
    match Stream::Err.queue().filter(|_| watched) {
        Some(out) => {
            let lines = Lines { verbosity, palette, good_tasks: verbosity > Verbosity::Normal };
            let bars = Bars::start(lines, out);
            let bars = bars.map_err(|source| CommandError::System { what: "start a thread", source })?;
            sinks.push(Box::new(bars));
        }
        None => sinks.push(Box::new(Plain::new(Stream::Out, verbosity, palette))),
    }
    Ok((sinks, end))
}

/// Shows the plan. The exit code says whether every task can be run.
fn dry_run(request: RunRequest) -> Result<Exit, CommandError> {
    let (commits, targets, damage) = in_runtime(plan_only(request))?;
    if let Some(damage) = damage {
        print(&format!("{}\n", one_line(&damage)));
    }
    print(&plan::render(commits, &targets));
    let impossible = targets.iter().any(PlannedTarget::is_impossible);
    Ok(if impossible { Exit::CouldNotRun } else { Exit::Good })
}

/// Everything of the boss happens on one thread; blocking work has threads of its own.
pub fn in_runtime<T>(work: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| CommandError::System { what: "start the runtime", source })?;
    let result = runtime.block_on(work);
    // What a thread still waits for, such as a disk that stands still, nobody wants any more.
    runtime.shutdown_background();
    result
}

async fn execute(
    request: RunRequest,
    sinks: Sinks,
    stop: watch::Receiver<bool>,
) -> Result<Summary, CommandError> {
    Ok(run::run(request, sinks, stop).await?)
}

/// The plan alone: number of commits, and the targets; and what is damaged in the journal.
async fn plan_only(request: RunRequest) -> Result<(u32, Vec<PlannedTarget>, Option<String>), CommandError> {
    let plan = plan_run(request).await?;
    let commits = u32::try_from(plan.commits.len()).unwrap_or(u32::MAX);
    let targets = plan.targets.into_iter();
    let planned =
        targets.map(|DryTarget { name, tasks, done, hosts }| PlannedTarget { name, tasks, done, hosts });
    Ok((commits, planned.collect(), plan.damage))
}

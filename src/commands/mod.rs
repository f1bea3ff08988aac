//! The commands, each from its arguments to its exit code.

pub mod bootstrap;
pub mod build;
pub mod find;
pub mod guests;
pub mod hosts;
pub mod kill_workers;
pub mod machines;
pub mod person;
pub mod status;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crewboss_boss::crew::Crew;
use crewboss_boss::run::{RunError, StoreError};

use crate::cli::CommonArgs;
use crate::config::{self, ConfigError};
use crate::exit::Exit;
use crate::output::complain_with_hint;
use crate::terminal::screen;
use crate::terminal::text::Palette;
use crate::terminal::way_in;

/// The time in seconds since 1970, by which what hosts tell of their guests is read.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The command line is wrong in a way that only its values show.
    #[error("{0}")]
    Usage(String),
    /// The event file.
    #[error(transparent)]
    Events(#[from] crate::terminal::events::EventsError),
    /// The system refuses something that crewboss cannot do without.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A guest could not be reached.
    #[error(transparent)]
    Person(#[from] crewboss_boss::person::PersonError),
    /// There is no such guest.
    #[error(transparent)]
    Find(#[from] find::FindError),
    /// The run could not begin, or its record could not be completed.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl CommandError {
    /// What a person can do about it, where the text does not say it already.
    fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            CommandError::Run(error) => error.hint(),
            CommandError::Person(error) => error.hint(),
            CommandError::Find(error) => error.hint().map(Cow::Borrowed),
            _ => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            CommandError::Config(_) | CommandError::Usage(_) => Exit::Usage,
            // Nothing was started; the path given is wrong.
            CommandError::Events(crate::terminal::events::EventsError::Create { .. }) => Exit::Usage,
            CommandError::Run(RunError::Source(_) | RunError::Plan(_)) => Exit::Usage,
            CommandError::Run(RunError::Store(StoreError::Foreign { .. } | StoreError::NoDirectory(_))) => {
                Exit::Usage
            }
            CommandError::Run(RunError::Interrupted) => Exit::Interrupted,
            CommandError::Events(_)
            | CommandError::System { .. }
            | CommandError::Run(_)
            | CommandError::Person(_)
            | CommandError::Find(_) => Exit::CouldNotRun,
        }
    }
}

/// The exit code of a command, its error told.
pub fn finish(result: Result<Exit, CommandError>) -> Exit {
    result.unwrap_or_else(|error| {
        complain_with_hint(&error, error.hint().as_deref());
        error.exit()
    })
}

/// The crew of a command, with the hosts that were named.
pub fn crew(common: &CommonArgs, hosts: &[String]) -> Result<Crew, ConfigError> {
    let home = crewboss_ground::home();
    let config_home = config_home(home.as_deref());
    let found = config::find_crew(common.crew.as_deref(), &working_directory()?, config_home.as_deref())?;
    let (mut crew, place) = match found {
        Some(file) => {
            let place = file.path.display().to_string();
            (config::load_crew(file, home.as_deref())?, place)
        }
        None => (config::local_crew(), "this computer's own crew (there is no crew.toml)".to_owned()),
    };
    config::select_hosts(&mut crew, hosts, &place)?;
    crewboss_ground::set_patience(crew.timing.stall);
    way_in::remember(common.crew.as_deref());
    Ok(crew)
}

/// The directory of the user's configuration, as the XDG base directories say: a relative one is
/// ignored.
fn config_home(home: Option<&Path>) -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    named.or_else(|| home.map(|home| home.join(".config")))
}

/// Where the search for files begins.
pub fn working_directory() -> Result<PathBuf, ConfigError> {
    std::env::current_dir().map_err(ConfigError::WorkingDirectory)
}

/// Colours, if they are wanted and can be seen.
pub fn palette(common: &CommonArgs, is_terminal: bool) -> Palette {
    let refused = common.no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Palette { colour: is_terminal && !refused && !screen::is_dumb() }
}

/// Who asks: `user@computer`, for people on the other side.
pub fn whoami() -> String {
    let user = &crewboss_ground::account().name;
    let name = crewboss_ground::kernel_text("/proc/sys/kernel/hostname").unwrap_or_default();
    let computer = if name.trim().is_empty() { "somewhere" } else { name.trim() };
    format!("{user}@{computer}").chars().filter(|c| !c.is_control()).take(100).collect()
}

//! The roles that crewboss has for itself: what a boss starts on a host. They are told apart before
//! anything else, so that they start fast, and they are no part of the interface.

pub mod person;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crewboss_agent as agent;
use crewboss_host::sys;
use crewboss_protocol::SessionId;
use crewboss_worker::sweep::Thoroughly;
use crewboss_worker::{bulk, core, guardian, overview as overview_of_host, runner, sweep, verify};

use crate::exit::Exit;
use crate::output::complain;

/// What a boss, or a worker, starts.
#[derive(Debug, PartialEq, Eq)]
pub enum Role {
    /// The guardian of a worker.
    Worker {
        /// The work directory, if not the default.
        work: Option<PathBuf>,
    },
    /// The worker itself, started by its guardian.
    WorkerProper {
        /// The work directory, if not the default.
        work: Option<PathBuf>,
        /// Where the guardian listens.
        pulse: Option<PathBuf>,
    },
    /// Runs the tasks of one slot. It is told its session for those who look for its processes.
    Runner,
    /// Carries source and results.
    Bulk {
        /// The session that it belongs to.
        session: SessionId,
        /// The work directory, if not the default.
        work: Option<PathBuf>,
    },
    /// Sweeps a host.
    Clean {
        /// What goes besides the dead.
        how: Thoroughly,
        /// The work directory, if not the default.
        work: Option<PathBuf>,
        /// The machine directory, if not the default.
        machines: Option<String>,
    },
    /// Says who uses a host.
    Overview(person::Place),
    /// Brings a person to a guest.
    Person(person::Call, person::Wish),
    /// Runs tasks in a guest.
    Guest(agent::Options),
    /// Says whether this binary arrived whole, after it was uploaded.
    Verify {
        /// The SHA-256 that it must have.
        sha256: String,
    },
}

/// Why a role was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// An argument that the role does not have.
    #[error("{role}: unexpected argument {argument:?}")]
    Unexpected {
        /// Which role.
        role: &'static str,
        /// The argument.
        argument: OsString,
    },
    /// An option without its value.
    #[error("{role}: {option} needs a value")]
    NoValue {
        /// Which role.
        role: &'static str,
        /// The option.
        option: &'static str,
    },
    /// The role needs an option.
    #[error("{role}: {option} is missing")]
    Missing {
        /// Which role.
        role: &'static str,
        /// The option.
        option: &'static str,
    },
    /// A path that is no text, as the boss would have sent.
    #[error("--machines: {path:?} is not UTF-8")]
    NotText {
        /// The path.
        path: OsString,
    },
    /// A session's id that cannot be one.
    #[error("bulk: {session:?} is not the id of a session")]
    Session {
        /// What was given.
        session: OsString,
    },
}

#[derive(Default)]
struct Options {
    work: Option<PathBuf>,
    pulse: Option<PathBuf>,
    machines: Option<OsString>,
    session: Option<OsString>,
    how: Thoroughly,
    guest: agent::Options,
}

/// Recognises a role by the first argument, the program's name left out. `None`: it is for a
/// person.
pub fn recognise(mut arguments: impl Iterator<Item = OsString>) -> Option<Result<Role, RoleError>> {
    let first = arguments.next()?;
    let rest: Vec<OsString> = arguments.collect();
    Some(match first.to_str()? {
        "worker" if rest.first().is_some_and(|word| word == "--proper") => {
            options("worker", &["--work", "--pulse"], rest[1..].to_vec())
                .map(|options| Role::WorkerProper { work: options.work, pulse: options.pulse })
        }
        "worker" => options("worker", &["--work"], rest).map(|options| Role::Worker { work: options.work }),
        "runner" => options("runner", &["--session"], rest).map(|_| Role::Runner),
        "bulk" => options("bulk", &["--work", "--session"], rest).and_then(bulk),
        "clean" => {
            options("clean", &["--work", "--machines", "--force", "--purge", "--by"], rest).and_then(clean)
        }
        "overview" => options("overview", &["--work", "--machines"], rest).and_then(overview),
        person::ENTER => person::wish(person::ENTER, rest).map(|(call, wish)| Role::Person(call, wish)),
        person::RELEASE => person::wish(person::RELEASE, rest).map(|(call, wish)| Role::Person(call, wish)),
        person::RETRY => person::wish(person::RETRY, rest).map(|(call, wish)| Role::Person(call, wish)),
        "guest" => options("guest", &["--root", "--port", "--shell-port"], rest)
            .map(|options| Role::Guest(options.guest)),
        "verify" => verify(&rest),
        _ => return None,
    })
}

fn bulk(options: Options) -> Result<Role, RoleError> {
    let session = options.session.ok_or(RoleError::Missing { role: "bulk", option: "--session" })?;
    let parsed = session.to_str().and_then(|session| session.parse().ok());
    let session = parsed.ok_or(RoleError::Session { session })?;
    Ok(Role::Bulk { session, work: options.work })
}

fn clean(options: Options) -> Result<Role, RoleError> {
    let machines = machines(options.machines)?;
    Ok(Role::Clean { how: options.how, work: options.work, machines })
}

fn overview(options: Options) -> Result<Role, RoleError> {
    let machines = machines(options.machines)?;
    Ok(Role::Overview(person::Place { work: options.work, machines }))
}

fn machines(path: Option<OsString>) -> Result<Option<String>, RoleError> {
    path.map(|path| path.into_string().map_err(|path| RoleError::NotText { path })).transpose()
}

fn verify(words: &[OsString]) -> Result<Role, RoleError> {
    match words {
        [sha256] => Ok(Role::Verify { sha256: sha256.to_string_lossy().into_owned() }),
        [] => Err(RoleError::Missing { role: "verify", option: "SHA256" }),
        [_, more, ..] => Err(RoleError::Unexpected { role: "verify", argument: more.clone() }),
    }
}

fn options(role: &'static str, known: &[&'static str], words: Vec<OsString>) -> Result<Options, RoleError> {
    let mut options = Options::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let option = known.iter().copied().find(|option| word == *option);
        let option = option.ok_or(RoleError::Unexpected { role, argument: word })?;
        let mut value = || words.next().ok_or(RoleError::NoValue { role, option });
        match option {
            "--work" => options.work = Some(value()?.into()),
            "--pulse" => options.pulse = Some(value()?.into()),
            "--session" => options.session = Some(value()?),
            "--root" => options.guest.root = Some(value()?.into()),
            "--machines" => options.machines = Some(value()?),
            "--port" => options.guest.port = Some(value()?.into()),
            "--shell-port" => options.guest.shell_port = Some(value()?.into()),
            // Workers that are ended read it in the command line.
            "--by" => drop(value()?),
            "--purge" => options.how.purge = true,
            _ => options.how.force = true,
        }
    }
    Ok(options)
}

/// Does what a role is for.
pub fn run(role: Result<Role, RoleError>) -> ExitCode {
    // Before anything else: a build may look at whatever starts. In a guest nobody else is there,
    // and people may look.
    if !matches!(role, Ok(Role::Guest(_) | Role::Person(..))) {
        sys::keep_to_itself();
    }
    match role {
        Ok(Role::Worker { work }) => guardian::main(work),
        Ok(Role::WorkerProper { work, pulse }) => core::main(work, pulse),
        Ok(Role::Runner) => runner::main(),
        Ok(Role::Bulk { session, work }) => bulk::main(work, session),
        Ok(Role::Clean { how, work, machines }) => sweep::clean_main(how, work, machines.as_deref()),
        Ok(Role::Overview(place)) => overview_of_host::main(place.work, place.machines.as_deref()),
        Ok(Role::Person(call, wish)) => person::run(call, wish).into(),
        Ok(Role::Guest(options)) => agent::main(&options),
        Ok(Role::Verify { sha256 }) => verify::main(&sha256),
        Err(error) => {
            complain(&error);
            Exit::Usage.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<Result<Role, RoleError>> {
        recognise(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn roles_are_recognised_by_the_first_argument() {
        let work = || Some(PathBuf::from("/w"));
        assert_eq!(of("worker"), Some(Ok(Role::Worker { work: None })));
        assert_eq!(of("worker --work /w"), Some(Ok(Role::Worker { work: work() })));
        let pulse = Some(PathBuf::from("/p"));
        assert_eq!(
            of("worker --proper --work /w --pulse /p"),
            Some(Ok(Role::WorkerProper { work: work(), pulse }))
        );
        assert_eq!(of("runner --session s"), Some(Ok(Role::Runner)));
        assert_eq!(
            of("bulk --session s --work /w"),
            Some(Ok(Role::Bulk { session: "s".parse().unwrap(), work: work() }))
        );
        let clean = |force, purge, machines| {
            Some(Ok(Role::Clean { how: Thoroughly { force, purge }, work: None, machines }))
        };
        assert_eq!(of("clean --force"), clean(true, false, None));
        assert_eq!(of("clean --force --by ann@laptop"), clean(true, false, None));
        assert_eq!(of("clean --purge"), clean(false, true, None));
        let machines = Some("/m".to_owned());
        assert_eq!(of("clean --machines /m"), clean(false, false, machines));
        assert!(matches!(of("overview --machines /m"), Some(Ok(Role::Overview(_)))));
        assert!(matches!(of("enter-guest a"), Some(Err(RoleError::Missing { .. }))));
        assert!(of("enter a").is_none(), "that is for a person");
        assert_eq!(of("guest"), Some(Ok(Role::Guest(agent::Options::default()))));
        let given =
            agent::Options { root: Some("/r".into()), port: Some("-".into()), shell_port: Some("/s".into()) };
        assert_eq!(of("guest --port - --shell-port /s --root /r"), Some(Ok(Role::Guest(given))));
        assert_eq!(of("verify abc"), Some(Ok(Role::Verify { sha256: "abc".to_owned() })));
        assert_eq!(of("build worker"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn wrong_arguments_of_a_role_are_refused() {
        for line in [
            "worker --force",
            "worker --pulse /p",
            "worker --work",
            "bulk",
            "bulk --session",
            "bulk --session ../x",
            "clean now",
            "clean --machines",
            "clean --by",
            "worker --machines /m",
            "verify",
            "verify a b",
            "guest --port",
            "guest --force",
            "guest x",
        ] {
            assert!(matches!(of(line), Some(Err(_))), "{line}");
        }
    }
}

//! The roles that bring a person to a guest of this host. They speak to the person's terminal, unlike all others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crewboss_protocol::{Name, StageExit};
use crewboss_worker::Layout;
use crewboss_worker::machine::directory::Machines;
use crewboss_worker::machine::person::PersonError;
use crewboss_worker::machine::person::enter::{Entry, Way, enter};
use crewboss_worker::machine::person::release::{Released, release};
use crewboss_worker::machine::person::retry::{Again, Retried, retry};

use super::RoleError;
use crate::exit::Exit;
use crate::output::{complain, print};

/// Where the guests of a host are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The work directory, if not the default.
    pub work: Option<PathBuf>,
    /// The machine directory, if not the default.
    pub machines: Option<String>,
}

/// What a person wants with a guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// To get in.
    Enter(Entry),
    /// To end it, or to let its task go on.
    Release(Name),
    /// To run a stage of it again.
    Retry(Again),
}

/// The words of these roles.
pub const ENTER: &str = "enter-guest";
/// See [`Wish::Release`].
pub const RELEASE: &str = "release-guest";
/// See [`Wish::Retry`].
pub const RETRY: &str = "retry-guest";

#[derive(Default)]
struct Given {
    place: Place,
    guest: Option<Name>,
    way: Option<Way>,
    forward: Option<String>,
    stage: Option<Name>,
    variables: BTreeMap<String, String>,
    wipe: bool,
}

/// Reads the arguments after the role's name.
pub fn wish(role: &'static str, words: Vec<OsString>) -> Result<(Place, Wish), RoleError> {
    let mut given = Given::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let word = text(role, word)?;
        let mut value = |option: &'static str| {
            words.next().ok_or(RoleError::NoValue { role, option }).and_then(|word| text(role, word))
        };
        let unexpected = |word: &str| RoleError::Unexpected { role, argument: word.into() };
        let name = |value: String| value.parse::<Name>().map_err(|_| unexpected(&value));
        match (role, word.as_str()) {
            (_, "--work") => given.place.work = Some(value("--work")?.into()),
            (_, "--machines") => given.place.machines = Some(value("--machines")?),
            (ENTER, "--shell") => given.way = Some(Way::Shell),
            (ENTER, "--console") => given.way = Some(Way::Console),
            (ENTER, "--vnc") => given.way = Some(Way::Display),
            (ENTER, "--forward") => given.forward = Some(value("--forward")?),
            (RETRY, "--stage") => given.stage = Some(name(value("--stage")?)?),
            (RETRY, "--wipe") => given.wipe = true,
            (RETRY, "--set") => {
                let text = value("--set")?;
                let (name, value) = text.split_once('=').ok_or_else(|| unexpected(&text))?;
                given.variables.insert(name.to_owned(), value.to_owned());
            }
            (_, guest) if given.guest.is_none() && !guest.starts_with('-') => {
                given.guest = Some(name(guest.to_owned())?);
            }
            _ => return Err(unexpected(&word)),
        }
    }
    given.wish(role)
}

impl Given {
    fn wish(self, role: &'static str) -> Result<(Place, Wish), RoleError> {
        let guest = self.guest.ok_or(RoleError::Missing { role, option: "GUEST" })?;
        let wish = match role {
            ENTER => Wish::Enter(Entry { guest, way: self.way, forward: self.forward }),
            RELEASE => Wish::Release(guest),
            _ => Wish::Retry(Again {
                guest,
                stage: self.stage.ok_or(RoleError::Missing { role, option: "--stage" })?,
                variables: self.variables,
                wipe: self.wipe,
            }),
        };
        Ok((self.place, wish))
    }
}

fn text(role: &'static str, word: OsString) -> Result<String, RoleError> {
    word.into_string().map_err(|argument| RoleError::Unexpected { role, argument })
}

/// Does it.
pub fn run(place: Place, wish: Wish) -> Exit {
    let resolved =
        Layout::resolve(place.work).and_then(|layout| Machines::resolve(&layout, place.machines.as_deref()));
    let machines = match resolved {
        Ok(machines) => machines,
        Err(why) => {
            complain(&Unresolved(why));
            return Exit::CouldNotRun;
        }
    };
    let done = match wish {
        Wish::Enter(entry) => enter(&machines, &entry).map(|()| Exit::Good),
        Wish::Release(guest) => release(&machines, &guest).map(|released| told(released, &guest)),
        Wish::Retry(again) => retry(&machines, &again).map(|retried| ended(&retried)),
    };
    done.unwrap_or_else(|error: PersonError| {
        complain(&error);
        Exit::CouldNotRun
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unresolved(String);

fn told(released: Released, guest: &Name) -> Exit {
    print(&match released {
        Released::Removed => format!("the guest {guest} is removed\n"),
        Released::GoesOn => format!("the task of the guest {guest} goes on\n"),
    });
    Exit::Good
}

fn ended(retried: &Retried) -> Exit {
    let result = match retried {
        Retried::Ended(result) => result,
        Retried::Interrupted => return Exit::Interrupted,
    };
    let seconds = result.wall_ms / 1000;
    let how = match result.exit {
        StageExit::Code(code) => format!("with exit code {code}"),
        StageExit::Signal(signal) => format!("by signal {signal}"),
        other => format!("({other})"),
    };
    print(&format!("stage {} ended {how} after {seconds}.{} s\n", result.name, result.wall_ms % 1000 / 100));
    if result.exit.is_success() { Exit::Good } else { Exit::TaskFailed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(role: &'static str, line: &str) -> Result<(Place, Wish), RoleError> {
        wish(role, line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn what_a_person_wants_is_understood() {
        let guest = || "tiny-default-abc123".parse().unwrap();
        let place = || Place { work: Some("/w".into()), machines: Some("/m".to_owned()) };
        assert_eq!(
            of(ENTER, "tiny-default-abc123 --console --work /w --machines /m"),
            Ok((place(), Wish::Enter(Entry { guest: guest(), way: Some(Way::Console), forward: None })))
        );
        assert_eq!(
            of(RELEASE, "--work /w --machines /m tiny-default-abc123"),
            Ok((place(), Wish::Release(guest())))
        );
        let variables = BTreeMap::from([("A".to_owned(), "b=c".to_owned()), ("D".to_owned(), String::new())]);
        let again = Again { guest: guest(), stage: "build".parse().unwrap(), variables, wipe: true };
        assert_eq!(
            of(
                RETRY,
                "tiny-default-abc123 --stage build --set A=b=c --set D= --wipe --work /w --machines /m"
            ),
            Ok((place(), Wish::Retry(again)))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (role, line) in [
            (ENTER, ""),
            (ENTER, "a b"),
            (ENTER, "../x"),
            (ENTER, "a --wipe"),
            (ENTER, "a --work"),
            (RELEASE, "a --console"),
            (RETRY, "a"),
            (RETRY, "a --stage"),
            (RETRY, "a --stage ../x"),
            (RETRY, "a --stage build --set X"),
        ] {
            assert!(of(role, line).is_err(), "{role} {line}");
        }
    }
}

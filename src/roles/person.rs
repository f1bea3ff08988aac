//! The roles that bring a person to a guest of this host. They speak to the person's crewboss, as
//! `protocol::visit` says.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crewboss_host::Layout;
use crewboss_machine::images::directory::Machines;
use crewboss_protocol::guest::GuestStream;
use crewboss_protocol::{HostName, Name, StageExit};
use crewboss_worker::person::caller::{Caller, Pulse};
use crewboss_worker::person::enter::{Entry, Way, enter};
use crewboss_worker::person::release::{Released, release};
use crewboss_worker::person::retry::{Again, Retried, retry};
use crewboss_worker::person::{PersonError, Who};

use super::RoleError;
use crate::exit::Exit;
use crate::output::{complain, with_causes};

/// Where the guests of a host are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The work directory, if not the default.
    pub work: Option<PathBuf>,
    /// The machine directory, if not the default.
    pub machines: Option<String>,
}

/// Who wants something, and how it is noticed that nobody is there any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// Where the guests are.
    pub place: Place,
    /// Who comes.
    pub who: Who,
    /// How often both ends say that they are there.
    pub pulse: Pulse,
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
    person: Option<String>,
    host: Option<HostName>,
    heartbeat: Option<Duration>,
    silence: Option<Duration>,
    take_over: bool,
    guest: Option<Name>,
    way: Option<Way>,
    forward: Option<String>,
    stage: Option<Name>,
    variables: usize,
    wipe: bool,
}

/// Reads the arguments after the role's name.
pub fn wish(role: &'static str, words: Vec<OsString>) -> Result<(Call, Wish), RoleError> {
    let mut given = Given::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let word = text(role, word)?;
        let mut value = |option: &'static str| {
            words.next().ok_or(RoleError::NoValue { role, option }).and_then(|word| text(role, word))
        };
        let unexpected = |word: String| RoleError::Unexpected { role, argument: word.into() };
        let name = |value: String| value.parse::<Name>().map_err(|_| unexpected(value));
        match (role, word.as_str()) {
            (_, "--work") => given.place.work = Some(value("--work")?.into()),
            (_, "--machines") => given.place.machines = Some(value("--machines")?),
            (_, "--person") => given.person = Some(value("--person")?),
            (_, "--host") => {
                let text = value("--host")?;
                given.host = Some(text.parse().map_err(|_| unexpected(text))?);
            }
            (_, "--heartbeat") => given.heartbeat = Some(millis(value("--heartbeat")?).map_err(unexpected)?),
            (_, "--silence") => given.silence = Some(millis(value("--silence")?).map_err(unexpected)?),
            (ENTER, "--take-over") => given.take_over = true,
            (ENTER, "--shell") => given.way = Some(Way::Shell),
            (ENTER, "--console") => given.way = Some(Way::Console),
            (ENTER, "--vnc") => given.way = Some(Way::Display),
            (ENTER, "--forward") => given.forward = Some(value("--forward")?),
            (RETRY, "--stage") => given.stage = Some(name(value("--stage")?)?),
            (RETRY, "--wipe") => given.wipe = true,
            (RETRY, "--variables") => {
                let text = value("--variables")?;
                given.variables = text.parse().map_err(|_| unexpected(text))?;
            }
            (_, guest) if given.guest.is_none() && !guest.starts_with('-') => {
                given.guest = Some(name(guest.to_owned())?);
            }
            _ => return Err(unexpected(word)),
        }
    }
    given.wish(role)
}

impl Given {
    fn wish(self, role: &'static str) -> Result<(Call, Wish), RoleError> {
        let missing = |option| move || RoleError::Missing { role, option };
        let guest = self.guest.ok_or_else(missing("GUEST"))?;
        let who = Who {
            person: self.person.ok_or_else(missing("--person"))?,
            host: self.host.ok_or_else(missing("--host"))?,
        };
        let pulse = Pulse {
            heartbeat: self.heartbeat.ok_or_else(missing("--heartbeat"))?,
            silence: self.silence.ok_or_else(missing("--silence"))?,
        };
        let wish = match role {
            ENTER => {
                let (way, forward, take_over) = (self.way, self.forward, self.take_over);
                Wish::Enter(Entry { guest, way, forward, take_over })
            }
            RELEASE => Wish::Release(guest),
            _ => Wish::Retry(Again {
                guest,
                stage: self.stage.ok_or_else(missing("--stage"))?,
                variables: self.variables,
                wipe: self.wipe,
            }),
        };
        Ok((Call { place: self.place, who, pulse }, wish))
    }
}

fn millis(text: String) -> Result<Duration, String> {
    text.parse().map(Duration::from_millis).map_err(|_| text)
}

fn text(role: &'static str, word: OsString) -> Result<String, RoleError> {
    word.into_string().map_err(|argument| RoleError::Unexpected { role, argument })
}

/// Does it.
pub fn run(call: Call, wish: Wish) -> Exit {
    let mut caller = match Caller::greet(call.pulse) {
        Ok(caller) => caller,
        Err(error) => {
            complain(&error);
            return Exit::CouldNotRun;
        }
    };
    let exit = match resolve(call.place) {
        Ok(machines) => serve(&machines, wish, &call.who, &mut caller),
        Err(why) => Err(why),
    };
    let exit = exit.unwrap_or_else(|why| {
        caller.fail(&why);
        Exit::CouldNotRun
    });
    caller.finish();
    exit
}

fn resolve(place: Place) -> Result<Machines, String> {
    Layout::resolve(place.work).and_then(|layout| Machines::resolve(&layout, place.machines.as_deref()))
}

fn serve(machines: &Machines, wish: Wish, who: &Who, caller: &mut Caller) -> Result<Exit, String> {
    let done = match wish {
        Wish::Enter(entry) => enter(machines, &entry, who, caller).map(|()| Exit::Good),
        Wish::Release(guest) => release(machines, &guest, who).map(|released| told(released, &guest, caller)),
        Wish::Retry(again) => retry(machines, &again, who, caller).map(|retried| ended(&retried, caller)),
    };
    done.map_err(|error: PersonError| with_causes(&error))
}

fn told(released: Released, guest: &Name, caller: &Caller) -> Exit {
    let text = match released {
        Released::Removed => format!("the guest {guest} is removed\n"),
        Released::GoesOn => format!("the task of the guest {guest} goes on\n"),
    };
    caller.show(GuestStream::Out, text.as_bytes());
    Exit::Good
}

fn ended(retried: &Retried, caller: &Caller) -> Exit {
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
    let tenths = result.wall_ms % 1000 / 100;
    let text = format!("stage {} ended {how} after {seconds}.{tenths} s\n", result.name);
    caller.show(GuestStream::Out, text.as_bytes());
    if result.exit.is_success() { Exit::Good } else { Exit::TaskFailed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str =
        " --work /w --machines /m --person ann@laptop --host lab1 --heartbeat 5000 --silence 20000";

    fn of(role: &'static str, line: &str) -> Result<(Call, Wish), RoleError> {
        wish(role, format!("{line}{CALL}").split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn what_a_person_wants_is_understood() {
        let guest = || "tiny-default-abc123".parse().unwrap();
        let call = || Call {
            place: Place { work: Some("/w".into()), machines: Some("/m".to_owned()) },
            who: Who { person: "ann@laptop".to_owned(), host: "lab1".parse().unwrap() },
            pulse: Pulse { heartbeat: Duration::from_secs(5), silence: Duration::from_secs(20) },
        };
        assert_eq!(
            of(ENTER, "tiny-default-abc123 --console --take-over"),
            Ok((
                call(),
                Wish::Enter(Entry {
                    guest: guest(),
                    way: Some(Way::Console),
                    forward: None,
                    take_over: true
                })
            ))
        );
        assert_eq!(of(RELEASE, "tiny-default-abc123"), Ok((call(), Wish::Release(guest()))));
        let again = Again { guest: guest(), stage: "build".parse().unwrap(), variables: 2, wipe: true };
        assert_eq!(
            of(RETRY, "tiny-default-abc123 --stage build --variables 2 --wipe"),
            Ok((call(), Wish::Retry(again)))
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
            (ENTER, "a --heartbeat x"),
            (RELEASE, "a --take-over"),
            (RELEASE, "a --console"),
            (RETRY, "a"),
            (RETRY, "a --stage"),
            (RETRY, "a --stage ../x"),
            (RETRY, "a --stage build --variables X"),
            (RETRY, "a --stage build --set X=1"),
        ] {
            assert!(of(role, line).is_err(), "{role} {line}");
        }
    }
}

//! `crewboss enter`, `release` and `retry`: a person and a guest on some host.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use crewboss_boss::crew::Crew;
use crewboss_boss::person::{News, Talk, Visit, overview};
use crewboss_boss::report::Heard;
use crewboss_protocol::Name;
use crewboss_protocol::message::is_variable;
use crewboss_protocol::overview::Overview;
use crewboss_protocol::visit::{Bytes, FromPerson, PIECE_MAX, ToPerson};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::build::in_runtime;
use super::find::{Found, find, parts};
use super::{CommandError, crew, finish, now, palette, status, whoami};
use crate::cli::{CommonArgs, EnterArgs, ReleaseArgs, RetryArgs};
use crate::config::RESERVED;
use crate::exit::Exit;
use crate::interrupt::{self, Hangup};
use crate::output::{complain, print, waiting_for};
use crate::roles::person::{ENTER, RELEASE, RETRY};
use crate::terminal::seat::{self, Raw, Screen, Shown, Typed};
use crate::terminal::way_in;

/// Gets the person in. Without a name it lists the guests.
pub fn enter(arguments: &EnterArgs) -> Exit {
    finish(try_enter(arguments))
}

fn try_enter(arguments: &EnterArgs) -> Result<Exit, CommandError> {
    let Some(guest) = &arguments.guest else { return list(&arguments.common) };
    let ways = [
        (arguments.shell, "--shell"),
        (arguments.console, "--console"),
        (arguments.vnc, "--vnc"),
        (arguments.take_over, "--take-over"),
    ];
    let mut options: Vec<String> =
        ways.iter().filter(|(given, _)| *given).map(|(_, option)| (*option).to_owned()).collect();
    let words = |found: &Found, ssh: Option<String>| {
        options.extend(ssh.into_iter().flat_map(|ssh| ["--forward".to_owned(), ssh]));
        [vec![ENTER.to_owned(), found.guest.to_string()], options].concat()
    };
    at_guest(&arguments.common, guest, Keyboard::Guests, Vec::new(), words)
}

fn list(common: &CommonArgs) -> Result<Exit, CommandError> {
    let crew = crew(common, &[])?;
    let mut waiting = |heard: Heard<'_, Overview>| {
        if let Heard::Waiting(hosts) = heard {
            waiting_for(hosts);
        }
    };
    let hosts = in_runtime(async { Ok(overview(&crew, &mut waiting).await?) })?;
    let palette = palette(common, std::io::stdout().is_terminal());
    print(&status::guests(&hosts, palette, now()));
    Ok(if hosts.iter().all(|(_, answer)| answer.is_ok()) { Exit::Good } else { Exit::CouldNotRun })
}

/// Ends a guest, or lets its task go on.
pub fn release(arguments: &ReleaseArgs) -> Exit {
    let words = |found: &Found, _| vec![RELEASE.to_owned(), found.guest.to_string()];
    finish(at_guest(&arguments.common, &arguments.guest, Keyboard::Ours, Vec::new(), words))
}

/// Runs a stage again.
pub fn retry(arguments: &RetryArgs) -> Exit {
    finish(try_retry(arguments))
}

fn try_retry(arguments: &RetryArgs) -> Result<Exit, CommandError> {
    let usage = |text: String| CommandError::Usage(text);
    let stage: Name = arguments
        .stage
        .parse()
        .map_err(|_| usage(format!("--stage: {:?} cannot be the name of a stage", arguments.stage)))?;
    let mut variables = BTreeMap::new();
    for variable in &arguments.variables {
        let named = variable.split_once('=').filter(|(name, _)| is_variable(name));
        let Some((name, value)) = named.filter(|_| !variable.contains(['\n', '\0'])) else {
            return Err(usage(format!("--set: {variable:?} is not NAME=VALUE on one line")));
        };
        variables.insert(name.to_owned(), value.to_owned());
        if variable.starts_with(RESERVED) {
            let hint = format!("variables of your own do not begin with {RESERVED}");
            return Err(usage(format!("--set: {variable:?} is set by crewboss itself\n  hint: {hint}")));
        }
    }
    let count = variables.len().to_string();
    let words = |found: &Found, _| {
        let mut words = vec![RETRY.to_owned(), found.guest.to_string(), "--stage".to_owned()];
        words.push(stage.to_string());
        words.extend(["--variables".to_owned(), count.clone()]);
        words.extend(arguments.wipe.then(|| "--wipe".to_owned()));
        words
    };
    // A command line is for everybody on that host to see.
    let variable = |(name, value)| FromPerson::Variable { name, value };
    let first = variables.into_iter().map(variable).collect();
    at_guest(&arguments.common, &arguments.guest, Keyboard::Ours, first, words)
}

/// Whose the keyboard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keyboard {
    /// What is typed goes to the guest.
    Guests,
    /// Only Ctrl-C is heard.
    Ours,
}

/// Finds the guest and runs a role beside it, with the person's keyboard and screen. It is told
/// what comes `first`.
fn at_guest(
    common: &CommonArgs,
    wanted: &str,
    keyboard: Keyboard,
    first: Vec<FromPerson>,
    words: impl FnOnce(&Found, Option<String>) -> Vec<String>,
) -> Result<Exit, CommandError> {
    let (host, _) = parts(wanted);
    let hosts: Vec<String> = host.map(str::to_owned).into_iter().collect();
    let crew = crew(common, &hosts)?;
    in_runtime(async move {
        let stop = interrupt::listen(Hangup::Asks)
            .map_err(|source| CommandError::System { what: "listen for signals", source })?;
        let (visit, found) = reach(&crew, wanted).await?;
        let words = words(&found, visit.ssh());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut talk = visit.talk(&words, &whoami()).await?;
        first.iter().for_each(|message| talk.tell(message));
        Seat::take(talk, keyboard)?.stay(stop).await
    })
}

async fn reach(crew: &Crew, wanted: &str) -> Result<(Visit, Found), CommandError> {
    let (_, guest) = parts(wanted);
    // A crew of one needs no search, and one connection does for everything.
    let found = match crew.hosts.as_slice() {
        [_] => None,
        _ => Some(find(guest, &overview(crew, &mut |_| ()).await?)?),
    };
    let named =
        |host: &&crewboss_boss::crew::Host| found.as_ref().is_none_or(|found| found.host == host.name);
    let Some(host) = crew.hosts.iter().find(named) else {
        return Err(CommandError::Usage("the crew has no hosts".to_owned()));
    };
    let (visit, overview) = Visit::begin(crew, host).await?;
    let found = match found {
        Some(found) => found,
        None => find(guest, &[(host.name.clone(), Ok(overview))])?,
    };
    Ok((visit, found))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

/// A person and a role on a host.
struct Seat {
    talk: Talk,
    screen: Screen,
    keyboard: Option<mpsc::Receiver<Typed>>,
    /// While the keyboard is the guest's.
    raw: Option<Raw>,
    /// What the screen does not take yet.
    next: Option<Shown>,
    /// What the guest prints goes to the screen as it is.
    is_terminal: bool,
}

impl Seat {
    fn take(talk: Talk, keyboard: Keyboard) -> Result<Self, CommandError> {
        let failed = |source| CommandError::System { what: "use the terminal", source };
        let is_terminal = keyboard == Keyboard::Guests;
        let keyboard = is_terminal.then(seat::keyboard).transpose().map_err(failed)?;
        let screen = Screen::begin().map_err(failed)?;
        Ok(Self { talk, screen, keyboard, raw: None, next: None, is_terminal })
    }

    /// Until the role has ended. When `stop` becomes true it is told that the person has gone, and
    /// waited for all the same.
    async fn stay(mut self, mut stop: watch::Receiver<bool>) -> Result<Exit, CommandError> {
        let failed = |source| CommandError::System { what: "listen for signals", source };
        let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
        let mut here = true;
        self.tell_size();
        loop {
            let (types, reads) = (here && self.talk.has_room(), self.next.is_none());
            tokio::select! {
                () = self.screen.show(&mut self.next), if !reads => {}
                news = self.talk.next(reads) => match news? {
                    News::Told(told) => self.told(told)?,
                    News::Over(code) => return Ok(exit(code)),
                },
                typed = next_typed(&mut self.keyboard), if types => here = self.typed(typed),
                _ = resized.recv(), if here => self.tell_size(),
                _ = stop.wait_for(|stop| *stop), if here => here = false,
            }
            if !here {
                self.keyboard = None;
                self.talk.leave().await;
            }
        }
    }

    fn tell_size(&mut self) {
        if let Some((rows, columns)) = seat::size().filter(|_| self.is_terminal) {
            self.talk.tell(&FromPerson::Size { rows, columns });
        }
    }

    /// Returns whether the person is still there.
    fn typed(&mut self, typed: Typed) -> bool {
        let (bytes, here) = match typed {
            Typed::Bytes(bytes) => (bytes, true),
            Typed::Leave(bytes) => (bytes, false),
            Typed::End => (Vec::new(), false),
        };
        for piece in bytes.chunks(PIECE_MAX) {
            self.talk.tell(&FromPerson::Typed(Bytes(piece.to_vec())));
        }
        here
    }

    fn told(&mut self, told: ToPerson) -> Result<(), CommandError> {
        self.next = match told {
            ToPerson::Here => None,
            ToPerson::Inside(true) => {
                let raw = Raw::begin();
                self.raw =
                    Some(raw.map_err(|source| CommandError::System { what: "use the terminal", source })?);
                None
            }
            ToPerson::Inside(false) => {
                let was_raw = self.raw.take().is_some() && std::io::stdin().is_terminal();
                // Where the guest left the cursor is unknown.
                was_raw.then(|| Shown::Raw(b"\r\n".to_vec()))
            }
            ToPerson::Shown { bytes, .. } if self.raw.is_some() => Some(Shown::Raw(bytes.0)),
            ToPerson::Shown { stream, bytes } => Some(Shown::Text(stream, bytes.0)),
            ToPerson::Said(text) => Some(Shown::Line(format!("crewboss: {}", way_in::here(&text)))),
            ToPerson::Command(line) => Some(Shown::Line(format!("  {line}"))),
            ToPerson::Failed(text) => {
                complain(&Failed(text));
                None
            }
        };
        Ok(())
    }
}

async fn next_typed(keyboard: &mut Option<mpsc::Receiver<Typed>>) -> Typed {
    match keyboard {
        Some(keyboard) => keyboard.recv().await.unwrap_or(Typed::End),
        None => std::future::pending().await,
    }
}

/// The roles end with our own codes.
fn exit(code: i32) -> Exit {
    let all = [Exit::Good, Exit::Usage, Exit::TaskFailed, Exit::CouldNotRun, Exit::Interrupted];
    let known = all.into_iter().find(|exit| code == i32::from(exit.code()));
    known.unwrap_or(Exit::CouldNotRun)
}

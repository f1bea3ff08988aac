//! `crewboss enter`, `release` and `retry`: a person and a guest on some host.

use std::io::IsTerminal as _;
use std::process::ExitStatus;

use crewboss_boss::crew::{Crew, Transport};
use crewboss_boss::person::{Input, Visit, overview};
use crewboss_protocol::message::is_variable;
use crewboss_protocol::{HostName, Name};

use super::build::in_runtime;
use super::find::{Found, find, parts};
use super::{CommandError, crew, finish, now, palette, status};
use crate::cli::{CommonArgs, EnterArgs, ReleaseArgs, RetryArgs};
use crate::exit::Exit;
use crate::interrupt::{self, Hangup};
use crate::output::{complain, print};
use crate::roles::person::{ENTER, RELEASE, RETRY};

/// What `ssh` ends with if it was not the command there that ended.
const SSH_LOST: i32 = 255;

/// Gets the person in. Without a name it lists the guests.
pub fn enter(arguments: &EnterArgs) -> Exit {
    finish(try_enter(arguments))
}

fn try_enter(arguments: &EnterArgs) -> Result<Exit, CommandError> {
    let Some(guest) = &arguments.guest else { return list(&arguments.common) };
    let ways = [(arguments.shell, "--shell"), (arguments.console, "--console"), (arguments.vnc, "--vnc")];
    let mut options: Vec<String> =
        ways.iter().filter(|(given, _)| *given).map(|(_, option)| (*option).to_owned()).collect();
    let words = |found: &Found, ssh: Option<String>| {
        options.extend(ssh.into_iter().flat_map(|ssh| ["--forward".to_owned(), ssh]));
        [vec![ENTER.to_owned(), found.guest.to_string()], options].concat()
    };
    let input = if std::io::stdin().is_terminal() { Input::Terminal } else { Input::Plain };
    at_guest(&arguments.common, guest, input, words)
}

fn list(common: &CommonArgs) -> Result<Exit, CommandError> {
    let crew = crew(common, &[])?;
    let hosts = in_runtime(async { Ok(overview(&crew).await?) })?;
    let palette = palette(common, std::io::stdout().is_terminal());
    print(&status::guests(&hosts, palette, now()));
    Ok(if hosts.iter().all(|(_, answer)| answer.is_ok()) { Exit::Good } else { Exit::CouldNotRun })
}

/// Ends a guest, or lets its task go on.
pub fn release(arguments: &ReleaseArgs) -> Exit {
    let words = |found: &Found, _| vec![RELEASE.to_owned(), found.guest.to_string()];
    finish(at_guest(&arguments.common, &arguments.guest, Input::Presence, words))
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
    for variable in &arguments.variables {
        let named = variable.split_once('=').is_some_and(|(name, _)| is_variable(name));
        if !named || variable.contains(['\n', '\0']) {
            return Err(usage(format!("--set: {variable:?} is not NAME=VALUE on one line")));
        }
    }
    let words = |found: &Found, _| {
        let mut words = vec![RETRY.to_owned(), found.guest.to_string(), "--stage".to_owned()];
        words.push(stage.to_string());
        for variable in &arguments.variables {
            words.extend(["--set".to_owned(), variable.clone()]);
        }
        words.extend(arguments.wipe.then(|| "--wipe".to_owned()));
        words
    };
    at_guest(&arguments.common, &arguments.guest, Input::Presence, words)
}

/// Finds the guest and runs a role beside it, with the person's terminal.
fn at_guest(
    common: &CommonArgs,
    wanted: &str,
    input: Input,
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
        let ended = visit.run(&words, input, stop).await?;
        let by_ssh = matches!(visit.host().transport, Transport::Ssh(_));
        Ok(exit(ended, by_ssh, &found.host))
    })
}

async fn reach(crew: &Crew, wanted: &str) -> Result<(Visit, Found), CommandError> {
    let (_, guest) = parts(wanted);
    // A crew of one needs no search, and one connection does for everything.
    let found = match crew.hosts.as_slice() {
        [_] => None,
        _ => Some(find(guest, &overview(crew).await?)?),
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
#[error("the connection to host {host} has ended; a guest that was kept is kept there")]
struct Lost {
    host: HostName,
}

/// The roles end with our own codes.
fn exit(ended: ExitStatus, by_ssh: bool, host: &HostName) -> Exit {
    let all = [Exit::Good, Exit::Usage, Exit::TaskFailed, Exit::CouldNotRun, Exit::Interrupted];
    let code = ended.code();
    if by_ssh && code == Some(SSH_LOST) {
        complain(&Lost { host: host.clone() });
    }
    let known = all.into_iter().find(|exit| code == Some(i32::from(exit.code())));
    known.unwrap_or(Exit::CouldNotRun)
}

//! Brings a person to a guest: finds out who uses which host, and runs a role there with the person's own terminal.

use std::borrow::Cow;
use std::os::unix::process::CommandExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use crewboss_protocol::overview::Overview;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::sync::{oneshot, watch};

use crate::crew::{Crew, Host, Transport};
use crate::link::{Connector, Link, OwnBinary, terminal_command};
use crate::report::{Answer, ReportError, of_crew, of_link};
use crate::run::RunError;

/// For one host. It only reads some files; most of this is for connecting, and for sending the program to a new host.
const OVERVIEW_WITHIN: Duration = Duration::from_secs(120);

/// The role that tells.
const OVERVIEW: &[&str] = &["overview"];

/// Asks all hosts at once who uses them, in the order of the crew.
///
/// # Errors
/// If this computer cannot connect to anybody. What is wrong with a host is its answer.
pub async fn overview(crew: &Crew) -> Result<Vec<Answer<Overview>>, RunError> {
    of_crew(crew, OVERVIEW, OVERVIEW_WITHIN).await
}

/// Why a person does not get to a host.
#[derive(Debug, thiserror::Error)]
pub enum PersonError {
    /// No connection.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The host does not answer.
    #[error("host {host}")]
    Report {
        /// Which.
        host: crewboss_protocol::HostName,
        /// Why.
        #[source]
        source: ReportError,
    },
    /// The program that leads there does not start.
    #[error("cannot start `{program}`")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl PersonError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Run(error) => error.hint(),
            Self::Report { source, .. } => source.hint().map(Cow::Borrowed),
            Self::Start { .. } => None,
        }
    }
}

/// What a role on a host has as its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The person's terminal, by a terminal there.
    Terminal,
    /// This process's input, which is no terminal.
    Plain,
    /// Nothing; that it ends says that nobody is there any more.
    Presence,
}

/// Comes to an end when this process's terminal is gone. Its session's leader, which alone gets SIGHUP, may not pass that on.
async fn terminal_gone() {
    let (gone, told) = oneshot::channel();
    let watch = move || {
        let stdin = rustix::stdio::stdin();
        // A terminal that was hung up is told without being asked for, and what is typed is left to others.
        let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
        while matches!(poll(&mut fds, None), Ok(0) | Err(Errno::INTR)) {}
        gone.send(()).ok();
    };
    // It ends with the process. Without it there is still the signal.
    let _watched = std::thread::Builder::new().name("terminal".to_owned()).spawn(watch);
    if told.await.is_err() {
        std::future::pending().await
    }
}

/// A connection to one host, with the program there.
#[derive(Debug)]
pub struct Visit {
    host: Host,
    link: Link,
    binary: OwnBinary,
    ssh: crate::crew::Ssh,
    _connector: Connector,
}

impl Visit {
    /// Connects to a host, and hears who uses it.
    ///
    /// # Errors
    /// If that cannot be done.
    pub async fn begin(crew: &Crew, host: &Host) -> Result<(Self, Overview), PersonError> {
        let connector = Connector::new(&crew.ssh, &crew.timing).map_err(RunError::from)?;
        let binary = OwnBinary::current().map_err(RunError::from)?;
        let failed = |source: ReportError| PersonError::Report { host: host.name.clone(), source };
        let link = connector.connect(host).await.map_err(|error| failed(error.into()))?;
        let asked = tokio::time::timeout(OVERVIEW_WITHIN, of_link(&link, &binary, host, OVERVIEW)).await;
        let asked = asked.unwrap_or(Err(ReportError::Slow { within: OVERVIEW_WITHIN }));
        let overview = asked.map_err(failed)?;
        let (host, ssh) = (host.clone(), crew.ssh.clone());
        Ok((Self { host, link, binary, ssh, _connector: connector }, overview))
    }

    /// Which host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The words with which the person's own `ssh` reaches the host, if it is reached by that.
    pub fn ssh(&self) -> Option<String> {
        let Transport::Ssh(destination) = &self.host.transport else { return None };
        let config = self.ssh.config.as_ref().map(|path| format!("-F {} ", path.display()));
        Some(format!("ssh {}{destination}", config.unwrap_or_default()))
    }

    /// Runs a role there with this process's output and error. Waits for its end; when `stop` becomes true it is told that
    /// the person has gone, and waited for all the same.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn run(
        &self,
        words: &[&str],
        input: Input,
        mut stop: watch::Receiver<bool>,
    ) -> Result<ExitStatus, PersonError> {
        let mut words = words.to_vec();
        words.extend(self.host.machines.iter().flat_map(|machines| ["--machines", machines]));
        let role = crate::link::Role { words: &words, work: self.host.work.as_deref() };
        let mut command = terminal_command(&self.link, &self.binary, role, input == Input::Terminal);
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
        match input {
            Input::Terminal | Input::Plain => command.stdin(Stdio::inherit()),
            // Not of our group, so that Ctrl-C does not cut the connection over which the last words come.
            Input::Presence => command.stdin(Stdio::piped()).process_group(0),
        };
        let failed = |source| PersonError::Start { program: program.clone(), source };
        let mut child = tokio::process::Command::from(command).spawn().map_err(failed)?;
        let presence = child.stdin.take();
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        tokio::select! {
            ended = child.wait() => return ended.map_err(failed),
            _ = stop.wait_for(|stop| *stop) => {}
            () = terminal_gone(), if input == Input::Terminal => {}
        }
        match presence {
            Some(presence) => drop(presence),
            None => {
                // Not waited for yet, so the number is still its own. Not SIGHUP, which it may have been told to ignore.
                let _gone = id.map(|id| rustix::process::kill_process(id, Signal::TERM));
            }
        }
        child.wait().await.map_err(failed)
    }
}

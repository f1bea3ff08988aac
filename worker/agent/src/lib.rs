//! The guest agent: `crewboss guest`, the same binary, runs a task inside a guest and talks to the
//! host over a virtio-serial port.
//!
//! It is one process with one thread ([`serve`]) that holds the port, answers at any time, and may
//! be the guest's first process: then it reaps whatever is orphaned and never ends. All work is
//! done by a child of it ([`job`]), one at a time, that is a sub-reaper: its process tree is the
//! stage's, so it can prove that nothing of a stage is left, whatever else runs in the guest.
//! Output that the host does not take in stops that child, and through it the stage, and nothing
//! else.
#![warn(unreachable_pub)]
#![expect(
    clippy::disallowed_methods,
    reason = "it runs in a guest as root, in a system that is all its own: nobody else is there"
)]

mod bootstrap;
mod collect;
mod error;
mod health;
mod identity;
mod job;
mod network;
mod place;
mod port;
mod power;
mod serve;
mod service;
mod shell;
mod source;
mod stage;
mod variables;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crewboss_host::sys::{self, Signals};
use crewboss_protocol::chain;
use crewboss_protocol::guest::{AGENT_PORT, SHELL_PORT};
use rustix::fs::{CWD, Mode, OFlags, openat};

use error::AgentError;
use place::Place;
use port::Port;
use serve::Agent;
use shell::Shell;

/// How long the port may take to appear: its driver may be loaded only later in the boot.
const PORT_WITHIN: Duration = Duration::from_secs(60);

/// Between two looks for it.
const PORT_POLL: Duration = Duration::from_millis(50);

/// Where an agent finds things; all by itself in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// What stands for `/`. With another one the agent changes nothing but files below it: neither
    /// clock nor names nor devices of the computer, which it does not switch off either.
    pub root: Option<PathBuf>,
    /// The device of the agent's port; `-` for standard input, a socket.
    pub port: Option<PathBuf>,
    /// The device of the shell's port.
    pub shell_port: Option<PathBuf>,
}

/// `crewboss guest`: serves the host until that switches the guest off. Returns only if it is not
/// the first process.
pub fn main(options: &Options) -> ExitCode {
    let place = Place::new(options.root.clone());
    let ended = std::panic::catch_unwind(|| run(options, &place));
    let text = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(_) => Some("the agent has panicked".to_owned()),
    };
    if let Some(text) = &text {
        complain(text);
    }
    if place.is_system() && std::process::id() == 1 {
        // The kernel panics if its first process ends. A guest that is off is noticed at once.
        power::off(&place);
    }
    if text.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(options: &Options, place: &Place) -> Result<(), AgentError> {
    // Standard input must be nothing for all stages, and of the first process it is the console.
    let input = sys::take_stdin().map_err(AgentError::at(Path::new("/dev/null")))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let own = rustix::process::getpid();
    // What outlives a job that was killed comes here.
    rustix::process::set_child_subreaper(Some(own))
        .map_err(|error| AgentError::System { what: "become a sub-reaper", source: error.into() })?;
    let watched = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPWR];
    let signals = Signals::block(&watched)
        .map_err(|source| AgentError::System { what: "listen to signals", source })?;
    job::set_killable(false);
    let port = match &options.port {
        Some(path) if path == Path::new("-") => input,
        Some(path) => open(path)?,
        None => open(&wait_for_port(place)?)?,
    };
    let shell = options.shell_port.clone().or_else(|| place.port(SHELL_PORT));
    let shell = shell.and_then(|path| open(&path).inspect_err(|error| complain(chain(error))).ok());
    let port = Port::new(port).map_err(|source| AgentError::System { what: "use the port", source })?;
    Agent::new(place, port, shell.map(Shell::new), &signals).serve()
}

fn wait_for_port(place: &Place) -> Result<PathBuf, AgentError> {
    let end = Instant::now() + PORT_WITHIN;
    loop {
        if let Some(path) = place.port(AGENT_PORT) {
            return Ok(path);
        }
        if Instant::now() > end {
            return Err(AgentError::NoPort { name: AGENT_PORT, within: PORT_WITHIN });
        }
        std::thread::sleep(PORT_POLL);
    }
}

fn open(path: &Path) -> Result<OwnedFd, AgentError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|error| AgentError::at(path)(error.into()))
}

/// Says something on the console, the only other way out of a guest. That nobody hears it changes
/// nothing.
fn complain(text: impl std::fmt::Display) {
    let _unheard = writeln!(std::io::stderr(), "crewboss guest: {text}");
}

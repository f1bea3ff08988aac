//! The process of a guest, with the descriptors that lead into it.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::child::{Child, Ended};
use super::command::{GuestConfig, Passed, arguments};
use super::error::QemuError;
use super::qmp::{Incoming, NEGOTIATED, Qmp, QmpError};
use super::version::{OLDEST, Program, Version};

/// A running QEMU. Killed when dropped.
///
/// Everything in it is to be polled by its owner: [`Child::fd`] says when it has ended,
/// [`Child::words_fd`] what QEMU says to a person, [`Qmp::fd`] its monitor. None of them, nor the
/// channels, ever blocks.
#[derive(Debug)]
pub struct Qemu {
    /// The process.
    pub child: Child,
    /// Its monitor.
    pub qmp: Qmp,
    /// The serial console. Somebody has to read it: a guest that prints to a full one stands still.
    pub console: OwnedFd,
    /// The agent's port, if it has one.
    pub agent: Option<OwnedFd>,
    /// The port of a person's shell, if it has one.
    pub shell: Option<OwnedFd>,
    program: Program,
}

impl Qemu {
    /// Starts a guest in its directory. `networks` are the descriptors of the cards that need one,
    /// in their order; QEMU gets them, and they are closed here.
    ///
    /// # Errors
    /// If QEMU cannot be started. One that starts and then refuses its options shows by
    /// [`Child::fd`]; [`Self::early_end`] makes an error of that.
    pub fn start(
        program: &Program,
        config: &GuestConfig,
        directory: &Path,
        networks: Vec<OwnedFd>,
    ) -> Result<Self, QemuError> {
        let monitor = Channel::new("the monitor")?;
        let console = Channel::new("the console")?;
        let agent = config.agent.then(|| Channel::new("the agent's port")).transpose()?;
        let shell = config.shell.then(|| Channel::new("the shell's port")).transpose()?;
        let number = |channel: &Option<Channel>| channel.as_ref().map_or(-1, |it| it.theirs.as_raw_fd());
        let passed = Passed {
            monitor: monitor.theirs.as_raw_fd(),
            console: console.theirs.as_raw_fd(),
            agent: number(&agent),
            shell: number(&shell),
            networks: networks.iter().map(AsRawFd::as_raw_fd).collect(),
        };
        let channels = [Some(&monitor), Some(&console), agent.as_ref(), shell.as_ref()];
        let descriptors: Vec<BorrowedFd<'_>> = channels
            .into_iter()
            .flatten()
            .map(|channel| channel.theirs.as_fd())
            .chain(networks.iter().map(AsFd::as_fd))
            .collect();
        let child = launch(program, arguments(config, &passed), directory, &descriptors)?;
        // Their ends are closed here: when QEMU ends, ours say so.
        Ok(Self {
            child,
            qmp: Qmp::new(monitor.ours)?,
            console: console.ours,
            agent: agent.map(|channel| channel.ours),
            shell: shell.map(|channel| channel.ours),
            program: program.clone(),
        })
    }

    /// Waits until its monitor answers: the options were taken and the guest is about to run. Who
    /// polls does not need it: it sees [`Incoming::Greeting`] and then the answer to
    /// [`NEGOTIATED`].
    ///
    /// # Errors
    /// If QEMU ends instead, is too old, or does not answer until then.
    pub fn wait_ready(&mut self, until: Instant) -> Result<Version, QemuError> {
        match self.greeted(until) {
            // It has closed everything, so it is about to end.
            Err(QmpError::Closed) => {
                let ended = self.child.wait(until);
                Err(ended.map_or(QmpError::Closed.into(), |ended| self.early_end(ended)))
            }
            Err(error) => Err(error.into()),
            Ok(version) if version < OLDEST => {
                Err(QemuError::TooOld { path: self.program.path().to_owned(), version })
            }
            Ok(version) => Ok(version),
        }
    }

    fn greeted(&mut self, until: Instant) -> Result<Version, QmpError> {
        let greets = |incoming: &Incoming| matches!(incoming, Incoming::Greeting(_));
        let Incoming::Greeting(version) = self.qmp.wait("the start", until, greets)? else {
            return Err(QmpError::Closed);
        };
        // One that is too old may answer nothing that is understood.
        if version >= OLDEST {
            let answers = |incoming: &Incoming| matches!(incoming, Incoming::Answer(NEGOTIATED, _));
            self.qmp.wait("qmp_capabilities", until, answers)?;
        }
        Ok(version)
    }

    /// What it means that QEMU ended before there was a guest.
    pub fn early_end(&mut self, ended: Ended) -> QemuError {
        if ended == Ended::Signal(libc::SIGKILL) {
            return QemuError::Killed;
        }
        self.child.hear();
        QemuError::of_early_end(&ended.to_string(), &self.child.said())
    }

    /// Kills and reaps it. Returns false if it lives on.
    pub fn kill(&mut self) -> bool {
        self.child.kill()
    }
}

/// Starts QEMU with arguments and descriptors. The environment is passed on, and with it the mark
/// of the session.
pub(crate) fn launch(
    program: &Program,
    arguments: Vec<OsString>,
    directory: &Path,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Child, QemuError> {
    let mut command = crewboss_ground::program(program.path());
    command.args(arguments).current_dir(directory);
    Child::start(command, descriptors)
        .map_err(|source| QemuError::Start { path: program.path().to_owned(), source })
}

/// A stream between us and QEMU.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Does not block.
    pub(crate) ours: OwnedFd,
    pub(crate) theirs: OwnedFd,
}

impl Channel {
    pub(crate) fn new(what: &'static str) -> Result<Self, QemuError> {
        let failed = |error: rustix::io::Errno| QemuError::Channel { what, source: error.into() };
        let pair =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(failed)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(failed)?;
        Ok(Self { ours, theirs })
    }
}

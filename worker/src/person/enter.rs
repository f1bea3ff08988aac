//! `crewboss enter`, on the host: a person gets into a guest that is held, or whose task waits.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crewboss_host::marked::MARK;
use crewboss_host::sys;
use crewboss_machine::guest::door::{self, Answer, Knock, Knocked};
use crewboss_machine::images::directory::Machines;
use crewboss_machine::qemu::process::Qemu;
use crewboss_protocol::Name;
use crewboss_protocol::advice::Advice;
use crewboss_protocol::guest::FromGuest;

use super::agent::{Heard, Line};
use super::bridge::{self, Behind, Left};
use super::caller::Caller;
use super::claim::take_over;
use super::visit::Visit;
use super::{Claimed, PersonError, Who, claim};

/// The socket of a guest's display, in its directory.
const DISPLAY: &str = "vnc";

/// What a person is told who has to leave.
const DISPLACED: &str = "somebody else takes the guest over (`--take-over`)";

/// A worker that is busy answers within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How to get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A shell that the agent starts.
    Shell,
    /// The serial console.
    Console,
    /// The screen, by VNC.
    Display,
}

/// What a person wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which guest.
    pub guest: Name,
    /// How; a shell, or the console if there is none.
    pub way: Option<Way>,
    /// What the person's computer reaches this host with, for a line that forwards a display:
    /// `ssh lab1`.
    pub forward: Option<String>,
    /// Whether whoever is in it has to make room.
    pub take_over: bool,
}

/// Lets the person in until he or she leaves.
///
/// # Errors
/// If nobody gets in, or what became of the guest cannot be kept.
pub fn enter(machines: &Machines, entry: &Entry, who: &Who, caller: &mut Caller) -> Result<(), PersonError> {
    // The guest belongs to the person and not to whatever session this was started from.
    sys::forget_variable(MARK);
    let claimed = if entry.take_over {
        take_over(machines, &entry.guest, who, caller)?
    } else {
        claim(machines, &entry.guest, who)?
    };
    if claimed.record.held.is_some() {
        enter_held(machines, claimed, entry, who, caller)
    } else {
        enter_waiting(machines, &claimed, entry, who, caller)
    }
}

fn enter_held(
    machines: &Machines,
    claimed: Claimed,
    entry: &Entry,
    who: &Who,
    caller: &mut Caller,
) -> Result<(), PersonError> {
    let directory = claimed.record.snapshot(machines);
    let mut visit = Visit::begin(machines, claimed, caller)?;
    let config = &visit.revived.kept.config;
    let way = entry.way.unwrap_or(if config.shell { Way::Shell } else { Way::Console });
    if let Some(error) = lacks(entry, who, way, config.shell, config.display.is_some()) {
        visit.abandon();
        return Err(error);
    }
    let held = visit.held();
    let stage = held.stage.as_ref().map(|stage| format!(" in stage {stage}")).unwrap_or_default();
    let what = format!("{}@{:.8}, {}{stage}", held.target, held.commit, held.outcome);
    greet(caller, entry, &what, way, &directory);
    let left = inside(caller, |caller| stay(&mut visit, way, caller));
    match left {
        Ok(Left::Terminated) => {
            visit.abandon();
            caller.say("ended from outside; what was done since it was entered is lost");
            Ok(())
        }
        left => {
            match &left {
                Ok(Left::Ended(ended)) => {
                    caller.say(&format!("the guest has ended: QEMU left with {ended}"));
                }
                Ok(Left::Displaced) => caller.say(DISPLACED),
                _ => {}
            }
            visit.end(caller, who).and(left.map(drop).map_err(PersonError::system("wait for the guest")))
        }
    }
}

fn lacks(entry: &Entry, who: &Who, way: Way, shell: bool, display: bool) -> Option<PersonError> {
    let guest = entry.guest.clone();
    match way {
        Way::Shell if !shell => {
            let console = Advice::Console(&who.host, &guest);
            let hint = format!(", since our agent does not run in it\n  hint: {console} shows its console");
            Some(PersonError::NoWay { guest, what: "shell", hint })
        }
        Way::Display if !display => {
            let hint = "; a machine with `display = true` in its manifest has one".to_owned();
            Some(PersonError::NoWay { guest, what: "display", hint })
        }
        _ => None,
    }
}

fn greet(caller: &Caller, entry: &Entry, what: &str, way: Way, directory: &Path) {
    let guest = &entry.guest;
    let to = match way {
        Way::Shell => "a shell in",
        Way::Console => "the console of",
        Way::Display => "the display of",
    };
    caller.say(&format!("this is {to} {guest} ({what}); Ctrl-] leaves it"));
    if way != Way::Display {
        return;
    }
    let socket = directory.join(DISPLAY);
    match &entry.forward {
        Some(ssh) => {
            caller.say("on your computer, forward the display and look at it with a VNC viewer:");
            caller.command(&format!("{ssh} -N -L 5900:{}", socket.display()));
            caller.command("vncviewer localhost:5900");
        }
        None => {
            caller.say("look at it with a VNC viewer:");
            caller.command(&format!("vncviewer {}", socket.display()));
        }
    }
}

/// While the keyboard is the guest's.
fn inside(caller: &mut Caller, work: impl FnOnce(&mut Caller) -> io::Result<Left>) -> io::Result<Left> {
    caller.inside(true);
    let left = work(caller);
    caller.inside(false);
    left
}

/// A guest that boots shows its console until its agent is up, since that may well be what is wrong
/// with it.
fn stay(visit: &mut Visit<'_>, way: Way, caller: &mut Caller) -> io::Result<Left> {
    let boots = way == Way::Shell && !visit.goes_on;
    let qemu = &mut visit.revived.qemu;
    let console = rustix::io::fcntl_dupfd_cloexec(&qemu.console, 3)?;
    if boots {
        caller.say("it boots, since its memory is not there; its shell follows when its agent is up");
        let port = qemu.agent.as_ref().map(|port| rustix::io::fcntl_dupfd_cloexec(port, 3)).transpose()?;
        let agent = port.map(Line::fresh);
        let mut inside = Inside { qemu, agent, console: true };
        let left = bridge::run(caller, Some(&console), false, &mut inside)?;
        if left != Left::Up {
            return Ok(left);
        }
    }
    let shell = qemu.shell.as_ref().map(|shell| rustix::io::fcntl_dupfd_cloexec(shell, 3)).transpose()?;
    let channel = match way {
        Way::Shell => shell.as_ref(),
        Way::Console => Some(&console),
        Way::Display => None,
    };
    let mut inside = Inside { qemu, agent: None, console: way == Way::Console };
    bridge::run(caller, channel, way == Way::Shell, &mut inside)
}

/// A guest of this process.
struct Inside<'a> {
    qemu: &'a mut Qemu,
    /// Its agent, while it is to come up.
    agent: Option<Line>,
    /// Whether the person reads its console.
    console: bool,
}

impl Behind for Inside<'_> {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let qemu = &self.qemu;
        let mut fds = vec![qemu.child.fd(), qemu.qmp.fd()];
        fds.extend(qemu.child.words_fd());
        fds.extend(qemu.agent.as_ref().map(OwnedFd::as_fd));
        fds.extend((!self.console).then(|| qemu.console.as_fd()));
        fds
    }

    fn look(&mut self) -> Option<Left> {
        let qemu = &mut *self.qemu;
        if let Some(ended) = qemu.child.try_ended() {
            return Some(Left::Ended(ended));
        }
        qemu.child.hear();
        drain_monitor(qemu);
        if !self.console {
            drain(qemu.console.as_fd());
        }
        match &mut self.agent {
            Some(agent) => {
                let up = |heard: &Heard| matches!(heard, Heard::Said(FromGuest::Ready { .. }));
                agent.look().iter().any(up).then_some(Left::Up)
            }
            // What a stage prints that still runs must not stop it.
            None => {
                qemu.agent.iter().for_each(|port| drain(port.as_fd()));
                None
            }
        }
    }
}

/// Nobody waits for what the monitor says during a visit.
pub(super) fn drain_monitor(qemu: &mut Qemu) {
    // A monitor that fails means that QEMU is about to end, which shows by itself.
    let _ends = qemu.qmp.handle_writable().and_then(|()| qemu.qmp.handle_readable());
    while qemu.qmp.take().is_some() {}
}

/// Throws away what is there, up to a limit.
pub(super) fn drain(fd: BorrowedFd<'_>) {
    let mut buffer = [0; 16 << 10];
    for _ in 0..16 {
        if !rustix::io::read(fd, &mut buffer).is_ok_and(|count| count > 0) {
            return;
        }
    }
}

fn enter_waiting(
    machines: &Machines,
    claimed: &Claimed,
    entry: &Entry,
    who: &Who,
    caller: &mut Caller,
) -> Result<(), PersonError> {
    let directory = claimed.record.snapshot(machines);
    let way = entry.way.unwrap_or(Way::Shell);
    let display = directory.join(DISPLAY).exists();
    if let Some(error) = lacks(entry, who, way, true, display) {
        return Err(error);
    }
    let knock = match way {
        Way::Shell => Knock::Shell,
        Way::Console => Knock::Console,
        Way::Display => Knock::Stay,
    };
    let knocked = knock_at(&entry.guest, &directory, knock)?;
    let what = claimed.record.waiting.as_ref().map_or_else(String::new, |waiting| {
        let stage = waiting.stage.as_ref().map(|stage| format!(" at stage {stage}")).unwrap_or_default();
        format!("{}@{:.8} waits{stage}", waiting.target, waiting.commit)
    });
    greet(caller, entry, &what, way, &directory);
    let (channel, mut outside) = (knocked.passed, Outside { socket: knocked.socket });
    let left =
        inside(caller, |caller| bridge::run(caller, channel.as_ref(), way == Way::Shell, &mut outside));
    match left.map_err(PersonError::system("wait for the guest"))? {
        Left::GoesOn => caller.say("the task does not wait any more"),
        Left::Displaced => caller.say(DISPLACED),
        _ => {
            let release = Advice::Release(&who.host, &entry.guest);
            caller.say(&format!("the task still waits; {release} lets it go on"));
        }
    }
    Ok(())
}

/// Knocks at the door of a guest whose task waits.
pub(super) fn knock_at(guest: &Name, directory: &Path, knock: Knock) -> Result<Knocked, PersonError> {
    let failed = |error: io::Error| PersonError::Refused { guest: guest.clone(), why: error.to_string() };
    let knocked = door::knock(directory, knock, ANSWER_WITHIN).map_err(failed)?;
    match knocked.answer {
        Answer::Done => Ok(knocked),
        Answer::Refused(why) => Err(PersonError::Refused { guest: guest.clone(), why }),
    }
}

/// A guest of a runner.
struct Outside {
    socket: OwnedFd,
}

impl Behind for Outside {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.socket.as_fd()]
    }

    fn look(&mut self) -> Option<Left> {
        let mut buffer = [0; 64];
        match rustix::net::recv(&self.socket, &mut buffer, rustix::net::RecvFlags::DONTWAIT) {
            Ok((_, count)) if count > 0 => None,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            _ => Some(Left::GoesOn),
        }
    }
}

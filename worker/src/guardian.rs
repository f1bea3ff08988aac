//! The guardian: starts the worker proper, waits for it, and whatever way it ended leaves nothing
//! behind.
//!
//! It hears nobody and knows nothing of tasks, so there is little that could kill it. It is a
//! sub-reaper: whatever outlives the worker proper becomes its child, and is killed. A worker
//! proper that stands still ([`crate::pulse`]) is killed as well.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crewboss_ground::program;
use crewboss_host::layout::Layout;
use crewboss_host::owner::{Owner, sessions};
use crewboss_host::process::{ProcessId, kill_all_descendants};
use crewboss_host::sys::{self, Reap, Signals, reap};
use crewboss_protocol::clean::CleanReport;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use crate::core::state::STOP_WITHIN;
use crate::pulse::{self, Listener};
use crate::slots;
use crate::sweep::remove_leftovers;

/// After this the worker proper is not waited for any more, once it was asked to end. It gets a
/// moment more than it gives itself, for removing what it made.
const WORKER_WITHIN: Duration = STOP_WITHIN.saturating_add(Duration::from_millis(600));

/// `crewboss worker`: runs until the boss is done, or gone, or this process is asked to end by
/// SIGTERM.
pub fn main(work: Option<PathBuf>) -> ExitCode {
    let own = rustix::process::getpid();
    if rustix::process::set_child_subreaper(Some(own)).is_err() {
        return ExitCode::FAILURE;
    }
    let watched = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];
    let Ok(signals) = Signals::block(&watched) else { return ExitCode::FAILURE };
    let Ok(mut listener) = Listener::new() else { return ExitCode::FAILURE };
    // Of its own session, so that a Ctrl-C at a terminal comes to it only through us.
    let mut command = program("/proc/self/exe");
    let pulse = listener.pass_to(&mut command);
    command.args(["worker", "--proper", "--pulse"]).arg(pulse);
    if let Some(work) = &work {
        command.arg("--work").arg(work);
    }
    let Ok(child) = command.spawn() else { return ExitCode::FAILURE };
    let status = wait(child.id(), &signals, &mut listener);
    kill_all_descendants(|_| ());
    if let Ok(layout) = Layout::resolve(work) {
        remove_own(&layout);
    }
    match status {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Waits for the worker proper; passes on a request to end, and ends one that stands still. Returns
/// its wait status.
fn wait(worker: u32, signals: &Signals, listener: &mut Listener) -> Option<i32> {
    let process = ProcessId::of(worker)?;
    let pid = i32::try_from(worker).ok()?;
    let (mut kill_at, mut boss_gone) = (None, false);
    loop {
        // Orphans of a dead runner can come here only after the worker proper is gone, so only that
        // is of interest.
        while let Reap::Ended(reaped) = reap(None) {
            if reaped.pid == pid {
                return Some(reaped.status);
            }
        }
        let now = Instant::now();
        if kill_at.is_some_and(|at| now >= at) {
            process.signal(Signal::KILL);
            kill_at = None;
        }
        let stdin = std::io::stdin();
        let gone = if boss_gone { PollFlags::empty() } else { PollFlags::RDHUP };
        let mut fds = vec![
            PollFd::new(signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.fd(), PollFlags::IN),
        ];
        if !boss_gone {
            // Nothing is read of it: all that shows is whether anybody can still write there.
            fds.push(PollFd::new(&stdin, gone));
        }
        let look = kill_at.map_or(pulse::EVERY, |at| at.saturating_duration_since(now).min(pulse::EVERY));
        // With a broken poll there is no telling when the worker ends, so it ends now.
        let Ok(ready) = sys::poll(&mut fds, Some(look)) else { return None };
        let hung_up = fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        listener.hear();
        if hung_up {
            boss_gone = true;
            listener.hurry(WORKER_WITHIN);
        }
        if ready == 0 && listener.is_overdue(look) && kill_at.is_none() {
            kill_at = Some(now);
        }
        while let Some((signal, sender)) = signals.take_with_sender() {
            if signal != libc::SIGCHLD && kill_at.is_none() {
                // It is a child of ours that nobody has waited for, so the number is still its own.
                match sender {
                    Some(sender) if sys::pass_on(pid, libc::SIGTERM, sender).is_ok() => {}
                    _ => drop(process.signal(Signal::TERM)),
                }
                kill_at = Some(now + WORKER_WITHIN);
            }
        }
    }
}

/// Removes the session that this guardian stands for, if the worker proper has not done so.
fn remove_own(layout: &Layout) {
    let Some(own) = ProcessId::own() else { return };
    for session in sessions(layout) {
        let owner = Owner::load(layout, &session).ok().flatten();
        if let Some(owner) = owner.filter(|owner| owner.guardian == own) {
            // Nobody hears us any more; what stays is swept by the next worker.
            let mut report = CleanReport::default();
            remove_leftovers(layout, &session, Some(&owner), &mut report);
            slots::forget(layout, &session);
        }
    }
}

//! A runner: one process per slot that runs attempts, one after the other.
//!
//! It has one thread and is a sub-reaper, so its process tree is the task's: whatever a task
//! starts, and however it hides, is a descendant of the runner and of nothing else. When the worker
//! proper is gone (the socket closes) the runner ends its task and itself.

mod guest;
pub mod job;
pub mod link;
pub mod log;
pub mod message;
pub mod output;
pub mod uploads;

use std::collections::BTreeMap;
use std::process::ExitCode;

use crewboss_host::doing::What;
use crewboss_host::layout::Layout;
use crewboss_host::process::kill_all_descendants;
use crewboss_host::sys;

use job::{Kept, run_job};
use link::Link;
use message::{Spec, ToRunner};

use guest::ahead::bootstrap;
use guest::run_in_guest;

/// `crewboss runner`, which only the worker proper starts: its standard input is a socket to that.
pub fn main() -> ExitCode {
    // The umask of whoever logged in must not change what a build makes.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let own = rustix::process::getpid();
    if rustix::process::set_child_subreaper(Some(own)).is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(socket) = sys::take_stdin() else { return ExitCode::FAILURE };
    serve(Link::new(socket));
    kill_all_descendants(|_| ());
    ExitCode::SUCCESS
}

fn serve(mut link: Link) {
    let mut specs: BTreeMap<u32, Spec> = BTreeMap::new();
    let mut kept = Kept::default();
    while let Some(message) = link.receive() {
        match message {
            ToRunner::Define { number, spec } => {
                link.set_standstill(spec.standstill);
                specs.insert(number, *spec);
            }
            ToRunner::Run(job) => {
                // The worker proper defines before it orders; anything else means that one of us is
                // broken.
                let Some(spec) = specs.get(&job.target) else { return };
                if let Some(session) = job.dir.parent() {
                    let machine = job.machine.as_ref().map(|machine| machine.machines.name.clone());
                    let task = Some((spec.target.name.clone(), job.commit));
                    link.doing.begin(session, What { at: job.at, task, machine });
                }
                let done = match &job.machine {
                    Some(machine) => run_in_guest(&job, machine, spec, &mut link),
                    None => run_job(&job, spec, &mut link, &mut kept),
                };
                link.done(done);
            }
            ToRunner::Bootstrap(job) => {
                let session = Layout::new(&job.machine.work).session(&job.machine.session);
                let machine = Some(job.order.machine.clone());
                link.doing.begin(&session, What { at: job.order.at, task: None, machine });
                let end = bootstrap(&job, &mut link);
                link.bootstrapped(job.order.at, end);
            }
            // It has ended meanwhile.
            ToRunner::Cancel { .. } => {}
        }
    }
}

//! Threads that make, keep and remove environments, so that the loop never waits for a disk.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crewboss_host::layout::Layout;
use crewboss_host::process::ProcessId;
use crewboss_machine::books::sweep;
use crewboss_machine::images::directory::Machines;
use crewboss_protocol::clean::CleanReport;
use crewboss_protocol::message::Refusal;
use crewboss_protocol::{SessionId, TaskRef, chain};
use rustix::event::{EventfdFlags, eventfd};

use crate::environment::{EnvRequest, Prepared, Preparer};
use crate::prune::Aside;
use crate::sweep::end_abandoned;

/// Snapshots that are taken at the same time share a commit of the file system; more threads than
/// this gain nothing.
const THREADS: usize = 4;

/// What is begun when a session ends may take so long. The boss, and the guardian, wait a little
/// longer.
const WAIT_MAX: Duration = Duration::from_millis(400);

/// What a thread is to do.
#[derive(Debug)]
pub enum Work {
    /// Make an environment.
    Prepare(TaskRef, EnvRequest),
    /// Put away what an incremental attempt built; good or not.
    Keep(TaskRef, Box<Prepared>, bool),
    /// Remove an environment; whether it was put away before.
    Remove(TaskRef, Box<Prepared>, bool),
    /// Remove guests.
    Guests(Machines, Guests),
    /// End who stands in the way of this session, and whose boss is gone.
    Abandoned(Layout, SessionId),
}

/// Which guests are to be removed.
#[derive(Debug)]
pub enum Guests {
    /// Those of a runner that is gone.
    Of(ProcessId),
    /// Held ones whose time is over.
    Expired,
}

/// What a thread has done.
#[derive(Debug)]
pub enum Finished {
    /// The environment, or what kept it from being made.
    Prepared(TaskRef, Result<Box<Prepared>, (Refusal, String)>),
    /// It was put away; the text says what went wrong.
    Kept(TaskRef, Box<Prepared>, Option<String>),
    /// Removing it went wrong.
    NotRemoved(TaskRef, String),
    /// Removing guests, or what others have left, went wrong.
    Left(Vec<String>),
    /// Removing what nobody needs any more went wrong.
    NotPruned(Vec<String>),
    /// A fault of ours, which the log tells of: nobody knows how far it came.
    Panicked,
}

#[derive(Debug, Default)]
struct Queues {
    /// Somebody waits for these.
    urgent: VecDeque<Work>,
    /// Nobody waits for these.
    idle: VecDeque<Work>,
    removing: usize,
    /// Threads that are at something.
    busy: usize,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    preparer: Preparer,
    queues: Mutex<Queues>,
    wake: Condvar,
    finished: Mutex<Vec<Finished>>,
    bell: OwnedFd,
}

/// The threads. They end when it is dropped, after what they are at.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts the threads; one more removes what was set aside.
    ///
    /// # Errors
    /// If the system has no more threads or descriptors.
    pub fn new(preparer: Preparer, aside: Aside) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            preparer,
            queues: Mutex::default(),
            wake: Condvar::new(),
            finished: Mutex::default(),
            bell,
        });
        for _ in 0..THREADS {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("environments".to_owned()).spawn(move || shared.run())?;
        }
        Self::prune(Arc::clone(&shared), aside);
        Ok(Self { shared })
    }

    /// Readable when something is finished.
    pub fn fd(&self) -> &OwnedFd {
        &self.shared.bell
    }

    /// What a person should know about the host's storage.
    pub fn notices(&self) -> Vec<String> {
        self.shared.preparer.notices()
    }

    /// Hands work out.
    pub fn submit(&self, work: Work) {
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        match work {
            Work::Remove(..) | Work::Guests(..) | Work::Abandoned(..) => queues.idle.push_back(work),
            work => queues.urgent.push_back(work),
        }
        drop(queues);
        self.shared.wake.notify_one();
    }

    /// Removes what was set aside, in a thread of its own, as nobody waits for that and it may take
    /// long.
    fn prune(shared: Arc<Shared>, aside: Aside) {
        let prune = move || {
            let errors = aside.remove(|| !shared.is_closed());
            if !errors.is_empty() {
                shared.finish(Finished::NotPruned(errors));
            }
        };
        // Without a thread the next worker does it.
        drop(std::thread::Builder::new().name("prune".to_owned()).spawn(prune));
    }

    /// Everything that was finished since the last call.
    pub fn take(&self) -> Vec<Finished> {
        let mut number = [0; 8];
        // Nothing to read only means that the bell was answered already.
        let _answered = rustix::io::read(&self.shared.bell, &mut number);
        std::mem::take(&mut *self.shared.finished.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drops what has not begun.
    pub fn close(&self) {
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.closed = true;
        queues.urgent.clear();
        queues.idle.clear();
        drop(queues);
        self.shared.wake.notify_all();
    }

    /// Waits for what was begun before [`Self::close`], so that nothing is made any more; says
    /// whether it has ended.
    pub fn wait(&self) -> bool {
        let queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.wake.wait_timeout_while(queues, WAIT_MAX, |queues| queues.busy > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.busy == 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whoever waits for the end of a work must hear of it, however it ends.
fn caught(work: impl FnOnce() -> Option<Finished>) -> Option<Finished> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(Some(Finished::Panicked))
}

impl Shared {
    fn run(&self) {
        while let Some(work) = self.next() {
            let removes = matches!(work, Work::Remove(..) | Work::Guests(..) | Work::Abandoned(..));
            let finished = caught(|| self.work(work));
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            queues.busy -= 1;
            queues.removing -= usize::from(removes);
            if queues.closed {
                self.wake.notify_all();
            }
            drop(queues);
            if let Some(finished) = finished {
                self.finish(finished);
            }
        }
    }

    fn finish(&self, finished: Finished) {
        let mut list = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(finished);
        let first = list.len() == 1;
        drop(list);
        if first {
            // A full counter rings as well.
            let _rung = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    fn is_closed(&self) -> bool {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    fn next(&self) -> Option<Work> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if queues.closed {
                return None;
            }
            if let Some(work) = queues.urgent.pop_front() {
                queues.busy += 1;
                return Some(work);
            }
            // Removing keeps at most half of the threads, so that making never waits for it.
            if queues.removing < THREADS / 2
                && let Some(work) = queues.idle.pop_front()
            {
                queues.removing += 1;
                queues.busy += 1;
                return Some(work);
            }
            queues = self.wake.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, work: Work) -> Option<Finished> {
        match work {
            Work::Prepare(at, request) => {
                let prepared = self.preparer.prepare(&request).map(Box::new);
                Some(Finished::Prepared(at, prepared.map_err(|error| (error.refusal(), chain(&error)))))
            }
            Work::Keep(at, mut prepared, good) => {
                let (out, src) = (prepared.out.clone(), prepared.src.clone());
                let kept = if good {
                    self.preparer.succeed(&mut prepared)
                } else {
                    self.preparer.fail(&mut prepared)
                };
                let moved = crewboss_host::artifacts::move_list(
                    &prepared.dir.join("artifacts.list"),
                    &[(&out, &prepared.out), (&src, &prepared.src)],
                );
                let problem = match (kept, moved) {
                    (Err(error), _) => Some(chain(&error)),
                    (_, Err(error)) => Some(format!("the list of artifacts of {at}: {error}")),
                    _ => None,
                };
                Some(Finished::Kept(at, prepared, problem))
            }
            Work::Remove(at, mut prepared, kept) => {
                if !kept && let Err(error) = self.preparer.fail(&mut prepared) {
                    return Some(Finished::NotRemoved(at, chain(&error)));
                }
                let removed = self.preparer.remove(*prepared);
                removed.err().map(|error| Finished::NotRemoved(at, chain(&error)))
            }
            Work::Guests(machines, which) => {
                let mut report = CleanReport::default();
                match which {
                    Guests::Of(runner) => sweep::sweep_runner(&machines, &runner, &mut report),
                    Guests::Expired => sweep::expire(&machines, &mut report),
                }
                (!report.errors.is_empty()).then_some(Finished::Left(report.errors))
            }
            Work::Abandoned(layout, own) => {
                let errors = end_abandoned(&layout, &own);
                (!errors.is_empty()).then_some(Finished::Left(errors))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_protocol::{Environment, TreeId};
    use std::fs;

    #[test]
    fn a_fault_of_ours_is_heard_of() {
        assert!(matches!(caught(|| panic!("as a test wants it")), Some(Finished::Panicked)));
        assert!(caught(|| None).is_none());
    }

    #[test]
    fn after_the_wait_nothing_is_being_made() {
        const FILES: usize = 500;
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let (tree, session) = (TreeId([5; 20]), layout.tasks().join("s.1"));
        fs::create_dir_all(&session).unwrap();
        fs::create_dir_all(layout.source(tree)).unwrap();
        for number in 0..FILES {
            fs::write(layout.source(tree).join(number.to_string()), "text").unwrap();
        }
        let pool = Pool::new(Preparer::new(layout).unwrap(), Aside::default()).unwrap();
        for number in 1..50 {
            let at: TaskRef = format!("{number}.1").parse().unwrap();
            let attempt_dir = session.join(at.to_string());
            let environment = Environment::Snapshot;
            pool.submit(Work::Prepare(at, EnvRequest { attempt_dir, tree, environment, warm: None }));
        }
        let begun = || fs::read_dir(&session).unwrap().map(|entry| entry.unwrap().path().join("src"));
        while begun().next().is_none() {
            std::thread::yield_now();
        }
        pool.close();
        assert!((0..100).any(|_| pool.wait()));
        assert!(begun().count() < 49);
        for src in begun() {
            assert_eq!(fs::read_dir(src).unwrap().count(), FILES);
        }
    }
}

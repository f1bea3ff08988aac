//! By when each runner that has a job will be heard again.
//!
//! A runner keeps the time limits of its task itself, but one that stands still (a stage can stop
//! its parent, the kernel can hang it) keeps none. So each job is a promise to be heard within some
//! time. For a task on the host itself that is the task's own limit; whatever a runner does beyond
//! that, it says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crewboss_host::process::KILL_WITHIN;
use crewboss_protocol::limits::KILL_GRACE;
use crewboss_protocol::{Environment, Outcome, Target};

use super::STOP_WITHIN;

/// What a runner may take longer than it has promised: to end its task, and for want of a
/// processor.
pub const GRACE: Duration = KILL_GRACE.saturating_add(KILL_WITHIN).saturating_add(Duration::from_secs(3));

#[derive(Debug)]
struct Promise {
    due: Instant,
    /// What was promised.
    within: Duration,
    /// Whether that is the task's time limit.
    of_task: bool,
}

/// The promises of all runners.
#[derive(Debug)]
pub(super) struct Promises {
    standstill: Duration,
    open: BTreeMap<usize, Promise>,
}

impl Promises {
    pub(super) fn new(standstill: Duration) -> Self {
        Self { standstill, open: BTreeMap::new() }
    }

    /// A runner gets a job: a task, or a bootstrap.
    pub(super) fn begin(&mut self, runner: usize, target: Option<&Target>, now: Instant) {
        // Before a guest's stages come boot, bootstrap, and the wait for a machine.
        let on_host = target.filter(|target| !matches!(target.environment, Environment::Machine(_)));
        let limit = on_host.map(|target| Duration::from_millis(target.timeout_ms));
        self.set(runner, limit.unwrap_or(self.standstill), limit.is_some(), now);
    }

    /// A runner with a job says how long what it does now may take.
    pub(super) fn renew(&mut self, runner: usize, within: Duration, now: Instant) {
        if self.open.contains_key(&runner) {
            self.set(runner, within, false, now);
        }
    }

    /// A runner was told to end its job.
    pub(super) fn cancel(&mut self, runner: usize, now: Instant) {
        let sooner = |promise: &&Promise| promise.due > now + STOP_WITHIN + GRACE;
        if self.open.get(&runner).filter(sooner).is_some() {
            self.set(runner, STOP_WITHIN, false, now);
        }
    }

    fn set(&mut self, runner: usize, within: Duration, of_task: bool, now: Instant) {
        // A limit of hundreds of years is none.
        let Some(due) = now.checked_add(within.saturating_add(GRACE)) else { return };
        self.open.insert(runner, Promise { due, within, of_task });
    }

    /// A runner has no job any more.
    pub(super) fn kept(&mut self, runner: usize) {
        self.open.remove(&runner);
    }

    /// When the first one is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.open.values().map(|promise| promise.due).min()
    }

    /// Takes the runners that have not kept theirs, each with the outcome of its job and what to
    /// say of it.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(usize, Outcome, String)> {
        let late: Vec<usize> =
            self.open.iter().filter(|(_, promise)| promise.due <= now).map(|(runner, _)| *runner).collect();
        let taken = late.into_iter().filter_map(|runner| Some((runner, self.open.remove(&runner)?)));
        taken
            .map(|(runner, promise)| {
                let (outcome, text) = promise.broken();
                (runner, outcome, text)
            })
            .collect()
    }
}

impl Promise {
    fn broken(&self) -> (Outcome, String) {
        let ms = self.within.as_millis();
        if self.of_task {
            let text =
                format!("stopped after {ms} ms; its runner stood still, as a process does that is stopped");
            (Outcome::Timeout, text)
        } else {
            let text = format!("its runner stood still: it would be heard within {ms} ms, and was not");
            (Outcome::Infrastructure, text)
        }
    }
}

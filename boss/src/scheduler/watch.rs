//! Hosts that stand still although they answer: an attempt that runs for longer than it can, or
//! room for a task and none that starts. Their session is to be ended; what is there counts as lost
//! with it.

use crewboss_protocol::TaskId;

use super::Scheduler;
use super::host::Link;
use super::task::{NEVER, Phase};
use super::types::{Action, HostIndex};
use crewboss_protocol::Millis;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watched {
    /// An attempt that runs.
    Task(TaskId),
    /// A host that could start something.
    Host(HostIndex),
}

impl Scheduler {
    /// A host that has room and starts nothing of what it was sent for so long stands still.
    /// Without it none ever does.
    pub fn watch(&mut self, standstill_ms: u64) {
        self.standstill_ms = standstill_ms;
    }

    /// How many trees are being brought to a host. What was sent there may be waiting for them.
    pub fn note_sources(&mut self, host: HostIndex, under_way: u32) {
        if self.known_host(host) {
            self.host_mut(host).sources_under_way = under_way;
            self.moved(host);
            self.watch_start(host);
        }
    }

    /// An attempt has started.
    pub(super) fn watch_task(&mut self, task: TaskId) {
        let limit = self.task(task).limit_ms;
        if limit != NEVER {
            let due = Millis(self.now.0.saturating_add(limit));
            self.task_mut(task).due = due;
            self.due.insert((due, Watched::Task(task)));
        }
    }

    /// It runs no more.
    pub(super) fn unwatch_task(&mut self, task: TaskId) {
        let due = self.task(task).due;
        self.due.remove(&(due, Watched::Task(task)));
    }

    /// Something has started, ended or arrived at a host: it does not stand still.
    pub(super) fn moved(&mut self, host: HostIndex) {
        if let Some(due) = self.host_mut(host).start_due.take() {
            self.due.remove(&(due, Watched::Host(host)));
        }
    }

    /// Begins or ends to wait for a start on a host.
    pub(super) fn watch_start(&mut self, host: HostIndex) {
        let state = self.host(host);
        let running = u32::try_from(state.running.len()).unwrap_or(u32::MAX);
        let could_start = state.link == Link::Up
            && !state.sent.is_empty()
            && running < state.usable
            && state.sources_under_way == 0
            && self.standstill_ms != NEVER;
        if !could_start {
            self.moved(host);
        } else if state.start_due.is_none() {
            let due = Millis(self.now.0.saturating_add(self.standstill_ms));
            self.host_mut(host).start_due = Some(due);
            self.due.insert((due, Watched::Host(host)));
        }
    }

    /// Names the hosts that stand still, each once in its session.
    pub(super) fn find_stuck(&mut self, out: &mut Vec<Action>) {
        while let Some((due, what)) = self.due.first().copied().filter(|(due, _)| *due <= self.now) {
            self.due.remove(&(due, what));
            let (host, reason) = match what {
                Watched::Host(host) => {
                    self.host_mut(host).start_due = None;
                    let seconds = self.standstill_ms / 1000;
                    let text = format!(
                        "it has room for a task and has started none for {seconds} s, so its worker stands still \
                         (`standstill` in [limits] of crew.toml)"
                    );
                    (host, text)
                }
                Watched::Task(task) => {
                    let Phase::Running { host, since } = self.task(task).phase else { continue };
                    let seconds = self.now.0.saturating_sub(since.0) / 1000;
                    let at = self.current(task);
                    (
                        host,
                        format!(
                            "attempt {at} runs there for {seconds} s, its time limit is long over, and nobody ends it"
                        ),
                    )
                }
            };
            if !std::mem::replace(&mut self.host_mut(host).stuck, true) {
                out.push(Action::EndSession { host, reason });
            }
        }
    }
}

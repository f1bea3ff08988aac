//! Which task goes to which host, and when.
//!
//! Pure: no clock, no I/O, no chance. [`Scheduler::handle`] takes something that happened, and the
//! time, and says what is to be done. The same inputs always give the same actions.
//!
//! **What keeps it fast.** Tasks with equal needs form a class; which hosts fit a class is worked
//! out when a host comes or goes, not per task. Waiting tasks are in one ordered queue per class,
//! classes in one order among themselves. After an input only the hosts whose state it changed are
//! looked at, unless work became ready.
//!
//! **The order.** What a host can do; priority; rarest class first; longest expected first; plan
//! order, with a bounded look ahead for a tree or warm chain that the host has already. Free slots
//! are filled before anything is sent ahead, the least loaded host (relative to slots x speed)
//! first, or the fastest first where durations are known.
//!
//! **What always holds.** A task has at most one live attempt; attempts are numbered upwards and
//! never reused; a message about another attempt or from another host is ignored and counted. A
//! host with a free slot never idles while a task waits that [`Scheduler::can_take`] allows it.
//!
//! Hedging (a second start of the longest task) would add a second place to a running task;
//! recorded durations come in as [`TaskEntry::expected_ms`].

mod chain;
mod explain;
mod hand_out;
mod health;
mod host;
mod inputs;
mod queue;
mod requirement;
mod task;
mod types;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crewboss_protocol::{Millis, TaskId};

pub use chain::SPLIT_MIN;
pub use explain::Impossible;
pub use hand_out::LOOK_AHEAD;
pub use host::{AHEAD_MAX, JITTER_COVER_MICROS, PAUSE_FIRST_MS, PAUSE_MAX_MS, PAUSES_MAX, STRIKES_MAX};
pub use requirement::{MachineNeed, MachineOffer, Offer, Requirement, Unfit, fits};
pub use task::{ATTEMPTS_MAX, LOST_MAX, REFUSALS_MAX};
pub use types::{
    Action, AttemptStory, ChainId, Counts, Ended, GiveUp, HostIndex, HostView, Input, RequirementId,
    TaskEntry,
};

use chain::{Chain, Segment};
use host::{Host, Link};
use queue::{Class, ClassKey, Fit, Key};
use requirement::lasting_fit;
use task::{NEVER, Task, Trouble};
use watch::Watched;

/// See the [module](self).
#[derive(Debug)]
pub struct Scheduler {
    now: Millis,
    hosts: Vec<Host>,
    tasks: Vec<Task>,
    troubles: BTreeMap<TaskId, Trouble>,
    classes: Vec<Class>,
    class_index: BTreeMap<Requirement, RequirementId>,
    chains: Vec<Chain>,
    chain_index: BTreeMap<ChainId, u32>,
    segments: Vec<Segment>,
    /// Classes with waiting tasks.
    order: BTreeSet<ClassKey>,
    /// Expected milliseconds of all that waits, as far as known, on a host of speed 1000.
    waiting_ms: u64,
    /// Slots x speed of all active hosts.
    weight: u64,
    /// The largest speed class of an active host.
    fastest: u32,
    /// Hosts to look at.
    dirty: BTreeSet<HostIndex>,
    /// Classes in which work became ready.
    flagged: BTreeSet<u32>,
    /// Next tasks of segments whose last one has just ended on this host.
    continuations: Vec<(HostIndex, TaskId)>,
    /// Hosts that could hold more.
    roomy: BTreeSet<HostIndex>,
    /// Hosts with tasks that wait there for a slot and could be asked back.
    donors: BTreeSet<HostIndex>,
    pauses: BTreeSet<(Millis, HostIndex)>,
    /// When tasks that wait at a host while another has room are looked at again.
    look_at: Option<Millis>,
    /// A host came, went or changed: what was excluded may not be any more, and the other way
    /// round.
    crew_changed: bool,
    hand_outs: u64,
    counts: Counts,
    stopped: bool,
    /// After how long a host that starts nothing stands still.
    standstill_ms: u64,
    /// When something that is watched should have happened.
    due: BTreeSet<(Millis, Watched)>,
}

impl Scheduler {
    /// For a crew of so many hosts, all of them still connecting.
    pub fn new(hosts: u32) -> Self {
        Self {
            now: Millis(0),
            hosts: (0..hosts).map(|_| Host::new()).collect(),
            tasks: Vec::new(),
            troubles: BTreeMap::new(),
            classes: Vec::new(),
            class_index: BTreeMap::new(),
            chains: Vec::new(),
            chain_index: BTreeMap::new(),
            segments: Vec::new(),
            order: BTreeSet::new(),
            waiting_ms: 0,
            weight: 0,
            fastest: 0,
            dirty: BTreeSet::new(),
            flagged: BTreeSet::new(),
            continuations: Vec::new(),
            roomy: BTreeSet::new(),
            donors: BTreeSet::new(),
            pauses: BTreeSet::new(),
            look_at: None,
            crew_changed: false,
            hand_outs: 0,
            counts: Counts::default(),
            stopped: false,
            standstill_ms: NEVER,
            due: BTreeSet::new(),
        }
    }

    /// The class of tasks with these needs. Equal needs give the same id.
    pub fn intern(&mut self, requirement: Requirement) -> RequirementId {
        if let Some(id) = self.class_index.get(&requirement) {
            return *id;
        }
        let index = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        let mut class = Class::new(requirement.clone(), self.hosts.len());
        for (number, host) in (0..).zip(&self.hosts) {
            class.set_fit(HostIndex(number), fit_of(host, &requirement));
        }
        self.classes.push(class);
        self.class_index.insert(requirement, RequirementId(index));
        RequirementId(index)
    }

    /// Takes note of something that happened at `now`, and appends to `out` what is to be done, in
    /// that order.
    pub fn handle(&mut self, input: Input, now: Millis, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.end_pauses();
        if self.look_at.is_some_and(|at| at <= self.now) {
            self.dirty.extend(self.roomy.iter().copied());
        }
        self.take(input, out);
        self.find_stuck(out);
        self.settle(out);
    }

    /// When [`Input::Tick`] is due, if nothing else happens before.
    pub fn next_wake(&self) -> Option<Millis> {
        let pause = self.pauses.first().map(|(until, _)| *until);
        let due = self.due.first().map(|(due, _)| *due);
        [pause, self.look_at, due].into_iter().flatten().min()
    }

    /// How many tasks are in which state.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether every task has its end. A later [`Input::ResultLost`] or [`Input::AddTasks`] can
    /// undo that, so a caller also waits until what was accepted is stored.
    pub fn is_finished(&self) -> bool {
        let counts = &self.counts;
        counts.done + counts.given_up + counts.withdrawn == counts.total
    }

    /// Whether [`Input::Stop`] was given.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn known_host(&self, host: HostIndex) -> bool {
        (host.0 as usize) < self.hosts.len()
    }

    fn host(&self, host: HostIndex) -> &Host {
        &self.hosts[host.0 as usize]
    }

    fn host_mut(&mut self, host: HostIndex) -> &mut Host {
        &mut self.hosts[host.0 as usize]
    }

    fn task(&self, task: TaskId) -> &Task {
        &self.tasks[task.0 as usize]
    }

    fn task_mut(&mut self, task: TaskId) -> &mut Task {
        &mut self.tasks[task.0 as usize]
    }

    fn all_hosts(&self) -> impl Iterator<Item = HostIndex> + use<> {
        (0..u32::try_from(self.hosts.len()).unwrap_or(u32::MAX)).map(HostIndex)
    }

    /// Works out anew what a host can take.
    fn refresh_host(&mut self, host: HostIndex) {
        for index in 0..self.classes.len() {
            let fit = fit_of(self.host(host), &self.classes[index].requirement);
            if self.classes[index].fit[host.0 as usize] != fit {
                self.classes[index].set_fit(host, fit);
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                self.file_class(index);
                self.flagged.insert(index);
                self.crew_changed = true;
            }
        }
        let active = || self.hosts.iter().filter(|host| host.is_active());
        self.weight = active().map(Host::weight).sum();
        self.fastest = active().map(Host::speed_class).max().unwrap_or(0);
        self.touch(host);
    }

    /// Brings the indexes up to date after a change at a host, and has it looked at.
    fn touch(&mut self, host: HostIndex) {
        let state = self.host(host);
        let (room, donor) = (state.room() > 0, state.excess() > 0);
        set_member(&mut self.roomy, host, room);
        set_member(&mut self.donors, host, donor);
        self.dirty.insert(host);
        self.watch_start(host);
    }

    /// Puts a class where it belongs in the order of classes.
    fn file_class(&mut self, index: u32) {
        let class = &mut self.classes[index as usize];
        let key = class.key(index);
        if class.filed != key {
            if let Some(old) = std::mem::replace(&mut class.filed, key) {
                self.order.remove(&old);
            }
            if let Some(new) = key {
                self.order.insert(new);
            }
        }
    }

    fn key_of(&self, task: TaskId) -> Key {
        let state = self.task(task);
        let rest = self.segments.get(state.segment as usize).map_or(1, |segment| u64::from(segment.left()));
        let expected = state.expected_ms.saturating_mul(rest.max(1));
        (std::cmp::Reverse(state.priority), std::cmp::Reverse(expected), task)
    }
}

fn set_member(set: &mut BTreeSet<HostIndex>, host: HostIndex, member: bool) {
    if member {
        set.insert(host);
    } else {
        set.remove(&host);
    }
}

fn fit_of(host: &Host, requirement: &Requirement) -> Fit {
    let gone = host.out || matches!(host.link, Link::Down { returns: false, .. });
    let Some(offer) = host.offer.as_ref().filter(|_| !gone) else {
        // A host that is still connecting may turn out to take anything.
        return if gone { Fit::Never } else { Fit::Later };
    };
    match fits(requirement, offer) {
        Ok(()) if host.is_active() => Fit::Now,
        Ok(()) => Fit::Later,
        // Space may come back when what runs there ends.
        Err(Unfit::Disk { .. }) if host.held() > 0 && lasting_fit(requirement, offer).is_ok() => Fit::Later,
        Err(_) => Fit::Never,
    }
}

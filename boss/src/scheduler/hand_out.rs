//! Handing out: filling slots, sending ahead, asking back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crewboss_protocol::limits::TASKS_PER_MESSAGE_MAX;
use crewboss_protocol::{Attempt, Millis, TaskId, TaskRef};

use super::Scheduler;
use super::queue::Key;
use super::task::{NO_SEGMENT, Phase, Recall};
use super::types::{Action, GiveUp, HostIndex};

/// How many equals of the first task are looked at for one whose tree or warm chain is on the host.
pub const LOOK_AHEAD: usize = 32;

/// How often tasks that wait at one host while another has room are looked at.
const STALL_LOOK_MS: u64 = 500;

/// Which of several hosts is served first: smallest first.
type Rank = (u64, u64, HostIndex);

impl Scheduler {
    /// Hands out what can be handed out after something has happened.
    pub(super) fn settle(&mut self, out: &mut Vec<Action>) {
        self.give_up_impossible(out);
        if !self.stopped {
            self.continue_chains(out);
            let idle = self.fill_slots(out);
            self.send_ahead(out);
            self.ask_back(&idle, out);
            self.plan_look();
        }
        self.continuations.clear();
        self.dirty.clear();
        self.flagged.clear();
    }

    /// Tasks may wait at a host for one that takes far longer than those before it, which only time
    /// can tell. As long as some wait and some host has room, they are looked at again.
    fn plan_look(&mut self) {
        let waiting = !self.donors.is_empty() && !self.roomy.is_empty();
        self.look_at = match self.look_at {
            Some(at) if waiting && at > self.now => Some(at),
            _ => waiting.then(|| Millis(self.now.0.saturating_add(STALL_LOOK_MS))),
        };
    }

    /// Gives up what no host can take now or later.
    fn give_up_impossible(&mut self, out: &mut Vec<Action>) {
        let flagged: Vec<u32> = self.flagged.iter().copied().collect();
        for class in flagged {
            if self.classes[class as usize].possible > 0 || self.classes[class as usize].queue.is_empty() {
                continue;
            }
            let reasons = self.reasons(class);
            while let Some((_, _, task)) = self.classes[class as usize].queue.first().copied() {
                self.give_up(task, GiveUp::Impossible(reasons.clone()), out);
            }
        }
        if std::mem::take(&mut self.crew_changed) {
            let waiting = |task: &&TaskId| self.task(**task).phase == Phase::Waiting;
            let stuck = |task: &&TaskId| self.refused_everywhere(**task);
            let tasks: Vec<TaskId> = self.troubles.keys().filter(waiting).filter(stuck).copied().collect();
            for task in tasks {
                self.give_up(task, GiveUp::Refused, out);
            }
        }
    }

    /// The next task of a segment stays on the host that built the one before, unless the host has
    /// something of a higher priority to do.
    fn continue_chains(&mut self, out: &mut Vec<Action>) {
        for (host, task) in std::mem::take(&mut self.continuations) {
            let ready = self.task(task).phase == Phase::Waiting && self.host(host).free() > 0;
            if !ready || self.can_take(host, task).is_err() {
                continue;
            }
            let rival = self.best_for(host).map_or(0, |best| self.task(best).priority);
            if rival <= self.task(task).priority {
                self.send(host, task, out);
            }
        }
    }

    /// Fills free slots. Returns the hosts that have one left and nothing to put into it.
    fn fill_slots(&mut self, out: &mut Vec<Action>) -> BTreeSet<HostIndex> {
        let mut idle = BTreeSet::new();
        loop {
            self.widen();
            let mut line: BTreeSet<Rank> = self
                .dirty
                .iter()
                .filter(|host| self.host(**host).free() > 0 && !idle.contains(*host))
                .map(|host| self.rank(*host))
                .collect();
            if line.is_empty() {
                return idle;
            }
            while let Some((_, _, host)) = line.pop_first() {
                match self.best_for(host).or_else(|| self.half_for(host)) {
                    None => {
                        idle.insert(host);
                    }
                    Some(task) => {
                        self.send(host, task, out);
                        if self.host(host).free() > 0 {
                            line.insert(self.rank(host));
                        }
                    }
                }
            }
            if !self.flagged.is_empty() {
                idle.clear();
            }
        }
    }

    /// If work became ready, everybody who could hold more is looked at.
    fn widen(&mut self) {
        if !std::mem::take(&mut self.flagged).is_empty() {
            self.dirty.extend(self.roomy.iter().copied());
        }
    }

    /// Sends work ahead to hosts whose slots are full. Nobody who could start it at once is left by
    /// now.
    fn send_ahead(&mut self, out: &mut Vec<Action>) {
        let roomy = |host: &&HostIndex| self.host(**host).free() == 0 && self.host(**host).room() > 0;
        let mut line: BTreeSet<Rank> = self.dirty.iter().filter(roomy).map(|host| self.rank(*host)).collect();
        while let Some((_, _, host)) = line.pop_first() {
            if let Some(task) = self.best_for(host) {
                self.send(host, task, out);
                if self.host(host).room() > 0 {
                    line.insert(self.rank(host));
                }
            }
        }
    }

    /// Which host is served first: the least loaded, or, where durations are known, the fastest.
    fn rank(&self, host: HostIndex) -> Rank {
        let state = self.host(host);
        let load = state.load_with_one_more();
        let slowness = u64::from(u32::MAX - state.speed_class());
        let known = self.order.first().is_some_and(|(_, _, Reverse(expected), _)| *expected != u64::MAX);
        if known && state.free() > 0 { (slowness, load, host) } else { (load, slowness, host) }
    }

    /// The best waiting task for a host.
    fn best_for(&self, host: HostIndex) -> Option<TaskId> {
        let classes = self.order.iter().map(|(_, _, _, class)| *class);
        let fitting = classes.filter(|class| self.classes[*class as usize].takes(host));
        fitting.into_iter().find_map(|class| self.best_of(class, host))
    }

    fn best_of(&self, class: u32, host: HostIndex) -> Option<TaskId> {
        let queue = &self.classes[class as usize].queue;
        let takes = |key: &&Key| self.at_odds(host, key.2).is_ok();
        let first = queue.iter().find(takes)?;
        let first = self.shorter(class, host, first).unwrap_or(first);
        if self.is_near(host, first.2) {
            return Some(first.2);
        }
        let equals = queue.range((Bound::Excluded(first), Bound::Unbounded)).take(LOOK_AHEAD);
        let mut equals = equals.take_while(|key| key.0 == first.0 && key.1 == first.1);
        let near = equals.find(|key| self.is_near(host, key.2) && takes(key));
        Some(near.unwrap_or(first).2)
    }

    /// Near the end a slow host leaves what it could not finish in time to faster ones and takes
    /// something shorter, if there is anything. It never idles for that.
    fn shorter(&self, class: u32, host: HostIndex, first: &Key) -> Option<&Key> {
        let state = self.host(host);
        let known = first.1.0 != u64::MAX && self.task(first.2).segment == NO_SEGMENT;
        if !known || state.speed_class() >= self.fastest || self.weight == 0 {
            return None;
        }
        let left_ms = self.waiting_ms.saturating_mul(1000) / self.weight;
        let bearable = left_ms.saturating_mul(u64::from(state.speed)) / 1000;
        if first.1.0 <= bearable {
            return None;
        }
        let queue = &self.classes[class as usize].queue;
        let takes = |key: &&Key| key.0 == first.0 && self.at_odds(host, key.2).is_ok();
        let in_time = queue.range((first.0, Reverse(bearable), TaskId(0))..).next().filter(takes);
        let last_id = (first.0, Reverse(0), TaskId(u32::MAX));
        in_time.or_else(|| queue.range(..=last_id).next_back().filter(takes))
    }

    fn is_near(&self, host: HostIndex, task: TaskId) -> bool {
        let (state, place) = (self.task(task), self.host(host));
        match self.chains.get(state.chain as usize) {
            Some(chain) => place.warm.contains(&chain.id),
            None => place.offer.as_ref().is_some_and(|offer| offer.trees.contains(&state.tree)),
        }
    }

    /// Half of a running segment for a host that would idle otherwise.
    fn half_for(&mut self, host: HostIndex) -> Option<TaskId> {
        for class in 0..self.classes.len() {
            if self.classes[class].splittable.is_empty() || !self.classes[class].takes(host) {
                continue;
            }
            let class = u32::try_from(class).unwrap_or(u32::MAX);
            if let Some(task) = self.split_for(class, host)
                && self.at_odds(host, task).is_ok()
            {
                return Some(task);
            }
        }
        None
    }

    fn send(&mut self, host: HostIndex, task: TaskId, out: &mut Vec<Action>) {
        self.unqueue(task);
        self.hand_outs += 1;
        let number = self.hand_outs;
        let state = self.task_mut(task);
        state.attempt += 1;
        state.phase = Phase::Sent { host, number, recall: Recall::No };
        let at = TaskRef { task, attempt: Attempt(state.attempt) };
        let (tree, chained, last) = (state.tree, state.segment != NO_SEGMENT, state.is_last_attempt());
        self.counts.waiting -= 1;
        self.counts.sent += 1;
        let place = self.host_mut(host);
        place.sent.insert(number, task);
        place.last_attempts += u32::from(last);
        if let Some(offer) = &mut place.offer {
            offer.trees.insert(tree);
        }
        if chained {
            self.chain_sent(task, host);
        }
        self.touch(host);
        out.push(Action::Send { host, at });
    }

    /// Puts a task into its class's queue. The caller has counted it as waiting.
    pub(super) fn make_ready(&mut self, task: TaskId) {
        self.task_mut(task).phase = Phase::Waiting;
        let key = self.key_of(task);
        let class = self.task(task).class;
        self.classes[class as usize].queue.insert(key);
        self.waiting_ms = self.waiting_ms.saturating_add(self.task(task).expected().unwrap_or(0));
        self.file_class(class);
        self.flagged.insert(class);
    }

    /// Takes a waiting task out of its queue.
    pub(super) fn unqueue(&mut self, task: TaskId) {
        let key = self.key_of(task);
        let class = self.task(task).class;
        let was_there = self.classes[class as usize].queue.remove(&key);
        debug_assert!(was_there, "task {task} was not in its queue");
        self.waiting_ms = self.waiting_ms.saturating_sub(self.task(task).expected().unwrap_or(0));
        self.file_class(class);
    }

    /// For hosts with nothing to do: asks back what others hold and have not started.
    fn ask_back(&mut self, idle: &BTreeSet<HostIndex>, out: &mut Vec<Action>) {
        let mut asked: BTreeMap<HostIndex, Vec<TaskRef>> = BTreeMap::new();
        for host in idle {
            while self.host(*host).free() > self.host(*host).expecting {
                let Some((donor, at)) = self.find_donation(*host) else { break };
                self.mark_recalled(donor, at.task, Recall::For(*host));
                self.host_mut(*host).expecting += 1;
                asked.entry(donor).or_default().push(at);
            }
        }
        for (host, tasks) in asked {
            push_recall(host, &tasks, out);
        }
    }

    /// The task that would wait longest of those that this host could take.
    fn find_donation(&self, host: HostIndex) -> Option<(HostIndex, TaskRef)> {
        let mut donors: Vec<(Reverse<u64>, HostIndex)> = self
            .donors
            .iter()
            .filter(|donor| **donor != host)
            .map(|donor| (Reverse(self.wait_ms(*donor)), *donor))
            .collect();
        donors.sort_unstable();
        donors.into_iter().find_map(|(_, donor)| {
            let sent = self.host(donor).sent.values().rev().copied();
            let mut free = sent.filter(|task| !self.is_recalled(*task));
            let task = free.find(|task| self.could_help(host, donor, *task))?;
            Some((donor, TaskRef { task, attempt: Attempt(self.task(task).attempt) }))
        })
    }

    fn is_recalled(&self, task: TaskId) -> bool {
        !matches!(self.task(task).phase, Phase::Sent { recall: Recall::No, .. })
    }

    /// How long a task sent last to a host waits there; in milliseconds if the host's tasks have
    /// been timed.
    fn wait_ms(&self, host: HostIndex) -> u64 {
        let state = self.host(host);
        let mean = if state.mean_ms > 0 { state.mean_ms } else { 1_000_000 / u64::from(state.speed) };
        let expected = u64::from(state.excess()).saturating_mul(mean) / u64::from(state.usable.max(1));
        // Where nothing has moved for a while it may well be as long again.
        expected.max(self.now.0.saturating_sub(state.progress.0))
    }

    /// Whether a task is done sooner if this host takes it from the one where it waits.
    fn could_help(&self, host: HostIndex, donor: HostIndex, task: TaskId) -> bool {
        let state = self.task(task);
        if !self.classes[state.class as usize].takes(host) || self.at_odds(host, task).is_err() {
            return false;
        }
        let (here, there) = (self.host(host), self.host(donor));
        let there_ms = match state.expected() {
            Some(expected) => expected.saturating_mul(1000) / u64::from(there.speed),
            None if there.mean_ms > 0 => there.mean_ms,
            None => return true,
        };
        let here_ms = there_ms.saturating_mul(u64::from(there.speed)) / u64::from(here.speed);
        let travel_ms = here.round_trip_ms() + there.round_trip_ms();
        here_ms.saturating_add(travel_ms) <= there_ms.saturating_add(self.wait_ms(donor))
    }

    pub(super) fn mark_recalled(&mut self, host: HostIndex, task: TaskId, why: Recall) {
        if let Phase::Sent { recall, .. } = &mut self.task_mut(task).phase {
            *recall = why;
            self.host_mut(host).recalled += 1;
            let donor = self.host(host).excess() > 0;
            super::set_member(&mut self.donors, host, donor);
        }
    }
}

/// Asks for tasks back, in as many messages as it takes.
pub(super) fn push_recall(host: HostIndex, tasks: &[TaskRef], out: &mut Vec<Action>) {
    for tasks in tasks.chunks(TASKS_PER_MESSAGE_MAX) {
        out.push(Action::Recall { host, tasks: tasks.to_vec() });
    }
}

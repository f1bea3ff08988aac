//! Taking note of what happened.

use crewboss_protocol::message::Refusal;
use crewboss_protocol::{Attempt, Millis, Name, TaskId, TaskRef};

use super::host::{Health, Link, STRIKES_MAX};
use super::requirement::Offer;
use super::task::{ATTEMPTS_MAX, LOST_MAX, NEVER, NO_SEGMENT, Phase, REFUSALS_MAX, Recall, Task};
use super::types::{Action, AttemptStory, Ended, GiveUp, HostIndex, Input, TaskEntry};
use super::{Requirement, Scheduler};

impl Scheduler {
    pub(super) fn take(&mut self, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::AddTasks(tasks) => tasks.into_iter().for_each(|entry| self.add(&entry)),
            Input::HostUp { host, offer } => self.host_up(host, offer, out),
            Input::HostDown { host, reason, returns, ours } => {
                self.host_down(host, reason, returns, ours, out);
            }
            Input::Started { host, at } => self.started(host, at),
            Input::Ended { host, at, ended } => self.ended(host, at, ended, out),
            Input::Refused { host, at, reason, text } => self.refused(host, at, reason, &text, out),
            Input::Returned { host, tasks } => {
                tasks.into_iter().for_each(|at| self.returned(host, at, out));
            }
            Input::ResultLost { at, host, reason } => self.result_lost(host, at, reason, out),
            Input::RoundTrip { host, micros } if self.known_host(host) => {
                self.host_mut(host).note_round_trip(micros);
                self.touch(host);
            }
            Input::Slots { host, usable } if self.known_host(host) => {
                let state = self.host_mut(host);
                state.usable = usable.min(state.slots);
                self.touch(host);
                // What waits here now may be better off at a host that idles.
                self.dirty.extend(self.roomy.iter().copied());
            }
            Input::Disk { host, free } if self.known_host(host) => {
                if let Some(offer) = &mut self.host_mut(host).offer {
                    offer.disk_free = free;
                    self.refresh_host(host);
                }
            }
            Input::RoundTrip { .. } | Input::Slots { .. } | Input::Disk { .. } => self.counts.stale += 1,
            Input::Tick => {}
            Input::Withdraw { tasks } => tasks.into_iter().for_each(|task| self.withdraw(task, out)),
            Input::Stop => self.stopped = true,
        }
    }

    fn add(&mut self, entry: &TaskEntry) {
        let index = entry.task.0 as usize;
        if self.tasks.len() <= index {
            self.tasks.resize(index + 1, Task::absent());
        }
        let known_class = (entry.requirement.0 as usize) < self.classes.len();
        if self.tasks[index].phase != Phase::Absent || !known_class {
            self.counts.stale += 1;
            return;
        }
        let task = &mut self.tasks[index];
        task.class = entry.requirement.0;
        task.priority = entry.priority;
        task.expected_ms = entry.expected_ms.unwrap_or(u64::MAX);
        task.limit_ms = entry.limit_ms.unwrap_or(NEVER);
        task.tree = entry.tree;
        self.counts.total += 1;
        self.counts.waiting += 1;
        match entry.chain {
            Some(chain) => self.append_to_chain(entry.task, chain, entry.requirement.0),
            None => self.make_ready(entry.task),
        }
    }

    fn host_up(&mut self, host: HostIndex, offer: Offer, out: &mut Vec<Action>) {
        if !self.known_host(host) || self.host(host).out {
            self.counts.stale += 1;
            return;
        }
        if self.host(host).link == Link::Up {
            self.host_down(host, "a new session replaced it".to_owned(), true, false, out);
        }
        let now = self.now;
        self.host_mut(host).come_up(offer, now);
        let well = self.host(host).health == Health::Well;
        if well && self.host(host).strikes >= STRIKES_MAX {
            self.pause(host, "its session was lost again and again", out);
        }
        self.refresh_host(host);
    }

    pub(super) fn host_down(
        &mut self,
        host: HostIndex,
        reason: String,
        returns: bool,
        ours: bool,
        out: &mut Vec<Action>,
    ) {
        if !self.known_host(host) {
            self.counts.stale += 1;
            return;
        }
        let was_up = self.host(host).link == Link::Up;
        self.host_mut(host).link = Link::Down { reason: reason.clone(), returns };
        // Fits first, so that what is put back sees that this host is gone.
        self.refresh_host(host);
        if !was_up {
            return;
        }
        let slots = self.host(host).slots as usize;
        let running: Vec<TaskId> = self.host(host).running.iter().copied().collect();
        let sent: Vec<TaskId> = self.host(host).sent.values().copied().collect();
        if ours {
            for task in running.into_iter().chain(sent) {
                let at = self.current(task);
                self.release(host, task);
                self.spare(host, at, &reason, out);
            }
            return self.refresh_host(host);
        }
        if !running.is_empty() || !sent.is_empty() {
            self.host_mut(host).strikes += 1;
        }
        // The news that they had started may have been lost with the session.
        let suspects = running.iter().chain(sent.iter().take(slots));
        for task in suspects {
            let at = self.current(*task);
            self.release(host, at.task);
            self.fail(host, at, format!("the session with the host was lost: {reason}"), out);
        }
        for task in sent.iter().skip(slots) {
            self.release(host, *task);
            self.lose(host, self.current(*task), out);
        }
        self.refresh_host(host);
    }

    fn started(&mut self, host: HostIndex, at: TaskRef) {
        if self.held_at(host, at) != Some(None) {
            self.counts.stale += 1;
            return;
        }
        self.leave_sent(host, at.task);
        let since = self.now;
        self.task_mut(at.task).phase = Phase::Running { host, since };
        self.counts.running += 1;
        let now = self.now;
        self.host_mut(host).progress = now;
        self.host_mut(host).running.insert(at.task);
        self.watch_task(at.task);
        self.moved(host);
        self.touch(host);
    }

    fn ended(&mut self, host: HostIndex, at: TaskRef, ended: Ended, out: &mut Vec<Action>) {
        let Some(since) = self.held_at(host, at) else {
            self.counts.stale += 1;
            return;
        };
        let now = self.now;
        let ran_ms = since.map(|since| now.0.saturating_sub(since.0));
        let expected = self.task(at.task).expected().filter(|_| ended == Ended::Result);
        self.host_mut(host).note_end(now, ran_ms, expected);
        self.release(host, at.task);
        match ended {
            Ended::Result => self.result(host, at, out),
            Ended::Infrastructure(reason) => {
                self.strike(host, &reason, out);
                self.fail(host, at, reason, out);
            }
            Ended::Machines(reason) => {
                self.blame_machines(host, at.task, &reason, out);
                self.fail(host, at, reason, out);
            }
            Ended::Lasting(reason) => {
                self.drop_machines(host, at.task, &reason);
                if !self.classes[self.task(at.task).class as usize].requirement.machines.is_empty() {
                    self.want_back(host, Some(self.task(at.task).class), out);
                }
                self.note_refusal(host, at, reason, out);
            }
            Ended::Killed(reason) => {
                if std::mem::replace(&mut self.trouble(at.task).killed, true) {
                    self.accept(host, at, out);
                } else {
                    self.fail(host, at, reason, out);
                }
            }
            Ended::Cancelled { .. } if self.stopped => self.result(host, at, out),
            Ended::Cancelled { why, ours } => {
                // It takes nothing any more, and its session is about to end.
                self.host_down(host, why.clone(), true, ours, out);
                if ours {
                    self.spare(host, at, &why, out);
                } else {
                    self.fail(host, at, why, out);
                }
            }
            Ended::Interrupted => {
                self.fail(host, at, "work of a higher priority took its place".to_owned(), out);
            }
        }
    }

    fn result(&mut self, host: HostIndex, at: TaskRef, out: &mut Vec<Action>) {
        self.prove(host, at.task);
        self.accept(host, at, out);
    }

    fn accept(&mut self, host: HostIndex, at: TaskRef, out: &mut Vec<Action>) {
        if self.task(at.task).unwanted {
            return self.conclude(at.task, Phase::Withdrawn);
        }
        out.push(Action::Accept { host, at });
        let state = self.task(at.task);
        let (segment, chain) = (state.segment, state.chain);
        self.conclude(at.task, Phase::Done);
        if let Some(chain) = self.chains.get(chain as usize).map(|chain| chain.id) {
            self.host_mut(host).warm.insert(chain);
            let next = self.segments[segment as usize].start as usize;
            let tasks = &self.chains[self.segments[segment as usize].chain as usize].tasks;
            if let Some(next) = tasks.get(next).copied() {
                self.continuations.push((host, next));
            }
        }
    }

    fn refused(&mut self, host: HostIndex, at: TaskRef, why: Refusal, text: &str, out: &mut Vec<Action>) {
        if self.held_at(host, at).is_none() {
            self.counts.stale += 1;
            return;
        }
        self.release(host, at.task);
        let reason = format!("refused: {text}");
        match why {
            // What is not to be had there is nobody's fault.
            Refusal::NoToolchain => {
                self.drop_toolchain(host, at.task);
                self.note_refusal(host, at, reason, out);
            }
            Refusal::NoMachine => {
                self.drop_machines(host, at.task, text);
                self.note_refusal(host, at, reason, out);
            }
            Refusal::NoSpace | Refusal::NoSource | Refusal::Environment | Refusal::UnknownTarget => {
                self.strike(host, &reason, out);
                self.note_refusal(host, at, reason, out);
            }
            // Says nothing about this task; what was sent may fit a moment later, but not for ever.
            Refusal::QueueFull | Refusal::Duplicate | Refusal::Stopping => {
                self.strike(host, &reason, out);
                self.lose(host, at, out);
            }
        }
    }

    fn note_refusal(&mut self, host: HostIndex, at: TaskRef, reason: String, out: &mut Vec<Action>) {
        let trouble = self.trouble(at.task);
        trouble.refused_by.push(host);
        trouble.story.push(AttemptStory { attempt: at.attempt, host, reason: reason.clone() });
        let often = trouble.refused_by.len() >= REFUSALS_MAX;
        if self.task(at.task).unwanted {
            self.conclude(at.task, Phase::Withdrawn);
        } else if often || self.refused_everywhere(at.task) {
            self.put_back(at.task);
            self.give_up(at.task, GiveUp::Refused, out);
        } else {
            out.push(Action::Retry { host, at, reason });
            self.put_back(at.task);
        }
    }

    /// The host says itself that it does not have what it offered.
    fn drop_toolchain(&mut self, host: HostIndex, task: TaskId) {
        let class = &self.classes[self.task(task).class as usize];
        let Requirement { toolchain: Some(name), .. } = &class.requirement else { return };
        let name: Name = name.clone();
        if let Some(offer) = &mut self.host_mut(host).offer {
            offer.toolchains.remove(&name);
        }
        self.refresh_host(host);
    }

    /// The same of machines. If there are several it is not said which one is missing, so it counts
    /// for these together.
    pub(super) fn drop_machines(&mut self, host: HostIndex, task: TaskId, text: &str) {
        let class = &self.classes[self.task(task).class as usize];
        let machines = class.requirement.machines.clone();
        if let Some(offer) = self.host_mut(host).offer.as_mut().filter(|_| !machines.is_empty()) {
            offer.refused_machines.insert(machines, text.to_owned());
        }
        self.refresh_host(host);
    }

    fn returned(&mut self, host: HostIndex, at: TaskRef, out: &mut Vec<Action>) {
        let sent = self.held_at(host, at) == Some(None);
        if !sent {
            self.counts.stale += 1;
            return;
        }
        let asked = !matches!(self.task(at.task).phase, Phase::Sent { recall: Recall::No, .. });
        self.release(host, at.task);
        if asked && !self.task(at.task).unwanted {
            self.put_back(at.task);
        } else {
            // Nobody asked: a worker that gives everything back must not keep the run going for
            // ever.
            self.lose(host, at, out);
        }
    }

    fn result_lost(&mut self, host: HostIndex, at: TaskRef, reason: String, out: &mut Vec<Action>) {
        let state = self.tasks.get(at.task.0 as usize);
        let accepted = state.is_some_and(|s| s.phase == Phase::Done && s.attempt == at.attempt.0);
        if !accepted || !self.known_host(host) {
            self.counts.stale += 1;
            return;
        }
        self.counts.done -= 1;
        self.counts.waiting += 1;
        if self.task(at.task).chain != NO_SEGMENT {
            self.chain_reopen(at.task);
            self.pass_turn(at.task);
        }
        self.fail(host, at, format!("the result could not be fetched: {reason}"), out);
    }

    fn withdraw(&mut self, task: TaskId, out: &mut Vec<Action>) {
        match self.tasks.get(task.0 as usize).map_or(Phase::Absent, |state| state.phase) {
            Phase::Waiting => {
                self.unqueue(task);
                self.pass_turn(task);
                self.conclude(task, Phase::Withdrawn);
            }
            Phase::Blocked => self.conclude(task, Phase::Withdrawn),
            Phase::Sent { host, .. } | Phase::Running { host, .. } if !self.task(task).unwanted => {
                self.task_mut(task).unwanted = true;
                out.push(Action::Cancel { host, at: self.current(task) });
            }
            _ => self.counts.stale += 1,
        }
    }

    /// The live attempt of a task.
    pub(super) fn current(&self, task: TaskId) -> TaskRef {
        TaskRef { task, attempt: Attempt(self.task(task).attempt) }
    }

    /// Whether this host holds this attempt; if so, since when it runs.
    fn held_at(&self, host: HostIndex, at: TaskRef) -> Option<Option<Millis>> {
        let state = self.tasks.get(at.task.0 as usize).filter(|state| state.attempt == at.attempt.0)?;
        match state.phase {
            Phase::Sent { host: there, .. } if there == host => Some(None),
            Phase::Running { host: there, since } if there == host => Some(Some(since)),
            _ => None,
        }
    }

    /// Whether this attempt is at this host and has not ended. What anybody else says of it is not
    /// true.
    pub fn holds(&self, host: HostIndex, at: TaskRef) -> bool {
        self.held_at(host, at).is_some()
    }

    /// Whether this attempt was sent to this host and has not started.
    pub fn awaits_start(&self, host: HostIndex, at: TaskRef) -> bool {
        self.held_at(host, at) == Some(None)
    }

    /// Takes a task out of its host's line of unstarted ones.
    fn leave_sent(&mut self, host: HostIndex, task: TaskId) {
        let Phase::Sent { number, recall, .. } = self.task(task).phase else { return };
        self.counts.sent -= 1;
        let state = self.host_mut(host);
        state.sent.remove(&number);
        state.recalled -= u32::from(recall != Recall::No);
        if let Recall::For(beneficiary) = recall {
            self.host_mut(beneficiary).expecting -= 1;
            self.dirty.insert(beneficiary);
        }
    }

    /// Takes a task off its host. It then counts as waiting, but is in no queue.
    fn release(&mut self, host: HostIndex, task: TaskId) {
        if let Phase::Running { .. } = self.task(task).phase {
            self.counts.running -= 1;
            self.host_mut(host).running.remove(&task);
            self.unwatch_task(task);
        } else {
            self.leave_sent(host, task);
        }
        self.moved(host);
        let last = self.task(task).is_last_attempt();
        self.host_mut(host).last_attempts -= u32::from(last);
        self.counts.waiting += 1;
        if self.task(task).segment != NO_SEGMENT {
            self.chain_released(task, host);
        }
        // Its space counted as coming back only while something ran there.
        if self.host(host).held() == 0 && self.classes.iter().any(|class| class.requirement.disk > 0) {
            self.refresh_host(host);
        }
        self.touch(host);
    }

    /// Queues a released task again.
    fn put_back(&mut self, task: TaskId) {
        if self.task(task).segment != NO_SEGMENT {
            self.chain_put_back(task);
        }
        self.make_ready(task);
    }

    /// Ends a task that is in no queue; it still counted as waiting. The next of its segment has
    /// its turn.
    fn conclude(&mut self, task: TaskId, phase: Phase) {
        self.counts.waiting -= 1;
        match phase {
            Phase::Done => self.counts.done += 1,
            Phase::GivenUp => self.counts.given_up += 1,
            _ => self.counts.withdrawn += 1,
        }
        let state = self.task_mut(task);
        state.phase = phase;
        let segment = state.segment;
        if segment != NO_SEGMENT {
            self.advance(segment);
        }
    }

    /// A waiting task leaves its segment.
    fn pass_turn(&mut self, task: TaskId) {
        let segment = self.task(task).segment;
        if segment != NO_SEGMENT {
            self.segments[segment as usize].start += 1;
        }
    }

    /// Gives a waiting task up.
    pub(super) fn give_up(&mut self, task: TaskId, why: GiveUp, out: &mut Vec<Action>) {
        self.unqueue(task);
        self.pass_turn(task);
        let story = self.troubles.remove(&task).map(|trouble| trouble.story).unwrap_or_default();
        out.push(Action::GiveUp { task, why, story });
        self.conclude(task, Phase::GivenUp);
    }

    /// A released attempt failed.
    fn fail(&mut self, host: HostIndex, at: TaskRef, reason: String, out: &mut Vec<Action>) {
        if self.task(at.task).unwanted {
            return self.conclude(at.task, Phase::Withdrawn);
        }
        let trouble = self.trouble(at.task);
        if !trouble.failed_on.contains(&host) {
            trouble.failed_on.push(host);
        }
        trouble.story.push(AttemptStory { attempt: at.attempt, host, reason: reason.clone() });
        self.task_mut(at.task).failures += 1;
        self.put_back(at.task);
        if self.task(at.task).failures >= ATTEMPTS_MAX {
            self.give_up(at.task, GiveUp::Attempts, out);
        } else {
            out.push(Action::Retry { host, at, reason });
        }
    }

    /// A released attempt came to nothing since this boss itself stood still: nobody is to blame.
    fn spare(&mut self, host: HostIndex, at: TaskRef, reason: &str, out: &mut Vec<Action>) {
        if self.task(at.task).unwanted {
            return self.conclude(at.task, Phase::Withdrawn);
        }
        self.put_back(at.task);
        out.push(Action::Retry { host, at, reason: reason.to_owned() });
    }

    /// A released hand-out came to nothing, and the task is not to blame.
    fn lose(&mut self, host: HostIndex, at: TaskRef, out: &mut Vec<Action>) {
        if self.task(at.task).unwanted {
            return self.conclude(at.task, Phase::Withdrawn);
        }
        self.task_mut(at.task).lost += 1;
        self.put_back(at.task);
        if self.task(at.task).lost >= LOST_MAX {
            let reason = "it was handed out there and did not start".to_owned();
            self.trouble(at.task).story.push(AttemptStory { attempt: at.attempt, host, reason });
            self.give_up(at.task, GiveUp::NeverStarted, out);
        }
    }

    fn trouble(&mut self, task: TaskId) -> &mut super::Trouble {
        self.task_mut(task).troubled = true;
        self.troubles.entry(task).or_default()
    }
}

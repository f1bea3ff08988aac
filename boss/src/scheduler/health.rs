//! What failures say about a host: that it gets nothing for a while, or that one of its machines is
//! no good.

use crewboss_protocol::TaskId;

use super::Scheduler;
use super::hand_out::push_recall;
use super::host::{Health, PAUSES_MAX, STRIKES_MAX};
use super::task::{Phase, Recall};
use super::types::{Action, HostIndex};
use crewboss_protocol::Millis;

impl Scheduler {
    /// The machines of a task are no good on this host. They must not keep it from everything else:
    /// when they fail again and again, they count as missing there until the next session.
    pub(super) fn blame_machines(
        &mut self,
        host: HostIndex,
        task: TaskId,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        let machines = self.classes[self.task(task).class as usize].requirement.machines.clone();
        if machines.is_empty() {
            // Nobody can say that of a task without machines but a host that is not well.
            return self.strike(host, reason, out);
        }
        let strikes = self.host_mut(host).machine_strikes.entry(machines).or_default();
        *strikes += 1;
        if *strikes >= STRIKES_MAX {
            self.drop_machines(host, task, reason);
        }
    }

    /// A result came: the host works.
    pub(super) fn prove(&mut self, host: HostIndex, task: TaskId) {
        let machines = self.classes[self.task(task).class as usize].requirement.machines.clone();
        let state = self.host_mut(host);
        state.strikes = 0;
        state.machine_strikes.remove(&machines);
        if state.health == Health::Trial {
            state.health = Health::Well;
            state.pauses = 0;
            self.refresh_host(host);
        }
    }

    /// Something could not be run on a host, through no fault of the task as far as is known.
    pub(super) fn strike(&mut self, host: HostIndex, reason: &str, out: &mut Vec<Action>) {
        self.host_mut(host).strikes += 1;
        let state = self.host(host);
        let too_many = state.health == Health::Trial || state.strikes >= STRIKES_MAX;
        if too_many && state.is_active() {
            self.pause(host, reason, out);
            self.refresh_host(host);
        }
    }

    pub(super) fn pause(&mut self, host: HostIndex, reason: &str, out: &mut Vec<Action>) {
        let now = self.now;
        let state = self.host_mut(host);
        state.pauses += 1;
        if state.pauses > PAUSES_MAX {
            state.out = true;
            out.push(Action::Out { host, reason: reason.to_owned() });
            return self.host_down(host, reason.to_owned(), false, false, out);
        }
        let for_ms = state.pause_ms();
        let until = Millis(now.0.saturating_add(for_ms));
        state.health = Health::Paused { until, reason: reason.to_owned() };
        self.pauses.insert((until, host));
        out.push(Action::Pause { host, for_ms, reason: reason.to_owned() });
        self.want_back(host, None, out);
    }

    /// Asks back what was sent to a host and has not started, of one class or all.
    pub(super) fn want_back(&mut self, host: HostIndex, class: Option<u32>, out: &mut Vec<Action>) {
        let wanted = |task: &TaskId| class.is_none_or(|class| self.task(*task).class == class);
        let sent: Vec<TaskId> = self.host(host).sent.values().copied().filter(wanted).collect();
        let mut asked = Vec::new();
        for task in sent {
            if let Phase::Sent { recall: Recall::No, .. } = self.task(task).phase {
                self.mark_recalled(host, task, Recall::Asked);
                asked.push(self.current(task));
            }
        }
        push_recall(host, &asked, out);
    }

    /// Lets hosts whose pause is over try one task.
    pub(super) fn end_pauses(&mut self) {
        while let Some((until, host)) = self.pauses.first().copied().filter(|(until, _)| *until <= self.now) {
            self.pauses.remove(&(until, host));
            if matches!(self.host(host).health, Health::Paused { .. }) {
                self.host_mut(host).health = Health::Trial;
                self.refresh_host(host);
            }
        }
    }
}

//! Hosts that come and go.

use crewboss_protocol::HostFacts;
use crewboss_protocol::message::Ready;

use super::super::collect::skipped;
use super::super::done::confirmed;
use super::{Dispatcher, offer};
use crate::event::{EventKind, TaskDone};
use crate::scheduler::HostIndex;

impl Dispatcher {
    pub(super) fn ready(&mut self, host: HostIndex, ready: &Ready) {
        let facts = &ready.facts;
        let state = &mut self.hosts[host.0 as usize];
        state.settled = true;
        let offer = offer(&state.name, facts, &state.tags, &self.plan);
        self.events.emit(EventKind::HostReady {
            host: state.name.clone(),
            slots: facts.slots,
            threads: facts.threads,
            speed: facts.speed,
            toolchains: offer.toolchains.iter().cloned().collect(),
        });
        self.confirm(facts);
        let trees = facts.trees.iter().copied().collect();
        self.decide(|core, now, out| core.host_up(host, offer, trees, now, out));
        self.settle_if_all_answered();
    }

    /// Announces the candidates that this host confirms.
    fn confirm(&mut self, facts: &HostFacts) {
        let confirmed: Vec<TaskDone> = self
            .candidates
            .iter()
            .filter_map(|(&task, records)| {
                let record = confirmed(&self.plan, task, records, facts)?;
                Some(skipped(&self.plan, task, record))
            })
            .collect();
        for done in confirmed {
            self.candidates.remove(&done.task);
            self.announce(done);
        }
    }

    pub(super) fn settle_if_all_answered(&mut self) {
        if !self.candidates.is_empty() && self.hosts.iter().all(|host| host.settled) {
            self.settle();
        }
    }

    pub(super) fn lost(&mut self, host: HostIndex, reason: String, retry_ms: Option<u64>, ours: bool) {
        let state = &mut self.hosts[host.0 as usize];
        state.settled = true;
        state.over = retry_ms.is_none();
        let name = state.name.clone();
        let ending = self.stopped.is_some() || self.is_finished();
        if !ending {
            self.events.emit(match retry_ms {
                Some(_) => EventKind::HostLost { host: name, reason: reason.clone(), retry_ms },
                None => EventKind::HostFailed { host: name, reason: reason.clone() },
            });
        }
        let returns = retry_ms.is_some();
        self.decide(|core, now, out| core.host_down(host, reason, returns, ours, now, out));
        self.settle_if_all_answered();
    }
}

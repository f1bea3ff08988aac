//! Hosts that come and go.

use crewboss_protocol::HostFacts;
use crewboss_protocol::message::Ready;

use super::super::collect::skipped;
use super::super::done::confirmed;
use super::super::results;
use super::{Dispatcher, offer};
use crate::event::{EventKind, TaskDone};
use crate::scheduler::{HostIndex, Input};

impl Dispatcher {
    pub(super) fn ready(&mut self, host: HostIndex, ready: &Ready) {
        let facts = &ready.facts;
        let state = &mut self.hosts[host.0 as usize];
        state.trees = facts.trees.iter().copied().collect();
        state.settled = true;
        (state.sources_under_way, state.ending) = (0, None);
        let offer = offer(&state.name, facts, &state.tags, &self.plan);
        self.events.emit(EventKind::HostReady {
            host: state.name.clone(),
            slots: facts.slots,
            threads: facts.threads,
            speed: facts.speed,
            toolchains: offer.toolchains.iter().cloned().collect(),
        });
        self.confirm(facts);
        self.input(Input::HostUp { host, offer });
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
        state.trees.clear();
        state.over = retry_ms.is_none();
        let name = state.name.clone();
        let ending = self.stopped.is_some() || self.is_finished();
        if !ending {
            self.events.emit(match retry_ms {
                Some(_) => EventKind::HostLost { host: name, reason: reason.clone(), retry_ms },
                None => EventKind::HostFailed { host: name, reason: reason.clone() },
            });
        }
        // First of all, so that nothing of what follows is handed to this host again.
        self.input(Input::HostDown { host, reason: reason.clone(), returns: retry_ms.is_some(), ours });
        self.result(results::Event::HostDown { host, reason });
        self.settle_if_all_answered();
    }
}

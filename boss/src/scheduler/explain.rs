//! Why a host takes a task or not: the predicate that handing out uses, for people too.

use std::sync::Arc;

use crewboss_protocol::TaskId;

use super::host::{Health, Host, Link};
use super::queue::Fit;
use super::requirement::{Unfit, fits};
use super::task::Phase;
use super::types::{HostIndex, HostView, RequirementId};
use super::{Requirement, Scheduler};

/// Tasks that no host of the crew can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// What they need.
    pub requirement: RequirementId,
    /// The tasks, in plan order.
    pub tasks: Vec<TaskId>,
    /// Why not, by host.
    pub reasons: Arc<[Unfit]>,
}

impl Scheduler {
    /// Whether a host, had it a free slot, would be given this task now. This is the predicate that
    /// handing out uses.
    ///
    /// # Errors
    /// The reason why not. For a task that is not waiting, what concerns the host alone is
    /// answered.
    pub fn can_take(&self, host: HostIndex, task: TaskId) -> Result<(), Unfit> {
        let state = self.tasks.get(task.0 as usize).filter(|state| state.phase != Phase::Absent);
        let (Some(state), Some(place)) = (state, self.hosts.get(host.0 as usize)) else {
            return Err(Unfit::Unknown);
        };
        host_takes(place, &self.classes[state.class as usize].requirement)?;
        if state.phase == Phase::Blocked {
            return Err(Unfit::NotItsTurn);
        }
        self.at_odds(host, task)
    }

    /// [`Scheduler::can_take`] for every host of the crew.
    pub fn explain(&self, task: TaskId) -> Vec<Result<(), Unfit>> {
        self.all_hosts().map(|host| self.can_take(host, task)).collect()
    }

    /// Which hosts take tasks of a class now, and why the others do not.
    pub fn explain_class(&self, class: RequirementId) -> Vec<Result<(), Unfit>> {
        match self.classes.get(class.0 as usize) {
            Some(class) => self.hosts.iter().map(|host| host_takes(host, &class.requirement)).collect(),
            None => self.hosts.iter().map(|_| Err(Unfit::Unknown)).collect(),
        }
    }

    /// For each class without any host that takes it now or may do so later: its unfinished tasks
    /// and the reasons. A host that is still connecting may take anything. Costs a pass over all
    /// tasks if there is such a class.
    pub fn impossible(&self) -> Vec<Impossible> {
        let mut found = Vec::new();
        let nowhere = |(_, class): &(u32, &super::Class)| class.possible == 0;
        for (number, _) in (0..).zip(&self.classes).filter(nowhere) {
            let open = |phase| matches!(phase, Phase::Waiting | Phase::Blocked);
            let tasks: Vec<TaskId> = (0..)
                .map(TaskId)
                .zip(&self.tasks)
                .filter(|(_, state)| state.class == number && open(state.phase))
                .map(|(task, _)| task)
                .collect();
            if !tasks.is_empty() {
                let reasons = self.reasons(number);
                found.push(Impossible { requirement: RequirementId(number), tasks, reasons });
            }
        }
        found
    }

    /// Why no host takes a class, by host.
    pub(super) fn reasons(&self, class: u32) -> Arc<[Unfit]> {
        let requirement = &self.classes[class as usize].requirement;
        self.hosts.iter().map(|host| host_takes(host, requirement).err().unwrap_or(Unfit::Unknown)).collect()
    }

    /// What a host does right now.
    pub fn host_view(&self, host: HostIndex) -> Option<HostView> {
        let state = self.hosts.get(host.0 as usize)?;
        let sent = u32::try_from(state.sent.len()).unwrap_or(u32::MAX);
        let running = state.held() - sent;
        Some(HostView { capacity: state.capacity(), ahead: state.ahead(), running, sent })
    }

    /// What stands between this host and this task, if the host fits the task's class.
    pub(super) fn at_odds(&self, host: HostIndex, task: TaskId) -> Result<(), Unfit> {
        let state = self.task(task);
        let place = self.host(host);
        if let Some(chain) = self.chains.get(state.chain as usize)
            && place.chains.contains(&chain.id)
        {
            return Err(Unfit::ChainBusy);
        }
        if !state.troubled {
            return Ok(());
        }
        if state.is_last_attempt() && place.last_attempts > 0 {
            return Err(Unfit::LastAttempts);
        }
        let Some(trouble) = self.troubles.get(&task) else { return Ok(()) };
        if trouble.refused_by.contains(&host) {
            return Err(Unfit::HasRefused);
        }
        if trouble.failed_on.contains(&host) && self.has_elsewhere(task) {
            return Err(Unfit::ElsewhereFirst);
        }
        Ok(())
    }

    /// Whether some host takes this task now on which it neither failed nor was refused.
    fn has_elsewhere(&self, task: TaskId) -> bool {
        let class = &self.classes[self.task(task).class as usize];
        let Some(trouble) = self.troubles.get(&task) else { return class.now > 0 };
        let refused = trouble.refused_by.iter().filter(|host| !trouble.failed_on.contains(host));
        let spent = trouble.failed_on.iter().chain(refused).filter(|host| class.takes(**host)).count();
        (class.now as usize) > spent
    }

    /// Whether every host that takes this task, now or later, has refused it.
    pub(super) fn refused_everywhere(&self, task: TaskId) -> bool {
        let class = &self.classes[self.task(task).class as usize];
        let Some(trouble) = self.troubles.get(&task) else { return false };
        let can = |host: &&HostIndex| class.fit[host.0 as usize] != Fit::Never;
        let refused = trouble.refused_by.iter().filter(can).count();
        !trouble.refused_by.is_empty() && (class.possible as usize) <= refused
    }
}

/// Whether a host takes tasks of this kind now.
fn host_takes(host: &Host, requirement: &Requirement) -> Result<(), Unfit> {
    if let Some(offer) = &host.offer {
        fits(requirement, offer)?;
    }
    let paused = match &host.health {
        Health::Paused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    match &host.link {
        Link::Down { reason, returns } => {
            Err(Unfit::Unreachable { reason: reason.clone(), returns: *returns && !host.out })
        }
        _ if host.out => {
            Err(Unfit::Unreachable { reason: "it failed every trial".to_owned(), returns: false })
        }
        Link::Connecting => Err(Unfit::Connecting),
        Link::Up => paused.map_or(Ok(()), |reason| Err(Unfit::Paused { reason })),
    }
}

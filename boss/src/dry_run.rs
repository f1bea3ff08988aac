//! Plans a run without starting it.

use std::collections::BTreeMap;

use crewboss_protocol::{HostFacts, HostName, Millis, Name};

use crate::probe::{Probed, probe};
use crate::report::Heard;
use crate::run::{Division, Plan, RunError, RunRequest, confirmed, divide, make_plan, offer, requirements};
use crate::scheduler::{HostIndex, Input, Scheduler};
use crate::store::{History, Journal};

/// What a run would do.
#[derive(Debug)]
pub struct DryRun {
    /// Commits: short id and subject, oldest first.
    pub commits: Vec<(String, String)>,
    /// Per target: its name, tasks that would be built, tasks that are done, and for each host
    /// whether it can take them.
    pub targets: Vec<DryTarget>,
    /// What a person should know of the journal, if it is damaged.
    pub damage: Option<String>,
}

/// What a run would do with one target.
#[derive(Debug)]
pub struct DryTarget {
    /// The target's name.
    pub name: Name,
    /// Tasks that would be built.
    pub tasks: u32,
    /// Tasks whose recorded result stands.
    pub done: u32,
    /// For each host whether it can take them, or why not.
    pub hosts: BTreeMap<HostName, Result<(), String>>,
}

/// Plans a run without starting it: hosts are probed, nothing is written anywhere.
///
/// # Errors
/// As for a run.
pub async fn dry_run(request: RunRequest) -> Result<DryRun, RunError> {
    let crew = request.crew.clone();
    let mut told = |_: Heard<'_, HostFacts>| ();
    let probed = probe(&crew, request.boss.clone(), false, &mut told);
    let planned = make_plan(request.repository, request.selection, request.targets);
    let (probed, planned) = tokio::join!(probed, planned);
    let (probed, (_, plan)) = (probed?, planned?);
    let History { recorded, damage } = Journal::read(&request.out)?;
    let division = divide(&plan, &recorded, &request.out, request.force);
    let mut scheduler = Scheduler::new(u32::try_from(crew.hosts.len()).unwrap_or(u32::MAX));
    for (index, (host, answer)) in (0..).map(HostIndex).zip(crew.hosts.iter().zip(&probed)) {
        let input = match &answer.1 {
            Ok(facts) => Input::HostUp { host: index, offer: offer(&host.name, facts, &host.tags, &plan) },
            Err(reason) => {
                Input::HostDown { host: index, reason: reason.clone(), returns: false, ours: false }
            }
        };
        scheduler.handle(input, Millis(0), &mut Vec::new());
    }
    let done = done_counts(&plan, &division, &probed);
    let classes = requirements(&plan, &mut scheduler);
    let commits =
        plan.commits().iter().map(|commit| (commit.short.to_string(), commit.subject.to_string())).collect();
    let all = u32::try_from(plan.commits().len()).unwrap_or(u32::MAX);
    let targets = plan.targets().iter().enumerate().map(|(index, target)| DryTarget {
        name: target.target.name.clone(),
        tasks: all - done[index],
        done: done[index],
        hosts: crew
            .hosts
            .iter()
            .zip(scheduler.explain_class(classes[index]))
            .map(|(host, answer)| (host.name.clone(), answer.map_err(|why| why.to_string())))
            .collect(),
    });
    Ok(DryRun { commits, targets: targets.collect(), damage })
}

/// How many tasks of each target are done already.
fn done_counts(plan: &Plan, division: &Division, probed: &[Probed]) -> Vec<u32> {
    let mut done = vec![0; plan.targets().len()];
    for (task, _) in &division.done {
        done[plan.target_index(*task)] += 1;
    }
    let offered: Vec<_> = probed.iter().filter_map(|(_, facts)| facts.as_ref().ok()).collect();
    for (task, records) in &division.candidates {
        if offered.iter().any(|facts| confirmed(plan, *task, records, facts).is_some()) {
            done[plan.target_index(*task)] += 1;
        }
    }
    done
}

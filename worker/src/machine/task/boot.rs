//! The build machine's guest, up and asking for its task.

use std::collections::BTreeMap;

use crewboss_protocol::Name;
use crewboss_protocol::guest::TaskDocument;
use crewboss_protocol::machine::MachineResult;

use super::Task;
use super::claim::{Claim, Claims};
use crate::machine::boot::{Patience, boot};
use crate::machine::directory::{CopySnapshot, Machines};
use crate::machine::guest::Guest;
use crate::machine::plan::{Plan, Purpose};
use crate::machine::record::{GuestRecord, Owners, Step};
use crate::machine::verdict::Stop;

/// Variables that say where something lies on the host, or who runs there; a guest has its own.
const OF_THE_HOST: [&str; 6] = ["PATH", "LANG", "LOGNAME", "USER", "SHELL", crate::sweep::MARK];

impl Task<'_> {
    /// Starts the build machine's guest; it is the last of the guests then.
    pub(super) fn boot_build_machine(
        &mut self,
        claims: &mut Claims,
        variables: &BTreeMap<String, String>,
    ) -> Result<(), Stop> {
        let document = self.document(variables).to_text();
        let source = self.machine.source.clone();
        let limits = claims.build.manifest.limits;
        let patience = Patience { startup: limits.startup, again: limits.misboots };
        let (machines, owners, claim) = (&claims.machines, &claims.owners, &mut claims.build);
        let name = claim.directory.name.clone();
        let mut copy = None;
        let (machine, task) = (self.machine, self.job.at);
        let _ = task;
        let mut start = || {
            let purpose = Purpose::Task { source: &source, document: document.clone() };
            let (guest, used) = start(machines, owners, machine, claim, purpose, true)?;
            copy = Some(used);
            Ok(guest)
        };
        let up = boot(&mut self.watch, &mut self.guests, &name, patience, &mut start)?;
        let Some(copy) = copy else { return Err(Stop::Host("a boot without a guest".to_owned())) };
        self.result = Some(MachineResult {
            name,
            id: copy.record.machine_id,
            toolchain_id: copy.record.toolchain_id,
            agent: copy.record.agent,
            accelerator: self.machine.accelerator,
            memory: claims.build.memory,
            processors: copy
                .manifest
                .processors
                .map_or(machine.processors, |most| most.min(machine.processors)),
            boot_ms: u64::try_from(up.took.as_millis()).unwrap_or(u64::MAX),
            boots: up.boots,
            versions: copy.record.versions,
        });
        Ok(())
    }

    /// The task as the guest gets it.
    pub(super) fn document(&self, auxiliary: &BTreeMap<String, String>) -> TaskDocument {
        let (spec, target) = (self.spec, &self.spec.target);
        let of_the_guest = |name: &String| {
            // What the target itself sets is meant for wherever it runs.
            target.variables.contains_key(name) || !OF_THE_HOST.contains(&name.as_str())
        };
        let own = spec.variables.iter().filter(|(name, _)| of_the_guest(name)).cloned();
        let jobs = self.machine.processors;
        let jobs_here = |(name, value): (String, String)| {
            if name == "CREWBOSS_JOBS" { (name, jobs.to_string()) } else { (name, value) }
        };
        let served = auxiliary.iter().map(|(name, value)| (name.clone(), value.clone()));
        TaskDocument {
            at: self.job.at,
            target: target.name.clone(),
            commit: self.job.commit,
            jobs,
            // A target's own variables win over what auxiliary machines say.
            variables: served.chain(own.map(jobs_here)).collect(),
            stages: target.stages.clone(),
            artifacts: target.artifacts.clone(),
            sizes: target.sizes.clone(),
        }
    }
}

/// Starts one guest of a machine in a fresh snapshot of its copy.
pub(super) fn start(
    machines: &Machines,
    owners: &Owners,
    job: &crate::runner::message::MachineJob,
    claim: &mut Claim,
    purpose: Purpose<'_>,
    shows_console: bool,
) -> Result<(Guest, CopySnapshot), Stop> {
    let toolchain: &Name = &claim.toolchain;
    let mut record =
        GuestRecord::create(machines, &claim.directory, toolchain, &job.session, &job.work, owners.clone())
            .map_err(|error| Stop::host(&error))?;
    crate::machine::halt::at(Step::Planned);
    let copied = claim
        .directory
        .snapshot_copy(toolchain, &record.snapshot(machines))
        .map_err(|error| Stop::host(&error))
        .and_then(|copy| {
            record.advance(machines, Step::Copied).map_err(|error| Stop::host(&error))?;
            Ok(copy)
        });
    let copy = copied.inspect_err(|_| {
        // The first error counts; what stays has a record.
        let _swept = record.remove(machines);
    })?;
    crate::machine::halt::at(Step::Copied);
    let mut guest = Guest::start(Plan {
        machines,
        record,
        manifest: &copy.manifest,
        accelerator: job.accelerator,
        memory: claim.memory,
        processors: job.processors,
        purpose,
        shows_console,
    })?;
    guest.advance(Step::Booting)?;
    Ok((guest, copy))
}

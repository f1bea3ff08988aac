//! The build machine's guest, up and asking for its task.

use std::collections::BTreeMap;

use crewboss_protocol::Name;
use crewboss_protocol::guest::TaskDocument;
use crewboss_protocol::machine::MachineResult;

use super::Task;
use super::claim::{Claim, Claims};
use crate::machine::boot::{Boot, Patience, boot};
use crate::machine::bootstrap::Means;
use crate::machine::directory::{CopySnapshot, Machines};
use crate::machine::guest::Guest;
use crate::machine::plan::{Life, Plan, Purpose};
use crate::machine::record::{GuestRecord, Owners, Step};
use crate::machine::verdict::Stop;
use crate::machine::warm::{self, Given, Site, Warm};

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
        if let Some(Warm { took, copy }) = self.start_warm(claims, &document)? {
            self.note_machine(&claims.build, copy, Boot { took, boots: 0 });
            return Ok(());
        }
        let source = self.machine.source.clone();
        let limits = claims.build.manifest.limits;
        let patience = Patience { startup: limits.startup, again: limits.misboots };
        let (machines, owners, claim) = (&claims.machines, &claims.owners, &mut claims.build);
        let name = claim.directory.name.clone();
        let mut copy = None;
        let machine = self.machine;
        let mut start = || {
            let purpose = Purpose::Task { source: &source, document: document.clone() };
            let (guest, used) = start(machines, owners, machine, claim, purpose, true)?;
            copy = Some(used);
            Ok(guest)
        };
        let up = boot(&mut self.watch, &mut self.guests, &name, patience, &mut start)?;
        let Some(copy) = copy else { return Err(Stop::Host("a boot without a guest".to_owned())) };
        self.note_machine(&claims.build, copy, up);
        Ok(())
    }

    /// Starts the guest from saved memory, if its machine does that and nothing is in the way.
    fn start_warm(&mut self, claims: &Claims, document: &str) -> Result<Option<Warm>, Stop> {
        let claim = &claims.build;
        if !claim.manifest.warm_start {
            return Ok(None);
        }
        let job = self.machine;
        let means = Means {
            owners: claims.owners.clone(),
            session: job.session.clone(),
            work: job.work.clone(),
            accelerator: job.accelerator,
            memory: claim.memory,
            processors: job.processors,
        };
        let site = Site {
            machines: &claims.machines,
            locks: &claims.locks,
            directory: &claim.directory,
            toolchain: &claim.toolchain,
            means: &means,
        };
        let given = Given { source: &job.source, document };
        warm::start(&mut self.watch, &mut self.guests, &site, given)
    }

    /// For the result: what the guest is that came up without a boot, or after so many.
    fn note_machine(&mut self, claim: &Claim, copy: CopySnapshot, up: Boot) {
        let processors = self.machine.processors;
        self.result = Some(MachineResult {
            name: claim.directory.name.clone(),
            id: copy.record.machine_id,
            toolchain_id: copy.record.toolchain_id,
            agent: copy.record.agent,
            accelerator: self.machine.accelerator,
            memory: claim.memory,
            processors: copy.manifest.processors.map_or(processors, |most| most.min(processors)),
            boot_ms: u64::try_from(up.took.as_millis()).unwrap_or(u64::MAX),
            warm: up.boots == 0,
            boots: up.boots,
            versions: copy.record.versions,
        });
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
        life: Life::Boot,
        shows_console,
    })?;
    guest.advance(Step::Booting)?;
    Ok((guest, copy))
}

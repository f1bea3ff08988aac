//! The build machine's guest, up and asking for its task.

use crewboss_machine::books::record::{GuestRecord, Owners, Step};
use crewboss_machine::guest::boot::{Boot, Patience, boot};
use crewboss_machine::guest::new_guest::NewGuest;
use crewboss_machine::guest::plan::{Life, Plan, Purpose, Wire};
use crewboss_machine::guest::running::Guest;
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::guest::watch::Watch;
use crewboss_machine::images::directory::{CopySnapshot, Machines};
use crewboss_machine::life::bootstrap::Means;
use crewboss_machine::life::warm::{self, Given, Site, Warm};
use crewboss_protocol::guest::{TaskDocument, network_address};
use crewboss_protocol::machine::{AuxiliaryResult, MachineResult};
use crewboss_protocol::{Name, Phase};

use super::Task;
use super::claim::{Claim, Claims};

/// Variables that say where something lies on the host, or who runs there; a guest has its own.
const OF_THE_HOST: [&str; 6] = ["PATH", "LANG", "LOGNAME", "USER", "SHELL", crewboss_host::marked::MARK];

impl Task<'_> {
    /// Starts the build machine's guest; it is the last of the guests then.
    pub(super) fn boot_build_machine(&mut self, claims: &mut Claims) -> Result<(), Stop> {
        self.watch.begin(Phase::Booting);
        let document = self.document().to_text();
        if let Some(Warm { took, copy }) = self.start_warm(claims, &document)? {
            self.note_machine(claims, copy, Boot { took, boots: 0 });
            return Ok(());
        }
        let source = self.machine.source.clone();
        // It is the last of them, and alone there is nobody to talk to.
        let place = Some(claims.auxiliary.len()).filter(|others| *others > 0);
        let limits = claims.build.manifest.limits;
        let patience = Patience { startup: limits.startup, again: limits.misboots };
        let (machines, owners, claim) = (&claims.machines, &claims.owners, &mut claims.build);
        let name = claim.directory.name.clone();
        let mut copy = None;
        let machine = self.machine;
        let mut start = |watch: &mut Watch<'_>| {
            let purpose = Purpose::Task { source: &source, document: document.clone() };
            let wire = place.map(|place| wire(watch, place)).transpose()?;
            let (guest, used) = start(machines, owners, machine, claim, purpose, wire, true)?;
            copy = Some(used);
            Ok(guest)
        };
        let up = boot(&mut self.watch, &mut self.guests, &name, patience, &mut start)?;
        let Some(copy) = copy else { return Err(Stop::Host("a boot without a guest".to_owned())) };
        self.note_machine(claims, copy, up);
        Ok(())
    }

    /// Starts the guest from saved memory, if its machine does that and nothing is in the way.
    fn start_warm(&mut self, claims: &Claims, document: &str) -> Result<Option<Warm>, Stop> {
        let claim = &claims.build;
        // What is saved knows no network of other guests.
        if !claim.manifest.warm_start || !claims.auxiliary.is_empty() {
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
    fn note_machine(&mut self, claims: &Claims, copy: CopySnapshot, up: Boot) {
        let claim = &claims.build;
        self.result = Some(MachineResult {
            name: claim.directory.name.clone(),
            id: copy.record.machine_id,
            toolchain_id: copy.record.toolchain_id,
            agent: copy.record.agent,
            accelerator: self.machine.accelerator,
            memory: claim.memory,
            processors: self.processors,
            boot_ms: u64::try_from(up.took.as_millis()).unwrap_or(u64::MAX),
            warm: up.boots == 0,
            boots: up.boots,
            versions: copy.record.versions,
            auxiliary: claims.auxiliary.iter().filter_map(|(name, claim)| served_by(name, claim)).collect(),
        });
    }

    /// The task as the guest gets it.
    pub(super) fn document(&self) -> TaskDocument {
        let (spec, target) = (self.spec, &self.spec.target);
        let of_the_guest = |name: &String| {
            // What the target itself sets is meant for wherever it runs.
            target.variables.contains_key(name) || !OF_THE_HOST.contains(&name.as_str())
        };
        let own = spec.variables.iter().filter(|(name, _)| of_the_guest(name)).cloned();
        let jobs = self.processors;
        let jobs_here = |(name, value): (String, String)| {
            if name == "CREWBOSS_JOBS" { (name, jobs.to_string()) } else { (name, value) }
        };
        TaskDocument {
            at: self.job.at,
            target: target.name.clone(),
            commit: self.job.commit,
            jobs,
            variables: own.map(jobs_here).collect(),
            served: self.served.clone(),
            stages: target.stages.clone(),
            artifacts: target.artifacts.clone(),
            sizes: target.sizes.clone(),
        }
    }
}

/// What a result says of a machine that served it.
fn served_by(name: &Name, claim: &Claim) -> Option<AuxiliaryResult> {
    let used = claim.used.as_ref()?;
    Some(AuxiliaryResult {
        name: name.clone(),
        machine: claim.directory.name.clone(),
        id: used.machine_id.clone(),
        toolchain_id: used.toolchain_id.clone(),
        memory: claim.memory,
    })
}

/// A guest's end of the private network of its task.
pub(super) fn wire(watch: &mut Watch<'_>, place: usize) -> Result<Wire, Stop> {
    let place = u8::try_from(place).map_err(|error| Stop::host(&error))?;
    let end = watch.hub.plug(place);
    let end = end.map_err(|error| Stop::Host(format!("cannot make a network for guests: {error}")))?;
    Ok(Wire { end, address: network_address(place) })
}

/// Starts one guest of a machine in a fresh snapshot of its copy.
pub(super) fn start(
    machines: &Machines,
    owners: &Owners,
    job: &crewboss_machine::life::job::MachineJob,
    claim: &mut Claim,
    purpose: Purpose<'_>,
    wire: Option<Wire>,
    shows_console: bool,
) -> Result<(Guest, CopySnapshot), Stop> {
    let toolchain: &Name = &claim.toolchain;
    let record =
        GuestRecord::create(machines, &claim.directory, toolchain, &job.session, &job.work, owners.clone());
    let mut new = NewGuest::of(machines, record.map_err(|error| Stop::host(&error))?);
    let copy =
        claim.directory.snapshot_copy(toolchain, &new.snapshot()).map_err(|error| Stop::directory(&error))?;
    new.is_copied().map_err(|error| Stop::host(&error))?;
    let mut guest = Plan {
        machines,
        guest: new,
        manifest: &copy.manifest,
        accelerator: job.accelerator,
        memory: claim.memory,
        processors: job.processors,
        purpose,
        life: Life::Boot,
        wire,
        shows_console,
    }
    .start()?;
    guest.advance(Step::Booting)?;
    Ok((guest, copy))
}

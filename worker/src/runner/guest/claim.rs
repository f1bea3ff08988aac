//! The machines of a task: found, bootstrapped if need be, and locked.

use crewboss_machine::books::lock::{Locks, Wanted};
use crewboss_machine::books::record::Owners;
use crewboss_machine::guest::memory::{Division, Wish, divide};
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::images::directory::{CopyRecord, MachineDir, Machines};
use crewboss_machine::images::manifest::Manifest;
use crewboss_machine::life::supply::{Found, LOOK, Supply, Told};
use crewboss_protocol::Name;
use crewboss_protocol::machine::{DEFAULT_TOOLCHAIN, MachineRole};

use super::Task;

/// A machine that a task may start a guest of.
pub(super) struct Claim {
    pub directory: MachineDir,
    pub toolchain: Name,
    pub manifest: Manifest,
    pub memory: u64,
    /// The copy that its guest was made of, once there is one.
    pub used: Option<CopyRecord>,
}

/// All machines of a task.
pub(super) struct Claims {
    pub machines: Machines,
    pub locks: Locks,
    pub owners: Owners,
    /// With what the task calls them.
    pub auxiliary: Vec<(Name, Claim)>,
    pub build: Claim,
}

impl Task<'_> {
    /// Finds all machines, makes their copies if there are none, and takes a place in each.
    pub(super) fn claim(&mut self) -> Result<Claims, Stop> {
        let supply = Supply::new(self.machine, Some(self.job.at))?;
        let default: Name = DEFAULT_TOOLCHAIN.parse().map_err(|error| Stop::host(&error))?;
        let using = self.machine.machines.clone();
        let mut auxiliary = Vec::new();
        for one in &using.auxiliary {
            let claim = self.ready(&supply, &one.machine, &default, MachineRole::Auxiliary)?;
            auxiliary.push((one.name.clone(), claim));
        }
        let toolchain = self.machine.toolchain.clone();
        let build = self.ready(&supply, &using.name, &toolchain, MachineRole::Build)?;
        let Supply { machines, locks, owners, .. } = supply;
        let mut claims = Claims { machines, locks, owners, auxiliary, build };
        self.divide_memory(&mut claims)?;
        self.take_places(&claims)?;
        Ok(claims)
    }

    fn ready(
        &mut self,
        supply: &Supply<'_>,
        name: &Name,
        toolchain: &Name,
        role: MachineRole,
    ) -> Result<Claim, Stop> {
        let Found { directory, manifest } = supply.ready(&mut self.watch, name, toolchain, role)?;
        Ok(Claim { directory, toolchain: toolchain.clone(), manifest, memory: 0, used: None })
    }

    /// Each guest gets its part of the memory of the task.
    fn divide_memory(&self, claims: &mut Claims) -> Result<(), Stop> {
        let wish = |claim: &Claim| Wish { min: claim.manifest.memory_min, max: claim.manifest.memory_max };
        let auxiliary: Vec<Wish> = claims.auxiliary.iter().map(|(_, claim)| wish(claim)).collect();
        let Some(Division { build, auxiliary }) =
            divide(self.machine.memory, wish(&claims.build), &auxiliary)
        else {
            return Err(Stop::Lasting(format!(
                "a slot of this host has {} MiB of memory, which is less than the machines of the task need at least; \
                 give the host fewer slots",
                self.machine.memory >> 20
            )));
        };
        claims.build.memory = build;
        for ((_, claim), memory) in claims.auxiliary.iter_mut().zip(auxiliary) {
            claim.memory = memory;
        }
        Ok(())
    }

    /// All places or none, so that two tasks never wait for each other.
    fn take_places(&mut self, claims: &Claims) -> Result<(), Stop> {
        let all = || claims.auxiliary.iter().map(|(_, claim)| claim).chain([&claims.build]);
        let wanted: Vec<Wanted> = all()
            .map(|claim| Wanted {
                machine: claim.directory.name.clone(),
                toolchain: claim.toolchain.clone(),
                instances: claim.manifest.instances_max(),
            })
            .collect();
        let mut told = Told::default();
        loop {
            if let Some(places) = claims.locks.try_places(&wanted).map_err(|error| Stop::host(&error))? {
                self.places = places;
                return Ok(());
            }
            told.once(&mut self.watch, || {
                let names: Vec<&str> = wanted.iter().map(|wanted| wanted.machine.as_str()).collect();
                format!("waits for a place in {}", names.join(", "))
            });
            if !self.watch.pause(LOOK) {
                return Err(Stop::Cancelled);
            }
        }
    }
}

//! The machines of a task: found, bootstrapped if need be, and locked.

use std::time::{Duration, SystemTime};

use crewboss_protocol::Name;
use crewboss_protocol::machine::{DEFAULT_TOOLCHAIN, MachineHolder, MachineRole};

use super::Task;
use crate::layout::Layout;
use crate::machine::bootstrap::{self, Bench};
use crate::machine::directory::{MachineDir, Machines, Standing};
use crate::machine::lock::{Locks, Wanted};
use crate::machine::manifest::Manifest;
use crate::machine::memory::{Division, Wish, divide};
use crate::machine::record::Owners;
use crate::machine::verdict::Stop;
use crate::owner::Owner;
use crate::process::ProcessId;

/// Between two looks at locks that others hold.
const LOOK: Duration = Duration::from_millis(200);

/// A machine that a task may start a guest of.
pub(super) struct Claim {
    pub directory: MachineDir,
    pub toolchain: Name,
    pub manifest: Manifest,
    pub memory: u64,
}

/// All machines of a task.
pub(super) struct Claims {
    pub machines: Machines,
    pub owners: Owners,
    /// With what the task calls them.
    pub auxiliary: Vec<(Name, Claim)>,
    pub build: Claim,
}

impl Task<'_> {
    /// Finds all machines, makes their copies if there are none, and takes a place in each.
    pub(super) fn claim(&mut self) -> Result<Claims, Stop> {
        let machines = Machines::new(&self.machine.directory);
        let owners = self.owners()?;
        let locks = Locks::new(&machines, self.holder()).map_err(|error| Stop::host(&error))?;
        let default: Name = DEFAULT_TOOLCHAIN.parse().map_err(|error| Stop::host(&error))?;
        let using = self.machine.machines.clone();
        let mut auxiliary = Vec::new();
        for one in &using.auxiliary {
            let claim =
                self.ready(&machines, &locks, &owners, &one.machine, &default, MachineRole::Auxiliary)?;
            auxiliary.push((one.name.clone(), claim));
        }
        let toolchain = self.machine.toolchain.clone();
        let build = self.ready(&machines, &locks, &owners, &using.name, &toolchain, MachineRole::Build)?;
        let mut claims = Claims { machines, owners, auxiliary, build };
        self.divide_memory(&mut claims)?;
        self.take_places(&locks, &claims)?;
        Ok(claims)
    }

    fn owners(&self) -> Result<Owners, Stop> {
        let layout = Layout::new(&self.machine.work);
        let owner = Owner::load(&layout, &self.machine.session);
        let own = ProcessId::own();
        let (Some(owner), Some(runner)) = (owner, own) else {
            return Err(Stop::Host(format!("the session {} has no record any more", self.machine.session)));
        };
        Ok(Owners { guardian: owner.guardian, worker: owner.worker, runner })
    }

    pub(super) fn holder(&self) -> MachineHolder {
        MachineHolder {
            boss: self.machine.boss.clone(),
            run: self.machine.run.clone(),
            host: self.machine.host.clone(),
            pid: std::process::id(),
            priority: self.machine.priority,
            task: Some(self.job.at),
            since: 0,
        }
    }

    /// A machine whose copy is there; it is made first if it is not.
    fn ready(
        &mut self,
        machines: &Machines,
        locks: &Locks,
        owners: &Owners,
        name: &Name,
        toolchain: &Name,
        role: MachineRole,
    ) -> Result<Claim, Stop> {
        let mut told = false;
        loop {
            let directory = machines.find(name).map_err(|error| Stop::host(&error))?;
            let manifest = directory.manifest().map_err(|error| Stop::host(&error))?;
            if manifest.role != role {
                let is = if role == MachineRole::Build { "an auxiliary" } else { "a build" };
                return Err(Stop::Host(format!("{name} is {is} machine")));
            }
            let tools = machines.toolchain(toolchain).map_err(|error| Stop::host(&error))?;
            let standing = directory.standing(&manifest, &tools, SystemTime::now());
            match standing.map_err(|error| Stop::host(&error))? {
                Standing::Ready(_) => {
                    let toolchain = toolchain.clone();
                    return Ok(Claim { directory, toolchain, manifest, memory: 0 });
                }
                Standing::Newer { agent } => {
                    return Err(Stop::Host(format!(
                        "{name} was bootstrapped by a newer crewboss (its agent has version {agent}); use that, or \
                         remove {}",
                        directory.copy_path(toolchain).display()
                    )));
                }
                Standing::Suspended { why, .. } => {
                    return Err(Stop::Host(format!(
                        "{name} is suspended, since its bootstrap failed: {why}"
                    )));
                }
                Standing::Remake { why } => {
                    let found =
                        Bench { machines, directory: &directory, manifest: &manifest, toolchain: &tools };
                    self.bootstrap_or_wait(locks, owners, &found, &why, &mut told)?;
                }
            }
        }
    }

    /// Bootstraps a machine unless somebody else is at it, for whom it waits a moment.
    fn bootstrap_or_wait(
        &mut self,
        locks: &Locks,
        owners: &Owners,
        bench: &Bench<'_>,
        why: &str,
        told: &mut bool,
    ) -> Result<(), Stop> {
        let name = &bench.directory.name;
        let lock = locks.try_bootstrap(name, &bench.toolchain.name).map_err(|error| Stop::host(&error))?;
        let Some(_lock) = lock else {
            if !std::mem::replace(told, true) {
                self.watch.step(format!("waits until {name} is bootstrapped by somebody else"));
            }
            return if self.watch.pause(LOOK) { Ok(()) } else { Err(Stop::Cancelled) };
        };
        // Somebody may have done it between the look and the lock.
        let standing = bench.directory.standing(bench.manifest, bench.toolchain, SystemTime::now());
        if !matches!(standing, Ok(Standing::Remake { .. })) {
            return Ok(());
        }
        self.watch.step(format!("bootstraps {name}, since {why}"));
        let means = bootstrap::Means {
            owners: owners.clone(),
            session: self.machine.session.clone(),
            work: self.machine.work.clone(),
            accelerator: self.machine.accelerator,
            memory: self.machine.memory,
            processors: self.machine.processors,
        };
        let versions =
            bootstrap::make(bench, &means, &mut self.watch, &mut |watch, bytes| watch.link.live(bytes))?;
        self.watch.step(format!("bootstrapped {name}: {versions}"));
        Ok(())
    }

    /// Each guest gets its part of the memory of the task.
    fn divide_memory(&self, claims: &mut Claims) -> Result<(), Stop> {
        let wish = |claim: &Claim| Wish { min: claim.manifest.memory_min, max: claim.manifest.memory_max };
        let auxiliary: Vec<Wish> = claims.auxiliary.iter().map(|(_, claim)| wish(claim)).collect();
        let Some(Division { build, auxiliary }) =
            divide(self.machine.memory, wish(&claims.build), &auxiliary)
        else {
            return Err(Stop::Host(format!(
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
    fn take_places(&mut self, locks: &Locks, claims: &Claims) -> Result<(), Stop> {
        let all = || claims.auxiliary.iter().map(|(_, claim)| claim).chain([&claims.build]);
        let wanted: Vec<Wanted> = all()
            .map(|claim| Wanted {
                machine: claim.directory.name.clone(),
                toolchain: claim.toolchain.clone(),
                instances: claim.manifest.instances_max(),
            })
            .collect();
        let mut told = false;
        loop {
            if let Some(places) = locks.try_places(&wanted).map_err(|error| Stop::host(&error))? {
                self.places = places;
                return Ok(());
            }
            if !std::mem::replace(&mut told, true) {
                let names: Vec<&str> = wanted.iter().map(|wanted| wanted.machine.as_str()).collect();
                self.watch.step(format!("waits for a place in {}", names.join(", ")));
            }
            if !self.watch.pause(LOOK) {
                return Err(Stop::Cancelled);
            }
        }
    }
}

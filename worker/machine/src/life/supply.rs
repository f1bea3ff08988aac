//! Machines with a copy that guests can start from: found, and bootstrapped if need be.

use std::time::{Duration, SystemTime};

use crewboss_host::layout::Layout;
use crewboss_host::owner::Owner;
use crewboss_host::process::ProcessId;
use crewboss_protocol::advice::Advice;
use crewboss_protocol::machine::{MachineHolder, MachineRole};
use crewboss_protocol::{Name, Phase, TaskRef, chain};

use super::bootstrap::{self, Bench, Means, Versions};
use crate::books::lock::{Locks, Wanted};
use crate::books::record::Owners;
use crate::guest::verdict::Stop;
use crate::guest::watch::Watch;
use crate::images::directory::{MachineDir, Machines, Standing, Toolchain, ToolchainError};
use crate::images::manifest::Manifest;
use crate::life::job::MachineJob;

/// Between two looks at locks that others hold.
pub const LOOK: Duration = Duration::from_millis(200);

/// The machines of a host, on behalf of one slot.
#[derive(Debug)]
pub struct Supply<'a> {
    /// The machine directory.
    pub machines: Machines,
    /// The slot's locks of machines.
    pub locks: Locks,
    /// Whose the guests are.
    pub owners: Owners,
    job: &'a MachineJob,
}

/// A machine whose manifest could be read.
#[derive(Debug)]
pub struct Found {
    /// Where it lies.
    pub directory: MachineDir,
    /// What its manifest says.
    pub manifest: Manifest,
}

/// What keeps a bootstrap waiting is told once, and only if it lasts: others may just be choosing.
#[derive(Debug, Default)]
pub struct Told(u32);

impl Told {
    /// Tells it the second time that it is asked to.
    pub fn once(&mut self, watch: &mut Watch<'_>, text: impl FnOnce() -> String) {
        self.0 = self.0.saturating_add(1);
        if self.0 == 2 {
            watch.step(text());
        }
    }
}

impl<'a> Supply<'a> {
    /// For a task, or for a bootstrap ahead of time.
    ///
    /// # Errors
    /// If the session has no record, or there can be no locks.
    pub fn new(job: &'a MachineJob, task: Option<TaskRef>) -> Result<Self, Stop> {
        let machines = Machines::new(&job.directory);
        let owners = owners(job)?;
        let holder = MachineHolder {
            boss: job.boss.clone(),
            run: job.run.clone(),
            host: job.host.clone(),
            pid: std::process::id(),
            priority: job.priority,
            task,
            since: 0,
        };
        let locks = Locks::new(&machines, holder).map_err(|error| Stop::host(&error))?;
        Ok(Self { machines, locks, owners, job })
    }

    /// The machine of a name as it is now.
    ///
    /// # Errors
    /// If there is none, or its manifest makes no sense.
    pub fn find(&self, name: &Name) -> Result<Found, Stop> {
        let directory = self.machines.find(name).map_err(|error| Stop::directory(&error))?;
        let manifest = directory.manifest().map_err(|error| Stop::directory(&error))?;
        Ok(Found { directory, manifest })
    }

    /// A machine whose copy for a toolchain is there; it is made first if it is not.
    ///
    /// # Errors
    /// If there is no such machine, it has another role, or its copy cannot be made.
    pub fn ready(
        &self,
        watch: &mut Watch<'_>,
        name: &Name,
        toolchain: &Name,
        role: MachineRole,
    ) -> Result<Found, Stop> {
        let mut told = Told::default();
        loop {
            let found = self.find(name)?;
            if found.manifest.role != role {
                let is = if role == MachineRole::Build { "an auxiliary" } else { "a build" };
                return Err(Stop::Lasting(format!("{name} is {is} machine")));
            }
            let tools = self.toolchain(toolchain)?;
            match self.standing(&found, &tools)? {
                Standing::Ready(_) => return Ok(found),
                Standing::Newer { agent } => return Err(newer(&found.directory, toolchain, agent)),
                Standing::Suspended { why, console, .. } => {
                    watch.console = Some(console.into_bytes());
                    return Err(self.suspended(name, toolchain, &why));
                }
                Standing::Remake { why } => {
                    let still = |standing: &Standing| matches!(standing, Standing::Remake { .. });
                    let made = self.bootstrap(watch, &found, &tools, &why, &mut told, still);
                    let made = made.map_err(|stop| match stop {
                        stop if stop.spares_machine() => stop,
                        stop => self.suspended(name, toolchain, &stop.to_string()),
                    })?;
                    if let Some(versions) = made {
                        watch.step(format!("bootstrapped {name}: {}", bootstrap::shown(&versions)));
                        watch.begin(Phase::Machine);
                    }
                }
            }
        }
    }

    /// It stays so until somebody does something about it.
    fn suspended(&self, machine: &Name, toolchain: &Name, why: &str) -> Stop {
        let again = Advice::Bootstrap { host: &self.job.host, machine, toolchain };
        Stop::Lasting(format!(
            "{machine} is suspended, since its bootstrap failed: {why}; {again} tries again"
        ))
    }

    /// The toolchain of a name.
    ///
    /// # Errors
    /// If there is none that can be used.
    pub fn toolchain(&self, name: &Name) -> Result<Toolchain, Stop> {
        self.machines.toolchain(name).map_err(|error| match error {
            ToolchainError::Read { .. } => Stop::host(&error),
            error => Stop::Lasting(chain(&error)),
        })
    }

    /// How it stands with a machine's copy.
    ///
    /// # Errors
    /// If the copy cannot be read.
    pub fn standing(&self, found: &Found, tools: &Toolchain) -> Result<Standing, Stop> {
        let standing = found.directory.standing(&found.manifest, tools, SystemTime::now());
        standing.map_err(|error| Stop::directory(&error))
    }

    /// Bootstraps a machine unless somebody else is at it, for whom it waits a moment; or unless,
    /// once it has the lock, it is not so any more that it has to. `None` if it did nothing.
    ///
    /// # Errors
    /// If the copy cannot be made, or somebody wants an end.
    pub fn bootstrap(
        &self,
        watch: &mut Watch<'_>,
        found: &Found,
        tools: &Toolchain,
        why: &str,
        told: &mut Told,
        still: impl FnOnce(&Standing) -> bool,
    ) -> Result<Option<Versions>, Stop> {
        let name = &found.directory.name;
        let wait = |watch: &mut Watch<'_>| if watch.pause(LOOK) { Ok(None) } else { Err(Stop::Cancelled) };
        let lock = self.locks.try_bootstrap(name, &tools.name).map_err(|error| Stop::host(&error))?;
        let Some(_lock) = lock else {
            told.once(watch, || format!("waits until {name} is bootstrapped by somebody else"));
            return wait(watch);
        };
        // Somebody may have done it between the look and the lock.
        if !still(&self.standing(found, tools)?) {
            return Ok(None);
        }
        let wanted = Wanted {
            machine: name.clone(),
            toolchain: tools.name.clone(),
            instances: found.manifest.instances_max(),
        };
        let places =
            self.locks.try_places(std::slice::from_ref(&wanted)).map_err(|error| Stop::host(&error))?;
        let Some(_places) = places else {
            told.once(watch, || format!("waits for a place in {name}, to bootstrap it"));
            return wait(watch);
        };
        watch.begin(Phase::Bootstrapping);
        watch.step(format!("bootstraps {name}, since {why}"));
        let means = Means {
            owners: self.owners.clone(),
            session: self.job.session.clone(),
            work: self.job.work.clone(),
            accelerator: self.job.accelerator,
            memory: self.job.memory,
            processors: self.job.processors,
        };
        let bench = Bench {
            machines: &self.machines,
            directory: &found.directory,
            manifest: &found.manifest,
            toolchain: tools,
        };
        bootstrap::make(&bench, &means, watch, &mut |watch, bytes| watch.link.live(bytes)).map(Some)
    }
}

/// A copy that a newer crewboss has made cannot be used, and is not replaced.
pub fn newer(directory: &MachineDir, toolchain: &Name, agent: u32) -> Stop {
    Stop::Lasting(format!(
        "{} was bootstrapped by a newer crewboss (its agent has version {agent}); use that, or remove {}",
        directory.name,
        directory.copy_path(toolchain).display()
    ))
}

fn owners(job: &MachineJob) -> Result<Owners, Stop> {
    let layout = Layout::new(&job.work);
    let owner = Owner::load(&layout, &job.session).ok().flatten();
    let own = ProcessId::own();
    let (Some(owner), Some(runner)) = (owner, own) else {
        return Err(Stop::Host(format!("the session {} has no record any more", job.session)));
    };
    Ok(Owners { guardian: owner.guardian, worker: owner.worker, runner })
}

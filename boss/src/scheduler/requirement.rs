//! What tasks need and whether a host has it.

use std::collections::{BTreeMap, BTreeSet};

use crewboss_protocol::machine::{DEFAULT_TOOLCHAIN, MachineRole};
use crewboss_protocol::{Environment, Feature, Name, Target};

use crate::plan::Needs;

/// What a host must have. Tasks with equal requirements form a class and are matched to hosts
/// together.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// The toolchain of the host, if the target names one and does not run in a machine.
    pub toolchain: Option<Name>,
    /// Machines, the build machine first. One that is used twice is there twice, since each is a
    /// guest of its own.
    pub machines: Vec<MachineNeed>,
    /// Features of kernel and file system.
    pub features: BTreeSet<Feature>,
    /// Words from the crew file.
    pub tags: BTreeSet<Name>,
    /// Memory in bytes.
    pub memory: u64,
    /// Free space in bytes.
    pub disk: u64,
}

impl Requirement {
    /// From a target's plan.
    pub fn new(target: &Target, needs: &Needs) -> Self {
        let (toolchain, machines) = match &target.environment {
            Environment::Machine(machine) => {
                let build = MachineNeed {
                    role: MachineRole::Build,
                    name: machine.name.clone(),
                    toolchain: target.toolchain.clone(),
                };
                let auxiliary = machine.auxiliary.iter().map(|one| MachineNeed {
                    role: MachineRole::Auxiliary,
                    name: one.machine.clone(),
                    toolchain: None,
                });
                (None, std::iter::once(build).chain(auxiliary).collect())
            }
            Environment::Directory | Environment::Snapshot => (target.toolchain.clone(), Vec::new()),
        };
        Self {
            toolchain,
            machines,
            features: needs.features.clone(),
            tags: needs.tags.clone(),
            memory: needs.memory,
            disk: needs.disk,
        }
    }
}

/// A machine that a target runs in, or that serves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineNeed {
    /// Build or auxiliary.
    pub role: MachineRole,
    /// Its name.
    pub name: Name,
    /// The toolchain in it; `None` for whatever it has.
    pub toolchain: Option<Name>,
}

/// A machine as a host offers it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineOffer {
    /// Why it cannot be used, if it cannot.
    pub unusable: Option<String>,
    /// Toolchains with which it can be used, bootstrapped first if need be. Whatever it has itself
    /// needs none.
    pub toolchains: BTreeSet<Name>,
    /// Toolchains with which it cannot be used, and why.
    pub without: BTreeMap<Name, String>,
    /// Least memory of a guest in bytes.
    pub memory_min: u64,
}

/// What a host offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Places for running tasks; 0 counts as 1.
    pub slots: u32,
    /// Work of one slot in thousandths of the reference machine's; 0 counts as 1.
    pub speed: u32,
    /// Toolchains that work there.
    pub toolchains: BTreeSet<Name>,
    /// Those that do not, and why.
    pub broken_toolchains: BTreeMap<Name, String>,
    /// Its virtual machines, also those that cannot be used.
    pub machines: BTreeMap<(MachineRole, Name), MachineOffer>,
    /// Why no machine can be used there, if that is so.
    pub no_machines: Option<String>,
    /// Machines that it has refused to take a task for, and with which words.
    pub refused_machines: BTreeMap<Vec<MachineNeed>, String>,
    /// What its kernel and file system allow.
    pub features: BTreeSet<Feature>,
    /// Words from the crew file.
    pub tags: BTreeSet<Name>,
    /// Memory in bytes.
    pub memory: u64,
    /// Memory of the guests of one task together, in bytes.
    pub guest_memory: u64,
    /// Free space in bytes.
    pub disk_free: u64,
    /// Trees whose source is there.
    pub trees: BTreeSet<u32>,
}

/// Why a host does not take a task now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The first connection is still being made; what the host offers is not known.
    #[error("still connecting")]
    Connecting,
    /// The session is lost.
    #[error("not reachable: {reason}{}", if *.returns { " (connecting again)" } else { "" })]
    Unreachable {
        /// What failed.
        reason: String,
        /// Whether connecting goes on.
        returns: bool,
    },
    /// Too much failed there.
    #[error("paused after failures: {reason}")]
    Paused {
        /// The last failure.
        reason: String,
    },
    /// No such toolchain.
    #[error("{}", no_toolchain(wanted, has, why.as_deref()))]
    NoToolchain {
        /// What is needed.
        wanted: Name,
        /// What the host has.
        has: BTreeSet<Name>,
        /// Why it does not work; `None` if it is not there.
        why: Option<String>,
    },
    /// No such machine, or it cannot be used.
    #[error("{}", no_machine(wanted, has, why.as_deref()))]
    NoMachine {
        /// What is needed.
        wanted: MachineNeed,
        /// Machines of this role that can be used there.
        has: BTreeSet<Name>,
        /// Why it cannot be used; `None` if it is not there.
        why: Option<String>,
    },
    /// Too little memory for the machines of one task.
    #[error(
        "a slot has {has} bytes of memory for guests, which is less than the {needs} that its machines need together"
    )]
    MachineMemory {
        /// Bytes needed.
        needs: u64,
        /// Bytes there.
        has: u64,
    },
    /// No such feature.
    #[error("lacks the feature {}", format!("{missing:?}").to_lowercase())]
    NoFeature {
        /// What is needed.
        missing: Feature,
    },
    /// No such tag.
    #[error("has no tag {missing} (has: {})", list(.has))]
    NoTag {
        /// What is needed.
        missing: Name,
        /// What the host has.
        has: BTreeSet<Name>,
    },
    /// Too little memory.
    #[error("memory of {has} bytes is less than the {needs} needed")]
    Memory {
        /// Bytes needed.
        needs: u64,
        /// Bytes there.
        has: u64,
    },
    /// Too little free space.
    #[error("free space of {has} bytes is less than the {needs} needed")]
    Disk {
        /// Bytes needed.
        needs: u64,
        /// Bytes there.
        has: u64,
    },
    /// The host has refused this task before.
    #[error("has refused it")]
    HasRefused,
    /// An attempt failed here, and another host can take it.
    #[error("an attempt failed there and another host can try")]
    ElsewhereFirst,
    /// Another part of the same incremental target is being built there.
    #[error("is building another commit of the same incremental target")]
    ChainBusy,
    /// It is the turn of an earlier commit of the same incremental target.
    #[error("waits for an earlier commit of the same incremental target")]
    NotItsTurn,
    /// Another task on its last attempt is there; if one of them brings hosts down, the other must
    /// not be blamed.
    #[error("holds another task on its last attempt")]
    LastAttempts,
    /// There is no such host or task.
    #[error("no such host or task")]
    Unknown,
}

impl Unfit {
    /// Whether the host itself lacks something, as opposed to being away, paused or at odds with
    /// one task.
    pub fn is_lack(&self) -> bool {
        matches!(
            self,
            Unfit::NoToolchain { .. }
                | Unfit::NoMachine { .. }
                | Unfit::MachineMemory { .. }
                | Unfit::NoFeature { .. }
                | Unfit::NoTag { .. }
                | Unfit::Memory { .. }
                | Unfit::Disk { .. }
        )
    }
}

fn list(names: &BTreeSet<Name>) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn no_machine(wanted: &MachineNeed, has: &BTreeSet<Name>, why: Option<&str>) -> String {
    let role = match wanted.role {
        MachineRole::Build => "machine",
        MachineRole::Auxiliary => "auxiliary machine",
    };
    match why {
        Some(why) => format!("cannot use {role} {}: {why}", wanted.name),
        None => format!("no {role} {} (has: {})", wanted.name, list(has)),
    }
}

fn no_toolchain(wanted: &Name, has: &BTreeSet<Name>, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("toolchain {wanted} does not work: {why}"),
        None => format!("no toolchain {wanted} (has: {})", list(has)),
    }
}

/// Whether an offer meets a requirement; the first thing that is missing otherwise.
pub fn fits(requirement: &Requirement, offer: &Offer) -> Result<(), Unfit> {
    lasting_fit(requirement, offer)?;
    if requirement.disk > offer.disk_free {
        return Err(Unfit::Disk { needs: requirement.disk, has: offer.disk_free });
    }
    Ok(())
}

/// As [`fits`], without free space, which comes and goes.
pub(super) fn lasting_fit(requirement: &Requirement, offer: &Offer) -> Result<(), Unfit> {
    if let Some(wanted) = requirement.toolchain.as_ref().filter(|name| !offer.toolchains.contains(*name)) {
        let why = offer.broken_toolchains.get(wanted).cloned();
        return Err(Unfit::NoToolchain { wanted: wanted.clone(), has: offer.toolchains.clone(), why });
    }
    if let Some(missing) = requirement.features.difference(&offer.features).next() {
        return Err(Unfit::NoFeature { missing: *missing });
    }
    if let Some(missing) = requirement.tags.difference(&offer.tags).next() {
        return Err(Unfit::NoTag { missing: missing.clone(), has: offer.tags.clone() });
    }
    if requirement.memory > offer.memory {
        return Err(Unfit::Memory { needs: requirement.memory, has: offer.memory });
    }
    machines_fit(&requirement.machines, offer)
}

fn machines_fit(needs: &[MachineNeed], offer: &Offer) -> Result<(), Unfit> {
    let Some(first) = needs.first() else { return Ok(()) };
    let refuse = |wanted: &MachineNeed, why: Option<&String>| {
        let usable = offer.machines.iter().filter(|((role, _), machine)| {
            *role == wanted.role && machine.unusable.is_none() && offer.no_machines.is_none()
        });
        let has = usable.map(|((_, name), _)| name.clone()).collect();
        Err(Unfit::NoMachine { wanted: wanted.clone(), has, why: why.cloned() })
    };
    let mut memory = 0_u64;
    for wanted in needs {
        let Some(machine) = offer.machines.get(&(wanted.role, wanted.name.clone())) else {
            return refuse(wanted, offer.no_machines.as_ref());
        };
        let toolchain = wanted.toolchain.as_ref().map_or(DEFAULT_TOOLCHAIN, Name::as_str);
        let without = machine.without.iter().find(|(name, _)| name.as_str() == toolchain);
        let why = machine.unusable.as_ref().or(offer.no_machines.as_ref());
        if let Some(why) = why.or(without.map(|(_, why)| why)) {
            return refuse(wanted, Some(why));
        }
        if let Some(name) = wanted.toolchain.as_ref().filter(|name| !machine.toolchains.contains(*name)) {
            let has = list(&machine.toolchains);
            return refuse(wanted, Some(&format!("there is no toolchain {name} for machines (has: {has})")));
        }
        memory = memory.saturating_add(machine.memory_min);
    }
    if memory > offer.guest_memory {
        return Err(Unfit::MachineMemory { needs: memory, has: offer.guest_memory });
    }
    match offer.refused_machines.get(needs) {
        Some(why) => refuse(first, Some(why)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(role: MachineRole, name: &str, toolchain: Option<&str>) -> MachineNeed {
        let toolchain = toolchain.map(|name| name.parse().unwrap());
        MachineNeed { role, name: name.parse().unwrap(), toolchain }
    }

    fn host() -> Offer {
        let machine = |memory_min| MachineOffer { memory_min, ..MachineOffer::default() };
        let suspended = MachineOffer {
            toolchains: ["gcc12".parse().unwrap(), "default".parse().unwrap()].into(),
            without: BTreeMap::from([("gcc13".parse().unwrap(), "suspended: no boot".to_owned())]),
            ..machine(10)
        };
        let broken = MachineOffer { unusable: Some("no disk".to_owned()), ..machine(10) };
        let key = |role, name: &str| (role, name.parse().unwrap());
        let machines = [
            (key(MachineRole::Build, "debian"), suspended),
            (key(MachineRole::Build, "broken"), broken),
            (key(MachineRole::Auxiliary, "pg"), machine(60)),
        ];
        Offer { memory: 1000, guest_memory: 100, machines: machines.into(), ..Offer::default() }
    }

    fn why(machines: &[MachineNeed], offer: &Offer) -> String {
        let requirement = Requirement { machines: machines.to_vec(), ..Requirement::default() };
        fits(&requirement, offer).map_or_else(|unfit| unfit.to_string(), |()| "fits".to_owned())
    }

    #[test]
    fn a_host_without_the_machine_says_why() {
        let debian = |toolchain| need(MachineRole::Build, "debian", toolchain);
        let pg = need(MachineRole::Auxiliary, "pg", None);
        assert_eq!(why(&[debian(None)], &host()), "fits");
        assert_eq!(why(&[debian(Some("gcc12"))], &host()), "fits");
        assert_eq!(why(&[debian(Some("gcc13"))], &host()), "cannot use machine debian: suspended: no boot");
        assert_eq!(
            why(&[debian(Some("gcc99"))], &host()),
            "cannot use machine debian: there is no toolchain gcc99 for machines (has: default, gcc12)"
        );
        let broken = need(MachineRole::Build, "broken", None);
        assert_eq!(why(&[broken], &host()), "cannot use machine broken: no disk");
        let other = need(MachineRole::Build, "pg", None);
        assert_eq!(why(&[other], &host()), "no machine pg (has: debian)");
        let other = need(MachineRole::Auxiliary, "mysql", None);
        assert_eq!(why(&[debian(None), other], &host()), "no auxiliary machine mysql (has: pg)");
        assert_eq!(why(&[debian(None), pg.clone()], &host()), "fits");
        assert_eq!(
            why(&[debian(None), pg.clone(), pg], &host()),
            "a slot has 100 bytes of memory for guests, which is less than the 130 that its machines need together"
        );
        let without = Offer { no_machines: Some("no QEMU".to_owned()), ..host() };
        assert_eq!(why(&[debian(None)], &without), "cannot use machine debian: no QEMU");
        let nothing = Offer { machines: BTreeMap::new(), ..without };
        assert_eq!(why(&[debian(None)], &nothing), "cannot use machine debian: no QEMU");
        assert_eq!(why(&[debian(None)], &Offer::default()), "no machine debian (has: none)");
    }

    #[test]
    fn the_toolchain_of_a_machine_is_not_asked_of_the_host() {
        let target = |environment| Target {
            name: "x".parse().unwrap(),
            toolchain: Some("gcc12".parse().unwrap()),
            incremental: false,
            environment,
            timeout_ms: 1,
            stages: Vec::new(),
            variables: BTreeMap::new(),
            artifacts: Vec::new(),
            sizes: Vec::new(),
        };
        let machine =
            crewboss_protocol::MachineUse { name: "debian".parse().unwrap(), auxiliary: Vec::new() };
        let inside = Requirement::new(&target(Environment::Machine(machine)), &Needs::default());
        assert_eq!(fits(&inside, &host()), Ok(()));
        let outside = Requirement::new(&target(Environment::Snapshot), &Needs::default());
        assert_eq!(fits(&outside, &host()).unwrap_err().to_string(), "no toolchain gcc12 (has: none)");
        let why = "/opt/gcc: exit status: 1 of `--version`: no license".to_owned();
        let broken = Offer { broken_toolchains: [("gcc12".parse().unwrap(), why)].into(), ..host() };
        let why = fits(&outside, &broken).unwrap_err().to_string();
        assert_eq!(why, "toolchain gcc12 does not work: /opt/gcc: exit status: 1 of `--version`: no license");
    }
}

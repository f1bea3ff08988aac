//! What tasks need and whether a host has it.

use std::collections::BTreeSet;

use crewboss_protocol::{Feature, Name};

use crate::plan::Needs;

/// What a host must have. Tasks with equal requirements form a class and are matched to hosts together.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// The toolchain, if the target names one.
    pub toolchain: Option<Name>,
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
    pub fn new(toolchain: Option<Name>, needs: &Needs) -> Self {
        Self {
            toolchain,
            features: needs.features.clone(),
            tags: needs.tags.clone(),
            memory: needs.memory,
            disk: needs.disk,
        }
    }
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
    /// What its kernel and file system allow.
    pub features: BTreeSet<Feature>,
    /// Words from the crew file.
    pub tags: BTreeSet<Name>,
    /// Memory in bytes.
    pub memory: u64,
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
    #[error("no toolchain {wanted} (has: {})", list(.has))]
    NoToolchain {
        /// What is needed.
        wanted: Name,
        /// What the host has.
        has: BTreeSet<Name>,
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
    /// Another task on its last attempt is there; if one of them brings hosts down, the other must not be blamed.
    #[error("holds another task on its last attempt")]
    LastAttempts,
    /// There is no such host or task.
    #[error("no such host or task")]
    Unknown,
}

impl Unfit {
    /// Whether the host itself lacks something, as opposed to being away, paused or at odds with one task.
    pub fn is_lack(&self) -> bool {
        matches!(
            self,
            Unfit::NoToolchain { .. }
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
        return Err(Unfit::NoToolchain { wanted: wanted.clone(), has: offer.toolchains.clone() });
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
    Ok(())
}

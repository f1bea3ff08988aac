//! What to build: a target as the worker needs to know it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::Name;
use crate::machine::MachineUse;

/// A target: commands, what they need, what they leave. Its serialised form is part of a task's
/// key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: Name,
    /// The toolchain that a host must offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<Name>,
    /// Start from the last good build directory of this target on the host.
    #[serde(default)]
    pub incremental: bool,
    /// Where it runs.
    #[serde(default)]
    pub environment: Environment,
    /// Time limit for all stages together, in milliseconds.
    pub timeout_ms: u64,
    /// The stages in order; at least one.
    pub stages: Vec<Stage>,
    /// Variables that the stages see, besides those that crewboss sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// Globs of files to bring back, looked for below `$CREWBOSS_OUT`, then below `$CREWBOSS_SRC`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Files whose section sizes are recorded, found like artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<String>,
}

/// One named step of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name, unique within the target.
    pub name: Name,
    /// What it runs.
    pub command: Command,
}

/// A command: a line for the shell, or the words of a program that is started without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// Run by `/bin/sh -e -c`.
    Shell(String),
    /// Started as it is.
    Words(Vec<String>),
}

/// Where a task runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// In a new directory; the source is shared and cannot be written.
    Directory,
    /// With a writable copy-on-write copy of the source.
    #[default]
    Snapshot,
    /// In a guest of its own that is gone afterwards.
    Machine(MachineUse),
}

//! What is known of a guest that may be kept.

use serde::{Deserialize, Serialize};

use crate::qemu::command::GuestConfig;

/// Everything that it takes to start a guest as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// How QEMU is started.
    pub config: GuestConfig,
    /// The bridge of its network card, if it has one.
    pub bridge: Option<String>,
    /// As many guests may its machine have at once.
    pub instances: u32,
    /// From the start of QEMU until its agent asks what to do, in milliseconds.
    pub startup_ms: u64,
    /// Whether its memory was saved.
    pub memory: bool,
    /// Whether the agent in that memory knows the task.
    pub prepared: bool,
    /// The version of the QEMU that ran it.
    pub qemu: String,
    /// Its task.
    pub document: String,
}

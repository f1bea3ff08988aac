//! What runs on a host: the worker's processes, the environments of tasks, clean-up.
//!
//! [`guardian`] starts the worker proper ([`core`]) and cleans up after it; the worker proper
//! decides and prepares; one [`runner`] per slot runs attempts, one at a time. Everything that a
//! session makes lies below its directory, its guardian and its control group, so [`sweep`] can
//! always find it.
#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod bulk;
pub mod core;
pub mod environment;
pub mod guardian;
pub mod overview;
pub mod person;
pub mod probe;
pub mod prune;
pub mod pulse;
pub mod runner;
pub mod sender;
pub mod slots;
pub mod source;
pub mod sweep;
#[cfg(test)]
mod testing;
pub mod verify;

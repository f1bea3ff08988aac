//! QEMU: its command line, its process, and its monitor.
//!
//! [`command`] says with which arguments, [`process`] starts it and holds the ends of its channels,
//! [`qmp`] talks to its monitor, [`saved`] saves a guest and brings it back. [`accelerator`] finds
//! out which accelerator works. Nothing in here knows tasks, machines or directories.

pub mod accelerator;
pub mod child;
pub mod command;
pub mod error;
pub mod firmware;
pub mod process;
pub mod qmp;
pub mod rom;
pub mod saved;
pub mod version;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

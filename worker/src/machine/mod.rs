//! Virtual machines: each task in a guest of its own, on a btrfs snapshot that is gone afterwards.
//!
//! [`manifest`] and [`directory`] say which machines there are, [`lock`] who uses them, [`record`]
//! who owns which guest. [`qemu`] runs one guest, [`tftp`] and the agent's port are the two ways to
//! talk to it, [`exchange`] brings source in and artifacts out. A task's whole life in a guest is
//! in [`task`]; the bootstrap of a machine in [`bootstrap`], one ahead of time in [`ahead`]; how a
//! task does without booting in [`warm`]; what a person does with guests that were kept in [`hold`]
//! and [`person`]. All of it happens in the runner of a slot, so that a guest can live no longer
//! than what started it.

pub mod accelerator;
pub mod boot;
pub mod bootstrap;
pub mod console;
pub mod directory;
pub mod door;
pub mod exchange;
pub mod files;
pub mod guest;
pub mod halt;
pub mod hold;
pub mod hub;
pub mod identity;
pub mod job;
pub mod kills;
pub mod listener;
pub mod lock;
pub mod manifest;
pub mod memory;
pub mod new_guest;
pub mod plan;
pub mod probe;
pub mod qemu;
pub mod record;
pub mod room;
pub mod supply;
pub mod sweep;
pub mod tap;
pub mod tftp;
pub mod verdict;
pub mod warm;
pub mod watch;

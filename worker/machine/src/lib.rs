//! Virtual machines: each task in a guest of its own, on a btrfs snapshot that is gone afterwards.
//!
//! [`images`] says which machines there are, [`books`] who uses them and who owns which guest.
//! [`qemu`] runs one guest, [`tftp`] and the agent's port are the two ways to talk to it,
//! [`exchange`] brings source in and artifacts out. [`guest`] is all that a guest is while it runs;
//! [`life`] is what becomes of machines around it: the bootstrap of a machine, how a task does
//! without booting, and guests that are kept. All of it happens in the runner of a slot, so that a
//! guest can live no longer than what started it; what a runner or a person does with it, they know
//! themselves.
#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod books;
pub mod exchange;
pub mod guest;
pub mod halt;
pub mod images;
pub mod life;
pub mod qemu;
pub mod tftp;

//! QEMU: its command line, its process, and its monitor.

pub mod command;
pub mod process;
pub mod qmp;

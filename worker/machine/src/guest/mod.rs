//! A guest of a task, from its plan to its end: what it is started with, its channels, who watches
//! it, and what its end means.

pub mod boot;
pub mod console;
pub mod door;
pub mod hub;
pub mod identity;
pub mod kept;
pub mod kills;
mod listener;
pub mod memory;
pub mod new_guest;
pub mod plan;
pub mod running;
pub mod tap;
pub mod verdict;
pub mod watch;

pub use listener::Listener;

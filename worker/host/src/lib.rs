//! What workers and guest agents do on a computer: processes and their ends, files and directories,
//! archives, and programs that are run for tasks. It knows neither what a session is for nor who
//! talks to whom.
#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod artifacts;
pub mod cgroup;
pub mod doing;
pub mod layout;
pub mod marked;
pub mod owner;
pub mod process;
pub mod program;
pub mod short;
pub mod storage;
pub mod sys;
pub mod tar;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;

pub use layout::Layout;

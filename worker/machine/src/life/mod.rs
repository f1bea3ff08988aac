//! What becomes of machines: they are bootstrapped, started warm, supplied to tasks, and their
//! guests kept.

pub mod bootstrap;
pub mod hold;
pub mod job;
pub mod supply;
pub mod warm;

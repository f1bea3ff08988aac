//! Running the programs of stages: [`command`] finds them, [`run`](mod@run) starts, hears and ends
//! them, and a [`Control`] says when.

pub mod command;
mod control;
pub mod run;

pub use control::Control;

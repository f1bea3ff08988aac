//! What a person sees: progress, failures, tables, summaries; and the event stream for programs.

pub mod bars;
pub mod bootstrap;
pub mod clean;
pub mod events;
pub mod hosts;
pub mod machines;
pub mod plain;
pub mod plan;
pub mod progress;
pub mod screen;
pub mod seat;
pub mod status;
pub mod summary;
pub mod table;
pub mod text;
pub mod way_in;

#[cfg(test)]
pub mod samples;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Failures and the summary.
    Quiet,
    /// Every finished task, and what happens to hosts.
    Normal,
    /// Also what starts, and what is sent.
    Verbose,
}

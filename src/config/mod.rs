//! What the user wrote: `crew.toml` and `build.toml`, read strictly.
//!
//! Nothing is accepted that has no effect. Every error names the file, the line and what was
//! expected.

mod build;
mod crew;
mod document;
mod environment;
mod error;
mod search;
mod trust;
mod units;
mod upload;

pub use build::{BuildPlan, RESERVED, load_build, selection};
pub use crew::{load_crew, local_crew, select_hosts};
pub use error::ConfigError;
pub use search::{find_build, find_crew};
pub use units::parse_duration_or_none;

#[cfg(test)]
mod tests;

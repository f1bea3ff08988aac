//! What the user wrote: `crew.toml` and `build.toml`, read strictly.
//!
//! Nothing is accepted that has no effect. Every error names the file, the line and what was expected.

mod build;
mod crew;
mod document;
mod error;
mod search;
mod units;

pub use build::{load_build, selection};
pub use crew::{load_crew, local_crew, select_hosts};
pub use error::ConfigError;
pub use search::{find_build, find_crew};

#[cfg(test)]
mod tests;

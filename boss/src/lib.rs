//! The boss: plans a run, hands tasks to hosts, keeps the results.
//!
//! It never prints and reads neither arguments nor configuration files: it is given parsed settings and a sink for
//! [`event`]s.
#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod bulk;
pub mod clean;
pub mod crew;
pub mod dry_run;
pub mod event;
pub mod link;
pub mod person;
pub mod plan;
pub mod probe;
pub mod report;
pub mod run;
pub mod scheduler;
pub mod source;
pub mod store;

pub(crate) use crewboss_protocol::chain;

/// An error, its causes, and what a person can do about it.
pub(crate) fn with_hint(error: &dyn std::error::Error, hint: Option<&str>) -> String {
    let text = chain(error);
    hint.map_or_else(|| text.clone(), |hint| format!("{text}; hint: {hint}"))
}

//! The boss: plans a run, hands tasks to hosts, keeps the results.
//!
//! It never prints and reads neither arguments nor configuration files: it is given parsed settings and a sink for
//! [`event`]s.
#![forbid(unsafe_code)]

pub mod bulk;
pub mod crew;
pub mod event;
pub mod link;
pub mod plan;
pub mod source;

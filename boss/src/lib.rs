//! The boss: plans a run, hands tasks to hosts, keeps the results.
//!
//! It never prints and reads neither arguments nor configuration files: it is given parsed settings and a sink for
//! [`event`]s.
#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod bootstrap;
pub mod bulk;
pub mod clean;
pub mod crew;
pub mod descriptors;
pub mod dry_run;
pub mod event;
pub mod link;
pub mod outlet;
pub mod person;
pub mod plan;
pub mod probe;
pub mod report;
pub mod run;
pub mod scheduler;
pub mod source;
pub mod store;

pub(crate) use crewboss_protocol::chain;

/// Whether something failed since this computer has no descriptors, memory or processes left: that is nobody else's fault.
pub(crate) fn lacks_resources(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustix::io::Errno;
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .filter_map(Errno::from_io_error)
        .any(|errno| lacking.contains(&errno))
}

/// An error, its causes, and what a person can do about it.
pub(crate) fn with_hint(error: &dyn std::error::Error, hint: Option<&str>) -> String {
    let text = chain(error);
    hint.map_or_else(|| text.clone(), |hint| format!("{text}; hint: {hint}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::link::LinkError;
    use crate::run::SessionError;

    #[test]
    fn what_this_computer_lacks_is_found_behind_other_errors() {
        let of = |errno: rustix::io::Errno| {
            let source: io::Error = errno.into();
            SessionError::Link(LinkError::Pipe { host: "lab1".parse().unwrap(), source })
        };
        assert!(lacks_resources(&of(rustix::io::Errno::MFILE)));
        assert!(!lacks_resources(&of(rustix::io::Errno::PIPE)));
    }
}

//! The boss: plans a run, hands tasks to hosts, keeps the results.
//!
//! It never prints and reads neither arguments nor configuration files: it is given parsed settings
//! and a sink for [`event`]s.
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
use crewboss_protocol::harmless::harmless;

/// Whether something failed since this computer has no descriptors, memory or processes left: that
/// is nobody else's fault.
pub(crate) fn lacks_resources(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustix::io::Errno;
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .filter_map(Errno::from_io_error)
        .any(|errno| lacking.contains(&errno))
}

/// An error, its causes, and what a person can do about it, on one line: a host may have a part in
/// what it says.
pub(crate) fn with_hint(error: &dyn std::error::Error, hint: Option<&str>) -> String {
    let text = one_line(&chain(error));
    hint.map_or_else(|| text.clone(), |hint| format!("{text}; hint: {hint}"))
}

/// Foreign text on one line that nobody can mistake for several of ours. What was overwritten by
/// carriage returns is kept: it would take our own words with it.
pub(crate) fn one_line(text: &str) -> String {
    let apart = text.trim().replace("\r\n", "\n").replace('\r', "\n");
    harmless(&apart).trim().replace('\n', "; ").replace('\t', " ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::link::LinkError;
    use crate::run::SessionError;

    #[test]
    fn what_a_host_says_of_an_error_is_no_second_line() {
        let source = io::Error::other("E\x1b[31m\r\nlab2: lost\rhidden\u{61c}");
        let error = SessionError::Read(source);
        assert_eq!(
            with_hint(&error, Some("look")),
            "reading from the worker failed: E; lab2: lost; hidden; hint: look"
        );
    }

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

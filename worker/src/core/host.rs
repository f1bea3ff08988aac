//! What the worker proper needs to know of its host.

use crewboss_protocol::message::Hello;
use crewboss_protocol::{HostFacts, Load};

use crate::layout::Layout;
use crate::probe;

/// Finds out what the host is and can do.
///
/// # Errors
/// A sentence for a person.
pub fn facts(layout: &Layout, hello: &Hello) -> Result<HostFacts, String> {
    probe::probe(layout, hello).map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

/// The state of the host right now.
pub fn load(layout: &Layout) -> Load {
    probe::load(layout)
}

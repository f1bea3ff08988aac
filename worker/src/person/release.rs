//! `crewboss release`, on the host: a held guest goes, a task that waits goes on.

use crewboss_machine::books::record::GuestRecord;
use crewboss_machine::guest::door::Knock;
use crewboss_machine::images::directory::Machines;
use crewboss_protocol::Name;

use super::enter::knock_at;
use super::{PersonError, Who, claim};

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The guest is gone.
    Removed,
    /// Its task goes on.
    GoesOn,
}

/// Ends the holding of a guest, or the waiting of its task. A person who is in a guest whose task
/// waits does not prevent that; one who is in a held guest does.
///
/// # Errors
/// If there is no such guest, or somebody is in it.
pub fn release(machines: &Machines, guest: &Name, who: &Who) -> Result<Released, PersonError> {
    let waits = |record: &GuestRecord| record.held.is_none() && record.waiting.is_some() && record.is_owned();
    if let Some(record) = GuestRecord::load(machines, guest).filter(waits) {
        knock_at(guest, &record.snapshot(machines), Knock::Release)?;
        return Ok(Released::GoesOn);
    }
    let claimed = claim(machines, guest, who)?;
    claimed.record.remove(machines)?;
    Ok(Released::Removed)
}

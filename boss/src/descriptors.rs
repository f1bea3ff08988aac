//! Open files: counted ahead, so that they run out at the start, with numbers, and not in the
//! middle, as the fault of a host.

use crewboss_ground::{open_files, raise_open_files};
use crewboss_protocol::limits::CHANNELS_MAX;

/// What a run has open besides its hosts: repository, journal, threads that store results, uploads.
const OWN: u64 = 128;

/// Per host: on each channel three pipes and a way to its end, a log, and on two of the channels a
/// file and its directories.
const PER_HOST: u64 = 4 * CHANNELS_MAX as u64 + 8;

/// This system does not allow as many open files as the hosts of a crew take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{hosts} hosts take up to {needed} open files at once, and this system allows this user {allowed} (`ulimit -Hn`)"
)]
pub struct TooFew {
    /// Hosts of the crew.
    pub hosts: usize,
    /// What they take.
    pub needed: u64,
    /// What there is.
    pub allowed: u64,
}

/// Makes sure that so many hosts can be connected. The limit is raised if need be, as far as the
/// system lets us.
///
/// # Errors
/// If it cannot be enough.
pub fn provide(hosts: usize) -> Result<(), TooFew> {
    let (current, maximum) = open_files();
    let needed = needed(hosts);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let allowed = maximum.unwrap_or(u64::MAX);
    if allowed < needed || raise_open_files(needed).is_err() {
        return Err(TooFew { hosts, needed, allowed });
    }
    Ok(())
}

fn needed(hosts: usize) -> u64 {
    OWN + PER_HOST * hosts as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_limit_is_enough_for_a_usual_crew() {
        assert!(needed(30) <= 1024 && needed(60) > 1024 && needed(1000) <= 1 << 15);
    }
}

//! Starting a guest until it asks what to do; trying again with a new one when it does not.

use std::time::{Duration, Instant};

use crewboss_protocol::Name;
use crewboss_protocol::guest::FromGuest;
use crewboss_protocol::machine::AGENT_VERSION;

use super::running::{Guest, GuestEvent};
use super::verdict::Stop;
use super::watch::{Seen, Watch};

/// How often, and for how long each time.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the start of QEMU until the guest asks.
    pub startup: Duration,
    /// Further tries after the first.
    pub again: u32,
}

/// How a guest came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// From the start of QEMU until the guest asked.
    pub took: Duration,
    /// Boots that it took.
    pub boots: u32,
}

/// Starts guests of `machine` until one asks what to do; that one is the last of `guests` then.
/// Every try gets a guest of its own from `start`, since nobody knows what a boot that failed has
/// left on the disk.
///
/// # Errors
/// If none comes up, if one cannot be started at all, or if another of the guests ends meanwhile.
pub fn boot(
    watch: &mut Watch<'_>,
    guests: &mut Vec<Guest>,
    machine: &Name,
    patience: Patience,
    start: &mut dyn FnMut(&mut Watch<'_>) -> Result<Guest, Stop>,
) -> Result<Boot, Stop> {
    let tries = patience.again + 1;
    let mut number = 1;
    loop {
        watch.step(format!("{machine} boots"));
        let begun = Instant::now();
        guests.push(start(watch)?);
        let Some(why) = until_up(watch, guests, begun + patience.startup)? else {
            let took = guests.last().map_or(begun, |guest| guest.started).elapsed();
            return Ok(Boot { took, boots: number });
        };
        let console = guests.last().map(|guest| guest.console.last_words(3)).unwrap_or_default();
        let why = if console.is_empty() { why } else { format!("{why}; its console ended with: {console}") };
        if number == tries {
            return Err(Stop::Misboot { machine: machine.clone(), tries, why });
        }
        watch.step(format!("{machine} did not boot, try {number} of {tries}: {why}"));
        watch.end_last(guests);
        number += 1;
    }
}

/// Waits until the last guest asks what to do. Returns why it will not.
fn until_up(watch: &mut Watch<'_>, guests: &mut [Guest], until: Instant) -> Result<Option<String>, Stop> {
    let last = guests.len() - 1;
    loop {
        match watch.next(guests, until) {
            Seen::Cancelled => return Err(Stop::Cancelled),
            Seen::Stop(stop) => return Err(stop),
            Seen::TimeUp => {
                return Ok(Some("it asked for nothing in the time that it has for starting up".to_owned()));
            }
            Seen::Guest(index, event) if index != last => guests[index].as_auxiliary(event)?,
            Seen::Guest(_, GuestEvent::Got) => return Ok(None),
            Seen::Guest(_, GuestEvent::Said(FromGuest::Ready { agent })) if agent == AGENT_VERSION => {
                return Ok(None);
            }
            Seen::Guest(_, GuestEvent::Said(FromGuest::Ready { agent })) => {
                return Ok(Some(format!("its agent has version {agent}, not {AGENT_VERSION}")));
            }
            Seen::Guest(_, GuestEvent::Ended(how)) => return Ok(Some(format!("it {how}"))),
            Seen::Guest(_, GuestEvent::Nonsense(why)) => return Ok(Some(why)),
            Seen::Guest(..) => {}
        }
    }
}

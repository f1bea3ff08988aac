//! The right to be in a guest: one person at a time.

use std::time::{Duration, Instant};

use crewboss_host::process::{KILL, KILL_WITHIN, ProcessId};
use crewboss_machine::books::lock::{self, GuestLock};
use crewboss_machine::books::record::GuestRecord;
use crewboss_machine::images::directory::Machines;
use crewboss_machine::life::hold::SAVE_WITHIN;
use crewboss_protocol::Name;
use crewboss_protocol::machine::Visitor;
use rustix::process::Signal;

use super::bridge::MAKE_ROOM;
use super::caller::Caller;
use super::{PersonError, Who, now};

/// Whoever is to make room saves the guest first.
const LEAVES_WITHIN: Duration = SAVE_WITHIN.saturating_add(Duration::from_secs(20));

/// Between two looks whether a guest is free.
const LOOK: Duration = Duration::from_millis(50);

/// A guest that nobody else can enter, release or remove meanwhile.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) record: GuestRecord,
    /// Its lock.
    _lock: GuestLock,
}

/// Takes a guest that is held or waits.
pub(super) fn claim(machines: &Machines, guest: &Name, who: &Who) -> Result<Claimed, PersonError> {
    claim_with(machines, guest, |visitor| try_lock(machines, guest, visitor, who), who)
}

/// The same; whoever is in it has to make room.
pub(super) fn take_over(
    machines: &Machines,
    guest: &Name,
    who: &Who,
    caller: &mut Caller,
) -> Result<Claimed, PersonError> {
    let lock = |visitor: &Visitor| {
        let mut asked: Option<Asked> = None;
        loop {
            let refused = match try_lock(machines, guest, visitor, who) {
                Err(refused @ (PersonError::Entered { .. } | PersonError::Locked { .. })) => refused,
                other => return other,
            };
            match (lock::in_guest(machines, guest), &mut asked) {
                (Some((process, other)), None) => asked = Some(Asked::ask(guest, process, other, caller)?),
                (_, Some(asked)) => asked.insist(caller)?,
                (None, None) => return Err(refused),
            }
            caller.look();
            if caller.gone().is_some() {
                return Err(PersonError::Alone);
            }
            std::thread::sleep(LOOK);
        }
    };
    claim_with(machines, guest, lock, who)
}

/// A visitor who was asked to leave.
struct Asked {
    guest: Name,
    process: ProcessId,
    visitor: Visitor,
    until: Instant,
    killed: bool,
}

impl Asked {
    fn ask(guest: &Name, process: ProcessId, visitor: Visitor, caller: &Caller) -> Result<Self, PersonError> {
        // One that was stopped hears nothing before it goes on.
        let told = process.signal(MAKE_ROOM) && process.signal(Signal::CONT);
        if !told && process.is_alive() {
            return Err(PersonError::Foreign { guest: guest.clone(), visitor });
        }
        caller.say(&format!("takes {guest} over from {}", visitor.told(now())));
        let until = Instant::now() + LEAVES_WITHIN;
        Ok(Self { guest: guest.clone(), process, visitor, until, killed: false })
    }

    /// One that hangs is ended; the guest is what it was before that visit then.
    fn insist(&mut self, caller: &Caller) -> Result<(), PersonError> {
        if Instant::now() < self.until {
            return Ok(());
        }
        if self.killed {
            return Err(PersonError::Foreign { guest: self.guest.clone(), visitor: self.visitor.clone() });
        }
        self.process.signal(KILL);
        self.killed = true;
        self.until = Instant::now() + KILL_WITHIN;
        caller.say("that visit hung and was ended; the guest is as it was before it");
        Ok(())
    }
}

fn try_lock(
    machines: &Machines,
    guest: &Name,
    visitor: &Visitor,
    who: &Who,
) -> Result<GuestLock, PersonError> {
    if let Some(lock) = lock::try_guest(machines, guest, Some(visitor))? {
        return Ok(lock);
    }
    let guest = guest.clone();
    Err(match lock::in_guest(machines, &guest) {
        Some((_, visitor)) => PersonError::Entered { guest, visitor, host: who.host.clone() },
        None => PersonError::Locked { guest },
    })
}

fn claim_with(
    machines: &Machines,
    guest: &Name,
    lock: impl FnOnce(&Visitor) -> Result<GuestLock, PersonError>,
    who: &Who,
) -> Result<Claimed, PersonError> {
    let none = || PersonError::NoGuest { guest: guest.clone(), machines: machines.root().to_owned() };
    GuestRecord::load(machines, guest).ok_or_else(none)?;
    let lock = lock(&visitor(who))?;
    // Whoever had the lock may have removed it.
    let record = GuestRecord::load(machines, guest).ok_or_else(none)?;
    let guest = guest.clone();
    match (&record.held, &record.waiting) {
        (Some(_), _) => {}
        _ if !record.is_owned() => return Err(PersonError::Abandoned { guest }),
        (None, Some(_)) => {}
        (None, None) => return Err(PersonError::Runs { guest }),
    }
    Ok(Claimed { record, _lock: lock })
}

/// Who stands in the lock. sshd says from which address somebody has come.
fn visitor(who: &Who) -> Visitor {
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let from = connection.split_whitespace().next().map(str::to_owned);
    Visitor { person: who.person.clone(), from, pid: std::process::id(), since: now() }
}

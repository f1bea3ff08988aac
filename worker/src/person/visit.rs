//! A held guest that runs for the time of a visit.

use std::time::{Duration, Instant};

use crewboss_machine::books::lock::{Locks, Place, Wanted};
use crewboss_machine::books::record::GuestRecord;
use crewboss_machine::guest::kept::Kept;
use crewboss_machine::images::directory::Machines;
use crewboss_machine::life::hold::revive::{PutAway, Revived, revive};
use crewboss_machine::life::hold::shelf::Shelf;
use crewboss_protocol::Name;
use crewboss_protocol::advice::Advice;
use crewboss_protocol::machine::{HeldGuest, MachineHolder};

use super::caller::Caller;
use super::{Claimed, PersonError, Who, now};

/// However little of its time is left: this long a guest is kept after a visit.
const KEPT_AFTER: u64 = 15 * 60;

/// Others hold the lock under which places are taken for a moment only.
const PLACE_WITHIN: Duration = Duration::from_secs(5);

/// Between two tries.
const PLACE_LOOK: Duration = Duration::from_millis(50);

/// A held guest that runs.
pub(super) struct Visit<'a> {
    machines: &'a Machines,
    claimed: Claimed,
    held: HeldGuest,
    /// It runs like any other guest of its machine.
    _place: Place,
    pub(super) revived: Revived,
    /// Whether it goes on where it was stopped; else it boots.
    pub(super) goes_on: bool,
}

impl<'a> Visit<'a> {
    /// Lets the guest run.
    ///
    /// # Errors
    /// If it cannot run; it is held as before then.
    pub(super) fn begin(
        machines: &'a Machines,
        claimed: Claimed,
        caller: &Caller,
    ) -> Result<Self, PersonError> {
        let id = &claimed.record.id;
        let Some(held) = claimed.record.held.clone() else {
            return Err(PersonError::NotHeld { guest: id.clone() });
        };
        let _place = place(machines, &claimed, &held)?;
        caller.say(&format!("restores {id}"));
        let revived = revive(&claimed.record.snapshot(machines))
            .map_err(|source| PersonError::Revive { guest: id.clone(), source: Box::new(source) })?;
        let goes_on = revived.kept.memory;
        Ok(Self { machines, held, _place, goes_on, revived, claimed })
    }

    pub(super) fn guest(&self) -> &Name {
        &self.claimed.record.id
    }

    /// What is known of the guest.
    pub(super) fn held(&self) -> &HeldGuest {
        &self.held
    }

    /// Keeps what became of it, and says so.
    pub(super) fn end(mut self, caller: &Caller, who: &Who) -> Result<(), PersonError> {
        let id = self.guest().clone();
        caller.say(&format!("keeps {id}"));
        let put_away = self.revived.put_away();
        let (kept, how) = put_away.map_err(|source| PersonError::PutAway { guest: id.clone(), source })?;
        let memory = match &how {
            PutAway::Whole => true,
            PutAway::DiskOnly(_) => false,
            PutAway::AsBefore(_) => self.held.memory,
        };
        let until = self.held.until.max(now().saturating_add(KEPT_AFTER));
        self.claimed.record.hold(self.machines, HeldGuest { memory, until, ..self.held })?;
        drop(kept);
        match how {
            PutAway::Whole => {}
            PutAway::DiskOnly(why) => caller.say(&format!("only its disk is kept, since {why}")),
            PutAway::AsBefore(why) => caller.say(&format!("it is as it was before, since {why}")),
        }
        let minutes = until.saturating_sub(now()).div_ceil(60);
        let release = Advice::Release(&who.host, &id);
        caller.say(&format!("{id} is held for another {minutes} min; {release} ends it"));
        Ok(())
    }

    /// Ends it at once. It is held as before.
    pub(super) fn abandon(mut self) {
        self.revived.qemu.kill();
    }
}

/// How a held guest is started.
pub(super) fn load(machines: &Machines, record: &GuestRecord) -> Result<Kept, PersonError> {
    let loaded = Shelf::new(&record.snapshot(machines)).load();
    let (_, kept, _) = loaded.map_err(|source| PersonError::Revive {
        guest: record.id.clone(),
        source: Box::new(source.into()),
    })?;
    Ok(kept)
}

/// A place among the guests of its machine: there may be a limit, by an address that only one can
/// have.
fn place(machines: &Machines, claimed: &Claimed, held: &HeldGuest) -> Result<Place, PersonError> {
    let record = &claimed.record;
    let guest = || record.id.clone();
    let kept = load(machines, record)?;
    let host = "person".parse().map_err(|_| PersonError::Locked { guest: guest() })?;
    let holder = MachineHolder {
        boss: held.boss.clone(),
        run: held.run.clone(),
        host,
        pid: std::process::id(),
        priority: 0,
        task: Some(held.at),
        since: 0,
    };
    let locks = Locks::new(machines, holder)?;
    let machine = record.machine.clone();
    let wanted = [Wanted { machine, toolchain: record.toolchain.clone(), instances: kept.instances }];
    let end = Instant::now() + PLACE_WITHIN;
    loop {
        if let Some(place) = locks.try_places(&wanted)?.and_then(|mut places| places.pop()) {
            return Ok(place);
        }
        if Instant::now() > end {
            return Err(PersonError::NoPlace { machine: record.machine.clone() });
        }
        std::thread::sleep(PLACE_LOOK);
    }
}

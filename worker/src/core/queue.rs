//! What is done while no slot can be had: who has them all is told, and ended if nobody can want it
//! any more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use crewboss_host::layout::Layout;
use crewboss_host::owner::{Owner, sessions};
use crewboss_protocol::{SessionId, SlotHolder};

use crate::slots::holders;

/// How often it is looked who is in the way.
const EVERY: Duration = Duration::from_secs(10);

/// So many holders are named at once.
const NAMED_MAX: usize = 3;

/// What to do about it.
const HINT: &str =
    "hint: `crewboss status` shows who uses this host, `crewboss kill-workers` ends what is forsaken";

/// The wait for a first slot.
#[derive(Debug, Default)]
pub struct Queue {
    next: Option<Instant>,
    told: BTreeSet<String>,
}

impl Queue {
    /// Whether it is time to look; `waits`: not one slot could be had.
    pub fn is_due(&mut self, waits: bool, now: Instant) -> bool {
        let due = waits && self.next.is_some_and(|next| now >= next);
        match (waits, self.next) {
            (false, _) => self.next = None,
            (true, Some(_)) if !due => {}
            (true, _) => self.next = Some(now + EVERY),
        }
        due
    }

    /// A sentence about who has the slots, if it was not said before. Those who share a host wait
    /// for each other all the time.
    pub fn tell(&mut self, layout: &Layout, total: u32) -> Option<String> {
        let found = holders(layout, total);
        let who = |holder: &SlotHolder| format!("{} run {}", holder.boss, holder.run);
        let new: Vec<&SlotHolder> = found.iter().filter(|holder| !self.told.contains(&who(holder))).collect();
        self.told.extend(found.iter().map(who));
        if found.is_empty() && self.told.insert(String::new()) {
            let path = layout.slot(0).display().to_string();
            return Some(format!(
                "no slot is free, and nobody says who has them; hint: `fuser -v {path}` shows who has locked one"
            ));
        }
        let named: Vec<String> = new.iter().take(NAMED_MAX).map(|holder| name(layout, holder)).collect();
        (!named.is_empty()).then(|| format!("no slot is free: {}; {HINT}", named.join(", ")))
    }
}

fn name(layout: &Layout, holder: &SlotHolder) -> String {
    let SlotHolder { slot, boss, run, pid, .. } = holder;
    let of = |session: &SessionId| Owner::load(layout, session).ok().flatten();
    let owner = sessions(layout).iter().filter_map(of).find(|owner| owner.worker.pid == *pid);
    let silent = owner.and_then(|owner| owner.silent_for(layout, SystemTime::now()));
    let heard = silent.map(|silent| format!(", its boss was last heard {} s ago", silent.as_secs()));
    format!("slot {slot} is held by {boss} (run {run}, process {pid}{})", heard.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;
    use crewboss_host::process::ProcessId;
    use crewboss_host::testing::owner_of;

    #[test]
    fn it_is_looked_now_and_then_as_long_as_one_waits() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let due: Vec<bool> =
            [(true, 0), (true, 9), (true, 10), (true, 11), (false, 30), (true, 40), (true, 50)]
                .map(|(waits, at)| queue.is_due(waits, now + Duration::from_secs(at)))
                .into();
        assert_eq!(due, [false, false, true, false, false, false, true]);
    }

    #[test]
    fn who_has_the_slots_is_told_once() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let own = ProcessId::own().unwrap();
        let owner = owner_of("a.1", &own);
        owner.write(&layout).unwrap();
        let alive = std::fs::File::options().append(true).open(layout.alive(&owner.session)).unwrap();
        alive.set_modified(SystemTime::now() - Duration::from_secs(90)).unwrap();
        let holder = SlotHolder {
            slot: 0,
            boss: owner.boss.clone(),
            run: owner.run.clone(),
            host: owner.host.clone(),
            pid: own.pid,
            priority: 0,
        };
        let mut slots = Slots::new(&layout, &owner.session, holder, 2).unwrap();
        slots.aim(2, Instant::now()).unwrap();
        let mut queue = Queue::default();
        let text = queue.tell(&layout, 2).unwrap();
        let wanted =
            format!("slot 1 is held by me@here (run run, process {}, its boss was last heard 9", own.pid);
        assert!(text.starts_with("no slot is free: slot 0 is held") && text.contains(&wanted), "{text}");
        assert_eq!(queue.tell(&layout, 2), None);
        slots.aim(0, Instant::now()).unwrap();
        assert!(queue.tell(&layout, 2).unwrap().contains("nobody says who has them"));
        assert_eq!(queue.tell(&layout, 2), None);
    }
}

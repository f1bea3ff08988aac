//! Removing what the dead left in a machine directory: guests, their records, half-made copies,
//! lock files; and the copies of machines that are withdrawn.
//!
//! Whoever removes a guest holds its lock, so two sweeps never remove the same one, and never one
//! that a person is in.

#[cfg(test)]
mod tests;
mod throttle;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crewboss_ground::{is_younger, read_record};
use crewboss_host::marked::{END_WITHIN, kill_marked, wait_until};
use crewboss_host::process::{KILL_WITHIN, ProcessId};
use crewboss_host::storage::{btrfs, remove_tree};
use crewboss_protocol::clean::CleanReport;
use crewboss_protocol::limits::MACHINES_MAX;
use crewboss_protocol::{Name, SessionId, chain};
use rustix::process::Signal;

use super::lock;
use super::record::{self, GuestRecord};
use crate::images::directory::{Entry, MachineDir, Machines, ToolchainError};
use throttle::Throttle;

/// What has no readable record is removed only when it is older than this: its record may just be
/// being written, or removed.
const YOUNG: Duration = Duration::from_secs(60);

/// Errors in one report: if the file system is broken, every guest would have its own.
const ERRORS_MAX: usize = 100;

/// What happens to guests that are held for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldGuests {
    /// They stay until their time is over.
    Keep,
    /// They are ended, unless somebody is in one or its session lives.
    End,
    /// They are ended, and whoever is in one is thrown out.
    EndAll,
}

/// Removes everything whose owner is dead. For the start of a worker, and for `clean`.
pub fn sweep(machines: &Machines, held: HeldGuests, report: &mut CleanReport) {
    let mut sweep = Sweep::new(machines, held, report);
    if !machines.root().is_dir() {
        return;
    }
    for id in record::guests(machines) {
        match GuestRecord::load(machines, &id) {
            Some(record) => sweep.guest(&record),
            None => sweep.damaged(&id),
        }
    }
    sweep.machines();
    sweep.temporary_files();
    sweep.locks();
}

/// Removes the guests of one session, which must be over, except those that are held.
pub fn sweep_session(machines: &Machines, session: &SessionId, report: &mut CleanReport) {
    // Another thread of its worker may be removing one.
    wait_until(END_WITHIN, || {
        !sweep_those(machines, report, |record| record.session == *session) || !report.errors.is_empty()
    });
}

/// Removes the guests of one runner, which must be dead and its processes with it, except those
/// that are held.
pub fn sweep_runner(machines: &Machines, runner: &ProcessId, report: &mut CleanReport) {
    sweep_those(machines, report, |record| record.owners.runner == *runner);
}

/// Says whether some are left.
fn sweep_those(machines: &Machines, report: &mut CleanReport, is_one: impl Fn(&GuestRecord) -> bool) -> bool {
    let mut left = false;
    let mut sweep = Sweep::new(machines, HeldGuests::Keep, report);
    let records = record::guests(machines).into_iter().filter_map(|id| GuestRecord::load(machines, &id));
    for record in records.filter(|record| is_one(record) && record.held.is_none()) {
        let removed = sweep.remove(&record.id, |now| now.held.is_none());
        left |= !removed && GuestRecord::load(machines, &record.id).is_some_and(|now| now.held.is_none());
    }
    left
}

/// Ends the held guests whose time is over, unless somebody is in them.
pub fn expire(machines: &Machines, report: &mut CleanReport) {
    let mut sweep = Sweep::new(machines, HeldGuests::Keep, report);
    let records = record::guests(machines).into_iter().filter_map(|id| GuestRecord::load(machines, &id));
    for record in records.filter(|record| record.held.is_some()) {
        sweep.held_guest(&record);
    }
}

struct Sweep<'a> {
    machines: &'a Machines,
    held: HeldGuests,
    now: SystemTime,
    throttle: Throttle,
    /// Whether nothing is left of a dead session's processes.
    killed: BTreeMap<SessionId, bool>,
    report: &'a mut CleanReport,
}

impl<'a> Sweep<'a> {
    fn new(machines: &'a Machines, held: HeldGuests, report: &'a mut CleanReport) -> Self {
        let (now, throttle) = (SystemTime::now(), Throttle::new(Instant::now()));
        Self { machines, held, now, throttle, killed: BTreeMap::new(), report }
    }

    fn guest(&mut self, record: &GuestRecord) {
        if record.held.is_some() {
            return self.held_guest(record);
        }
        if record.is_owned() {
            return;
        }
        if !self.kill(&record.session) {
            return self.complain(format!("processes of guest {} live on after SIGKILL", record.id));
        }
        self.remove(&record.id, |now| !now.is_owned() && now.held.is_none());
    }

    /// No process is left of a held guest, so its session does not matter, except that a living one
    /// may still be about to tell its boss how to get in.
    fn held_guest(&mut self, record: &GuestRecord) {
        let now = self.now;
        let over = !record.is_held(now);
        if !over && self.held == HeldGuests::Keep {
            return;
        }
        let Some(mut guest) = record::held_guest(self.machines, record) else { return };
        if self.held == HeldGuests::EndAll && guest.entered.is_some() {
            throw_out(self.machines, &record.id);
            guest.entered = lock::in_guest(self.machines, &record.id).map(|(_, visitor)| visitor);
        }
        let lives = record.is_owned() && self.held == HeldGuests::End;
        let mut ended = false;
        if guest.entered.is_none() && (over || !lives) {
            let still = |record: &GuestRecord| record.held.is_some() && record.is_held(now) != over;
            ended = self.remove(&record.id, still);
        }
        let list = if ended { &mut self.report.held_ended } else { &mut self.report.held_left };
        if list.len() < MACHINES_MAX && (ended || self.held != HeldGuests::Keep) {
            list.push(guest);
        }
    }

    /// Removes a guest, if it is still what it was when that was decided. Says whether it did.
    fn remove(&mut self, id: &Name, still: impl FnOnce(&GuestRecord) -> bool) -> bool {
        let _lock = match lock::try_guest(self.machines, id, None) {
            Ok(Some(lock)) => lock,
            // Somebody is in it, or is removing it.
            Ok(None) => return false,
            Err(error) => {
                self.complain(chain(&error));
                return false;
            }
        };
        let Some(record) = GuestRecord::load(self.machines, id).filter(still) else { return false };
        self.wait_for_turn();
        match record.remove(self.machines) {
            Ok(subvolume) => {
                self.report.guests += 1;
                self.report.subvolumes += u32::from(subvolume);
                true
            }
            Err(error) => {
                self.complain(chain(&error));
                false
            }
        }
    }

    /// A record that makes no sense: its content was lost with the power. Its snapshot is an orphan
    /// then.
    fn damaged(&mut self, id: &Name) {
        let path = record::path(self.machines, id);
        // What cannot be read may be another's, whose guest lives.
        if let Err(error) = read_record(&path, record::RECORD_BYTES_MAX) {
            return self.complain(error.to_string());
        }
        if !is_young_file(&path, self.now)
            && let Err(error) = remove_tree(&path)
        {
            self.complain(chain(&error));
        }
    }

    fn machines(&mut self) {
        let listing = match self.machines.list() {
            Ok(listing) => listing,
            Err(error) => return self.complain(chain(&error)),
        };
        // Also machines of which a volume before has one of the same name may have orphans.
        let shadowed = listing.shadowed.iter().map(|shadowed| &shadowed.machine);
        for machine in listing.machines.iter().chain(shadowed).chain(&listing.withdrawn) {
            self.machine(machine);
        }
    }

    fn machine(&mut self, machine: &MachineDir) {
        let entries = match machine.entries() {
            Ok(entries) => entries,
            Err(error) => return self.complain(format!("cannot read {}: {error}", machine.path().display())),
        };
        for entry in entries {
            match machine.entry(&entry) {
                Entry::Guest(_) => self.orphan(machine, &entry),
                Entry::Copy(toolchain) if self.is_unwanted(machine, &toolchain) => {
                    self.retire(machine, &toolchain);
                }
                Entry::Suspension(toolchain) if self.is_unwanted(machine, &toolchain) => {
                    drop(machine.lift(&toolchain));
                }
                Entry::Saved(toolchain)
                    if self.is_unwanted(machine, &toolchain) || machine.copy(&toolchain).is_err() =>
                {
                    self.forget(machine, &toolchain);
                }
                Entry::Copy(_) | Entry::Suspension(_) | Entry::Saved(_) | Entry::Other => {}
            }
        }
    }

    /// Removes a snapshot that no record speaks of.
    fn orphan(&mut self, machine: &MachineDir, name: &str) {
        let (path, Ok(id)) = (machine.path().join(name), name.parse::<Name>()) else { return };
        if self.has_record(&id) || is_young_subvolume(&path, self.now) {
            return;
        }
        let Ok(Some(_lock)) = lock::try_guest(self.machines, &id, None) else { return };
        // A guest that was given this very name meanwhile has one.
        if !self.has_record(&id) {
            self.remove_subvolume(&path);
        }
    }

    fn has_record(&self, id: &Name) -> bool {
        fs::symlink_metadata(record::path(self.machines, id)).is_ok()
    }

    /// Whether nothing is started from a machine with this toolchain any more: an operator has
    /// withdrawn one of them.
    fn is_unwanted(&self, machine: &MachineDir, toolchain: &Name) -> bool {
        fs::symlink_metadata(machine.link()).is_err_and(|error| error.kind() == ErrorKind::NotFound)
            || matches!(self.machines.toolchain(toolchain), Err(ToolchainError::NotThere { .. }))
    }

    /// Removes a copy that nothing is started from any more, unless somebody still uses it.
    fn retire(&mut self, machine: &MachineDir, toolchain: &Name) {
        let locked = match lock::try_retire(self.machines, &machine.name, toolchain) {
            Ok(locked) => locked,
            Err(error) => return self.complain(chain(&error)),
        };
        if locked.is_none() || !self.is_unwanted(machine, toolchain) {
            return;
        }
        // By another name first: whoever makes a snapshot gets a whole one or none.
        let copy = machine.copy_path(toolchain);
        let Ok(id) = record::new_id(&machine.name, toolchain) else { return };
        let grave = machine.path().join(id.as_str());
        match fs::rename(&copy, &grave) {
            Ok(()) => self.remove_subvolume(&grave),
            // Another sweep was here between our look and our lock.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.complain(format!("cannot rename {}: {error}", copy.display())),
        }
    }

    /// Removes a template of warm starts, unless somebody may just be making it.
    fn forget(&mut self, machine: &MachineDir, toolchain: &Name) {
        match lock::try_retire(self.machines, &machine.name, toolchain) {
            Ok(None) => {}
            Ok(Some(_locks)) => {
                self.wait_for_turn();
                match machine.remove_saved(toolchain) {
                    Ok(()) => self.report.subvolumes += 1,
                    Err(error) => self.complain(chain(&error)),
                }
            }
            Err(error) => self.complain(chain(&error)),
        }
    }

    fn remove_subvolume(&mut self, path: &Path) {
        let subvolume = btrfs::is_subvolume(path).unwrap_or(false);
        self.wait_for_turn();
        match remove_tree(path) {
            Ok(()) => self.report.subvolumes += u32::from(subvolume),
            Err(error) => self.complain(chain(&error)),
        }
    }

    /// Files that somebody who was about to rename them has left.
    fn temporary_files(&mut self) {
        let Ok(entries) = fs::read_dir(self.machines.guests()) else { return };
        for entry in entries.flatten() {
            let temporary = entry.file_name().as_encoded_bytes().starts_with(b".tmp");
            if temporary && !is_young_file(&entry.path(), self.now) {
                // The next sweep tries again.
                let _stays = fs::remove_file(entry.path());
            }
        }
    }

    fn locks(&mut self) {
        match lock::remove_stale(self.machines) {
            Ok(removed) => self.report.locks += removed,
            Err(error) => self.complain(chain(&error)),
        }
    }

    /// Kills what is left of a dead session, once: QEMU may have outlived all its owners.
    fn kill(&mut self, session: &SessionId) -> bool {
        if let Some(killed) = self.killed.get(session) {
            return *killed;
        }
        let killed = kill_marked(session, self.report);
        self.killed.insert(session.clone(), killed);
        killed
    }

    fn wait_for_turn(&mut self) {
        let pause = self.throttle.next(Instant::now());
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }

    fn complain(&mut self, text: String) {
        if self.report.errors.len() < ERRORS_MAX {
            self.report.errors.push(text);
        }
    }
}

/// Ends the process of whoever is in a held guest: first it is asked to, since it has a guest to
/// end itself.
fn throw_out(machines: &Machines, id: &Name) {
    let Some((process, _)) = lock::in_guest(machines, id) else { return };
    process.signal(Signal::TERM);
    if !wait_until(END_WITHIN, || !process.is_alive()) {
        process.signal(Signal::KILL);
        wait_until(KILL_WITHIN, || !process.is_alive());
    }
}

fn is_young_file(path: &Path, now: SystemTime) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|at| is_young(at, now))
}

/// What is no subvolume cannot be ours, nor can its age be told: it is let be.
fn is_young_subvolume(path: &Path, now: SystemTime) -> bool {
    !btrfs::is_subvolume(path).unwrap_or(false) || btrfs::created(path).is_ok_and(|at| is_young(at, now))
}

fn is_young(at: SystemTime, now: SystemTime) -> bool {
    is_younger(at, YOUNG, now)
}

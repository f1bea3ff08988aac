//! Warm starts: a task that goes on from the saved memory of a guest which had booted, instead of
//! booting one.
//!
//! A **template** is made at first need, by whoever gets the bootstrap lock; everybody else boots
//! meanwhile. A snapshot of the copy boots with its memory in a file that it shares, and is saved
//! when its agent asks what to do. A task takes a snapshot of the template for its disks, maps that
//! file so that its own changes stay its own, and restores the rest. The guest is then told who it
//! is ([`crate::guest::identity`]).
//!
//! Whatever goes wrong here costs time and nothing else: the guest is thrown away and one boots.
//! The template is then left alone for [`REST`], so that a machine that cannot start warm does not
//! make a template for every task.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crewboss_ground::Open;
use crewboss_protocol::guest::{FromGuest, Identity, ToGuest};
use crewboss_protocol::machine::AGENT_VERSION;
use crewboss_protocol::{Name, Phase, chain};

use super::bootstrap::Means;
use super::hold;
use crate::books::lock::Locks;
use crate::books::record::{GuestRecord, Step};
use crate::exchange::SOURCE_DISK_BYTES;
use crate::guest::boot::{Patience, boot};
use crate::guest::identity::{self, Doubt};
use crate::guest::new_guest::NewGuest;
use crate::guest::plan::{Life, Plan, Purpose, result_disk_bytes_in};
use crate::guest::running::{Guest, GuestEvent};
use crate::guest::verdict::Stop;
use crate::guest::watch::{Seen, Watch};
use crate::images::directory::{
    CopyRecord, CopySnapshot, MachineDir, Machines, SavedRecord, saved_devices, saved_memory,
};
use crate::images::manifest::Manifest;
use crate::qemu::saved::{self, Kind};

/// A guest is restored in tenths of a second. On a host that is so busy that it takes longer than
/// this, something else is wrong.
const WITHIN: Duration = Duration::from_secs(20);

/// Saving writes what the guest has used of its memory.
const SAVED_WITHIN: Duration = Duration::from_secs(120);

/// For so long a template is not used after something went wrong with it, and then made anew.
const REST: Duration = Duration::from_secs(600);

/// How often a guest is told what time it is, if it hears of it too late.
const TOLD_MAX: u32 = 3;

/// What stands in the place of the source while a template is made: a disk of the same size with
/// nothing on it.
const NO_SOURCE: &str = "no-source.img";

/// A machine of which guests start warm, and on whose account.
#[derive(Debug)]
pub struct Site<'a> {
    /// The machine directory.
    pub machines: &'a Machines,
    /// The locks, tried for the task.
    pub locks: &'a Locks,
    /// The machine.
    pub directory: &'a MachineDir,
    /// The toolchain of its copy.
    pub toolchain: &'a Name,
    /// Memory and processors are those of the guest.
    pub means: &'a Means,
}

/// A task, as it is given to a guest.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The source, as an archive.
    pub source: &'a Path,
    /// The task, as a document.
    pub document: &'a str,
}

/// A guest that went on from saved memory, as itself.
#[derive(Debug)]
pub struct Warm {
    /// From the start of QEMU until the guest had proven who it is.
    pub took: Duration,
    /// What the copy was.
    pub copy: CopySnapshot,
}

/// Why a guest did not start warm.
enum Cold {
    /// The template is of no use any more.
    Unfit(String),
    /// Something went wrong.
    Failed(String),
    /// The task is over.
    Stop(Stop),
}

impl From<Stop> for Cold {
    fn from(stop: Stop) -> Self {
        match stop {
            // Those concern the task, whatever its guest does.
            Stop::Cancelled | Stop::Auxiliary { .. } => Cold::Stop(stop),
            other => Cold::Failed(other.to_string()),
        }
    }
}

/// Starts a guest from the machine's template, which is made first if need be; it is the last of
/// `guests` then. `None` if the task has to boot one.
///
/// # Errors
/// If the task is stopped, or another of its guests ends meanwhile.
pub fn start(
    watch: &mut Watch<'_>,
    guests: &mut Vec<Guest>,
    site: &Site<'_>,
    given: Given<'_>,
) -> Result<Option<Warm>, Stop> {
    let name = &site.directory.name;
    let mut made = false;
    loop {
        let why = match site.standing() {
            Standing::Rests => return Ok(None),
            Standing::Missing(why) => why,
            Standing::Usable => match site.try_start(watch, guests, given) {
                Ok(warm) => return Ok(Some(warm)),
                Err(Cold::Stop(stop)) => return Err(stop),
                Err(Cold::Unfit(why)) => why,
                Err(Cold::Failed(why)) => {
                    watch.step(format!("{name} did not start warm: {why}"));
                    site.rest(watch, &why, None);
                    return Ok(None);
                }
            },
        };
        if std::mem::replace(&mut made, true) || !site.make(watch, guests, &why)? {
            return Ok(None);
        }
    }
}

/// How it stands with a template.
enum Standing {
    Usable,
    Missing(String),
    /// It is left alone for a while.
    Rests,
}

impl Site<'_> {
    fn standing(&self) -> Standing {
        let missing = |why: &str| Standing::Missing(why.to_owned());
        let Ok(copy) = self.directory.copy(self.toolchain) else { return Standing::Rests };
        let Some(saved) = self.directory.saved(self.toolchain) else {
            return missing("it was never saved");
        };
        if saved.copy != copy {
            return missing("it was bootstrapped since");
        }
        match saved.failed {
            None => Standing::Usable,
            Some(_) if since_1970().as_secs().abs_diff(saved.since) < REST.as_secs() => Standing::Rests,
            Some(why) => missing(&format!("the last time {why}")),
        }
    }

    fn try_start(
        &self,
        watch: &mut Watch<'_>,
        guests: &mut Vec<Guest>,
        given: Given<'_>,
    ) -> Result<Warm, Cold> {
        watch.step(format!("{} starts warm", self.directory.name));
        let begun = Instant::now();
        let until = begun + WITHIN;
        let (guest, copy, identity) = self.restored(given, until)?;
        guests.push(guest);
        let renewed = renew(watch, guests, identity, until);
        if let Err(cold) = renewed {
            watch.end_last(guests);
            return Err(cold);
        }
        let took = guests.last().map_or(begun, |guest| guest.started).elapsed();
        Ok(Warm { took, copy })
    }

    /// A guest that runs again, and who it shall be.
    fn restored(&self, given: Given<'_>, until: Instant) -> Result<(Guest, CopySnapshot, Identity), Cold> {
        let mut new = self.new_guest()?;
        let snapshot = new.snapshot();
        let found = self.directory.snapshot_saved(self.toolchain, &snapshot);
        let Some(found) = found.map_err(|error| Stop::directory(&error))? else {
            return Err(Cold::Unfit("it has just been replaced".to_owned()));
        };
        new.is_copied().map_err(|error| Stop::host(&error))?;
        let purpose = Purpose::Task { source: given.source, document: given.document.to_owned() };
        let plan = self.plan(new, &found.copy.manifest, purpose, Life::Saved(found.memory()), true);
        fits(&plan, &found.record)?;
        let mac = plan.address();
        let mut guest = plan.start()?;
        guest.advance(Step::Booting)?;
        let qemu = guest.qemu();
        let restored = saved::restore(&mut qemu.qmp, &saved_devices(&snapshot), Kind::Devices, until);
        if let Err(error) = restored {
            qemu.child.wait(Instant::now() + Duration::from_millis(200));
            return Err(Cold::Failed(format!("{}: {}", chain(&error), qemu.child.said().trim())));
        }
        if !found.is_current() {
            return Err(Cold::Unfit("it has just been replaced".to_owned()));
        }
        qemu.qmp.cont(until).map_err(|error| Cold::Failed(chain(&error)))?;
        let identity = identity::make_up(&self.directory.name, mac, now_ms());
        let identity = identity.map_err(|error| Cold::Failed(format!("no random numbers: {error}")))?;
        Ok((guest, found.copy, identity))
    }

    fn new_guest(&self) -> Result<NewGuest, Stop> {
        let means = self.means;
        let record = GuestRecord::create(
            self.machines,
            self.directory,
            self.toolchain,
            &means.session,
            &means.work,
            means.owners.clone(),
        );
        Ok(NewGuest::of(self.machines, record.map_err(|error| Stop::host(&error))?))
    }

    fn plan<'b>(
        &'b self,
        guest: NewGuest,
        manifest: &'b Manifest,
        purpose: Purpose<'b>,
        life: Life,
        shows_console: bool,
    ) -> Plan<'b> {
        Plan {
            machines: self.machines,
            guest,
            manifest,
            accelerator: self.means.accelerator,
            memory: self.means.memory,
            processors: self.means.processors,
            purpose,
            life,
            wire: None,
            shows_console,
        }
    }

    /// Makes the template, unless somebody else is at it. Says whether there is one now.
    fn make(&self, watch: &mut Watch<'_>, guests: &mut Vec<Guest>, why: &str) -> Result<bool, Stop> {
        let name = &self.directory.name;
        let lock = self.locks.try_bootstrap(name, self.toolchain).map_err(|error| Stop::host(&error))?;
        let Some(_lock) = lock else { return Ok(false) };
        watch.begin(Phase::Bootstrapping);
        watch.step(format!("saves a guest of {name} to start from, since {why}"));
        let made = self.try_make(watch, guests);
        watch.begin(Phase::Booting);
        match made {
            Ok(()) => Ok(true),
            Err(stop @ (Stop::Cancelled | Stop::Auxiliary { .. })) => Err(stop),
            Err(stop) => {
                watch.step(format!("no guest of {name} was saved: {stop}"));
                self.rest(watch, &stop.to_string(), Some(()));
                Ok(false)
            }
        }
    }

    fn try_make(&self, watch: &mut Watch<'_>, guests: &mut Vec<Guest>) -> Result<(), Stop> {
        hold::check_room(self.directory.path(), self.means.memory).map_err(|error| Stop::host(&error))?;
        let (mut saved, mut mac) = (None, None);
        let limits = self.directory.manifest().map_err(|error| Stop::host(&error))?.limits;
        let patience = Patience { startup: limits.startup, again: 0 };
        let before = guests.len();
        let up = boot(watch, guests, &self.directory.name, patience, &mut |_| {
            let (guest, record, address) = self.start_to_save()?;
            (saved, mac) = (Some(record), address);
            Ok(guest)
        });
        let up = up.and_then(|_| self.rehearse(watch, guests, mac));
        let guest = if guests.len() > before { guests.pop() } else { None };
        up?;
        let (Some(mut guest), Some(saved)) = (guest, saved) else {
            return Err(Stop::Host("a boot without a guest".to_owned()));
        };
        guest.advance(Step::Saving)?;
        let staging = guest.directory().to_owned();
        let until = Instant::now() + SAVED_WITHIN;
        let qemu = guest.qemu();
        saved::save(&mut qemu.qmp, &saved_devices(&staging), Kind::Devices, until)
            .map_err(|error| Stop::host(&error))?;
        // All that it wrote to its disks is in their files now.
        if !qemu.kill() {
            return Err(Stop::Host("QEMU lives on after SIGKILL".to_owned()));
        }
        self.directory.publish_saved(&staging, self.toolchain, &saved).map_err(|error| Stop::host(&error))?;
        // Its snapshot has become the template: what is removed with it is its record, and an old
        // template.
        guest.end();
        Ok(())
    }

    /// Has the guest become somebody else once before it is saved. So it is known that it can, and
    /// all that it takes is in its memory then: whatever had to be read from its disk, every guest
    /// would read.
    fn rehearse(&self, watch: &mut Watch<'_>, guests: &mut [Guest], mac: Option<String>) -> Result<(), Stop> {
        let identity = identity::make_up(&self.directory.name, mac, now_ms())
            .map_err(|error| Stop::Host(format!("no random numbers: {error}")))?;
        renew(watch, guests, identity, Instant::now() + WITHIN).map_err(|cold| match cold {
            Cold::Stop(stop) => stop,
            Cold::Unfit(why) | Cold::Failed(why) => Stop::Host(why),
        })
    }

    /// A guest that boots to be saved, what its template will say of it, and its network address.
    fn start_to_save(&self) -> Result<(Guest, SavedRecord, Option<String>), Stop> {
        let mut new = self.new_guest()?;
        let snapshot = new.snapshot();
        let copy = self
            .directory
            .snapshot_copy(self.toolchain, &snapshot)
            .map_err(|error| Stop::directory(&error))?;
        new.is_copied().map_err(|error| Stop::host(&error))?;
        let source = snapshot.join(NO_SOURCE);
        let made = Open::create()
            .mode(0o600)
            .path(&source)
            .map_err(std::io::Error::from)
            .and_then(|file| file.set_len(SOURCE_DISK_BYTES));
        made.map_err(|error| Stop::Host(format!("cannot make {}: {error}", source.display())))?;
        let result_bytes = result_disk_bytes_in(&snapshot)
            .map_err(|error| Stop::Host(format!("cannot look at {}: {error}", snapshot.display())))?;
        let purpose = Purpose::Task { source: &source, document: String::new() };
        let life = Life::Template(saved_memory(&snapshot));
        let plan = self.plan(new, &copy.manifest, purpose, life, false);
        let key = plan.key(&image(&copy.record))?;
        let since = since_1970().as_secs();
        let saved = SavedRecord { key, copy: copy.record.clone(), result_bytes, since, failed: None };
        let mac = plan.address();
        let mut guest = plan.start()?;
        guest.advance(Step::Booting)?;
        Ok((guest, saved, mac))
    }

    /// Lets the template be for a while. `locked` says that the caller holds the bootstrap lock.
    fn rest(&self, watch: &mut Watch<'_>, why: &str, locked: Option<()>) {
        let lock = match locked {
            Some(()) => None,
            None => match self.locks.try_bootstrap(&self.directory.name, self.toolchain) {
                Ok(Some(lock)) => Some(lock),
                // Somebody is making it anew.
                _ => return,
            },
        };
        let Ok(copy) = self.directory.copy(self.toolchain) else { return };
        let saved = SavedRecord {
            key: String::new(),
            copy,
            result_bytes: 0,
            since: since_1970().as_secs(),
            failed: Some(crewboss_host::text::shortened(why.to_owned())),
        };
        if let Err(error) = self.directory.note_saved(self.toolchain, &saved) {
            watch.step(chain(&error));
        }
        drop(lock);
    }
}

/// What a copy is, in words for [`saved::key`].
fn image(copy: &CopyRecord) -> [&str; 2] {
    [&copy.machine_id, &copy.toolchain_id]
}

/// Whether a guest can go on as the one that is planned.
fn fits(plan: &Plan<'_>, saved: &SavedRecord) -> Result<(), Cold> {
    let unfit = |why: &str| Err(Cold::Unfit(why.to_owned()));
    if plan.key(&image(&saved.copy))? != saved.key {
        return unfit("QEMU, or the size of its guests, has changed");
    }
    let snapshot = plan.guest.snapshot();
    let bytes = result_disk_bytes_in(&snapshot)
        .map_err(|error| Cold::Failed(format!("cannot look at {}: {error}", snapshot.display())))?;
    // A power of two: free space that goes up and down by little must not make it change all the
    // time.
    if bytes / 2 > saved.result_bytes || saved.result_bytes / 2 > bytes {
        return unfit("the free space of the host has changed");
    }
    Ok(())
}

/// Makes the last guest the one that it shall be, and believes nothing but proof.
fn renew(
    watch: &mut Watch<'_>,
    guests: &mut [Guest],
    mut identity: Identity,
    until: Instant,
) -> Result<(), Cold> {
    let last = guests.len() - 1;
    let mut told = 1;
    guests[last].tell(&ToGuest::Renew(identity.clone()))?;
    loop {
        let failed = |why: String| Err(Cold::Failed(why));
        match watch.next(guests, until) {
            Seen::Cancelled => return Err(Cold::Stop(Stop::Cancelled)),
            Seen::Stop(stop) => return Err(Cold::Stop(stop)),
            Seen::TimeUp => return failed(format!("it says nothing within {} s", WITHIN.as_secs())),
            Seen::Guest(index, event) if index != last => guests[index].as_auxiliary(event)?,
            Seen::Guest(_, GuestEvent::Said(FromGuest::Renewed(answer))) => {
                match identity::prove(&identity, &answer, now_ms()) {
                    Ok(()) => return Ok(()),
                    Err(Doubt::Clock { .. }) if told < TOLD_MAX => {
                        told += 1;
                        identity.clock_ms = now_ms();
                        guests[last].tell(&ToGuest::Renew(identity.clone()))?;
                    }
                    Err(doubt) => return failed(doubt.to_string()),
                }
            }
            Seen::Guest(_, GuestEvent::Said(FromGuest::Ready { agent })) => {
                // It has started anew instead of going on.
                return failed(format!("its agent (version {agent} of {AGENT_VERSION}) began anew"));
            }
            Seen::Guest(_, GuestEvent::Said(FromGuest::Failed { text, .. })) => return failed(text),
            Seen::Guest(_, GuestEvent::Ended(how)) => return failed(format!("it {how}")),
            Seen::Guest(_, GuestEvent::Nonsense(why)) => return failed(why),
            Seen::Guest(..) => {}
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn now_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

//! Bootstrap: from a machine's revision to a copy that tasks start from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crewboss_protocol::guest::{Ending, FromGuest, ToGuest};
use crewboss_protocol::machine::{AGENT_VERSION, Accelerator};
use crewboss_protocol::{SessionId, chain};

use crate::books::record::{GuestRecord, Owners, Step};
use crate::exchange;
use crate::guest::boot::{Patience, boot};
use crate::guest::new_guest::NewGuest;
use crate::guest::plan::{Life, Plan, Purpose};
use crate::guest::running::{Guest, GuestEvent};
use crate::guest::verdict::Stop;
use crate::guest::watch::{Seen, Watch};
use crate::images::directory::{CopyRecord, MachineDir, Machines, Toolchain};
use crate::images::files::{BOOTSTRAPPED, put_directory};
use crate::images::manifest::Manifest;

/// The archive with agent and toolchain, in the staging copy until it is done.
const ARCHIVE: &str = "bootstrap.tar";

/// What a copy says of its versions, in bytes.
const VERSIONS_BYTES_MAX: usize = 32 << 10;

/// Programs and their versions.
pub type Versions = BTreeMap<String, String>;

/// What is bootstrapped.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The machine directory.
    pub machines: &'a Machines,
    /// The machine.
    pub directory: &'a MachineDir,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// What it is given.
    pub toolchain: &'a Toolchain,
}

/// With what, and on whose account.
#[derive(Debug)]
pub struct Means {
    /// The processes that the guest belongs to.
    pub owners: Owners,
    /// The session.
    pub session: SessionId,
    /// The work directory.
    pub work: PathBuf,
    /// What runs the processor.
    pub accelerator: Accelerator,
    /// Memory in bytes.
    pub memory: u64,
    /// Processors.
    pub processors: u32,
}

/// Takes output of the bootstrap as it comes.
pub type Show<'a> = dyn FnMut(&mut Watch<'_>, &[u8]) + 'a;

/// Makes the copy of a machine for a toolchain and puts it into place. The caller holds the
/// bootstrap lock. A machine that cannot be bootstrapped is suspended, unless somebody stopped it
/// or the host was the reason. Returns the versions.
///
/// # Errors
/// Why there is no new copy. An old one stays as it was.
pub fn make(
    bench: &Bench<'_>,
    means: &Means,
    watch: &mut Watch<'_>,
    show: &mut Show<'_>,
) -> Result<Versions, Stop> {
    let tries = bench.manifest.limits.misboots + 1;
    for number in 1..=tries {
        let mut guests = Vec::new();
        let versions = attempt(bench, means, watch, &mut guests, show);
        watch.console = guests.last().filter(|_| versions.is_err()).map(|guest| guest.console.text());
        watch.end_last(&mut guests);
        match versions {
            Ok(versions) => return Ok(versions),
            Err(stop) if stop.spares_machine() => return Err(stop),
            Err(stop) if number < tries && !matches!(stop, Stop::Misboot { .. }) => {
                watch.step(format!("the bootstrap failed, try {number} of {tries}: {stop}"));
            }
            Err(stop) => {
                let suspended = bench.directory.suspend(
                    bench.manifest,
                    bench.toolchain,
                    &stop.to_string(),
                    watch.console.as_deref().unwrap_or_default(),
                    SystemTime::now(),
                );
                suspended.map_err(|error| Stop::host(&error))?;
                return Err(stop);
            }
        }
    }
    Err(Stop::Host("a bootstrap without tries".to_owned()))
}

fn attempt(
    bench: &Bench<'_>,
    means: &Means,
    watch: &mut Watch<'_>,
    guests: &mut Vec<Guest>,
    show: &mut Show<'_>,
) -> Result<Versions, Stop> {
    let patience = Patience { startup: bench.manifest.limits.startup, again: bench.manifest.limits.misboots };
    boot(watch, guests, &bench.directory.name, patience, &mut |_| start(bench, means))?;
    let Some(guest) = guests.last_mut() else { return Err(Stop::Host("a boot without a guest".to_owned())) };
    guest.advance(Step::Bootstrapping)?;
    let toolchain = bench.toolchain.name.clone();
    guest.tell(&ToGuest::Bootstrap { toolchain })?;
    let versions = install(bench, watch, guest, show)?;
    guest.advance(Step::Stopping)?;
    switch_off(bench, watch, guest)?;
    publish(bench, guest, versions)
}

/// A snapshot of the revision, with agent and toolchain beside the disk.
fn start(bench: &Bench<'_>, means: &Means) -> Result<Guest, Stop> {
    let (machines, directory) = (bench.machines, bench.directory);
    let toolchain = &bench.toolchain.name;
    let record = GuestRecord::create(
        machines,
        directory,
        toolchain,
        &means.session,
        &means.work,
        means.owners.clone(),
    );
    let mut new = NewGuest::of(machines, record.map_err(|error| Stop::host(&error))?);
    let snapshot = new.snapshot();
    let manifest = directory.snapshot_revision(&snapshot).map_err(|error| Stop::directory(&error))?;
    new.is_copied().map_err(|error| Stop::host(&error))?;
    let archive = snapshot.join(ARCHIVE);
    write_archive(bench, &archive)
        .map_err(|error| Stop::Host(format!("cannot write {}: {error}", archive.display())))?;
    let most = manifest.memory_max.unwrap_or(u64::MAX);
    let mut guest = Plan {
        machines,
        guest: new,
        manifest: &manifest,
        accelerator: means.accelerator,
        memory: means.memory.clamp(manifest.memory_min, most),
        processors: means.processors,
        purpose: Purpose::Bootstrap { archive: &archive, document: format!("{toolchain}\n") },
        life: Life::Boot,
        wire: None,
        shows_console: true,
    }
    .start()?;
    guest.advance(Step::Booting)?;
    Ok(guest)
}

fn write_archive(bench: &Bench<'_>, path: &Path) -> std::io::Result<()> {
    let own = crewboss_ground::own_program()?;
    exchange::bootstrap_archive(path, &own, bench.toolchain.path.as_deref())
}

/// Waits until the toolchain is in. Returns what the guest says of it.
fn install(
    bench: &Bench<'_>,
    watch: &mut Watch<'_>,
    guest: &mut Guest,
    show: &mut Show<'_>,
) -> Result<Versions, Stop> {
    let machine = &bench.directory.name;
    let limit = bench.manifest.limits.bootstrap;
    let until = Instant::now() + limit;
    loop {
        let event = next(watch, guest, until)?;
        let unable = |why| Stop::Unable { machine: machine.clone(), why: guest.explained(why) };
        match event {
            None => return Err(unable(format!("its bootstrap takes longer than {} s", limit.as_secs()))),
            Some(GuestEvent::Output(_, bytes)) => show(watch, &bytes),
            Some(GuestEvent::Said(FromGuest::Bootstrapped { versions })) => return Ok(versions),
            Some(GuestEvent::Said(FromGuest::Failed { text, .. })) => return Err(unable(text)),
            Some(GuestEvent::Put(name)) if name == BOOTSTRAPPED => {
                let text = guest.put_text(BOOTSTRAPPED);
                let text = text.map_err(|error| unable(format!("its report cannot be read: {error}")))?;
                return Ending::Bootstrapped.parse(&text).map_err(|error| unable(chain(&error)));
            }
            Some(GuestEvent::Silent(silence)) => {
                return Err(unable(format!("its agent has not answered for {} s", silence.as_secs())));
            }
            Some(GuestEvent::Ended(how)) => {
                let last_words = guest.console.last_words(3);
                return Err(unable(format!(
                    "it {how} in its bootstrap; its console ended with: {last_words}"
                )));
            }
            Some(GuestEvent::Nonsense(why)) => return Err(unable(why)),
            Some(_) => {}
        }
    }
}

/// The disk is only trusted when the guest has switched itself off.
fn switch_off(bench: &Bench<'_>, watch: &mut Watch<'_>, guest: &mut Guest) -> Result<(), Stop> {
    guest.tell(&ToGuest::PowerOff)?;
    let limit = bench.manifest.limits.shutdown;
    let until = Instant::now() + limit;
    let why = loop {
        match next(watch, guest, until)? {
            Some(GuestEvent::Ended(_)) if guest.is_off() => return Ok(()),
            Some(GuestEvent::Ended(how)) => break format!("it {how} when it was to switch itself off"),
            Some(_) => {}
            None => break format!("it did not switch itself off within {} s", limit.as_secs()),
        }
    };
    Err(Stop::Unable { machine: bench.directory.name.clone(), why })
}

fn next(watch: &mut Watch<'_>, guest: &mut Guest, until: Instant) -> Result<Option<GuestEvent>, Stop> {
    match watch.next(std::slice::from_mut(guest), until) {
        Seen::Cancelled => Err(Stop::Cancelled),
        Seen::Stop(stop) => Err(stop),
        Seen::TimeUp => Ok(None),
        Seen::Guest(_, event) => Ok(Some(event)),
    }
}

/// What the guest has made of its snapshot becomes the copy.
fn publish(bench: &Bench<'_>, guest: &Guest, mut versions: Versions) -> Result<Versions, Stop> {
    let staging = guest.directory().to_owned();
    // Neither has a place in a copy.
    for rest in [staging.join(ARCHIVE), put_directory(&staging)] {
        crewboss_host::storage::remove_tree(&rest).map_err(|error| Stop::Host(error.to_string()))?;
    }
    // Not what was read before: somebody may have published another revision since.
    let manifest = Manifest::load(&staging, &bench.directory.name).map_err(|error| Stop::host(&error))?;
    let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    shorten(&mut versions);
    let record = CopyRecord {
        machine_id: manifest.id,
        toolchain: bench.toolchain.name.clone(),
        toolchain_id: bench.toolchain.id.clone(),
        agent: AGENT_VERSION,
        versions: versions.clone(),
        made,
    };
    // Its snapshot becomes the copy: what goes with the guest is its record, and an old copy that
    // was left there.
    bench.directory.publish(&staging, &record).map_err(|error| Stop::host(&error))?;
    Ok(versions)
}

/// For a person.
pub fn shown(versions: &Versions) -> String {
    // Most programs begin with their name when they are asked for their version.
    let one = |(name, version): (&String, &String)| {
        if version.starts_with(name.as_str()) { version.clone() } else { format!("{name} {version}") }
    };
    versions.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// They travel with every result: what does not fit is left out.
fn shorten(versions: &mut Versions) {
    let mut room = VERSIONS_BYTES_MAX;
    versions.retain(|name, version| {
        let left = room.checked_sub(name.len() + version.len());
        room = left.unwrap_or(0);
        left.is_some()
    });
}

//! Who uses which machine: lock files in `<machines>/locks`, shared by all bosses and all users of
//! a host.
//!
//! | file | held |
//! |---|---|
//! | `<toolchain>.enumeration` | for the moment in which machines are chosen and taken |
//! | `<machine>@<toolchain>.bootstrap` | while a copy is made or removed |
//! | `<machine>.<n>` | while a guest of the machine runs: place *n* of as many as it may have |
//! | `<guest>.guest` | while a person is in a held guest, or a guest is being removed |
//!
//! This is also their order, but nobody can come into a deadlock by breaking it: **no lock is ever
//! waited for**. Whoever does not get one lets go of all that it took in the same call and tries
//! again later; several places are taken all together or not at all. The kernel lets go of a lock
//! when its holder dies.
//!
//! Places belong to the machine and not to its copies: two guests with one address on a bridge are
//! in each other's way whatever toolchains they have. So a bootstrap takes a place, too.

mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use crewboss_ground::Directory;
use crewboss_host::process::{ProcessId, boot_id};
use crewboss_protocol::Name;
use crewboss_protocol::machine::{MachineHolder, Visitor};
use serde::{Deserialize, Serialize};

pub(crate) use file::LockFile;

use crate::images::directory::Machines;

/// The ends of the names of lock files.
const ENUMERATION: &str = "enumeration";
const BOOTSTRAP: &str = "bootstrap";
const GUEST: &str = "guest";

/// Stands between machine and toolchain: no name has it.
const BETWEEN: char = '@';

/// A lock could not be tried.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the lock {}", path.display())]
pub struct LockError {
    /// Which file, or the directory of all.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl LockError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self { path: path.to_owned(), source }
    }
}

/// What a lock file says of its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Text {
    /// A number alone could be another process by now.
    process: ProcessId,
    boot: String,
    toolchain: Option<Name>,
    holder: Option<MachineHolder>,
    /// Of a guest's lock: who is in it. Without, it is being removed.
    #[serde(default)]
    visitor: Option<Visitor>,
}

impl Text {
    fn is_alive(&self) -> bool {
        self.boot == boot_id() && self.process.is_alive()
    }
}

/// The locks of one machine directory, tried on behalf of one process and task.
#[derive(Debug)]
pub struct Locks {
    directory: PathBuf,
    process: ProcessId,
    boot: String,
    holder: MachineHolder,
}

/// A place that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The machine.
    pub machine: Name,
    /// The toolchain of its copy.
    pub toolchain: Name,
    /// As many guests may the machine have at once.
    pub instances: u32,
}

/// The choice among the machines of a toolchain; free when dropped.
#[derive(Debug)]
pub struct Enumeration {
    _file: LockFile,
}

/// The right to make or remove a machine's copy; free when dropped.
#[derive(Debug)]
pub struct BootstrapLock {
    _file: LockFile,
}

/// The right to run a guest of a machine; free when dropped.
#[derive(Debug)]
pub struct Place {
    /// The machine.
    pub machine: Name,
    /// Its number, from 1.
    pub number: u32,
    _file: LockFile,
}

/// The right to be in a held guest, or to remove one; free when dropped.
#[derive(Debug)]
pub struct GuestLock {
    _file: LockFile,
}

impl Locks {
    /// The locks of a machine directory. What `holder` says stands in the files; process and time
    /// are filled in.
    ///
    /// # Errors
    /// If the directory of the locks cannot be made, or this process has no entry in `/proc`.
    pub fn new(machines: &Machines, holder: MachineHolder) -> Result<Self, LockError> {
        let directory = machines.locks();
        Directory::make(&directory).map_err(|error| LockError::at(&directory)(error.into()))?;
        let gone = || io::Error::other("this process has no entry in /proc");
        let process = ProcessId::own().ok_or_else(gone).map_err(LockError::at(&directory))?;
        let holder = MachineHolder { pid: process.pid, ..holder };
        Ok(Self { directory, process, boot: boot_id(), holder })
    }

    /// Tries to be the only one who chooses among the machines of a toolchain.
    ///
    /// # Errors
    /// If the lock file cannot be used.
    pub fn try_enumeration(&self, toolchain: &Name) -> Result<Option<Enumeration>, LockError> {
        let locked = self.try_file(&format!("{toolchain}.{ENUMERATION}"), toolchain)?;
        Ok(locked.map(|file| Enumeration { _file: file }))
    }

    /// Tries to be the only one who makes the copy of a machine for a toolchain.
    ///
    /// # Errors
    /// If the lock file cannot be used.
    pub fn try_bootstrap(
        &self,
        machine: &Name,
        toolchain: &Name,
    ) -> Result<Option<BootstrapLock>, LockError> {
        let locked = self.try_file(&bootstrap_name(machine, toolchain), toolchain)?;
        Ok(locked.map(|file| BootstrapLock { _file: file }))
    }

    /// Tries to take a place in each of some machines, in their order: all of them or none. A
    /// machine that is wanted twice gives two places.
    ///
    /// # Errors
    /// If a lock file cannot be used.
    pub fn try_places(&self, wanted: &[Wanted]) -> Result<Option<Vec<Place>>, LockError> {
        let mut toolchains: Vec<&Name> = wanted.iter().map(|wanted| &wanted.toolchain).collect();
        toolchains.sort();
        toolchains.dedup();
        let mut enumerations = Vec::new();
        for toolchain in toolchains {
            match self.try_enumeration(toolchain)? {
                Some(enumeration) => enumerations.push(enumeration),
                None => return Ok(None),
            }
        }
        let mut places = Vec::new();
        for one in wanted {
            match self.try_place(one)? {
                Some(place) => places.push(place),
                None => return Ok(None),
            }
        }
        Ok(Some(places))
    }

    fn try_place(&self, wanted: &Wanted) -> Result<Option<Place>, LockError> {
        for number in 1..=wanted.instances {
            let name = format!("{}.{number}", wanted.machine);
            if let Some(file) = self.try_file(&name, &wanted.toolchain)? {
                return Ok(Some(Place { machine: wanted.machine.clone(), number, _file: file }));
            }
        }
        Ok(None)
    }

    fn try_file(&self, name: &str, toolchain: &Name) -> Result<Option<LockFile>, LockError> {
        let path = self.directory.join(name);
        let Some(file) = LockFile::try_lock(&path).map_err(LockError::at(&path))? else { return Ok(None) };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let since = now.unwrap_or_default().as_secs();
        let text = Text {
            process: self.process.clone(),
            boot: self.boot.clone(),
            toolchain: Some(toolchain.clone()),
            holder: Some(MachineHolder { since, ..self.holder.clone() }),
            visitor: None,
        };
        write(&file, &text).map_err(LockError::at(&path))?;
        Ok(Some(file))
    }
}

/// Tries to be the only one who removes a copy that nobody uses. `None` if somebody makes, chooses
/// or uses it.
pub(crate) fn try_retire(
    machines: &Machines,
    machine: &Name,
    toolchain: &Name,
) -> Result<Option<(Enumeration, BootstrapLock)>, LockError> {
    let directory = machines.locks();
    Directory::make(&directory).map_err(|error| LockError::at(&directory)(error.into()))?;
    let try_file = |name: &str| {
        let path = directory.join(name);
        LockFile::try_lock(&path).map_err(LockError::at(&path))
    };
    let Some(enumeration) = try_file(&format!("{toolchain}.{ENUMERATION}"))? else { return Ok(None) };
    let Some(bootstrap) = try_file(&bootstrap_name(machine, toolchain))? else { return Ok(None) };
    let used = |holding: &Holding| holding.machine == *machine && holding.toolchain == *toolchain;
    if holdings(machines).iter().any(used) {
        return Ok(None);
    }
    Ok(Some((Enumeration { _file: enumeration }, BootstrapLock { _file: bootstrap })))
}

fn bootstrap_name(machine: &Name, toolchain: &Name) -> String {
    format!("{machine}{BETWEEN}{toolchain}.{BOOTSTRAP}")
}

fn write(file: &LockFile, text: &Text) -> io::Result<()> {
    file.write(&serde_json::to_vec(text)?)
}

/// Tries to be the only one in a held guest, as this visitor, or the only one who removes a guest.
///
/// # Errors
/// If the lock file cannot be used.
pub fn try_guest(
    machines: &Machines,
    guest: &Name,
    visitor: Option<&Visitor>,
) -> Result<Option<GuestLock>, LockError> {
    let directory = machines.locks();
    Directory::make(&directory).map_err(|error| LockError::at(&directory)(error.into()))?;
    let path = guest_path(machines, guest);
    let Some(file) = LockFile::try_lock(&path).map_err(LockError::at(&path))? else { return Ok(None) };
    if let Some(process) = ProcessId::own() {
        let visitor = visitor.cloned();
        let text = Text { process, boot: boot_id(), toolchain: None, holder: None, visitor };
        write(&file, &text).map_err(LockError::at(&path))?;
    }
    Ok(Some(GuestLock { _file: file }))
}

/// Who is in a guest right now, and the process that brings the person there. Takes no lock.
pub fn in_guest(machines: &Machines, guest: &Name) -> Option<(ProcessId, Visitor)> {
    let text = text_of(&guest_path(machines, guest))?;
    text.is_alive().then_some(text.process).zip(text.visitor)
}

fn guest_path(machines: &Machines, guest: &Name) -> PathBuf {
    machines.locks().join(format!("{guest}.{GUEST}"))
}

fn text_of(path: &Path) -> Option<Text> {
    serde_json::from_slice(&file::read(path)?).ok()
}

/// A lock that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The machine.
    pub machine: Name,
    /// The toolchain of the copy.
    pub toolchain: Name,
    /// The number of the place; `None` if the copy is being made.
    pub place: Option<u32>,
    /// Who.
    pub holder: MachineHolder,
}

/// Who uses which machine, sorted. Takes no lock: a file counts as long as the process lives that
/// wrote into it.
pub fn holdings(machines: &Machines) -> Vec<Holding> {
    let Ok(entries) = std::fs::read_dir(machines.locks()) else { return Vec::new() };
    let mut found: Vec<Holding> = entries.flatten().filter_map(|entry| holding(&entry.path())).collect();
    found.sort_by(|one, other| (&one.machine, one.place).cmp(&(&other.machine, other.place)));
    found
}

fn holding(path: &Path) -> Option<Holding> {
    let (stem, end) = path.file_name()?.to_str()?.rsplit_once('.')?;
    let (machine, place) = match end {
        BOOTSTRAP => (stem.split_once(BETWEEN)?.0, None),
        digits => (stem, Some(digits.parse().ok()?)),
    };
    let text = text_of(path).filter(Text::is_alive)?;
    Some(Holding { machine: machine.parse().ok()?, toolchain: text.toolchain?, place, holder: text.holder? })
}

/// Removes the files that dead holders left. Returns how many.
///
/// # Errors
/// If the directory of the locks cannot be read. That there is none is fine.
pub(crate) fn remove_stale(machines: &Machines) -> Result<u32, LockError> {
    let directory = machines.locks();
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(LockError::at(&directory))?,
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = path.file_name().and_then(|name| name.to_str()).is_some_and(is_lock);
        let regular = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !ours || !regular || text_of(&path).is_some_and(|text| text.is_alive()) {
            continue;
        }
        // Dropping the lock removes its file. One that somebody is just taking stays: it is locked,
        // or opened again.
        removed += u32::from(LockFile::try_lock(&path).is_ok_and(|locked| locked.is_some()));
    }
    Ok(removed)
}

fn is_lock(name: &str) -> bool {
    let end = name.rsplit_once('.').map_or("", |(_, end)| end);
    matches!(end, ENUMERATION | BOOTSTRAP | GUEST) || end.parse::<u32>().is_ok()
}

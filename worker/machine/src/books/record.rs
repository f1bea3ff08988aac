//! Who owns which guest: `<machines>/guests/<guest>.json`.
//!
//! The record is written before the guest's snapshot is made, and removed after it: whatever is
//! found later has an owner who can be asked whether he lives. Everything of a guest lies in its
//! snapshot, so that is all there is to remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crewboss_ground::Directory;
use crewboss_ground::{Replace, read_record};
use crewboss_host::process::{ProcessId, boot_id};
use crewboss_host::storage::{btrfs, remove_tree};
use crewboss_protocol::machine::HeldGuest;
use crewboss_protocol::overview::Waiting;
use crewboss_protocol::{Name, SessionId};
use serde::{Deserialize, Serialize};

use super::lock;
use crate::images::directory::{MachineDir, Machines, random, toolchain_name};

/// Longest record that is read; ours have some hundred bytes.
pub(super) const RECORD_BYTES_MAX: u64 = 64 << 10;

/// How often a name is made up before there is something else wrong than that it is in use.
const NAMES_MAX: u32 = 100;

/// A guest: what it is, whose it is, how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    /// Its name: machine, toolchain and some random characters. Its snapshot has the same.
    pub id: Name,
    /// The session that it was made in.
    pub session: SessionId,
    /// The work directory of that session.
    pub work: PathBuf,
    /// The volume of its machine.
    pub volume: Name,
    /// Its machine.
    pub machine: Name,
    /// Its toolchain.
    pub toolchain: Name,
    /// The boot during which the processes are what they are.
    pub boot: String,
    /// The processes that it belongs to.
    pub owners: Owners,
    /// How far it has come.
    pub step: Step,
    /// For whom its task waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// For whom and until when it is kept without any process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldGuest>,
}

/// The processes that a guest belongs to. As long as one of them lives it is not touched by others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owners {
    /// The guardian of the worker.
    pub guardian: ProcessId,
    /// The worker proper.
    pub worker: ProcessId,
    /// The runner, of which QEMU is a child.
    pub runner: ProcessId,
}

/// How far a guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// There may be a snapshot or not.
    Planned,
    /// The snapshot is there.
    Copied,
    /// QEMU is being started, or the guest boots.
    Booting,
    /// The toolchain is being installed.
    Bootstrapping,
    /// The source is being brought in.
    Preparing,
    /// Stages run.
    Running,
    /// Its task waits for a person.
    Waiting,
    /// Artifacts are being brought out.
    Collecting,
    /// It is being switched off.
    Stopping,
    /// Its memory is being saved.
    Saving,
    /// It is kept for a person.
    Held,
    /// A step of a newer version.
    #[serde(other)]
    Unknown,
}

/// Why a record cannot be written, or a guest not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Machine and toolchain have names too long to be put together.
    #[error("{machine}-{toolchain} is too long for the name of a guest")]
    Name {
        /// The machine.
        machine: Name,
        /// The toolchain.
        toolchain: Name,
    },
    /// A name that is reserved.
    #[error("no toolchain can be called {toolchain}")]
    Toolchain {
        /// The toolchain.
        toolchain: Name,
    },
    /// Every name that was made up is in use.
    #[error("found no free name for a guest in {}", path.display())]
    Names {
        /// The machine's directory.
        path: PathBuf,
    },
    /// The record cannot be written or removed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RecordError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// Whether the file system was full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if crewboss_host::storage::is_no_space(source))
    }
}

impl GuestRecord {
    /// Makes up a name for a guest of a machine and writes its record. Its snapshot is to be made
    /// at [`Self::snapshot`].
    ///
    /// # Errors
    /// If there can be no such name, or the record cannot be written.
    pub fn create(
        machines: &Machines,
        machine: &MachineDir,
        toolchain: &Name,
        session: &SessionId,
        work: &Path,
        owners: Owners,
    ) -> Result<Self, RecordError> {
        if toolchain_name(toolchain.as_str()).is_none() {
            return Err(RecordError::Toolchain { toolchain: toolchain.clone() });
        }
        let directory = machines.guests();
        Directory::make(&directory).map_err(|error| RecordError::io("make", &directory)(error.into()))?;
        for _ in 0..NAMES_MAX {
            let record = Self {
                id: new_id(&machine.name, toolchain)?,
                session: session.clone(),
                work: work.to_owned(),
                volume: machine.volume.clone(),
                machine: machine.name.clone(),
                toolchain: toolchain.clone(),
                boot: boot_id(),
                owners: owners.clone(),
                step: Step::Planned,
                waiting: None,
                held: None,
            };
            if fs::symlink_metadata(record.snapshot(machines)).is_err() && record.write_new(machines)? {
                return Ok(record);
            }
        }
        Err(RecordError::Names { path: machine.path().to_owned() })
    }

    /// Where the guest's snapshot is, or will be.
    pub fn snapshot(&self, machines: &Machines) -> PathBuf {
        machines.machine(&self.volume, &self.machine).path().join(self.id.as_str())
    }

    /// Notes how far the guest has come.
    ///
    /// # Errors
    /// If the record cannot be written; then it is as it was.
    pub fn advance(&mut self, machines: &Machines, step: Step) -> Result<(), RecordError> {
        let new = Self { step, waiting: None, ..self.clone() };
        new.write(machines, false)?;
        *self = new;
        Ok(())
    }

    /// Notes that the guest's task waits for a person, until the next [`Self::advance`].
    ///
    /// # Errors
    /// If the record cannot be written; then it is as it was.
    pub fn wait(&mut self, machines: &Machines, waiting: Waiting) -> Result<(), RecordError> {
        let new = Self { step: Step::Waiting, waiting: Some(waiting), ..self.clone() };
        new.write(machines, false)?;
        *self = new;
        Ok(())
    }

    /// Notes that the guest is kept for a person. From then on it needs no process: QEMU must have
    /// ended. This survives the loss of power.
    ///
    /// # Errors
    /// If the record cannot be written; then it is as it was.
    pub fn hold(&mut self, machines: &Machines, held: HeldGuest) -> Result<(), RecordError> {
        let new = Self { step: Step::Held, waiting: None, held: Some(held), ..self.clone() };
        new.write(machines, true)?;
        *self = new;
        Ok(())
    }

    /// Removes the guest: its snapshot, then its record. Says whether there was a subvolume.
    ///
    /// # Errors
    /// If something cannot be removed. The record stays then, so that the next sweep tries again.
    pub fn remove(&self, machines: &Machines) -> Result<bool, RecordError> {
        let machine = machines.machine(&self.volume, &self.machine);
        // Where others can put what they like under this name, nothing is removed.
        for place in machine.path().ancestors().take(2) {
            match Directory::fixed(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(RecordError::io("remove a guest in", place)(error.into()));
                }
                _ => {}
            }
        }
        let snapshot = self.snapshot(machines);
        let subvolume = btrfs::is_subvolume(&snapshot).unwrap_or(false);
        remove_tree(&snapshot).map_err(RecordError::io("remove", &snapshot))?;
        let path = path(machines, &self.id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::io("remove", &path)(error))
            }
            _ => Ok(subvolume),
        }
    }

    /// Reads a record; `None` if there is none that makes sense.
    pub fn load(machines: &Machines, id: &Name) -> Option<Self> {
        let text = read_record(&path(machines, id), RECORD_BYTES_MAX).ok()??;
        let record: Self = serde_json::from_slice(&text).ok()?;
        // The snapshot's path is made of these names: nothing but a guest of this machine may come
        // of it.
        let prefix = format!("{}-{}-", record.machine, record.toolchain);
        let own = record.id == *id && id.as_str().starts_with(&prefix);
        (own && toolchain_name(record.toolchain.as_str()).is_some()).then_some(record)
    }

    /// Whether a process that it belongs to lives.
    pub fn is_owned(&self) -> bool {
        let Owners { guardian, worker, runner } = &self.owners;
        self.boot == boot_id() && [guardian, worker, runner].into_iter().any(ProcessId::is_alive)
    }

    /// Whether it is kept for a person at the time `now`.
    pub fn is_held(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.held.as_ref().is_some_and(|held| now < held.until)
    }

    /// Writes it if there is no other of its name; says whether it did.
    fn write_new(&self, machines: &Machines) -> Result<bool, RecordError> {
        match self.put(machines, Replace::with_mode(0o600).new_only()) {
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            written => written.map(|()| true),
        }
    }

    fn write(&self, machines: &Machines, sync: bool) -> Result<(), RecordError> {
        let how = Replace::with_mode(0o600);
        self.put(machines, if sync { how.synced() } else { how })
    }

    fn put(&self, machines: &Machines, how: Replace) -> Result<(), RecordError> {
        let path = path(machines, &self.id);
        let text = serde_json::to_vec(self).map_err(|error| RecordError::io("write", &path)(error.into()))?;
        how.path(&path, &text).map_err(|error| RecordError::io("write", &path)(error.into()))
    }
}

/// The ids of all guests that have a record, readable or not, sorted.
pub fn guests(machines: &Machines) -> Vec<Name> {
    let Ok(entries) = fs::read_dir(machines.guests()) else { return Vec::new() };
    let id = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok();
    let mut found: Vec<Name> = entries.flatten().filter_map(id).collect();
    found.sort();
    found
}

/// The guests that are kept for a person, and who is in them.
pub fn held(machines: &Machines, now: SystemTime) -> Vec<HeldGuest> {
    let records = guests(machines).into_iter().filter_map(|id| GuestRecord::load(machines, &id));
    records.filter(|record| record.is_held(now)).filter_map(|record| held_guest(machines, &record)).collect()
}

/// What a record says of its being held, and who is in it.
pub(super) fn held_guest(machines: &Machines, record: &GuestRecord) -> Option<HeldGuest> {
    let entered = lock::in_guest(machines, &record.id).map(|(_, visitor)| visitor);
    record.held.clone().map(|held| HeldGuest { id: record.id.clone(), entered, ..held })
}

/// The file of a guest's record.
pub(super) fn path(machines: &Machines, id: &Name) -> PathBuf {
    machines.guests().join(format!("{id}.json"))
}

/// A name that a guest, or something on its way to be removed, can have.
pub(super) fn new_id(machine: &Name, toolchain: &Name) -> Result<Name, RecordError> {
    let too_long = |_| RecordError::Name { machine: machine.clone(), toolchain: toolchain.clone() };
    format!("{machine}-{toolchain}-{}", random()).parse().map_err(too_long)
}

//! Bootstrapped copies of a machine: how they are read, used, put into place, and when they are
//! made again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crewboss_ground::{Replace, open_directory};
use crewboss_host::storage::{btrfs, remove_tree};
use crewboss_protocol::Name;
use crewboss_protocol::machine::AGENT_VERSION;
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use serde::{Deserialize, Serialize};

use super::revision::PAUSE;
use super::{DirectoryError, MachineDir, SUSPENDED, Toolchain, toolchain_name};
use crate::images::manifest::Manifest;

/// The file in a copy that says what it is.
const RECORD: &str = "bootstrapped.json";

/// Longest record that is read: room for a thousand versions.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// What a copy says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// The id of the machine that it was made from.
    pub machine_id: String,
    /// The toolchain that it was given.
    pub toolchain: Name,
    /// That toolchain's id.
    pub toolchain_id: String,
    /// The version of the agent in it.
    pub agent: u32,
    /// What the bootstrap reported: programs and their versions.
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// When it was made, in seconds since 1970.
    pub made: u64,
}

/// A snapshot of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySnapshot {
    /// What it is.
    pub record: CopyRecord,
    /// The manifest of the machine that it was made from.
    pub manifest: Manifest,
}

/// How it stands with a machine's copy for a toolchain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Tasks can start in it.
    Ready(CopyRecord),
    /// It has to be made.
    Remake {
        /// Why, for a person.
        why: String,
    },
    /// A newer crewboss made it; it is left alone.
    Newer {
        /// The version of the agent in it.
        agent: u32,
    },
    /// It could not be made, and nothing has changed since: a person must look.
    Suspended {
        /// What went wrong.
        why: String,
        /// When, in seconds since 1970.
        since: u64,
        /// The end of the guest's console.
        console: String,
    },
}

/// What is kept of a console.
const CONSOLE_BYTES_MAX: usize = 64 << 10;

/// Why a copy could not be made, and of what it was to be made: with anything else it is tried
/// again.
#[derive(Debug, Serialize, Deserialize)]
struct Suspension {
    machine_id: String,
    toolchain_id: String,
    agent: u32,
    why: String,
    since: u64,
    #[serde(default)]
    console: String,
}

impl MachineDir {
    /// Where the copy for a toolchain is, or would be.
    pub fn copy_path(&self, toolchain: &Name) -> PathBuf {
        self.path.join(format!("{}-{toolchain}", self.name))
    }

    fn suspension_path(&self, toolchain: &Name) -> PathBuf {
        self.path.join(format!("{}-{toolchain}{SUSPENDED}", self.name))
    }

    /// What the copy for a toolchain says of itself.
    ///
    /// # Errors
    /// If there is none, or it makes no sense.
    pub fn copy(&self, toolchain: &Name) -> Result<CopyRecord, DirectoryError> {
        let path = self.copy_path(toolchain);
        match read_record(&path) {
            Err(DirectoryError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
            {
                Err(DirectoryError::NotBootstrapped { path })
            }
            record => record,
        }
    }

    /// Makes `to`, which must not exist, a snapshot of the copy for a toolchain. Nothing is left of
    /// it after an error.
    ///
    /// # Errors
    /// If there is no copy, it makes no sense, or the snapshot cannot be made.
    pub fn snapshot_copy(&self, toolchain: &Name, to: &Path) -> Result<CopySnapshot, DirectoryError> {
        let copy = self.copy_path(toolchain);
        self.settled(&copy, PAUSE, || {
            let before = match open_directory(&copy) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(DirectoryError::NotBootstrapped { path: copy.clone() });
                }
                before => before.map_err(DirectoryError::read(&copy))?,
            };
            match btrfs::snapshot(&copy, to, false) {
                Ok(()) if is_still(&before, &copy) => return Ok(Some(())),
                // It was replaced meanwhile: the old one may have been half removed already.
                Ok(()) => remove_tree(to).map_err(DirectoryError::write("remove", to))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_dir() => {}
                Err(source) => {
                    return Err(DirectoryError::Snapshot { from: copy.clone(), to: to.to_owned(), source });
                }
            }
            Ok(None)
        })?;
        let manifest = Manifest::load_as(to, &copy, &self.name).map_err(DirectoryError::from);
        let snapshot = read_record(to).and_then(|record| Ok(CopySnapshot { record, manifest: manifest? }));
        snapshot.inspect_err(|_| {
            // The first error counts; the snapshot has a record, and is swept.
            let _swept = remove_tree(to);
        })
    }

    /// Puts a finished copy into place: whoever looks sees the old one or the new one, whole.
    /// `staging` must be a subvolume in this directory, and the caller must hold the bootstrap
    /// lock. The old copy is removed at once, since nothing depends on it: snapshots of it live on
    /// by themselves. If that fails, it is left at `staging` for the caller, who removes whatever
    /// is there.
    ///
    /// # Errors
    /// If it cannot be written or renamed. Then the old copy is as it was.
    pub fn publish(&self, staging: &Path, record: &CopyRecord) -> Result<(), DirectoryError> {
        if toolchain_name(record.toolchain.as_str()).is_none() {
            return Err(DirectoryError::ToolchainName { name: record.toolchain.clone() });
        }
        if !btrfs::is_subvolume(staging).map_err(DirectoryError::read(staging))? {
            return Err(DirectoryError::NoSubvolume { path: staging.to_owned() });
        }
        write_json(&staging.join(RECORD), record).map_err(DirectoryError::write("write to", staging))?;
        // The new name must never be on the disk before what it names is.
        let synced = open_directory(staging).and_then(|directory| Ok(syncfs(directory)?));
        synced.map_err(DirectoryError::write("write to disk", staging))?;
        let copy = self.copy_path(&record.toolchain);
        self.lift(&record.toolchain)?;
        let exchanged = put_in_place(staging, &copy).map_err(DirectoryError::write("replace", &copy))?;
        if exchanged {
            let _left_to_the_caller = remove_tree(staging);
        }
        // It is of the old copy, which is not used for it any more; if it stays, it is replaced.
        let _replaced_later = self.remove_saved(&record.toolchain);
        Ok(())
    }

    /// How it stands with the copy for a toolchain at the time `now`.
    ///
    /// # Errors
    /// If the copy cannot be read, other than for being damaged.
    pub fn standing(
        &self,
        manifest: &Manifest,
        toolchain: &Toolchain,
        now: SystemTime,
    ) -> Result<Standing, DirectoryError> {
        let remake = |why: &str| Standing::Remake { why: why.to_owned() };
        let found = match self.copy(&toolchain.name) {
            Ok(record) if record.agent > AGENT_VERSION => return Ok(Standing::Newer { agent: record.agent }),
            Ok(record) => match outdated(&record, manifest, toolchain, now) {
                Some(why) => remake(&why),
                None => Standing::Ready(record),
            },
            Err(DirectoryError::NotBootstrapped { .. }) => remake("it was never bootstrapped"),
            Err(DirectoryError::Record { .. }) => remake("what the copy says of itself is damaged"),
            Err(DirectoryError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                remake("the copy does not say what it is")
            }
            Err(error) => return Err(error),
        };
        Ok(match self.suspension(&toolchain.name) {
            Some(mark) if mark.concerns(manifest, toolchain) => {
                Standing::Suspended { why: mark.why, since: mark.since, console: mark.console }
            }
            _ => found,
        })
    }

    fn suspension(&self, toolchain: &Name) -> Option<Suspension> {
        let path = self.suspension_path(toolchain);
        serde_json::from_slice(&read_small(&path).ok()?).ok()
    }

    /// Notes that the copy cannot be made of this machine and toolchain until a person has looked,
    /// or one of them changes.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn suspend(
        &self,
        manifest: &Manifest,
        toolchain: &Toolchain,
        why: &str,
        console: &[u8],
        now: SystemTime,
    ) -> Result<(), DirectoryError> {
        let console = &console[console.len().saturating_sub(CONSOLE_BYTES_MAX)..];
        let path = self.suspension_path(&toolchain.name);
        let mark = Suspension {
            machine_id: manifest.id.clone(),
            toolchain_id: toolchain.id.clone(),
            agent: AGENT_VERSION,
            why: why.to_owned(),
            since: seconds(now),
            console: String::from_utf8_lossy(console).into_owned(),
        };
        write_json(&path, &mark).map_err(DirectoryError::write("write", &path))
    }

    /// Takes such a note away. That there is none is fine.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn lift(&self, toolchain: &Name) -> Result<(), DirectoryError> {
        let path = self.suspension_path(toolchain);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(DirectoryError::write("remove", &path)),
        }
    }
}

impl Suspension {
    fn concerns(&self, manifest: &Manifest, toolchain: &Toolchain) -> bool {
        self.machine_id == manifest.id && self.toolchain_id == toolchain.id && self.agent == AGENT_VERSION
    }
}

/// Why a copy is not what would be made now.
fn outdated(
    record: &CopyRecord,
    manifest: &Manifest,
    toolchain: &Toolchain,
    now: SystemTime,
) -> Option<String> {
    if record.machine_id != manifest.id {
        return Some(format!(
            "the machine is {} now, the copy was made of {}",
            manifest.id, record.machine_id
        ));
    }
    if record.toolchain_id != toolchain.id || record.toolchain != toolchain.name {
        return Some(format!("the toolchain {} has changed", toolchain.name));
    }
    if record.agent < AGENT_VERSION {
        return Some(format!("its agent has version {}, this crewboss {AGENT_VERSION}", record.agent));
    }
    // With a clock that was set back it counts as new.
    let age = Duration::from_secs(seconds(now).saturating_sub(record.made));
    let days = age.as_secs() / (24 * 3600);
    manifest.refresh.filter(|refresh| age > *refresh).map(|_| format!("the copy is {days} days old"))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Renames `staging` to `copy`; says whether there was one, which then is at `staging`.
pub(super) fn put_in_place(staging: &Path, copy: &Path) -> io::Result<bool> {
    match renameat_with(CWD, staging, CWD, copy, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => {
            renameat_with(CWD, staging, CWD, copy, RenameFlags::NOREPLACE)?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn read_record(copy: &Path) -> Result<CopyRecord, DirectoryError> {
    let path = copy.join(RECORD);
    let bytes = read_small(&path).map_err(DirectoryError::read(&path))?;
    serde_json::from_slice(&bytes).map_err(|source| DirectoryError::Record { path, source })
}

pub(super) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    crewboss_ground::read_record(path, RECORD_BYTES_MAX)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    Ok(Replace::with_mode(0o600).path(path, &serde_json::to_vec(value)?)?)
}

/// Whether the path still leads to the open subvolume. As long as it is open, no other has its
/// device number.
pub(super) fn is_still(open: &File, path: &Path) -> bool {
    let found = open.metadata().and_then(|open| Ok((open, fs::symlink_metadata(path)?)));
    found.is_ok_and(|(open, found)| (open.dev(), open.ino()) == (found.dev(), found.ino()))
}

//! Templates of warm starts: the guest of a copy, saved at the moment at which it asked what to do.
//!
//! A template is a subvolume beside its copy. Tasks take snapshots of it for their disks, and read
//! the memory where it lies: a file in a snapshot is another one to the kernel, and would be read
//! from the disk for every guest anew.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crewboss_ground::open_directory;
use crewboss_host::storage::{btrfs, remove_tree};
use crewboss_protocol::Name;
use rustix::fs::syncfs;
use serde::{Deserialize, Serialize};

use super::copy::{is_still, put_in_place, read_record, read_small, write_json};
use super::{CopyRecord, CopySnapshot, DirectoryError, MachineDir, SAVED, random};
use crate::images::manifest::Manifest;

/// The file in a template that says what it is.
const RECORD: &str = "saved.json";

/// The file with the guest's memory.
const MEMORY: &str = "memory";

/// The file with the state of everything else.
const DEVICES: &str = "devices";

/// What a template says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRecord {
    /// What a guest must have in common with the saved one to go on from it, as one word.
    pub key: String,
    /// The copy that it was made of.
    pub copy: CopyRecord,
    /// The size of its result disk.
    pub result_bytes: u64,
    /// When it was made, or failed, in seconds since 1970.
    pub since: u64,
    /// Why it is not used for a while, if it could not be made or a guest did not start from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A snapshot of a template.
#[derive(Debug)]
pub struct SavedSnapshot {
    /// What the template says of itself.
    pub record: SavedRecord,
    /// What its copy was.
    pub copy: CopySnapshot,
    template: File,
    path: PathBuf,
}

impl SavedSnapshot {
    /// The memory of the saved guest, in the template.
    pub fn memory(&self) -> PathBuf {
        saved_memory(&self.path)
    }

    /// Whether the template is still the one that the snapshot was made of.
    pub fn is_current(&self) -> bool {
        is_still(&self.template, &self.path)
    }
}

/// Where memory lies in a template, or in what becomes one.
pub fn saved_memory(template: &Path) -> PathBuf {
    template.join(MEMORY)
}

/// Where the state of the devices lies in a template, or in a snapshot of one.
pub fn saved_devices(template: &Path) -> PathBuf {
    template.join(DEVICES)
}

impl MachineDir {
    /// Where the template for a toolchain is, or would be.
    pub fn saved_path(&self, toolchain: &Name) -> PathBuf {
        self.path().join(format!("{}-{toolchain}{SAVED}", self.name))
    }

    /// What the template for a toolchain says of itself; `None` if there is none that makes sense.
    pub fn saved(&self, toolchain: &Name) -> Option<SavedRecord> {
        read_saved(&self.saved_path(toolchain))
    }

    /// Makes `to`, which must not exist, a snapshot of the template for a toolchain. `None` if
    /// there is none, or none any more; nothing is left of the snapshot then, nor after an error.
    ///
    /// # Errors
    /// If the snapshot cannot be made, or makes no sense.
    pub fn snapshot_saved(
        &self,
        toolchain: &Name,
        to: &Path,
    ) -> Result<Option<SavedSnapshot>, DirectoryError> {
        let path = self.saved_path(toolchain);
        let template = match open_directory(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            template => template.map_err(DirectoryError::read(&path))?,
        };
        match btrfs::snapshot(&path, to, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DirectoryError::Snapshot { from: path, to: to.to_owned(), source }),
            Ok(()) => {}
        }
        let read = || -> Result<_, DirectoryError> {
            let manifest = Manifest::load_as(to, &path, &self.name)?;
            Ok((read_saved(to), CopySnapshot { record: read_record(to)?, manifest }))
        };
        let read = read();
        if let Ok((Some(record), copy)) = read
            && is_still(&template, &path)
        {
            return Ok(Some(SavedSnapshot { record, copy, template, path }));
        }
        remove_tree(to).map_err(DirectoryError::write("remove", to))?;
        Ok(None)
    }

    /// Puts a finished template into place, as [`MachineDir::publish`] does with a copy. The caller
    /// holds the bootstrap lock and removes whatever is at `staging` then.
    ///
    /// # Errors
    /// If it cannot be written or renamed.
    pub fn publish_saved(
        &self,
        staging: &Path,
        toolchain: &Name,
        record: &SavedRecord,
    ) -> Result<(), DirectoryError> {
        write_json(&staging.join(RECORD), record).map_err(DirectoryError::write("write to", staging))?;
        // After a loss of power there is all of its memory or no template.
        let synced = open_directory(staging).and_then(|directory| Ok(syncfs(directory)?));
        synced.map_err(DirectoryError::write("write to disk", staging))?;
        let path = self.saved_path(toolchain);
        if put_in_place(staging, &path).map_err(DirectoryError::write("replace", &path))? {
            let _left_to_the_caller = remove_tree(staging);
        }
        Ok(())
    }

    /// Notes in the template that it is of no use for now; makes one that holds nothing but this
    /// note if there is none. The caller holds the bootstrap lock.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_saved(&self, toolchain: &Name, record: &SavedRecord) -> Result<(), DirectoryError> {
        let path = self.saved_path(toolchain);
        match btrfs::create_subvolume(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DirectoryError::write("make", &path)(error));
            }
            _ => {}
        }
        write_json(&path.join(RECORD), record).map_err(DirectoryError::write("write to", &path))
    }

    /// Removes the template for a toolchain. That there is none is fine.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_saved(&self, toolchain: &Name) -> Result<(), DirectoryError> {
        let path = self.saved_path(toolchain);
        // By another name first: whoever makes a snapshot gets a whole one or none. What is left is
        // swept as a guest's.
        let grave = self.path().join(format!("{}-{toolchain}-{}", self.name, random()));
        match fs::rename(&path, &grave) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => {
                renamed.and_then(|()| remove_tree(&grave)).map_err(DirectoryError::write("remove", &path))
            }
        }
    }
}

fn read_saved(template: &Path) -> Option<SavedRecord> {
    serde_json::from_slice(&read_small(&template.join(RECORD)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::super::Machines;
    use super::super::tests::{bootstrap, machine, name};
    use super::*;
    use crewboss_host::testing::Mount;

    /// Puts a template into place as a warm start would, with this as its memory.
    fn save(machine: &MachineDir, copy: &CopyRecord, memory: &str) -> SavedRecord {
        let staging = machine.path().join("deb-default-000000");
        machine.snapshot_copy(&copy.toolchain, &staging).unwrap();
        fs::write(saved_memory(&staging), memory).unwrap();
        let record = SavedRecord {
            key: memory.to_owned(),
            copy: copy.clone(),
            result_bytes: 1,
            since: 2,
            failed: None,
        };
        machine.publish_saved(&staging, &copy.toolchain, &record).unwrap();
        assert!(!staging.exists(), "the old template is still there");
        record
    }

    #[test]
    fn a_template_is_there_whole_until_it_is_replaced_or_its_copy_is() {
        let mount = Mount::btrfs();
        let machines = Machines::new(mount.path());
        let machine = machine(&machines, "vol", "deb");
        let default = name("default");
        let copy = bootstrap(&machines, &machine, "default");
        let to = machine.path().join("deb-default-111111");
        assert!(machine.snapshot_saved(&default, &to).unwrap().is_none());
        assert_eq!(machine.saved(&default), None);

        let first = save(&machine, &copy, "first");
        let found = machine.snapshot_saved(&default, &to).unwrap().unwrap();
        assert_eq!((&found.record, &found.copy.record), (&first, &copy));
        assert_eq!(found.memory(), machine.saved_path(&default).join("memory"));
        assert!(found.is_current());
        save(&machine, &copy, "second");
        assert!(!found.is_current(), "its memory belongs to another one now");
        assert_eq!(fs::read_to_string(saved_memory(&to)).unwrap(), "first");
        remove_tree(&to).unwrap();

        bootstrap(&machines, &machine, "default");
        assert!(!machine.saved_path(&default).exists(), "it is of a copy that is gone");
        machine.remove_saved(&default).unwrap();
    }

    #[test]
    fn a_template_that_is_damaged_is_none_and_one_that_failed_says_so() {
        let mount = Mount::btrfs();
        let machines = Machines::new(mount.path());
        let machine = machine(&machines, "vol", "deb");
        let default = name("default");
        let copy = bootstrap(&machines, &machine, "default");
        let record = save(&machine, &copy, "memory");
        let to = machine.path().join("deb-default-111111");
        fs::write(machine.saved_path(&default).join(RECORD), "{").unwrap();
        assert_eq!(machine.saved(&default), None);
        assert!(machine.snapshot_saved(&default, &to).unwrap().is_none());
        assert!(!to.exists(), "a snapshot of no use is left");
        let failed = SavedRecord { failed: Some("it hangs".to_owned()), ..record };
        machine.note_saved(&default, &failed).unwrap();
        assert_eq!(machine.saved(&default), Some(failed.clone()));
        machine.remove_saved(&default).unwrap();
        machine.note_saved(&default, &failed).unwrap();
        assert_eq!(machine.saved(&default), Some(failed));
        save(&machine, &copy, "again");
        assert_eq!(machine.saved(&default).unwrap().failed, None);
    }
}

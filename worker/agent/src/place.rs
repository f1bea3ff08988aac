//! Where things are in a guest.

use std::fs;
use std::path::{Path, PathBuf};

use crewboss_protocol::guest::GUEST_WORK;

/// The paths of a guest, below `/` or, for tests, below another directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    root: PathBuf,
}

impl Place {
    pub(super) fn new(root: Option<PathBuf>) -> Self {
        Self { root: root.unwrap_or_else(|| PathBuf::from("/")) }
    }

    /// Whether this is a whole guest, whose clock, names and devices are ours.
    pub(super) fn is_system(&self) -> bool {
        self.root == Path::new("/")
    }

    /// An absolute path of the guest.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn work(&self) -> PathBuf {
        self.at(GUEST_WORK)
    }

    pub(super) fn src(&self) -> PathBuf {
        self.work().join("src")
    }

    pub(super) fn out(&self) -> PathBuf {
        self.work().join("out")
    }

    pub(super) fn home(&self) -> PathBuf {
        self.work().join("home")
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.work().join("tmp")
    }

    /// The device of a virtio-serial port.
    pub(super) fn port(&self, name: &str) -> Option<PathBuf> {
        self.device("/sys/class/virtio-ports", "name", name)
    }

    /// The device of a disk, by its serial number.
    pub(super) fn disk(&self, serial: &str) -> Option<PathBuf> {
        self.device("/sys/block", "serial", serial)
    }

    fn device(&self, class: &str, attribute: &str, value: &str) -> Option<PathBuf> {
        let mut entries: Vec<_> =
            fs::read_dir(self.at(class)).ok()?.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        let is_it = |path: &PathBuf| {
            fs::read_to_string(path.join(attribute)).is_ok_and(|text| text.trim_end_matches('\n') == value)
        };
        let found = entries.into_iter().find(is_it)?;
        let device = self.at("/dev").join(found.file_name()?);
        device.exists().then_some(device)
    }
}

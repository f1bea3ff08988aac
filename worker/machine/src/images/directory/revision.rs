//! The current revision of a machine, which may be replaced at any moment.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crewboss_host::storage::{btrfs, remove_tree};

use super::{DirectoryError, MACHINE_PROTOCOL, MachineDir};
use crate::images::manifest::Manifest;

/// How often something is tried that somebody else replaces at the same time.
pub(super) const TRIES: u32 = 10;

/// After each try that failed the next one is made this much later, if a snapshot is wanted:
/// whoever replaces something needs a moment.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

impl MachineDir {
    /// The current revision.
    ///
    /// # Errors
    /// If the link is not there, is none, or leads to anything but a subvolume beside it.
    pub fn revision(&self) -> Result<PathBuf, DirectoryError> {
        let target = self.target()?;
        let path = self.path.join(&target);
        let found = fs::symlink_metadata(&path).and_then(|found| Ok((found, btrfs::is_subvolume(&path)?)));
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DirectoryError::Nowhere { link: self.link(), target })
            }
            Err(source) => Err(DirectoryError::Read { path, source }),
            Ok((found, _)) if found.is_symlink() => Err(self.wrong(target, "that is a link again")),
            Ok((_, false)) => Err(DirectoryError::NoSubvolume { path }),
            Ok((_, true)) => Ok(path),
        }
    }

    /// The current revision; `None` if it was replaced while it was looked at.
    fn revision_unless_replaced(&self) -> Result<Option<PathBuf>, DirectoryError> {
        match self.revision() {
            Err(DirectoryError::Nowhere { target, .. }) if !self.same_target(&self.path.join(&target)) => {
                Ok(None)
            }
            revision => revision.map(Some),
        }
    }

    /// What the link says, if that is the plain name of a revision.
    fn target(&self) -> Result<PathBuf, DirectoryError> {
        let link = self.link();
        let target = match fs::read_link(&link) {
            Ok(target) => target,
            Err(error) => return Err(no_target(link, error)),
        };
        let mut parts = target.components();
        let (first, more) = (parts.next(), parts.next().is_some());
        match first {
            Some(Component::RootDir) => Err(self.wrong(target, "that is an absolute path")),
            Some(Component::ParentDir) => {
                Err(self.wrong(target, "that is outside of the machine's directory"))
            }
            Some(Component::Normal(name)) if !more => {
                let prefix = format!("{}-{MACHINE_PROTOCOL}.", self.name);
                let revision = name.to_str().and_then(|name| name.strip_prefix(&prefix));
                // As written, so that neither `./` nor a final `/` is hidden.
                if revision.is_some_and(|revision| !revision.is_empty()) && target.as_os_str() == name {
                    return Ok(target);
                }
                Err(self.wrong(target, "a revision is called <machine>-1.<revision>"))
            }
            _ => Err(self.wrong(target, "that is not in the machine's directory itself")),
        }
    }

    fn wrong(&self, target: PathBuf, why: &'static str) -> DirectoryError {
        DirectoryError::Target { link: self.link(), target, why }
    }

    /// The manifest of the current revision.
    ///
    /// # Errors
    /// If there is no usable revision, or its manifest is wrong.
    pub fn manifest(&self) -> Result<Manifest, DirectoryError> {
        self.settled(&self.link(), Duration::ZERO, || {
            let Some(revision) = self.revision_unless_replaced()? else { return Ok(None) };
            let manifest = Manifest::load(&revision, &self.name);
            self.same_target(&revision).then(|| manifest.map_err(DirectoryError::from)).transpose()
        })
    }

    /// Makes `to`, which must not exist, a snapshot of the current revision, and reads its
    /// manifest. Nothing is left of the snapshot after an error.
    ///
    /// # Errors
    /// If there is no usable revision, its manifest is wrong, the snapshot cannot be made, or
    /// somebody replaced the revision at each of ten tries.
    pub fn snapshot_revision(&self, to: &Path) -> Result<Manifest, DirectoryError> {
        let revision = self.settled(&self.link(), PAUSE, || {
            let Some(revision) = self.revision_unless_replaced()? else { return Ok(None) };
            match btrfs::snapshot(&revision, to, false) {
                Ok(()) if self.same_target(&revision) => return Ok(Some(revision)),
                // A snapshot of what is being removed may be of half of it.
                Ok(()) => remove_tree(to).map_err(DirectoryError::write("remove", to))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_dir() => {}
                Err(source) => {
                    return Err(DirectoryError::Snapshot { from: revision, to: to.to_owned(), source });
                }
            }
            Ok(None)
        })?;
        // Errors speak of the revision, since the snapshot is gone by then.
        Manifest::load_as(to, &revision, &self.name).map_err(|error| {
            // The first error counts; the snapshot has a record, and is swept.
            let _swept = remove_tree(to);
            error.into()
        })
    }

    fn same_target(&self, revision: &Path) -> bool {
        self.target().is_ok_and(|target| self.path.join(target) == revision)
    }

    /// Tries again while `attempt` finds that things have changed meanwhile (`None`), or finds
    /// nothing where the link led a moment ago.
    pub(super) fn settled<T>(
        &self,
        what: &Path,
        pause: Duration,
        mut attempt: impl FnMut() -> Result<Option<T>, DirectoryError>,
    ) -> Result<T, DirectoryError> {
        let mut last = None;
        for number in 1..=TRIES {
            match attempt() {
                Ok(Some(result)) => return Ok(result),
                Ok(None) => last = None,
                Err(error @ (DirectoryError::Nowhere { .. } | DirectoryError::Read { .. })) => {
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
            if number < TRIES {
                std::thread::sleep(pause * number);
            }
        }
        Err(last.unwrap_or(DirectoryError::Restless { path: what.to_owned(), tries: TRIES }))
    }
}

fn no_target(link: PathBuf, error: io::Error) -> DirectoryError {
    match error.kind() {
        io::ErrorKind::NotFound => DirectoryError::Withdrawn { link },
        // What `readlink` says of anything but a link.
        io::ErrorKind::InvalidInput => DirectoryError::NoLink { link },
        _ => DirectoryError::Read { path: link, source: error },
    }
}

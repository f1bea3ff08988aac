//! Sources: one checked-out tree per tree id, shared by all tasks and bosses.
//!
//! `sources/<tree>` appears whole or not at all. On btrfs it is a read-only subvolume, which nobody
//! can write; elsewhere its files have no write permission, which does not bind root, so tasks only
//! ever get copies of it. `sources/<tree>.used` is touched whenever the tree is used.

pub mod archive;
mod intact;
pub mod objects;
mod update;

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crewboss_ground::Directory;
use crewboss_ground::Open;
use crewboss_host::layout::Layout;
use crewboss_host::storage::{self, Way, btrfs, remove_tree};
use crewboss_protocol::TreeId;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};
use rustix::io::Errno;

use intact::Note;

pub use objects::Objects;

/// Names of unfinished check-outs begin like this. With an exclusive lock on `locks/users`, all of
/// them are garbage.
pub const UNFINISHED: &str = ".new-";

/// Why a source cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The repository on the host cannot be used.
    #[error("cannot open the repository {}", path.display())]
    Repository {
        /// Where.
        path: PathBuf,
        /// What libgit2 says.
        #[source]
        source: git2::Error,
    },
    /// An object has not arrived.
    #[error("git object {id} is missing")]
    Missing {
        /// Its id.
        id: String,
    },
    /// An object is there and cannot be read.
    #[error("git object {id} cannot be read")]
    Object {
        /// Its id.
        id: String,
        /// What libgit2 says.
        #[source]
        source: git2::Error,
    },
    /// An object holds something that must not be checked out.
    #[error("git object {id} cannot be checked out: {why}")]
    Content {
        /// Its id.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// The file system refuses.
    #[error("cannot check out {}", path.display())]
    Io {
        /// The file, as far as known.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if storage::is_no_space(source))
    }

    /// Adds the name of the directory or file that it happened in.
    fn below(self, name: &CStr) -> Self {
        match self {
            Self::Io { path, source } => {
                let here = Path::new(OsStr::from_bytes(name.to_bytes()));
                let path = if path.as_os_str().is_empty() { here.to_owned() } else { here.join(path) };
                Self::Io { path, source }
            }
            other => other,
        }
    }

    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

impl From<io::Error> for SourceError {
    fn from(source: io::Error) -> Self {
        Self::Io { path: PathBuf::new(), source }
    }
}

impl From<Errno> for SourceError {
    fn from(source: Errno) -> Self {
        io::Error::from(source).into()
    }
}

/// The checked-out trees of a host.
#[derive(Debug, Clone)]
pub struct Sources {
    layout: Layout,
    way: Way,
}

impl Sources {
    /// The sources below a work directory, whose [`Way`] of copying is known. Makes the directory.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn new(layout: Layout, way: Way) -> io::Result<Self> {
        Directory::make(&layout.sources())?;
        Ok(Self { layout, way })
    }

    /// Whether a tree is checked out.
    pub fn has(&self, tree: TreeId) -> bool {
        has(&self.layout, tree)
    }

    /// Whether a tree is checked out and as it was checked out. Only btrfs can tell without reading
    /// everything, and only there tasks are given the shared source itself.
    pub fn is_intact(&self, tree: TreeId) -> bool {
        if self.way != Way::Snapshot {
            return self.has(tree);
        }
        let Ok((read_only, changed)) = btrfs::last_change(&self.layout.source(tree)) else { return false };
        let Some(note) = Note::read(&used(&self.layout, tree)) else { return read_only };
        if !read_only || note.transaction == changed {
            return read_only;
        }
        // The kernel counts it as a change when it writes the content to the disk, some seconds
        // after the checkout.
        let unchanged = intact::is_unchanged_since(&self.layout.source(tree), note.time).unwrap_or(false);
        if unchanged {
            Note { transaction: changed, ..note }.write(&used(&self.layout, tree));
        }
        unchanged
    }

    /// Checks a tree out anew that somebody has changed or taken away. Tasks that use it right now
    /// are not helped.
    ///
    /// # Errors
    /// As [`Self::check_out`].
    pub fn restore(&self, tree: TreeId) -> Result<(), SourceError> {
        // It may have been made of the changed source.
        archive::forget(&self.layout, tree);
        let (place, unfinished) = (self.layout.source(tree), self.unfinished());
        match fs::rename(&place, &unfinished) {
            // Taken away, or somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(SourceError::at(&place)(source)),
            // What cannot be removed now is removed by the next pruning.
            Ok(()) => drop(remove_tree(&unfinished)),
        }
        self.check_out(tree, None)
    }

    /// Notes that a tree is used now.
    ///
    /// # Errors
    /// If its time cannot be written.
    pub fn touch(&self, tree: TreeId) -> io::Result<()> {
        let file = Open::append().path(&used(&self.layout, tree))?;
        file.set_modified(SystemTime::now())
    }

    /// Checks a tree out of `objects.git`, unless it is there. With `near`, a tree that is checked
    /// out and differs little, only the difference is written; files that are the same then keep
    /// their times. Several processes may check the same tree out at the same time.
    ///
    /// # Errors
    /// [`SourceError::Missing`] if an object is not there; what is there in part is removed.
    pub fn check_out(&self, tree: TreeId, near: Option<TreeId>) -> Result<(), SourceError> {
        if !self.has(tree) {
            // What is no directory has nobody checked out. There is mostly nothing, and nothing of
            // a directory is removed so.
            let _nothing = fs::remove_file(self.layout.source(tree));
            let unfinished = self.unfinished();
            let result = self.write(&unfinished, tree, near).and_then(|()| self.publish(&unfinished, tree));
            if result.is_err() || unfinished.exists() {
                // The first error is the one to report, and the next pruning removes what is left.
                drop(remove_tree(&unfinished));
            }
            result?;
        }
        self.touch(tree).map_err(SourceError::at(&used(&self.layout, tree)))
    }

    fn unfinished(&self) -> PathBuf {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.layout.sources().join(format!("{UNFINISHED}{}-{count}", std::process::id()))
    }

    fn write(&self, directory: &Path, tree: TreeId, near: Option<TreeId>) -> Result<(), SourceError> {
        let objects = Objects::open(&self.layout.objects())?;
        if let Some(near) = near.filter(|near| self.has(*near)) {
            let copied = self.way.copy(&self.layout.source(near), directory, false);
            copied.map_err(SourceError::at(directory))?;
            match self.update(&objects, directory, Some(near), tree) {
                // The near tree's own objects may be gone.
                Err(SourceError::Missing { .. } | SourceError::Object { .. }) => {
                    remove_tree(directory).map_err(SourceError::at(directory))?;
                }
                result => return result,
            }
        }
        self.way.create(directory).map_err(SourceError::at(directory))?;
        self.update(&objects, directory, None, tree)
    }

    fn update(
        &self,
        objects: &Objects,
        directory: &Path,
        old: Option<TreeId>,
        new: TreeId,
    ) -> Result<(), SourceError> {
        apply(objects, directory, old, new, self.way == Way::Snapshot)
    }

    fn publish(&self, unfinished: &Path, tree: TreeId) -> Result<(), SourceError> {
        let place = self.layout.source(tree);
        if self.way == Way::Snapshot {
            btrfs::set_read_only(unfinished, true).map_err(SourceError::at(unfinished))?;
        }
        match renameat_with(CWD, unfinished, CWD, &place, RenameFlags::NOREPLACE) {
            // Somebody else was faster.
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(()),
            Err(Errno::INVAL) => fs::rename(unfinished, &place).map_err(SourceError::at(&place)),
            result => {
                result.map_err(io::Error::from).map_err(SourceError::at(&place))?;
                self.note(tree);
                Ok(())
            }
        }
    }

    /// Notes the state in which a tree was checked out. Without the note only a source that can be
    /// written counts as changed.
    fn note(&self, tree: TreeId) {
        let place = self.layout.source(tree);
        if self.way == Way::Snapshot
            && let (Ok((_, transaction)), Ok(time)) = (btrfs::last_change(&place), intact::time_of(&place))
        {
            Note { transaction, time }.write(&used(&self.layout, tree));
        }
    }
}

/// Turns the tree `old` in `directory` (or nothing) into `new`, touching only what differs. With
/// `writable`, new files may be written by their owner.
///
/// # Errors
/// [`SourceError::Missing`] if an object is not there; the directory is then somewhere between the
/// two.
pub fn apply(
    objects: &Objects,
    directory: &Path,
    old: Option<TreeId>,
    new: TreeId,
    writable: bool,
) -> Result<(), SourceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(CWD, directory, flags, Mode::empty()).map_err(io::Error::from);
    let opened = opened.map_err(SourceError::at(directory))?;
    let database = objects.database()?;
    let old = old.map(objects::oid).transpose()?;
    update::Update { database: &database, writable }.apply(&opened, old, objects::oid(new)?)
}

/// Whether a tree is checked out below a work directory.
pub fn has(layout: &Layout, tree: TreeId) -> bool {
    // A link could lead anywhere.
    layout.source(tree).symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// The file whose time says when a tree was last used.
pub fn used(layout: &Layout, tree: TreeId) -> PathBuf {
    layout.sources().join(format!("{tree}.used"))
}

/// The trees that are checked out, most recently used first, with the time of their last use.
pub fn list(layout: &Layout) -> Vec<(TreeId, SystemTime)> {
    let Ok(entries) = fs::read_dir(layout.sources()) else { return Vec::new() };
    let trees = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<TreeId>().ok());
    let mut trees: Vec<_> = trees
        .filter(|tree| has(layout, *tree))
        .map(|tree| {
            let time = fs::metadata(used(layout, tree)).and_then(|found| found.modified());
            (tree, time.unwrap_or(SystemTime::UNIX_EPOCH))
        })
        .collect();
    trees.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    trees
}

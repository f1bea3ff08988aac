//! Brings files and directories to the disk. What a power cut may not take is brought there before
//! anybody is told of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crewboss_ground::Directory;
use rustix::fs::{Advice, OFlags, fadvise, fstatfs, syncfs};

use super::layout::StoreError;

/// Up to so many files and directories are synced one by one; more by one call for the whole
/// filesystem.
///
/// That call writes what everybody has changed there, the scratch files of builds on this computer
/// too. But each file costs a flush of the disk: on ext4 four results of four files took 4 ms one
/// by one and 3 ms together, 256 results 84 and 64 ms, if nobody else wrote, and up to a second
/// together, if somebody did.
const EACH_MAX: usize = 64;

/// On btrfs syncing a new file commits all of the filesystem's changes. So each cost as much as
/// all: 23 ms for one result, 8 ms together; 5 s for 256 results, 0.1 s together.
const EACH_MAX_BTRFS: usize = 0;

/// The filesystem of a result directory.
#[derive(Debug)]
pub(super) struct Disk {
    /// Open as long as results are written: the kernel tells of errors since then.
    root: Directory,
    each_max: usize,
}

impl Disk {
    /// That of this directory.
    pub(super) fn of(root: &Path) -> Result<Self, StoreError> {
        const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;
        let directory = Directory::open(root)?;
        let kind = fstatfs(&directory).map_err(io::Error::from).map_err(StoreError::io("open", root))?.f_type;
        let each_max = if u64::try_from(kind) == Ok(BTRFS_SUPER_MAGIC) { EACH_MAX_BTRFS } else { EACH_MAX };
        Ok(Self { root: directory, each_max })
    }

    /// The result directory.
    pub(super) fn root(&self) -> &Directory {
        &self.root
    }

    /// Waits until these directories are on the disk with everything below them.
    pub(super) fn sync_trees<'a>(&self, trees: impl IntoIterator<Item = &'a Path>) -> Result<(), StoreError> {
        let mut each = Each { found: Vec::new(), most: self.each_max };
        let few = trees.into_iter().all(|tree| each.take_tree(tree).is_some());
        self.sync(few.then_some(each))
    }

    /// Waits until the names in these directories are on the disk.
    pub(super) fn sync_names<'a>(
        &self,
        directories: impl IntoIterator<Item = &'a Path>,
    ) -> Result<(), StoreError> {
        let mut each = Each { found: Vec::new(), most: self.each_max };
        let few = directories.into_iter().all(|directory| each.take(directory.to_owned()).is_some());
        self.sync(few.then_some(each))
    }

    fn sync(&self, each: Option<Each>) -> Result<(), StoreError> {
        let Some(each) = each else {
            return syncfs(&self.root)
                .map_err(io::Error::from)
                .map_err(StoreError::io("sync", self.root.path()));
        };
        for (_, file) in &each.found {
            // Begins to write what has changed and waits for nothing, so that the first flush below
            // serves all.
            let _begun_later = fadvise(file, 0, None, Advice::DontNeed);
        }
        each.found.iter().try_for_each(|(path, file)| sync_file(file).map_err(StoreError::io("sync", path)))
    }
}

/// What is synced one by one. `None` says that this will not do: there is too much, or something
/// cannot be opened.
struct Each {
    found: Vec<(PathBuf, File)>,
    most: usize,
}

impl Each {
    fn take(&mut self, path: PathBuf) -> Option<()> {
        if self.found.len() == self.most {
            return None;
        }
        let file = open(&path, OFlags::NOFOLLOW).ok()?;
        self.found.push((path, file));
        Some(())
    }

    fn take_tree(&mut self, directory: &Path) -> Option<()> {
        for entry in fs::read_dir(directory).ok()? {
            let entry = entry.ok()?;
            match entry.file_type().ok()? {
                kind if kind.is_dir() => self.take_tree(&entry.path())?,
                kind if kind.is_file() => self.take(entry.path())?,
                // All that there is of a link is in its directory.
                _ => {}
            }
        }
        self.take(directory.to_owned())
    }
}

/// Waits until the names in a directory are on the disk.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    sync_file(&open(path, OFlags::DIRECTORY)?)
}

/// Makes a directory with those above it, and waits until their names are on the disk.
#[expect(
    clippy::disallowed_methods,
    reason = "what a person has named may lead through links; whose it is is looked at when it is opened"
)]
pub(super) fn make_directories(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(path)?;
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        sync_directory(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "what is only synced may be a file or a directory")]
fn open(path: &Path, more: OFlags) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | more;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Some network filesystems do not know what it is to sync a directory, and say so.
fn sync_file(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput && file.metadata()?.is_dir() => Ok(()),
        synced => synced,
    }
}

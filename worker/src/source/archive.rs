//! The source of a task as a disk for its guest: a raw tar archive, made once for each tree.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crewboss_ground::Open;
use crewboss_ground::{Replace, read_record};
use crewboss_host::layout::Layout;
use crewboss_host::tar::{Walk, Writer};
use crewboss_machine::exchange::SOURCE_DISK_BYTES;
use crewboss_protocol::TreeId;

use super::{UNFINISHED, used};

/// Longest note of an archive that is read.
const NOTE_BYTES_MAX: u64 = 4 << 10;

/// Counts the archives that this process has begun.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Why there is no archive of a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceArchiveError {
    /// The source cannot be read.
    #[error("cannot read the source {}", path.display())]
    Read {
        /// What cannot be read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive of a source {}", path.display())]
    Write {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not fit.
    #[error("the source {} is too big for a guest: its archive would have {bytes} bytes, {SOURCE_DISK_BYTES} is the most", path.display())]
    TooBig {
        /// The source.
        path: PathBuf,
        /// The archive's length.
        bytes: u64,
    },
}

impl SourceArchiveError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Write { source, .. } if crewboss_host::storage::is_no_space(source))
    }
}

/// The archive of a tree that is checked out, [`SOURCE_DISK_BYTES`] long; made unless it is there.
/// Several processes may do so at the same time. The same tree gives the same archive, and one that
/// was changed since is made anew.
///
/// # Errors
/// If the source cannot be read or the archive not be written.
pub fn source_tar(layout: &Layout, tree: TreeId) -> Result<PathBuf, SourceArchiveError> {
    let (place, archive) = (layout.source(tree), layout.source_archive(tree));
    if is_intact(layout, tree) {
        return Ok(archive);
    }
    // Of each caller its own: the last one that is done wins, and all are the same.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("{UNFINISHED}{}-{number}-{tree}.tar", std::process::id());
    let unfinished = layout.sources().join(name);
    let made = write(&place, &unfinished).and_then(|()| {
        fs::rename(&unfinished, &archive)
            .map_err(|source| SourceArchiveError::Write { path: archive.clone(), source })
    });
    if made.is_err() {
        // The first error is the one to report, and the next pruning removes what is left.
        drop(fs::remove_file(&unfinished));
    }
    made?;
    if let Some(state) = state(&archive) {
        // Without it the archive is made once more the next time.
        drop(Replace::with_mode(0o600).path(&note(layout, tree), state.as_bytes()));
    }
    Ok(archive)
}

/// Whether an archive is there and as it was made. A build of the same user could write to it, and
/// would build for others.
fn is_intact(layout: &Layout, tree: TreeId) -> bool {
    let noted = read_record(&note(layout, tree), NOTE_BYTES_MAX).ok().flatten();
    noted.is_some() && state(&layout.source_archive(tree)).map(String::into_bytes) == noted
}

/// What no write leaves as it is: the kernel sets the time of the last change, and nobody else can.
fn state(archive: &Path) -> Option<String> {
    let found = fs::symlink_metadata(archive).ok().filter(fs::Metadata::is_file)?;
    Some(format!("{} {} {} {}\n", found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
}

/// What an archive was when it was made.
fn note(layout: &Layout, tree: TreeId) -> PathBuf {
    layout.sources().join(format!("{tree}.tar.made"))
}

/// Removes the archive of a tree. That there is none is fine.
pub fn forget(layout: &Layout, tree: TreeId) {
    drop(fs::remove_file(note(layout, tree)));
    drop(fs::remove_file(layout.source_archive(tree)));
}

/// Removes archives whose tree is gone. To be called while nobody uses the work directory. Returns
/// how many.
pub fn prune(layout: &Layout) -> usize {
    let Ok(entries) = fs::read_dir(layout.sources()) else { return 0 };
    let trees = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.strip_suffix(".tar")?.parse::<TreeId>().ok()
    });
    let orphans: Vec<TreeId> = trees.filter(|tree| !crate::source::has(layout, *tree)).collect();
    for tree in &orphans {
        forget(layout, *tree);
        drop(fs::remove_file(used(layout, *tree)));
    }
    orphans.len()
}

fn write(place: &Path, archive: &Path) -> Result<(), SourceArchiveError> {
    let failed = |source| SourceArchiveError::Write { path: archive.to_owned(), source };
    let file = Open::create().path(archive).map_err(|error| failed(error.into()))?;
    let mut writer = Writer::new(file);
    let mut walk = Walk::new(&mut writer, b"");
    walk.all_below(place).map_err(|source| {
        if walk.failed {
            return SourceArchiveError::Write { path: archive.to_owned(), source };
        }
        SourceArchiveError::Read { path: place.join(OsStr::from_bytes(&walk.name)), source }
    })?;
    let (file, bytes) = writer.finish().map_err(failed)?;
    if bytes > SOURCE_DISK_BYTES {
        return Err(SourceArchiveError::TooBig { path: place.to_owned(), bytes });
    }
    file.set_len(SOURCE_DISK_BYTES).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_machine::exchange::archive_length;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use crewboss_host::tar::Reader;
    use crewboss_host::testing::run;

    const TREE: TreeId = TreeId([3; 20]);

    fn layout(base: &Path) -> Layout {
        let layout = Layout::new(base);
        let source = layout.source(TREE);
        fs::create_dir_all(source.join("b/c")).unwrap();
        fs::write(source.join("b/c/file"), "text").unwrap();
        fs::write(source.join("a.sh"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(source.join("a.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("b/c/file", source.join("link")).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
        File::open(source.join("a.sh")).unwrap().set_modified(time).unwrap();
        layout
    }

    #[test]
    fn a_source_becomes_a_disk_of_a_fixed_size_with_an_archive_at_its_start() {
        let base = tempfile::tempdir().unwrap();
        let layout = layout(base.path());
        let archive = source_tar(&layout, TREE).unwrap();
        let state = fs::metadata(&archive).unwrap();
        assert_eq!(state.len(), SOURCE_DISK_BYTES);
        assert!(state.blocks() * 512 < 1 << 20, "the rest is a hole");
        let into = base.path().join("into");
        fs::create_dir(&into).unwrap();
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&into));
        assert_eq!(
            crewboss_host::testing::content(&into),
            crewboss_host::testing::content(&layout.source(TREE))
        );
        let script = fs::metadata(into.join("a.sh")).unwrap();
        assert_eq!((script.mode() & 0o777, script.mtime()), (0o755, 1_600_000_000));
        let mut reader = Reader::new(File::open(&archive).unwrap(), SOURCE_DISK_BYTES);
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(String::from_utf8(entry.name).unwrap());
        }
        assert_eq!(names, ["a.sh", "b", "b/c", "b/c/file", "link"]);
    }

    #[test]
    fn an_archive_is_made_once_and_goes_with_its_tree() {
        let base = tempfile::tempdir().unwrap();
        let layout = layout(base.path());
        let archive = source_tar(&layout, TREE).unwrap();
        let made = fs::metadata(&archive).unwrap().ino();
        assert_eq!(fs::metadata(source_tar(&layout, TREE).unwrap()).unwrap().ino(), made);
        assert_eq!(prune(&layout), 0);
        fs::remove_dir_all(layout.source(TREE)).unwrap();
        assert_eq!(prune(&layout), 1);
        assert!(!archive.exists());
        let error = source_tar(&layout, TREE).unwrap_err();
        assert!(matches!(error, SourceArchiveError::Read { .. }), "{error}");
        assert_eq!(fs::read_dir(layout.sources()).unwrap().count(), 0, "nothing is left of a failure");
    }

    #[test]
    fn an_archive_that_somebody_has_written_to_is_made_anew() {
        let base = tempfile::tempdir().unwrap();
        let layout = layout(base.path());
        let archive = source_tar(&layout, TREE).unwrap();
        let content = |archive: &Path| {
            let mut bytes = vec![0; usize::try_from(archive_length(archive).unwrap()).unwrap()];
            io::Read::read_exact(&mut File::open(archive).unwrap(), &mut bytes).unwrap();
            bytes
        };
        let (good, time) = (content(&archive), fs::metadata(&archive));
        let file = File::options().write(true).open(&archive).unwrap();
        io::Write::write_all(&mut &file, b"evil").unwrap();
        file.set_modified(time.unwrap().modified().unwrap()).unwrap();
        assert!(content(&archive) != good);
        assert!(content(&source_tar(&layout, TREE).unwrap()) == good);
    }

    #[test]
    fn several_threads_make_one_archive_at_the_same_time() {
        let base = tempfile::tempdir().unwrap();
        let layout = layout(base.path());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| source_tar(&layout, TREE))).collect();
            threads.into_iter().for_each(|thread| drop(thread.join().unwrap().unwrap()));
        });
        assert_eq!(fs::metadata(layout.source_archive(TREE)).unwrap().len(), SOURCE_DISK_BYTES);
    }

    #[test]
    fn the_length_of_an_archive_is_that_of_what_is_in_it() {
        let base = tempfile::tempdir().unwrap();
        let layout = layout(base.path());
        let length = archive_length(&source_tar(&layout, TREE).unwrap()).unwrap();
        assert!((4096..1 << 20).contains(&length), "{length} bytes");
    }
}

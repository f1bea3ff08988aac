//! Proof that nobody changed a directory tree: the inode and the change time of everything in it.
//!
//! The kernel sets the change time at every change of content, name, mode or attribute, and no call
//! sets it back. A change within the clock tick of the fingerprint could go unseen on older
//! kernels, so the tick is waited for.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::time::{ClockId, clock_gettime};

/// Trees with more entries are copied anew instead of being looked through; a snapshot takes as
/// long as this many `stat`s.
const ENTRIES_MAX: usize = 512;

/// Trees with more bytes are not kept as spares, since without copy-on-write they fill the disk.
const BYTES_MAX: u64 = 64 << 20;

/// A tick is 10 ms at most; that the clock stands still for longer means something else is wrong.
const TICK_WAITS_MAX: u32 = 50;

/// The state of a tree. Equal fingerprints of one tree mean that it was not changed in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

struct Walk {
    hasher: blake3::Hasher,
    entries: usize,
    bytes: u64,
    newest: (i64, i64),
}

impl Fingerprint {
    /// Takes the fingerprint of a tree that was just made. `None` if it is too big.
    pub(super) fn of_new(tree: &Path) -> io::Result<Option<Self>> {
        let Some((fingerprint, newest)) = Self::walk(tree)? else { return Ok(None) };
        for _ in 0..TICK_WAITS_MAX {
            let now = clock_gettime(ClockId::RealtimeCoarse);
            if (now.tv_sec, now.tv_nsec) > newest {
                return Ok(Some(fingerprint));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    /// Whether the tree is still as it was.
    pub(super) fn holds(&self, tree: &Path) -> bool {
        Self::walk(tree).is_ok_and(|found| found.is_some_and(|(fingerprint, _)| fingerprint == *self))
    }

    fn walk(tree: &Path) -> io::Result<Option<(Self, (i64, i64))>> {
        let mut walk = Walk { hasher: blake3::Hasher::new(), entries: 0, bytes: 0, newest: (0, 0) };
        let top = openat(CWD, tree, DIRECTORY, Mode::empty())?;
        walk.state(b"", &fstat(&top)?);
        let whole = walk.directory(&top)?;
        Ok(whole.then(|| (Self(*walk.hasher.finalize().as_bytes()), walk.newest)))
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Walk {
    /// The order of entries is the file system's: it does not change in a directory that nobody
    /// changes.
    fn directory(&mut self, directory: &OwnedFd) -> io::Result<bool> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entries += 1;
            let state = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.state(name.to_bytes_with_nul(), &state);
            self.bytes = self.bytes.saturating_add(u64::try_from(state.st_size).unwrap_or(0));
            if self.entries > ENTRIES_MAX || self.bytes > BYTES_MAX {
                return Ok(false);
            }
            if FileType::from_raw_mode(state.st_mode).is_dir() {
                let inner = openat(directory, name, DIRECTORY, Mode::empty())?;
                if !self.directory(&inner)? {
                    return Ok(false);
                }
            }
        }
        self.hasher.update(b"/");
        Ok(true)
    }

    fn state(&mut self, name: &[u8], state: &rustix::fs::Stat) {
        let nanoseconds = i64::try_from(state.st_ctime_nsec).unwrap_or(0);
        self.newest = self.newest.max((state.st_ctime, nanoseconds));
        self.hasher.update(name);
        self.hasher.update(&state.st_ino.to_ne_bytes());
        self.hasher.update(&state.st_ctime.to_ne_bytes());
        self.hasher.update(&nanoseconds.to_ne_bytes());
        self.hasher.update(&state.st_size.to_ne_bytes());
        self.hasher.update(&state.st_mode.to_ne_bytes());
    }
}

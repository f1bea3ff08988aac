//! What a task in a guest may take of its host's disk.
//!
//! A guest does not see how much of it others need, and a full disk puts a host out of a run. So
//! what comes out of a guest never takes the last of the disk: the task that would do so fails, and
//! the others go on.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_host::storage::free_bytes;

/// Kept free on every disk by what comes out of guests. Only who takes no more than this himself
/// may use it.
pub const RESERVE: u64 = 256 << 20;

/// Between two looks. A guest that writes as fast as disks do cannot take the reserve between them.
const EVERY: Duration = Duration::from_millis(250);

/// A task took too much.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what it wrote takes {} MiB of the host's disk at {}, where {} MiB are left and {} MiB are kept for others",
    taken >> 20, path.display(), free >> 20, reserve >> 20
)]
pub struct Full {
    /// Where.
    path: PathBuf,
    /// How much, in bytes.
    taken: u64,
    /// What is left.
    free: u64,
    /// What must be left.
    reserve: u64,
}

/// Watches over what a task takes.
#[derive(Debug)]
pub struct Room {
    places: Vec<Place>,
    reserve: u64,
    next: Instant,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Free when it began.
    free: u64,
    /// Used when it began.
    used: u64,
}

impl Room {
    /// For a task whose output goes to these files, or into these directories but none below them.
    /// What is there already does not count.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, reserve: u64) -> Self {
        let place = |path: PathBuf| {
            let (free, used) = (free_bytes(&path).unwrap_or(u64::MAX), used(&path));
            Place { path, free, used }
        };
        Self { places: paths.into_iter().map(place).collect(), reserve, next: Instant::now() + EVERY }
    }

    /// When it wants to look again.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time to.
    ///
    /// # Errors
    /// If too little is left, and this task has taken more than what should be left.
    pub fn look(&mut self, now: Instant) -> Result<(), Full> {
        if now < self.next {
            return Ok(());
        }
        self.next = now + EVERY;
        self.places.iter().try_for_each(|place| place.look(self.reserve))
    }
}

impl Place {
    fn look(&self, reserve: u64) -> Result<(), Full> {
        let taken = used(&self.path).saturating_sub(self.used);
        // A file system may count what is written only some time later.
        let free = free_bytes(&self.path).unwrap_or(u64::MAX).min(self.free.saturating_sub(taken));
        if free >= reserve || taken <= reserve {
            return Ok(());
        }
        Err(Full { path: self.path.clone(), taken, free, reserve })
    }
}

/// How much may be brought into a directory at once. If that cannot be told, as much as one likes.
pub fn left(directory: &Path) -> u64 {
    free_bytes(directory).map_or(u64::MAX, |free| free.saturating_sub(RESERVE).max(RESERVE))
}

fn used(path: &Path) -> u64 {
    const BLOCK_BYTES: u64 = 512;
    let inside = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = inside.chain([path.to_owned()]).filter_map(|path| path.symlink_metadata().ok());
    found.filter(fs::Metadata::is_file).map(|file| file.blocks().saturating_mul(BLOCK_BYTES)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_host::testing::Mount;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_takes_the_last_of_a_disk_is_stopped_and_nobody_else() {
        let disk = Mount::tmpfs(8);
        let (greedy, modest) = (disk.path().join("greedy"), disk.path().join("modest"));
        for directory in [&greedy, &modest] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("image"), vec![1; 1 << 20]).unwrap();
        }
        let mut rooms = [&greedy, &modest].map(|directory| Room::new([directory.clone()], 2 * MIB));
        let look = |rooms: &mut [Room; 2]| rooms.each_mut().map(|room| room.look(room.due()));
        fs::write(greedy.join("log"), vec![1; 3 << 20]).unwrap();
        assert_eq!(look(&mut rooms), [Ok(()), Ok(())], "there is room");
        fs::write(modest.join("log"), vec![1; 3 << 19]).unwrap();
        let [taken, others] = look(&mut rooms);
        assert_eq!(others, Ok(()));
        let full = Full { path: greedy.clone(), taken: 3 * MIB, free: 3 * MIB / 2, reserve: 2 * MIB };
        assert_eq!(taken, Err(full));
        let text = taken.unwrap_err().to_string().replace(greedy.to_str().unwrap(), "/srv");
        assert_eq!(
            text,
            "what it wrote takes 3 MiB of the host's disk at /srv, where 1 MiB are left and 2 MiB are kept for others"
        );
        assert_eq!(rooms[0].look(Instant::now()), Ok(()), "it has looked just before");
        assert_eq!(left(&disk.path()), RESERVE, "little is always tried");
    }

    #[test]
    fn what_is_not_there_takes_nothing() {
        let mut room = Room::new([PathBuf::from("/nonexistent")], RESERVE);
        assert_eq!(room.look(room.due()), Ok(()));
        assert_eq!(left(Path::new("/nonexistent")), u64::MAX);
    }
}

//! Slots: places for running tasks, shared by every boss that uses the host.
//!
//! A slot is a file under an flock that says who holds it. The kernel lets go of the lock when the
//! holder dies, so nothing is ever stale. Who waits keeps a locked file too; holders look at those
//! now and then and come down to their fair share. As long as nobody waits a slot is kept from task
//! to task, which costs no system call.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crewboss_ground::{Directory, Held, Open, read_record};
use crewboss_host::layout::Layout;
use crewboss_protocol::{SessionId, SlotHolder};

/// How often a waiting worker tries again: short against any real task, long against the cost of a
/// try.
pub const RETRY: Duration = Duration::from_millis(20);

/// How often a holder looks whether somebody waits.
pub const LOOK: Duration = Duration::from_millis(100);

/// A worker with this many older waiters before it stays behind them by this many further tries at
/// most.
const BEHIND_MAX: u32 = 8;

/// How long whoever removes things in a work directory is waited for: far longer than setting them
/// aside takes.
const USER_WITHIN: Duration = Duration::from_secs(15);

/// Longest number of a process that is read.
const HOLDER_BYTES_MAX: u64 = 64;

/// The slots of one worker.
#[derive(Debug)]
pub struct Slots {
    layout: Layout,
    holder: SlotHolder,
    session: SessionId,
    total: u32,
    held: Vec<(u32, Held)>,
    waiting: Option<(Held, SystemTime)>,
    next_try: Option<Instant>,
}

impl Slots {
    /// No slot held yet, for a session that has its directory. `holder` is what others read in the
    /// lock files; its slot number is filled in.
    ///
    /// # Errors
    /// If the directory of the locks cannot be made, or something else has the name of one.
    pub fn new(layout: &Layout, session: &SessionId, holder: SlotHolder, total: u32) -> io::Result<Self> {
        Directory::make(&layout.locks())?;
        // What cannot be a lock is told now, and not to one task after the other.
        (0..total).try_for_each(|slot| open_lock(&layout.slot(slot)).map(drop))?;
        let (layout, session) = (layout.clone(), session.clone());
        Ok(Self { layout, holder, session, total, held: Vec::new(), waiting: None, next_try: None })
    }

    /// How many slots are held.
    pub fn held(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap_or(u32::MAX)
    }

    /// Whether more slots are wanted than could be had.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Comes as near as possible to holding `want` slots, and says so to the others if that is not
    /// enough. While waiting a call before its time does nothing.
    ///
    /// # Errors
    /// If a lock file cannot be opened.
    pub fn aim(&mut self, want: u32, now: Instant) -> io::Result<()> {
        let want = want.min(self.total);
        let gives = self.held() > want;
        self.held.truncate(want as usize);
        if self.held() == want {
            self.stop_waiting();
            if gives && !self.waiters().is_empty() {
                // Who gives up a slot to others does not run for it again at once.
                self.next_try = Some(now + RETRY * 3);
            }
            return Ok(());
        }
        if self.next_try.is_some_and(|next| now < next) {
            if self.waiting.is_none() {
                self.wait()?;
            }
            return Ok(());
        }
        for slot in 0..self.total {
            if self.held() < want && self.held.iter().all(|(held, _)| *held != slot) {
                self.try_slot(slot)?;
            }
        }
        if self.held() == want {
            self.stop_waiting();
        } else {
            let behind = self.wait()?.min(BEHIND_MAX);
            self.next_try = Some(now + RETRY * (1 + behind));
        }
        Ok(())
    }

    /// When [`Self::aim`] should be called again, if it could not take all that it wanted.
    pub fn next_try(&self) -> Option<Instant> {
        self.waiting.as_ref().and(self.next_try)
    }

    fn try_slot(&mut self, slot: u32) -> io::Result<()> {
        let file = open_lock(&self.layout.slot(slot))?;
        if file.try_lock().is_err() {
            return Ok(());
        }
        let held = Held::new(file);
        self.holder.slot = slot;
        // The lock is what counts. What the file says is for people, and for the shares of others;
        // a disk may be full.
        let _unsaid = self.say(&held);
        self.held.push((slot, held));
        Ok(())
    }

    fn say(&self, mut file: &File) -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&serde_json::to_vec(&self.holder)?)
    }

    /// Announces that this worker waits. Returns how many have waited for longer.
    fn wait(&mut self) -> io::Result<u32> {
        if self.waiting.is_none() {
            self.waiting = Some((announce(&self.layout, &self.session)?, SystemTime::now()));
        }
        let since = self.waiting.as_ref().map_or(SystemTime::UNIX_EPOCH, |(_, since)| *since);
        let older = self.waiters().into_iter().filter(|(_, at)| *at < since).count();
        Ok(u32::try_from(older).unwrap_or(u32::MAX))
    }

    fn stop_waiting(&mut self) {
        self.next_try = None;
        if let Some((_held, _)) = self.waiting.take() {
            // While it is locked, so that whoever finds a file of this name unlocked knows that it
            // stays the same.
            let _left = std::fs::remove_file(self.layout.waiting(&self.session));
        }
    }

    /// The other sessions that wait, and since when.
    fn waiters(&self) -> Vec<(String, SystemTime)> {
        let Ok(entries) = std::fs::read_dir(self.layout.locks()) else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(session) = name.strip_prefix("waiting-") else { continue };
            if session != self.session.as_str() && is_locked(&entry.path()) {
                let since = entry.metadata().and_then(|meta| meta.modified());
                found.push((session.to_owned(), since.unwrap_or(SystemTime::UNIX_EPOCH)));
            }
        }
        found
    }

    /// How many slots this worker may hold now: all while nobody waits, else the fair share among
    /// those who hold or wait, but always one. With more bosses than slots that one is passed on
    /// after each task.
    pub fn share(&self) -> Share {
        let waiters = self.waiters();
        if waiters.is_empty() {
            return Share { slots: self.total, pass_on: false };
        }
        // Several sessions of one run are one boss only if they are the same process, so each
        // session counts.
        let mut parties: Vec<u32> = Vec::new();
        for holder in holders(&self.layout, self.total) {
            if holder.pid != self.holder.pid && !parties.contains(&holder.pid) {
                parties.push(holder.pid);
            }
        }
        // A waiter may hold slots too; counting it twice would only make the share smaller for a
        // moment.
        let holding_waiters = waiters.len().min(parties.len());
        let others = (waiters.len() + parties.len() - holding_waiters).max(waiters.len());
        let bosses = u32::try_from(others + 1).unwrap_or(u32::MAX);
        Share { slots: self.total.div_ceil(bosses).max(1), pass_on: bosses > self.total }
    }
}

/// How many slots one worker may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The number; at least 1.
    pub slots: u32,
    /// There are more bosses than slots: let go after each task.
    pub pass_on: bool,
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

/// The locked file by which a session says that it waits. It is locked before it has the name under
/// which others look, so nobody ever takes it for one that a dead worker left.
fn announce(layout: &Layout, session: &SessionId) -> io::Result<Held> {
    let own = layout.session(session).join("waiting");
    let file = open_lock(&own)?;
    file.try_lock()?;
    let held = Held::new(file);
    std::fs::rename(&own, layout.waiting(session))?;
    Ok(held)
}

fn open_lock(path: &Path) -> io::Result<File> {
    Ok(Open::lock().path(path)?)
}

fn is_locked(path: &Path) -> bool {
    Open::read().path(path).is_ok_and(|file| match file.try_lock_shared() {
        Ok(()) => {
            drop(Held::new(file));
            false
        }
        Err(_) => true,
    })
}

/// Who holds which of the first `total` slots.
pub fn holders(layout: &Layout, total: u32) -> Vec<SlotHolder> {
    let holder = |slot| {
        let mut file = Open::read().path(&layout.slot(slot)).ok()?;
        if file.try_lock_shared().is_ok() {
            drop(Held::new(file));
            return None;
        }
        let mut text = Vec::new();
        (&mut file).take(64 << 10).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    };
    (0..total).filter_map(holder).collect()
}

/// Removes the file by which a dead session said that it waits.
pub fn forget(layout: &Layout, session: &SessionId) {
    // Without a lock on it the file counts for nobody, so it may as well stay.
    let _stays = std::fs::remove_file(layout.waiting(session));
}

/// A shared lock on the work directory's `users` file: as long as it is held nothing that others
/// might need is pruned.
///
/// # Errors
/// If the file cannot be made or locked, or somebody has it for itself for too long, with who that
/// is.
pub fn lock_as_user(layout: &Layout) -> io::Result<File> {
    lock_as_user_within(layout, USER_WITHIN)
}

fn lock_as_user_within(layout: &Layout, within: Duration) -> io::Result<File> {
    Directory::make(&layout.locks())?;
    let path = layout.users_lock();
    let file = open_lock(&path)?;
    let until = Instant::now() + within;
    while let Err(error) = file.try_lock_shared() {
        match error {
            TryLockError::Error(error) => return Err(error),
            TryLockError::WouldBlock if Instant::now() < until => std::thread::sleep(RETRY),
            TryLockError::WouldBlock => return Err(in_use(&path, within)),
        }
    }
    Ok(file)
}

/// Who has the lock for itself has written its number into the file.
fn in_use(path: &Path, within: Duration) -> io::Error {
    let said = read_record(path, HOLDER_BYTES_MAX).ok().flatten().unwrap_or_default();
    let pid = String::from_utf8_lossy(&said).trim().parse::<u32>().ok();
    let (who, hint) = match pid {
        Some(pid) => {
            (format!("process {pid}"), format!("; hint: `ps -f {pid}` shows it, `kill {pid}` ends it"))
        }
        None => ("another process".to_owned(), String::new()),
    };
    let (path, seconds) = (path.display(), within.as_secs());
    let text =
        format!("{who} removes things there and has had {path} locked for more than {seconds} s{hint}");
    io::Error::new(io::ErrorKind::ResourceBusy, text)
}

/// The same lock for this process alone; `None` if there is a user. Never waits.
///
/// # Errors
/// If the file cannot be made or locked.
pub fn lock_alone(layout: &Layout) -> io::Result<Option<Held>> {
    Directory::make(&layout.locks())?;
    let mut file = open_lock(&layout.users_lock())?;
    match file.try_lock() {
        Ok(()) => {
            // For whoever waits for us; a disk may be full.
            let _unsaid =
                file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
            Ok(Some(Held::new(file)))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_protocol::clean::CleanReport;

    #[test]
    fn what_has_the_name_of_a_slot_and_is_no_file_is_told_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::create_dir_all(layout.slot(1)).unwrap();
        let (session, holder) = ("one.1".parse().unwrap(), slots(&layout, "one.1", 1, 1).holder.clone());
        let text = Slots::new(&layout, &session, holder, 2).unwrap_err().to_string();
        assert!(text.contains("locks/slot-1: it is a directory and not a file"), "{text}");
    }

    #[test]
    fn nobody_is_waited_for_for_ever_and_the_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let alone = lock_alone(&layout).unwrap().unwrap();
        let text = lock_as_user_within(&layout, Duration::from_millis(1)).unwrap_err().to_string();
        let own = std::process::id();
        assert!(text.starts_with(&format!("process {own} removes things there")), "{text}");
        assert!(
            text.contains("locks/users locked") && text.ends_with(&format!("`kill {own}` ends it")),
            "{text}"
        );
        drop(alone);
        drop(lock_as_user(&layout).unwrap());

        // As a sweep holds it that is stopped just then.
        let mut one = slots(&layout, "one.1", 1, 1);
        let mut two = slots(&layout, "two.1", 2, 1);
        let stopped = open_lock(&layout.waiting(&"two.1".parse().unwrap())).unwrap();
        stopped.lock().unwrap();
        one.aim(1, Instant::now()).unwrap();
        two.aim(1, Instant::now()).unwrap();
        assert!(two.is_waiting() && one.share().pass_on);
    }

    fn slots(layout: &Layout, session: &str, pid: u32, total: u32) -> Slots {
        let holder = SlotHolder {
            slot: 0,
            boss: "me@here".to_owned(),
            run: "run".parse().unwrap(),
            host: "lab".parse().unwrap(),
            pid,
            priority: 0,
        };
        let session = session.parse().unwrap();
        std::fs::create_dir_all(layout.session(&session)).unwrap();
        Slots::new(layout, &session, holder, total).unwrap()
    }

    #[test]
    fn a_slot_is_held_once_and_its_file_says_by_whom() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let (mut one, mut two) = (slots(&layout, "a.1", 1, 2), slots(&layout, "b.1", 2, 2));
        let now = Instant::now();
        one.aim(5, now).unwrap();
        assert_eq!((one.held(), one.is_waiting()), (2, false));
        two.aim(1, now).unwrap();
        assert_eq!((two.held(), two.is_waiting()), (0, true));
        let pids: Vec<(u32, u32)> =
            holders(&layout, 2).iter().map(|holder| (holder.slot, holder.pid)).collect();
        assert_eq!(pids, [(0, 1), (1, 1)]);
        drop(one);
        two.aim(1, two.next_try().unwrap()).unwrap();
        assert_eq!((two.held(), two.is_waiting()), (1, false));
        assert!(!layout.waiting(&"b.1".parse().unwrap()).exists());
    }

    #[test]
    fn a_slot_whose_file_cannot_be_written_is_held_all_the_same() {
        let work = crewboss_host::testing::Mount::tmpfs(1);
        let layout = Layout::new(work.path());
        let (mut one, mut two) = (slots(&layout, "a.1", 1, 1), slots(&layout, "b.1", 2, 1));
        for file in [layout.slot(0), layout.session(&"b.1".parse().unwrap()).join("waiting")] {
            File::create(file).unwrap();
        }
        std::fs::write(work.path().join("ballast"), vec![1; 2 << 20]).unwrap_err();
        let now = Instant::now();
        one.aim(1, now).unwrap();
        two.aim(1, now).unwrap();
        assert_eq!((one.held(), two.held(), two.is_waiting()), (1, 0, true));
    }

    #[test]
    fn who_waits_is_seen_also_while_others_sweep() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let (mut one, mut two) = (slots(&layout, "a.1", 1, 1), slots(&layout, "b.1", 2, 1));
        let now = Instant::now();
        one.aim(1, now).unwrap();
        let sweeps = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                for _ in 0..2000 {
                    two.aim(1, now).unwrap();
                    assert!(layout.waiting(&two.session).exists());
                    two.aim(0, now).unwrap();
                }
            });
            let mut report = CleanReport::default();
            while !waiting.is_finished() {
                crate::sweep::remove_stale_waiters(&layout, &mut report);
            }
            report
        });
        assert_eq!(sweeps, CleanReport::default());
    }

    #[test]
    fn who_holds_all_comes_down_to_a_fair_share_when_another_waits() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let (mut one, mut two) = (slots(&layout, "a.1", 1, 4), slots(&layout, "b.1", 2, 4));
        let now = Instant::now();
        one.aim(4, now).unwrap();
        assert_eq!(one.share(), Share { slots: 4, pass_on: false });
        two.aim(4, now).unwrap();
        assert_eq!(one.share(), Share { slots: 2, pass_on: false });
        one.aim(2, now).unwrap();
        two.aim(4, two.next_try().unwrap()).unwrap();
        assert_eq!((one.held(), two.held()), (2, 2));
    }

    #[test]
    fn who_gives_up_a_slot_to_others_does_not_take_it_back_at_once() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let (mut one, mut two) = (slots(&layout, "a.1", 1, 1), slots(&layout, "b.1", 2, 1));
        let now = Instant::now();
        one.aim(1, now).unwrap();
        two.aim(1, now).unwrap();
        for want in [0, 1] {
            one.aim(want, now).unwrap();
            assert_eq!(one.held(), 0);
        }
        two.aim(1, two.next_try().unwrap()).unwrap();
        assert_eq!((one.held(), two.held()), (0, 1));
        two.aim(0, now).unwrap();
        one.aim(1, one.next_try().unwrap()).unwrap();
        assert_eq!(one.held(), 1, "it has its turn again");
    }

    #[test]
    fn with_more_bosses_than_slots_one_slot_goes_round() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let mut all: Vec<Slots> = (0..3).map(|n| slots(&layout, &format!("s.{n}"), n + 1, 1)).collect();
        let mut now = Instant::now();
        let mut turns = [0; 3];
        for _ in 0..300 {
            now += RETRY;
            for (index, slots) in all.iter_mut().enumerate() {
                slots.aim(1, now).unwrap();
                if slots.held() == 1 {
                    turns[index] += 1;
                    if slots.share().pass_on {
                        slots.aim(0, now).unwrap();
                    }
                }
            }
        }
        assert!(turns.iter().all(|turns| *turns > 20), "{turns:?}");
    }
}

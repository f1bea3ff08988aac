//! Who owns a session's directory, and whether that owner lives.
//!
//! The record is written before anything else of a session, so whatever is found later can be
//! traced to an owner: a process known by number, start time and boot, never by a name.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crewboss_ground::{Directory, Open, Replace, age, read_record};
use crewboss_protocol::message::Hello;
use crewboss_protocol::{HostName, RunId, SessionId};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::process::{ProcessId, boot_id};

/// Longest record that is read; ours have some hundred bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// What a session says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The session.
    pub session: SessionId,
    /// Who started the boss, as `user@computer`.
    pub boss: String,
    /// The boss's run.
    pub run: RunId,
    /// What the boss calls this host.
    pub host: HostName,
    /// The boss's priority.
    pub priority: u32,
    /// After this much silence the boss counts as gone, in milliseconds.
    pub silence_ms: u64,
    /// The boot during which all of this holds.
    pub boot: String,
    /// The guardian, to which a request to stop goes.
    pub guardian: ProcessId,
    /// The worker proper.
    pub worker: ProcessId,
    /// The session's control group, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// The machine directory that its guests lie in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<PathBuf>,
    /// The directory with short ways to its attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short: Option<PathBuf>,
}

impl Owner {
    /// Writes the record so that it is there whole or not at all.
    ///
    /// # Errors
    /// If the session's directory cannot be made or written. Nothing is left of it then, as nobody
    /// would know whose it is.
    pub fn write(&self, layout: &Layout) -> io::Result<()> {
        let directory = layout.session(&self.session);
        Directory::make(&directory)?;
        let written = self.write_in(layout);
        if written.is_err() {
            let _the_first_error_counts = std::fs::remove_dir_all(&directory);
        }
        written
    }

    fn write_in(&self, layout: &Layout) -> io::Result<()> {
        Replace::with_mode(0o600).path(&layout.owner(&self.session), &serde_json::to_vec(self)?)?;
        Open::create().mode(0o600).path(&layout.alive(&self.session))?;
        Ok(())
    }

    /// Reads the record of a session; `None` if there is none, or none that makes sense.
    ///
    /// # Errors
    /// If it cannot be read, or is none of ours. That does not say that there is none.
    pub fn load(layout: &Layout, session: &SessionId) -> Result<Option<Self>, crewboss_ground::Error> {
        let Some(text) = read_record(&layout.owner(session), RECORD_BYTES_MAX)? else { return Ok(None) };
        let owner: Option<Self> = serde_json::from_slice(&text).ok();
        Ok(owner.filter(|owner| owner.session == *session))
    }

    /// The processes of the owner that still live.
    pub fn living(&self) -> Vec<&ProcessId> {
        if self.boot != boot_id() {
            return Vec::new();
        }
        [&self.guardian, &self.worker].into_iter().filter(|process| process.is_alive()).collect()
    }

    /// Whether the boss has given this session up: it has another one on this host now.
    pub fn is_replaced_by(&self, new: &Hello) -> bool {
        let ours = (&self.boss, &self.run, &self.host);
        ours == (&new.boss, &new.run, &new.host) && self.session != new.session
    }

    /// How long the boss has been silent, as far as that can be known.
    pub fn silent_for(&self, layout: &Layout, now: SystemTime) -> Option<Duration> {
        age(self.heard(layout).ok()?, now)
    }

    fn heard(&self, layout: &Layout) -> io::Result<SystemTime> {
        std::fs::symlink_metadata(layout.alive(&self.session)).and_then(|meta| meta.modified())
    }

    /// Whether the boss has been silent for so long that it must be gone.
    pub fn is_forsaken(&self, layout: &Layout, now: SystemTime) -> bool {
        // Twice, since the file is touched only now and then and the worker itself gets the first
        // chance.
        self.is_silent(layout, now, self.silence_ms.saturating_mul(2))
    }

    /// Whether the boss has been silent for longer than it said it would ever be, so that a worker
    /// that goes on ends.
    pub fn is_given_up(&self, layout: &Layout, now: SystemTime) -> bool {
        self.is_silent(layout, now, self.silence_ms)
    }

    fn is_silent(&self, layout: &Layout, now: SystemTime, limit_ms: u64) -> bool {
        let limit = Duration::from_millis(limit_ms);
        self.heard(layout).is_ok_and(|at| age(at, now).is_none_or(|silent| silent > limit))
    }
}

/// All sessions that have something of their name, which should be a directory.
pub fn sessions(layout: &Layout) -> Vec<SessionId> {
    let Ok(entries) = std::fs::read_dir(layout.tasks()) else { return Vec::new() };
    let mut found: Vec<SessionId> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::owner_of;

    #[test]
    fn a_record_survives_the_disk_and_only_its_own_name() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let owner = owner_of("run.1", &ProcessId::own().unwrap());
        owner.write(&layout).unwrap();
        assert_eq!(Owner::load(&layout, &owner.session).unwrap(), Some(owner.clone()));
        assert_eq!(owner.living().len(), 2);
        std::fs::rename(layout.tasks().join("run.1"), layout.tasks().join("run.2")).unwrap();
        let load = || Owner::load(&layout, &"run.2".parse().unwrap());
        assert_eq!(load().unwrap(), None);
        std::fs::write(layout.tasks().join("run.2/owner.json"), b"{\"session\":").unwrap();
        assert_eq!(load().unwrap(), None);
        assert_eq!(sessions(&layout), ["run.2".parse().unwrap()]);
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_nothing() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let owner = owner_of("run.1", &ProcessId::own().unwrap());
        // A directory where the record should go, as root may write anywhere.
        std::fs::create_dir_all(layout.owner(&owner.session)).unwrap();
        owner.write(&layout).unwrap_err();
        assert!(sessions(&layout).is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_taken_for_none() {
        use std::os::unix::fs::{chown, symlink};
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let owner = owner_of("run.1", &ProcessId::own().unwrap());
        owner.write(&layout).unwrap();
        let path = layout.owner(&owner.session);
        chown(&path, Some(987_654), None).unwrap();
        let text = Owner::load(&layout, &owner.session).unwrap_err().to_string();
        assert!(text.contains("it belongs to the user with the number 987654"), "{text}");
        std::fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        Owner::load(&layout, &owner.session).unwrap_err();
    }

    #[test]
    fn a_boss_that_was_heard_in_the_future_is_silent() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let owner = owner_of("run.1", &ProcessId::own().unwrap());
        owner.write(&layout).unwrap();
        let now = SystemTime::now();
        let alive = std::fs::File::create(layout.alive(&owner.session)).unwrap();
        for (heard, forsaken) in [
            (now, false),
            (now - Duration::from_secs(60), true),
            (now + Duration::from_secs(1), false),
            (now + Duration::from_secs(3600), true),
        ] {
            alive.set_modified(heard).unwrap();
            assert_eq!(owner.is_forsaken(&layout, now), forsaken, "{heard:?}");
        }
    }

    #[test]
    fn an_owner_of_another_boot_is_dead() {
        let owner = Owner { boot: "other".to_owned(), ..owner_of("run.1", &ProcessId::own().unwrap()) };
        assert!(owner.living().is_empty());
    }
}

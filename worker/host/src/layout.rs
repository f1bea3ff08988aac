//! Where everything lies below the work directory. No path is put together anywhere else.

use std::path::{Path, PathBuf};

use crewboss_ground::{Directory, Fault};
use crewboss_protocol::{SessionId, TaskRef, TreeId};

/// What the work directory holds.
const LOCKS: &str = "locks";
const TASKS: &str = "tasks";
const SOURCES: &str = "sources";
const WARM: &str = "warm";

/// The paths below one work directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    work: PathBuf,
}

impl Layout {
    /// The layout of a work directory. It should be absolute: processes change their directory.
    pub fn new(work: impl Into<PathBuf>) -> Self {
        Self { work: work.into() }
    }

    /// The given work directory made absolute, or the default one in the user's data directory.
    ///
    /// # Errors
    /// A sentence for a person if neither a directory was given nor `HOME` is set, or the path
    /// cannot be resolved.
    pub fn resolve(work: Option<PathBuf>) -> Result<Self, String> {
        let chosen = match work {
            Some(work) => work,
            None => default_work()
                .ok_or("neither --work, XDG_DATA_HOME, HOME nor /etc/passwd says where to keep files")?,
        };
        let work = std::path::absolute(&chosen)
            .map_err(|error| format!("the work directory {}: {error}", chosen.display()))?;
        Ok(Self { work })
    }

    /// The work directory itself.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Makes the work directory if it is not there, and nothing in it: for who only looks.
    ///
    /// # Errors
    /// If it cannot be made, or may not be used.
    pub fn make_work(&self) -> Result<(), crewboss_ground::Error> {
        Directory::make(self.work())?;
        self.check()
    }

    /// Makes the work directory if it is not there, for its owner alone: it holds the sources. One
    /// that is there keeps its mode, but it must be this user's, and so must be what it holds.
    ///
    /// # Errors
    /// If it cannot be made, or may not be used.
    pub fn make(&self) -> Result<(), crewboss_ground::Error> {
        let work = Directory::make(self.work())?;
        work.check_above()?;
        for name in [LOCKS, TASKS, SOURCES, WARM] {
            work.make_child(name)?;
        }
        Ok(())
    }

    /// Makes sure that the work directory, if it is there, is this user's, and what it holds as
    /// well.
    ///
    /// # Errors
    /// If it may not be used.
    pub fn check(&self) -> Result<(), crewboss_ground::Error> {
        check(self.work(), &[LOCKS, TASKS, SOURCES, WARM])
    }

    /// The bare repository that bosses send objects into.
    pub fn objects(&self) -> PathBuf {
        self.work.join("objects.git")
    }

    /// All checked-out sources.
    pub fn sources(&self) -> PathBuf {
        self.work.join(SOURCES)
    }

    /// The checked-out source of one tree.
    pub fn source(&self, tree: TreeId) -> PathBuf {
        self.sources().join(tree.to_string())
    }

    /// The checked-out source of one tree as an archive, for guests.
    pub fn source_archive(&self, tree: TreeId) -> PathBuf {
        self.sources().join(format!("{tree}.tar"))
    }

    /// All warm build directories.
    pub fn warm_root(&self) -> PathBuf {
        self.work.join(WARM)
    }

    /// The warm build directory of one target.
    pub fn warm(&self, key: &str) -> PathBuf {
        self.warm_root().join(key)
    }

    /// All lock files.
    pub fn locks(&self) -> PathBuf {
        self.work.join(LOCKS)
    }

    /// The lock file of one slot.
    pub fn slot(&self, slot: u32) -> PathBuf {
        self.locks().join(format!("slot-{slot}"))
    }

    /// The file by which a session says that it waits for a slot.
    pub fn waiting(&self, session: &SessionId) -> PathBuf {
        self.locks().join(format!("waiting-{session}"))
    }

    /// The lock that every live worker shares, and pruning wants for itself.
    pub fn users_lock(&self) -> PathBuf {
        self.locks().join("users")
    }

    /// The lock of one warm build directory.
    pub fn warm_lock(&self, key: &str) -> PathBuf {
        self.locks().join(format!("warm-{key}"))
    }

    /// All sessions.
    pub fn tasks(&self) -> PathBuf {
        self.work.join(TASKS)
    }

    /// Everything that one session owns.
    pub fn session(&self, session: &SessionId) -> PathBuf {
        self.tasks().join(session.as_str())
    }

    /// Everything that one attempt owns.
    pub fn attempt(&self, session: &SessionId, at: TaskRef) -> PathBuf {
        self.session(session).join(at.to_string())
    }

    /// Who owns a session.
    pub fn owner(&self, session: &SessionId) -> PathBuf {
        self.session(session).join("owner.json")
    }

    /// The file that is touched whenever the boss of a session was heard.
    pub fn alive(&self, session: &SessionId) -> PathBuf {
        self.session(session).join("alive")
    }

    /// The machine directory, unless the crew file names another.
    pub fn machines(&self) -> PathBuf {
        self.work.join("machines")
    }

    /// All that is made below the work directory, but for machines; the lock by which its users are
    /// known comes last.
    pub fn all(&self) -> [PathBuf; 7] {
        [
            self.tasks(),
            self.warm_root(),
            self.sources(),
            self.objects(),
            self.probe_cache(),
            self.emulator_cache(),
            self.locks(),
        ]
    }

    /// What an earlier probe found.
    pub fn probe_cache(&self) -> PathBuf {
        self.work.join("probe.json")
    }

    /// What trial guests found out about QEMU and KVM.
    pub fn emulator_cache(&self) -> PathBuf {
        self.work.join("emulator.json")
    }
}

/// Makes sure that a directory and some in it are this user's, as far as they are there.
///
/// # Errors
/// If one of them may not be used.
pub fn check(directory: &Path, names: &[&str]) -> Result<(), crewboss_ground::Error> {
    let there = |error: &crewboss_ground::Error| error.kind() != std::io::ErrorKind::NotFound;
    let directory = match Directory::open(directory) {
        Err(error) if !there(&error) => return Ok(()),
        directory => directory?,
    };
    directory.check_above()?;
    // What this user may not open is root's, and is not used: who tries is told so, and does
    // without machines.
    let closed = |error: &crewboss_ground::Error| matches!(&error.fault, Fault::Io(why) if why.kind() == std::io::ErrorKind::PermissionDenied);
    names.iter().try_for_each(|name| match directory.child(name) {
        Err(error) if there(&error) && !closed(&error) => Err(error),
        _ => Ok(()),
    })
}

fn default_work() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = set("XDG_DATA_HOME").or_else(|| Some(crewboss_ground::home()?.join(".local/share")))?;
    Some(data.join("crewboss"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_lies_below_the_work_directory() {
        let layout = Layout::resolve(Some("/srv/crew".into())).unwrap();
        let session: SessionId = "run.3".parse().unwrap();
        assert_eq!(layout.attempt(&session, "7.1".parse().unwrap()), Path::new("/srv/crew/tasks/run.3/7.1"));
        assert_eq!(layout.waiting(&session), Path::new("/srv/crew/locks/waiting-run.3"));
    }

    #[test]
    fn a_work_directory_that_is_made_is_for_its_owner_alone() {
        use std::fs;
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mode = |layout: &Layout| fs::metadata(layout.work()).unwrap().permissions().mode() & 0o777;
        let layout = Layout::new(dir.path().join("a/b"));
        layout.make().unwrap();
        assert_eq!(mode(&layout), 0o700);
        fs::set_permissions(layout.work(), fs::Permissions::from_mode(0o750)).unwrap();
        layout.make().unwrap();
        assert_eq!(mode(&layout), 0o750, "what somebody chose is kept");
    }

    #[test]
    fn a_work_directory_of_another_user_is_not_used() {
        use std::fs;
        use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("work"));
        layout.check().unwrap();
        layout.make().unwrap();
        fs::set_permissions(layout.work(), fs::Permissions::from_mode(0o1777)).unwrap();
        for refused in [layout.make(), layout.check()] {
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("other users can write to it (its mode is 1777)"), "{text}");
        }
        fs::set_permissions(layout.work(), fs::Permissions::from_mode(0o755)).unwrap();
        chown(layout.work(), Some(987_654), None).unwrap();
        let text = layout.make().unwrap_err().to_string();
        assert!(text.contains("it belongs to the user with the number 987654"), "{text}");
        chown(layout.work(), Some(0), None).unwrap();
        fs::remove_dir(layout.tasks()).unwrap();
        symlink("/", layout.tasks()).unwrap();
        for refused in [layout.make(), layout.check()] {
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("tasks: it is a symbolic link and not a directory"), "{text}");
        }
    }
}

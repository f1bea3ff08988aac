//! Environments: the directories in which one attempt runs.
//!
//! | | `directory` | `snapshot` | incremental |
//! |---|---|---|---|
//! | btrfs | the shared read-only subvolume | a snapshot of it | snapshots of the last good build |
//! | reflinks | a copy that shares data | the same | copies that share data |
//! | neither | a copy | the same | copies |
//!
//! Outside btrfs nothing stops root, or the owner of the files, from writing the shared source: so
//! nobody is given it. On btrfs a task that forces its way (root can make the subvolume writable,
//! its owner can move it) is found out before the next one starts, and the source is checked out
//! anew.

mod error;
mod fingerprint;
mod graves;
mod spare;
mod warm;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crewboss_host::layout::Layout;
use crewboss_host::storage::{Way, remove_tree};
use crewboss_protocol::{Environment, TreeId};

pub use error::EnvError;
pub use warm::WarmKey;

use crate::source::Sources;
use crate::source::archive::source_tar;
use fingerprint::Fingerprint;
use graves::Graves;
use spare::Spares;

/// The time of a source's last use is written no more often than this: pruning thinks in days.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

/// What an attempt needs.
#[derive(Debug, Clone)]
pub struct EnvRequest {
    /// Where everything of the attempt goes. Its parent exists, it does not.
    pub attempt_dir: PathBuf,
    /// The source.
    pub tree: TreeId,
    /// How it runs.
    pub environment: Environment,
    /// For an incremental target: under which key its good build directories are kept.
    pub warm: Option<WarmKey>,
}

/// An environment that is ready. It holds locks while it is incremental.
///
/// After the last stage of an attempt call [`Preparer::succeed`] or [`Preparer::fail`], after its
/// results are collected [`Preparer::remove`]. Dropping it instead leaves its files to be swept
/// with the session.
#[derive(Debug)]
pub struct Prepared {
    /// The attempt's own directory.
    pub dir: PathBuf,
    /// `$CREWBOSS_SRC`.
    pub src: PathBuf,
    /// `$CREWBOSS_OUT`.
    pub out: PathBuf,
    /// `$HOME`.
    pub home: PathBuf,
    /// `$TMPDIR`.
    pub tmp: PathBuf,
    /// Whether it started from a warm directory.
    pub warm: bool,
    tree: TreeId,
    fingerprint: Option<Fingerprint>,
    hold: Option<warm::Hold>,
}

/// Makes and removes environments below one work directory. All methods may be called from several
/// threads at once, and many threads make snapshots faster than one: those in different directories
/// share a commit.
#[derive(Debug)]
pub struct Preparer {
    layout: Layout,
    way: Way,
    sources: Sources,
    touched: Mutex<HashMap<TreeId, Instant>>,
    restoring: Mutex<()>,
    archiving: Mutex<()>,
    spares: Spares,
    graves: Graves,
}

impl Preparer {
    /// Finds out by trying how trees can be copied below the work directory, which is made if it is
    /// not there.
    ///
    /// # Errors
    /// If the work directory cannot be made or written.
    pub fn new(layout: Layout) -> Result<Self, EnvError> {
        layout.make().map_err(|error| EnvError::io("make", layout.work())(error.into()))?;
        let way = Way::find(layout.work()).map_err(EnvError::io("use", layout.work()))?;
        Self::with_way(layout, way)
    }

    fn with_way(layout: Layout, way: Way) -> Result<Self, EnvError> {
        let sources = Sources::new(layout.clone(), way).map_err(EnvError::io("make", &layout.sources()))?;
        Ok(Self {
            layout,
            way,
            sources,
            touched: Mutex::default(),
            restoring: Mutex::default(),
            archiving: Mutex::default(),
            spares: Spares::default(),
            graves: Graves::default(),
        })
    }

    /// The way of copying that works here.
    pub fn way(&self) -> Way {
        self.way
    }

    /// What a person should know about this host's storage; to be said once.
    pub fn notices(&self) -> Vec<String> {
        let work = self.layout.work().display();
        match self.way {
            Way::Snapshot => Vec::new(),
            Way::Reflink => {
                vec![format!("no btrfs snapshots below {work}: environments share data by reflink")]
            }
            Way::Plain => vec![format!(
                "neither btrfs snapshots nor reflinks below {work}: environments are plain copies, which is slow for \
                 large sources"
            )],
        }
    }

    /// Makes an environment. Blocks for as long as copying takes, so call it ahead of need.
    ///
    /// # Errors
    /// [`EnvError::refusal`] says how to report it. What was made in part is removed.
    pub fn prepare(&self, request: &EnvRequest) -> Result<Prepared, EnvError> {
        if !self.touch(request.tree) {
            return Err(EnvError::NoSource { tree: request.tree });
        }
        self.check(request.tree)?;
        let result = match &request.warm {
            _ if matches!(request.environment, Environment::Machine(_)) => self.prepare_for_guest(request),
            Some(key) => self.prepare_incremental(request, key),
            None => self.prepare_fresh(request, request.environment == Environment::Directory),
        };
        if result.is_err() {
            // The first error is the one to report; what cannot be removed now is swept with the
            // session.
            drop(remove_tree(&request.attempt_dir));
        }
        result
    }

    /// A task may have changed or moved the shared source, however hard it has to try: root can
    /// make it writable. The next one must not see that.
    fn check(&self, tree: TreeId) -> Result<(), EnvError> {
        if self.way != Way::Snapshot || self.sources.is_intact(tree) {
            return Ok(());
        }
        let _one_at_a_time = self.restoring.lock().unwrap_or_else(PoisonError::into_inner);
        if self.sources.is_intact(tree) {
            return Ok(());
        }
        let path = self.layout.source(tree);
        self.sources.restore(tree).map_err(|source| EnvError::Update { path, source })
    }

    fn prepare_incremental(&self, request: &EnvRequest, key: &WarmKey) -> Result<Prepared, EnvError> {
        let Some((hold, warm)) = warm::Hold::take(&self.layout, self.way, key, request.tree)? else {
            // Another worker builds in the warm directory right now.
            return self.prepare_fresh(request, false);
        };
        make(&request.attempt_dir)?;
        let mut prepared = Prepared::at(&request.attempt_dir, request.tree);
        prepared.src = hold.src();
        prepared.out = hold.out();
        prepared.warm = warm;
        prepared.hold = Some(hold);
        make_inner(&prepared.home)?;
        make_inner(&prepared.tmp)?;
        Ok(prepared)
    }

    /// The source as an archive, and a directory for what comes out of the guest.
    fn prepare_for_guest(&self, request: &EnvRequest) -> Result<Prepared, EnvError> {
        // Whoever comes second finds it there, and has written nothing in vain.
        let one_at_a_time = self.archiving.lock().unwrap_or_else(PoisonError::into_inner);
        let archive = source_tar(&self.layout, request.tree)
            .map_err(|source| EnvError::Archive { tree: request.tree, source })?;
        drop(one_at_a_time);
        make(&request.attempt_dir)?;
        let mut prepared = Prepared::at(&request.attempt_dir, request.tree);
        prepared.src = archive;
        Ok(prepared)
    }

    fn prepare_fresh(&self, request: &EnvRequest, only_read: bool) -> Result<Prepared, EnvError> {
        let mut prepared = Prepared::at(&request.attempt_dir, request.tree);
        if only_read && cannot_be_written(&self.layout.source(request.tree)) {
            if self.spares.take(None, &prepared.dir).is_none() {
                make(&prepared.dir)?;
            }
            prepared.src = self.layout.source(request.tree);
        } else if let Some(fingerprint) = self.spares.take(Some(request.tree), &prepared.dir) {
            prepared.fingerprint = fingerprint;
        } else {
            make(&prepared.dir)?;
            let source = self.layout.source(request.tree);
            {
                let _gate = self.graves.making();
                let copied = self.way.copy(&source, &prepared.src, true);
                copied.map_err(EnvError::io("copy the source to", &prepared.src))?;
            }
            prepared.fingerprint = self.spares.fingerprint(request.tree, &prepared.src);
        }
        for inner in [&prepared.out, &prepared.home, &prepared.tmp] {
            make_inner(inner)?;
        }
        Ok(prepared)
    }

    /// After an attempt that succeeded: what an incremental target built becomes the directory to
    /// start from next time. `src` and `out` of `prepared` may move; paths below the old ones are
    /// to be looked up below the new ones.
    ///
    /// # Errors
    /// If the file system refuses; the last good directory is then still the old one.
    pub fn succeed(&self, prepared: &mut Prepared) -> Result<(), EnvError> {
        let Some(hold) = &mut prepared.hold else { return Ok(()) };
        hold.publish()?;
        prepared.src = hold.src();
        prepared.out = hold.out();
        Ok(())
    }

    /// After an attempt that did not succeed: what an incremental target left moves to the
    /// attempt's own directory, so that its next task can start. `src` and `out` may move, as with
    /// [`Self::succeed`].
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn fail(&self, prepared: &mut Prepared) -> Result<(), EnvError> {
        let Some(hold) = &mut prepared.hold else { return Ok(()) };
        hold.give_up(&prepared.dir.join("build"))?;
        prepared.src = hold.src();
        prepared.out = hold.out();
        Ok(())
    }

    /// Removes what [`Self::remove`] left for later. To be called when a worker has been idle for a
    /// moment; removing the directory of the session does the same.
    ///
    /// # Errors
    /// If something cannot be removed; as much as can be is.
    pub fn tidy(&self) -> Result<(), EnvError> {
        self.graves.tidy().map_err(EnvError::io("empty", &self.layout.tasks()))
    }

    /// Removes everything of an attempt. A directory that is as good as new stays for the next
    /// attempt; a copy of the source that is destroyed faster together with others stays for a
    /// while under a name that begins with a dot. Both are gone with the session.
    ///
    /// # Errors
    /// If something cannot be removed; as much as can be is.
    pub fn remove(&self, prepared: Prepared) -> Result<(), EnvError> {
        let Prepared { dir, src, tree, fingerprint, hold, .. } = prepared;
        let has_copy = src.starts_with(&dir);
        let copy = fingerprint.map(|fingerprint| (tree, src.as_path(), fingerprint));
        // Without a fingerprint a copy cannot be proven to be untouched.
        if hold.is_none() && has_copy == copy.is_some() && self.spares.keep(&dir, copy) {
            return Ok(());
        }
        if self.way == Way::Snapshot && hold.is_none() && has_copy {
            return self.graves.bury(&dir).map_err(EnvError::io("remove", &dir));
        }
        let removed = remove_tree(&dir).map_err(EnvError::io("remove", &dir));
        removed.and(hold.map_or(Ok(()), warm::Hold::remove))
    }

    /// Notes the use of a source; false if it is not there.
    fn touch(&self, tree: TreeId) -> bool {
        let now = Instant::now();
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if touched.get(&tree).is_some_and(|then| now.duration_since(*then) < TOUCH_EVERY) {
            return true;
        }
        if !self.sources.has(tree) {
            return false;
        }
        touched.insert(tree, now);
        // A time that cannot be written only makes the source look older than it is.
        drop(self.sources.touch(tree));
        true
    }
}

impl Prepared {
    fn at(dir: &Path, tree: TreeId) -> Self {
        Self {
            dir: dir.to_owned(),
            src: dir.join("src"),
            out: dir.join("out"),
            home: dir.join("home"),
            tmp: dir.join("tmp"),
            warm: false,
            tree,
            fingerprint: None,
            hold: None,
        }
    }
}

/// Whether the kernel refuses every change, also by root: a read-only subvolume.
fn cannot_be_written(source: &Path) -> bool {
    rustix::fs::access(source, rustix::fs::Access::WRITE_OK) == Err(rustix::io::Errno::ROFS)
}

/// Makes an attempt's directory. If the one of its session is missing the session is over, and
/// nobody would know whose the new one is.
fn make(directory: &Path) -> Result<(), EnvError> {
    fs::create_dir(directory).map_err(EnvError::io("make", directory))
}

/// Makes one of the directories inside, unless it came with a spare.
fn make_inner(directory: &Path) -> Result<(), EnvError> {
    let made = fs::DirBuilder::new().mode(spare::INNER_MODE).create(directory);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(EnvError::io("make", directory)),
    }
}

#[cfg(test)]
mod tests;

//! The thread that puts results into place. It takes all that is waiting at once, so that bringing
//! one result to the disk and bringing many there costs about the same when they come fast.
//!
//! The order makes a power cut harmless: the files of a batch are on the disk before a name leads
//! to them, the names before the journal says so, and the journal before anybody is told.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crewboss_ground::Open;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::durable::Disk;
use super::journal::{Journal, JournalError};
use super::layout::{StoreError, remove};
use super::record::Recorded;
use super::result::ResultFile;
use crewboss_protocol::{Phase, RunId, TaskRef, json};

/// Results that are brought to the disk together.
const BATCH_MAX: usize = 512;

/// After a batch results are gathered for so many times as long as bringing it to the disk took,
/// but not for ever: flushes hold up whoever else uses the disk, tasks on this computer too, so
/// they get a small part of the time.
const GATHER_TIMES: u32 = 9;
const GATHER_MAX: Duration = Duration::from_millis(200);

/// A result to be stored.
#[derive(Debug)]
pub struct Submission {
    /// Which attempt.
    pub at: TaskRef,
    /// When it was handed over.
    pub since: Instant,
    /// Goes into `result.json`.
    pub result: ResultFile,
    /// Goes into the journal.
    pub recorded: Recorded,
    /// The directory in which the files are gathered. Artifacts, and logs that were fetched, are
    /// there already.
    pub part: PathBuf,
    /// Whether `part` exists.
    pub fetched: bool,
    /// The log, if it came with the message.
    pub log: Option<String>,
    /// What the boss itself adds to the log.
    pub log_more: String,
    /// Standard error, if it came with the message.
    pub err: Option<String>,
    /// Goes into `sizes`, if there is any.
    pub sizes: String,
}

/// What the thread answers.
#[derive(Debug)]
pub enum StoreReply {
    /// These are in place and in the journal.
    Stored(Vec<TaskRef>),
    /// The result directory cannot be written any more. Nothing half-written was left in place.
    Failed(WriteError),
}

/// Why a result could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// In the result directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// In the journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The handle of the thread.
#[derive(Debug)]
pub struct Writer {
    submit: Option<mpsc::Sender<Submission>>,
    thread: Option<JoinHandle<Journal>>,
}

impl Writer {
    /// Starts the thread. `reply` is called from it.
    ///
    /// The queue has no limit of its own: the run loop stops listening to hosts while too much
    /// waits in it.
    ///
    /// # Errors
    /// If the directory cannot be opened, or the thread not be started.
    pub fn start(
        root: PathBuf,
        journal: Journal,
        reply: impl FnMut(StoreReply) + Send + 'static,
    ) -> Result<Self, StoreError> {
        let disk = Disk::of(&root)?;
        let (submit, submissions) = mpsc::channel();
        let failed = StoreError::io("start a thread for", &root);
        let work = move || Work { root, disk, journal, parents: BTreeSet::new(), reply }.run(&submissions);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(work).map_err(failed)?;
        Ok(Self { submit: Some(submit), thread: Some(thread) })
    }

    /// Hands a result over. Whether it will be answered for: the thread ends once it has reported a
    /// failure.
    pub fn submit(&self, submission: Submission) -> bool {
        self.submit.as_ref().is_some_and(|submit| submit.send(submission).is_ok())
    }

    /// Waits until all is stored and notes the end of the run.
    pub fn finish(mut self, run: &RunId, ended_ms: u64) -> Result<(), JournalError> {
        self.submit = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(mut journal)) => journal.end(run, ended_ms),
            _ => Ok(()),
        }
    }
}

struct Work<R> {
    root: PathBuf,
    disk: Disk,
    journal: Journal,
    /// Directories of commits that exist and are on the disk, or are about to be.
    parents: BTreeSet<PathBuf>,
    reply: R,
}

impl<R: FnMut(StoreReply)> Work<R> {
    fn run(mut self, submissions: &mpsc::Receiver<Submission>) -> Journal {
        let mut due = Instant::now();
        while let Ok(first) = submissions.recv() {
            let batch = gather(first, submissions, due);
            let begun = Instant::now();
            match self.store(batch) {
                Ok(stored) => {
                    due = Instant::now() + (begun.elapsed() * GATHER_TIMES).min(GATHER_MAX);
                    (self.reply)(StoreReply::Stored(stored));
                }
                Err(error) => {
                    (self.reply)(StoreReply::Failed(error));
                    break;
                }
            }
        }
        self.journal
    }

    fn store(&mut self, mut batch: Vec<Submission>) -> Result<Vec<TaskRef>, WriteError> {
        batch.iter_mut().try_for_each(complete)?;
        self.disk.sync_trees(batch.iter().map(|submission| &*submission.part))?;
        let mut changed = BTreeSet::new();
        for submission in &batch {
            self.publish(submission, &mut changed)?;
        }
        self.disk.sync_names(changed.iter().map(PathBuf::as_path))?;
        let mut stored = Vec::new();
        for Submission { at, recorded, .. } in batch {
            stored.push(at);
            self.journal.add(recorded);
        }
        self.journal.sync()?;
        Ok(stored)
    }

    /// Moves a result into place, and notes in which directories there are new names.
    fn publish(
        &mut self,
        submission: &Submission,
        changed: &mut BTreeSet<PathBuf>,
    ) -> Result<(), StoreError> {
        let path = &*submission.recorded.path;
        let place = self.root.join(path);
        if let Some((commit, _)) = path.split_once('/') {
            let parent = self.root.join(commit);
            if self.parents.insert(parent.clone()) {
                self.make_parent(commit, &parent)?;
                changed.insert(self.root.clone());
            }
            changed.insert(parent);
        }
        let part = &submission.part;
        match fs::rename(part, &place) {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::AlreadyExists
                        | io::ErrorKind::NotADirectory
                ) =>
            {
                replace(part, &place)
            }
            Err(error) => Err(StoreError::io("move a result to", &place)(error)),
        }
    }

    /// Makes a commit's directory. A link that came in its place would lead results out of the
    /// result directory.
    fn make_parent(&self, name: &str, parent: &Path) -> Result<(), StoreError> {
        match fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(StoreError::io("create", parent)(error))
            }
            _ => Ok(self.disk.root().child(name).map(drop)?),
        }
    }
}

/// All that is waiting, and what comes until then.
fn gather(first: Submission, submissions: &mpsc::Receiver<Submission>, due: Instant) -> Vec<Submission> {
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX
        && let Ok(next) = submissions.recv_timeout(due.saturating_duration_since(Instant::now()))
    {
        batch.push(next);
    }
    batch
}

/// Writes what did not come as files.
fn complete(submission: &mut Submission) -> Result<(), StoreError> {
    submission.result.phases.add(Phase::Storing, submission.since.elapsed());
    let part = &submission.part;
    if !submission.fetched {
        fs::create_dir(part).map_err(StoreError::io("create", part))?;
    }
    write(part, "done", format!("{}\n", submission.result.return_code()).as_bytes())?;
    if let Some(log) = &submission.log {
        write(part, "log", log.as_bytes())?;
    }
    if !submission.log_more.is_empty() {
        append(part, "log", submission.log_more.as_bytes())?;
    }
    match &submission.err {
        Some(err) if !err.is_empty() => write(part, "err", err.as_bytes())?,
        _ => {}
    }
    if !submission.sizes.is_empty() {
        write(part, "sizes", submission.sizes.as_bytes())?;
    }
    let mut json = json::pretty(&submission.result)
        .map_err(io::Error::from)
        .map_err(StoreError::io("write", &part.join("result.json")))?;
    json.push('\n');
    write(part, "result.json", json.as_bytes())
}

/// Puts a new result where an older one is: one of them is there at any time, where the filesystem
/// can exchange names, and else one or none; never a half one.
fn replace(part: &Path, place: &Path) -> Result<(), StoreError> {
    let mut old = part.to_owned();
    if renameat_with(CWD, part, CWD, place, RenameFlags::EXCHANGE).is_err() {
        old.set_extension("old");
        fs::rename(place, &old).map_err(StoreError::io("move away", place))?;
        fs::rename(part, place).map_err(StoreError::io("move a result to", place))?;
    }
    remove(&old).map_err(StoreError::io("remove", &old))
}

fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    let path = dir.join(name);
    let file = Open::create().path(&path).map_err(io::Error::from);
    file.and_then(|mut file| file.write_all(content)).map_err(StoreError::io("write", &path))
}

fn append(dir: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    let path = dir.join(name);
    let file = Open::append().path(&path).map_err(io::Error::from);
    file.and_then(|mut file| file.write_all(content)).map_err(StoreError::io("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{RESULT_SCHEMA, TaskKey};
    use crewboss_protocol::message::ArtifactCount;
    use crewboss_protocol::{Attempt, Outcome, Phases, StageExit, StageResult, TreeId};

    fn submission(root: &Path, outcome: Outcome, exit: StageExit) -> Submission {
        let stage = StageResult { name: "build".parse().unwrap(), exit, wall_ms: 5, cpu_ms: 4 };
        let result = ResultFile {
            schema: RESULT_SCHEMA,
            run: "r1".parse().unwrap(),
            target: "native".parse().unwrap(),
            commit: TreeId([1; 20]),
            subject: "x".into(),
            tree: TreeId([2; 20]),
            key: TaskKey([3; 32]),
            outcome,
            attempt: Attempt(1),
            host: None,
            ended_ms: 1,
            wall_ms: 5,
            phases: Phases::default(),
            cpu_ms: 4,
            rss_kib_max: 100,
            stages: vec![stage],
            toolchain: None,
            machine: None,
            held: None,
            warm: false,
            log_bytes: 4,
            err_bytes: 0,
            artifacts: ArtifactCount::default(),
            message: String::new(),
            earlier: Vec::new(),
        };
        let recorded = Recorded {
            key: result.key,
            toolchain: None,
            machine: None,
            target: result.target.clone(),
            commit: "0101010".into(),
            outcome,
            attempt: Attempt(1),
            host: None,
            wall_ms: 5,
            path: "01_of_01_g0101010_x/native".into(),
        };
        Submission {
            at: "0.1".parse().unwrap(),
            since: Instant::now(),
            result,
            recorded,
            part: root.join("1.1"),
            fetched: false,
            log: Some("out\n".to_owned()),
            log_more: "more\n".to_owned(),
            err: Some(String::new()),
            sizes: String::new(),
        }
    }

    /// Stores what is given and returns what the thread answered.
    fn store(root: &Path, submissions: Vec<Submission>) -> Vec<StoreReply> {
        let (journal, _) = Journal::open(root).unwrap();
        let (replies, answers) = mpsc::channel();
        let writer =
            Writer::start(root.to_owned(), journal, move |reply| replies.send(reply).unwrap()).unwrap();
        for submission in submissions {
            writer.submit(submission);
        }
        writer.finish(&"r1".parse().unwrap(), 2).unwrap();
        answers.iter().collect()
    }

    #[test]
    fn a_result_appears_whole_and_replaces_an_older_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let place = root.join("01_of_01_g0101010_x/native");
        store(root, vec![submission(root, Outcome::Failure, StageExit::Code(2))]);
        assert_eq!(fs::read_to_string(place.join("done")).unwrap(), "2\n");
        assert_eq!(fs::read_to_string(place.join("log")).unwrap(), "out\nmore\n");
        assert!(!place.join("err").exists());
        fs::write(place.join("stale"), "").unwrap();

        store(root, vec![submission(root, Outcome::Success, StageExit::Code(0))]);
        assert_eq!(fs::read_to_string(place.join("done")).unwrap(), "0\n");
        assert!(!place.join("stale").exists());
        let text = fs::read(place.join("result.json")).unwrap();
        let result: ResultFile = serde_json::from_slice(&text).unwrap();
        assert_eq!(result.outcome, Outcome::Success);
        assert_eq!(Journal::open(root).unwrap().1.recorded[&TaskKey([3; 32])][0].outcome, Outcome::Success);
        let mut left: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["01_of_01_g0101010_x", "run.jsonl"]);
    }

    #[test]
    fn a_result_that_cannot_be_placed_is_reported_and_not_recorded() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, commit) = (dir.path(), dir.path().join("01_of_01_g0101010_x"));
        let refused = |what: &str| {
            let replies = store(root, vec![submission(root, Outcome::Success, StageExit::Code(0))]);
            let [StoreReply::Failed(error)] = replies.as_slice() else { panic!("{replies:?}") };
            assert!(
                error.to_string().contains(&format!("01010_x: it is {what} and not a directory")),
                "{error}"
            );
            assert!(Journal::open(root).unwrap().1.recorded.is_empty());
            fs::remove_dir_all(root.join("1.1")).unwrap();
        };
        fs::write(&commit, "in the way").unwrap();
        refused("a file");
        fs::remove_file(&commit).unwrap();
        std::os::unix::fs::symlink(outside.path(), &commit).unwrap();
        refused("a symbolic link");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_place_of_a_result_is_replaced_and_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = dir.path().join("01_of_01_g0101010_x/native");
        fs::write(outside.path().join("precious"), "keep").unwrap();
        fs::create_dir(place.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(outside.path(), &place).unwrap();
        store(dir.path(), vec![submission(dir.path(), Outcome::Success, StageExit::Code(0))]);
        assert!(!place.is_symlink() && place.join("result.json").is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}

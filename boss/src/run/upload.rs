//! Uploads of tasks that have ended well: checked after they were fetched, then handed to the
//! command of their type.
//!
//! This happens before a result is stored, since a failed upload is a failed task. Commands run
//! beside the run loop, a few at a time; when the run is stopped they are ended and their tasks
//! count as not done.

mod command;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crewboss_ground::Open;
use crewboss_ground::program;
use crewboss_protocol::limits::UPLOADS_MAX;
use crewboss_protocol::{Name, StageExit, StageResult, TaskRef, TreeId};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::plan::{UploadCommand, Uploads};
use command::{End, run};

/// Results whose uploads are handed over at the same time.
const AT_ONCE: usize = 4;

/// Output of all commands of one task that is kept.
const OUTPUT_BYTES_MAX_ALL: usize = 4 << 20;

/// How long all commands of one task may take, if none of them may take longer: others wait for
/// their turn.
const TOGETHER: Duration = Duration::from_secs(3600);

/// A result whose uploads are to be handed over.
#[derive(Debug, Clone)]
pub struct UploadJob {
    /// Whose.
    pub at: TaskRef,
    /// Its target.
    pub target: Name,
    /// Its commit.
    pub commit: TreeId,
    /// Where its files are gathered.
    pub part: PathBuf,
}

/// What became of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UploadsEnd {
    /// The stage, if there was anything to do.
    pub stage: Option<StageResult>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// What belongs into the task's log.
    pub output: String,
}

/// Hands uploads over. Dropping it ends what is under way.
#[derive(Debug)]
pub struct Uploader {
    shared: Arc<Shared>,
    ends: mpsc::UnboundedSender<(TaskRef, UploadsEnd)>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    uploads: Uploads,
    permits: Semaphore,
    stopped: AtomicBool,
    /// See [`TOGETHER`].
    together: Duration,
}

impl Uploader {
    /// Tells `ends` what becomes of each job.
    pub fn new(uploads: Uploads, ends: mpsc::UnboundedSender<(TaskRef, UploadsEnd)>) -> Self {
        Self::within(TOGETHER, uploads, ends)
    }

    fn within(
        together: Duration,
        uploads: Uploads,
        ends: mpsc::UnboundedSender<(TaskRef, UploadsEnd)>,
    ) -> Self {
        let (permits, stopped) = (Semaphore::new(AT_ONCE), AtomicBool::new(false));
        Self { shared: Arc::new(Shared { uploads, permits, stopped, together }), ends, tasks: JoinSet::new() }
    }

    /// Whether a result that was fetched has uploads.
    pub fn is_wanted(part: &Path) -> bool {
        directory_of(part).is_dir()
    }

    /// Begins to hand over what a result has.
    pub fn start(&mut self, job: UploadJob) {
        while self.tasks.try_join_next().is_some() {}
        let (shared, ends) = (self.shared.clone(), self.ends.clone());
        self.tasks.spawn(async move {
            let end = shared.hand_over(&job).await;
            // If nobody listens, the run is over.
            ends.send((job.at, end)).ok();
        });
    }

    /// Ends what is under way; nothing more is told of it.
    pub fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.tasks.abort_all();
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    async fn hand_over(self: &Arc<Self>, job: &UploadJob) -> UploadsEnd {
        let Ok(_permit) = self.permits.acquire().await else { return UploadsEnd::default() };
        let begun = Instant::now();
        let mut output = String::new();
        let (shared, part) = (self.clone(), job.part.clone());
        let found = tokio::task::spawn_blocking(move || find(&part, &shared.stopped)).await;
        let (exit, failure) = match found.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(found) => self.run_all(job, found, &mut output).await,
            Err(why) => (StageExit::Code(1), Some(why)),
        };
        if let Some(why) = &failure {
            output.push_str(&format!("crewboss: {why}\n"));
        }
        if failure.is_none() && output.is_empty() {
            return UploadsEnd::default();
        }
        let wall_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let stage = stage_name().map(|name| StageResult { name, exit, wall_ms, cpu_ms: 0 });
        UploadsEnd { stage, failure, output }
    }

    /// Runs the commands one after the other until one fails, or the time of all is up.
    async fn run_all(
        &self,
        job: &UploadJob,
        found: Vec<Upload>,
        output: &mut String,
    ) -> (StageExit, Option<String>) {
        let command_of = |upload: &Upload| self.uploads.commands.get(&upload.kind);
        let longest = found.iter().filter_map(command_of).map(|command| command.timeout).max();
        let together = self.together.max(longest.unwrap_or_default());
        let mut spent = Duration::ZERO;
        for upload in &found {
            let Some(command) = command_of(upload) else { continue };
            let label = format!("upload {}/{}", upload.kind, upload.instance);
            let left = together.saturating_sub(spent);
            let late =
                format!("{label} failed: the uploads of this task took longer than {together:?} together");
            if left.is_zero() {
                return (StageExit::Code(1), Some(late));
            }
            keep(output, &format!("crewboss: {label}: {}\n", command.words.join(" ")));
            let limit = command.timeout.min(left);
            let begun = Instant::now();
            let (bytes, ended) = run(self.command(job, upload, command), limit).await;
            spent += begun.elapsed();
            keep(output, &String::from_utf8_lossy(&bytes));
            match ended {
                Ok(StageExit::Code(0)) => {}
                Ok(exit) => return (exit, Some(format!("{label} failed: {exit}"))),
                Err(End::Late(exit)) if left < command.timeout => return (exit, Some(late)),
                Err(End::Late(exit)) => {
                    return (exit, Some(format!("{label} failed: it took longer than {limit:?}")));
                }
                Err(End::Broken(exit, why)) => return (exit, Some(format!("{label} failed: {why}"))),
            }
        }
        (StageExit::Code(0), None)
    }

    fn command(&self, job: &UploadJob, upload: &Upload, command: &UploadCommand) -> Command {
        let mut words = VecDeque::from(command.words.clone());
        let mut started = Command::from(program(words.pop_front().unwrap_or_default()));
        started
            .args(words)
            .current_dir(&self.uploads.directory)
            .env("CREWBOSS_UPLOAD_TYPE", upload.kind.as_str())
            .env("CREWBOSS_UPLOAD_INSTANCE", upload.instance.as_str())
            .env("CREWBOSS_UPLOAD_TARGET", job.target.as_str())
            .env("CREWBOSS_UPLOAD_COMMIT", job.commit.to_string())
            .env("CREWBOSS_UPLOAD_FILE", &upload.file)
            .env("CREWBOSS_UPLOAD_SHA256", &upload.sha256);
        started
    }
}

/// The stage of a task that is run here.
pub fn stage_name() -> Option<Name> {
    "upload".parse().ok()
}

fn directory_of(part: &Path) -> PathBuf {
    part.join("artifacts/upload")
}

/// An archive that is what the host said it is.
#[derive(Debug, PartialEq, Eq)]
struct Upload {
    kind: Name,
    instance: Name,
    file: PathBuf,
    sha256: String,
}

/// The archives of a result by type and instance, each compared with its SHA-256.
fn find(part: &Path, stopped: &AtomicBool) -> Result<Vec<Upload>, String> {
    let mut found = Vec::new();
    for kind in sorted(&directory_of(part))?.into_iter().filter(|kind| kind.is_dir()) {
        for file in sorted(&kind)? {
            let text = |path: &Path| path.file_name().and_then(|name| name.to_str().map(str::to_owned));
            let Some(instance) = text(&file).and_then(|name| Some(name.strip_suffix(".tar")?.to_owned()))
            else {
                continue;
            };
            let name = |text: String| text.parse::<Name>().map_err(|error| format!("an upload: {error}"));
            // The worker has said so already, if it is an honest one.
            if found.len() == UPLOADS_MAX {
                return Err(format!("there are more than {UPLOADS_MAX} uploads"));
            }
            let (kind, instance) = (name(text(&kind).unwrap_or_default())?, name(instance)?);
            let sha256 = check(&file, stopped).map_err(|why| format!("upload {kind}/{instance}: {why}"))?;
            found.push(Upload { kind, instance, file, sha256 });
        }
    }
    Ok(found)
}

fn sorted(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let read = || {
        let entries: io::Result<Vec<PathBuf>> =
            fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect();
        let mut entries = entries?;
        entries.sort();
        Ok(entries)
    };
    read().map_err(|error: io::Error| format!("cannot read {}: {error}", directory.display()))
}

/// Permissions of what came from a host are as they were there.
fn open(path: &Path) -> io::Result<File> {
    Ok(Open::read().of_anybody().path(path)?)
}

/// The SHA-256 of an archive, which must be the one that came with it.
fn check(file: &Path, stopped: &AtomicBool) -> Result<String, String> {
    const SUM_BYTES_MAX: u64 = 4096;
    let beside = file.with_extension("tar.sha256");
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("cannot read {path}: {error}")
    };
    let mut said = String::new();
    let beside_it = open(&beside).map_err(failed(&beside))?;
    beside_it.take(SUM_BYTES_MAX).read_to_string(&mut said).map_err(failed(&beside))?;
    let said = said.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    let mut hash = Sha256::new();
    let mut data = open(file).map_err(failed(file))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = data.read(&mut buffer).map_err(failed(file))?;
        if count == 0 {
            break;
        }
        if stopped.load(Ordering::Relaxed) {
            return Err("the run was stopped".to_owned());
        }
        hash.update(&buffer[..count]);
    }
    let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if sum == said { Ok(sum) } else { Err(format!("its SHA-256 is {sum}, and {said:?} was announced")) }
}

/// Adds whole lines to what is kept, as far as there is room.
fn keep(output: &mut String, text: &str) {
    let room = OUTPUT_BYTES_MAX_ALL.saturating_sub(output.len());
    output.push_str(&text[..text.floor_char_boundary(room)]);
    if !output.is_empty() && !output.ends_with('\n') {
        output.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: TreeId = TreeId([7; 20]);

    /// A result with these archives, and what an uploader with these commands does with it.
    fn upload(archives: &[(&str, &str)], commands: &[(&str, &str, Duration)]) -> UploadsEnd {
        upload_within(TOGETHER, archives, commands)
    }

    fn upload_within(
        together: Duration,
        archives: &[(&str, &str)],
        commands: &[(&str, &str, Duration)],
    ) -> UploadsEnd {
        let part = tempfile::tempdir().unwrap();
        for (name, data) in archives {
            let file = part.path().join("artifacts/upload").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, data).unwrap();
        }
        let commands = commands.iter().map(|(kind, line, limit)| {
            let words = ["sh", "-c", line].map(str::to_owned).to_vec();
            (kind.parse().unwrap(), UploadCommand { words, timeout: *limit })
        });
        let uploads = Uploads { directory: part.path().to_owned(), commands: commands.collect() };
        let at = "3.1".parse().unwrap();
        let job =
            UploadJob { at, target: "x".parse().unwrap(), commit: COMMIT, part: part.path().to_owned() };
        assert!(Uploader::is_wanted(&job.part));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ends, mut ended) = mpsc::unbounded_channel();
            let mut uploader = Uploader::within(together, uploads, ends);
            uploader.start(job);
            let (whose, end) = ended.recv().await.unwrap();
            assert_eq!(whose, at);
            end
        })
    }

    fn sum(data: &str) -> String {
        Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_command_gets_each_archive_of_its_type_and_its_output_is_kept() {
        let sums = ["one", "two"].map(|data| format!("{}  x.tar\n", sum(data)));
        let archives = [
            ("package/a.tar", "one"),
            ("package/a.tar.sha256", &*sums[0]),
            ("package/b.tar", "two"),
            ("package/b.tar.sha256", &*sums[1]),
        ];
        let line = "echo \"$CREWBOSS_UPLOAD_TYPE/$CREWBOSS_UPLOAD_INSTANCE of $CREWBOSS_UPLOAD_TARGET at \
                    $CREWBOSS_UPLOAD_COMMIT\"; echo \"$CREWBOSS_UPLOAD_SHA256  $CREWBOSS_UPLOAD_FILE\" | sha256sum -c >&2 | cat";
        let end = upload(&archives, &[("package", line, LONG)]);
        assert_eq!(end.failure, None, "{}", end.output);
        let stage = end.stage.unwrap();
        assert_eq!((stage.name.as_str(), stage.exit), ("upload", StageExit::Code(0)));
        for part in [format!("package/a of x at {COMMIT}\n"), "b.tar: OK\n".to_owned()] {
            assert!(end.output.contains(&part), "{part:?} is missing in {}", end.output);
        }
    }

    #[test]
    fn an_upload_without_a_command_is_only_checked() {
        let good = sum("one");
        assert_eq!(upload(&[("p/a.tar", "one"), ("p/a.tar.sha256", &good)], &[]), UploadsEnd::default());
        for (said, why) in [("p/a.tar.sha256", "was announced"), ("p/b.tar.sha256", "cannot read")] {
            let end = upload(&[("p/a.tar", "two"), (said, &good)], &[]);
            assert!(end.failure.as_deref().unwrap().contains(why), "{end:?}");
            assert_eq!(end.stage.unwrap().exit, StageExit::Code(1));
        }
    }

    #[test]
    fn more_uploads_than_a_task_may_have_are_refused() {
        let good = sum("");
        let names = |count: usize| (0..count).map(|number| format!("p/{number}.tar"));
        let files: Vec<[String; 2]> =
            names(UPLOADS_MAX + 1).map(|tar| [format!("{tar}.sha256"), tar]).collect();
        let mut archives: Vec<(&str, &str)> =
            files.iter().flat_map(|[sum, tar]| [(sum.as_str(), good.as_str()), (tar.as_str(), "")]).collect();
        let end = upload(&archives, &[]);
        assert_eq!(end.failure.as_deref(), Some("there are more than 1000 uploads"));
        archives.truncate(2 * UPLOADS_MAX);
        assert_eq!(upload(&archives, &[]), UploadsEnd::default());
    }

    #[test]
    fn a_command_that_fails_hangs_or_is_not_there_says_so() {
        let good = sum("one");
        let archives = [("p/a.tar", "one"), ("p/a.tar.sha256", &*good)];
        let end = upload(&archives, &[("p", "echo no room >&2; exit 3", LONG)]);
        assert_eq!(end.failure.as_deref(), Some("upload p/a failed: exit code 3"));
        assert!(end.output.contains("no room\n") && end.output.ends_with("failed: exit code 3\n"), "{end:?}");
        let end = upload(&archives, &[("p", "sleep 600 & sleep 600", Duration::from_millis(200))]);
        assert_eq!(end.failure.as_deref(), Some("upload p/a failed: it took longer than 200ms"));
        assert_eq!(end.stage.unwrap().exit, StageExit::Signal(15));
    }

    #[test]
    fn all_uploads_of_a_task_together_have_a_limit_of_time_and_of_output() {
        let good = sum("one");
        let names: Vec<String> = (0..6).map(|number| format!("p/{number}.tar")).collect();
        let sums: Vec<String> = names.iter().map(|name| format!("{name}.sha256")).collect();
        let mut archives: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "one")).collect();
        archives.extend(sums.iter().map(|name| (name.as_str(), good.as_str())));
        let end = upload(&archives, &[("p", "head -c 3000000 /dev/zero", LONG)]);
        assert_eq!(end.failure, None);
        assert!((4 << 20..(4 << 20) + 100).contains(&end.output.len()), "{}", end.output.len());

        // The first ends in time, and the second hangs; no command may take longer than all
        // together by default.
        let (short, line) = (Duration::from_secs(3), "test $CREWBOSS_UPLOAD_INSTANCE = 0 || exec sleep 600");
        let end = upload_within(short, &archives, &[("p", line, short)]);
        let expected = "upload p/1 failed: the uploads of this task took longer than 3s together";
        assert_eq!(end.failure.as_deref(), Some(expected));
        // A command that is allowed more has it.
        assert_eq!(upload_within(Duration::ZERO, &archives, &[("p", "true", LONG)]).failure, None);
    }
}

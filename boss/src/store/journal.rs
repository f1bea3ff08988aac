//! The journal `run.jsonl`: appended to, and synced at each batch of results. From it a later boss
//! knows what is done.
//!
//! It ends with a whole record, always: what could not be written whole is cut off again. What a
//! disk or a cut of power has damaged nevertheless is told and taken out; every record that is
//! whole stays.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crewboss_ground::{Open, Replace};
use crewboss_protocol::RunId;

use super::durable::sync_directory;
use super::layout::JOURNAL;
use super::record::{Contents, Damage, JOURNAL_SCHEMA, Record, Recorded, read};
use super::result::TaskKey;

/// What it was before damage was taken out.
const DAMAGED: &str = "run.jsonl.damaged";

/// Damaged places that are told one by one.
const DAMAGES_TOLD: usize = 3;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed.
    #[error("cannot {action} the journal {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Written by a newer crewboss.
    #[error(
        "the journal {} has version {found}, this crewboss reads up to {JOURNAL_SCHEMA}; hint: use the newer crewboss, or another --out",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// What a journal says.
#[derive(Debug, Default)]
pub struct History {
    /// The last result for each key, toolchain and machine.
    pub recorded: HashMap<TaskKey, Vec<Recorded>>,
    /// What a person should know about it, if it is damaged.
    pub damage: Option<String>,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Its length up to the last record that is on the disk. There is nothing behind it, unless
    /// cutting that off failed.
    whole: u64,
    torn: bool,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens the journal of a result directory, takes out what is damaged and gives what is
    /// recorded.
    pub fn open(root: &Path) -> Result<(Self, History), JournalError> {
        let path = root.join(JOURNAL);
        let error = |action| {
            let path = path.clone();
            move |source| JournalError::Io { action, path, source }
        };
        let text = load(&path)?;
        let contents = parse(&text, &path)?;
        let mended = contents.mended(&text);
        // What the end alone has lost is worth nothing; in all other cases the file is kept as it
        // was.
        let cut = text.starts_with(&mended);
        if !cut {
            mend(root, &text, &mended).map_err(error("mend"))?;
        }
        let file = Open::append().path(&path).map_err(io::Error::from).map_err(error("open"))?;
        let whole = mended.len() as u64;
        if cut && mended.len() < text.len() {
            file.set_len(whole).map_err(error("mend"))?;
        }
        sync_directory(root).map_err(error("sync"))?;
        let history = History::new(&path, contents, (!cut).then_some(DAMAGED));
        Ok((Self { path, file, whole, torn: false, buffer: Vec::new() }, history))
    }

    /// What is recorded in a result directory, which may not exist. Nothing is changed.
    pub fn read(root: &Path) -> Result<History, JournalError> {
        let path = root.join(JOURNAL);
        let text = load(&path)?;
        Ok(History::new(&path, parse(&text, &path)?, None))
    }

    /// Notes that a run begins.
    pub fn begin(&mut self, run: &RunId, started_ms: u64) -> Result<(), JournalError> {
        let crewboss = env!("CARGO_PKG_VERSION").to_owned();
        Record::Run { schema: JOURNAL_SCHEMA, run: run.clone(), started_ms, crewboss }
            .write(&mut self.buffer);
        self.sync()
    }

    /// Adds a result, to be written by the next [`Self::sync`].
    pub fn add(&mut self, recorded: Recorded) {
        Record::Result(recorded).write(&mut self.buffer);
    }

    /// Notes that a run ended in order.
    pub fn end(&mut self, run: &RunId, ended_ms: u64) -> Result<(), JournalError> {
        Record::End { run: run.clone(), ended_ms }.write(&mut self.buffer);
        self.sync()
    }

    /// Writes what was added and waits until it is on the disk. After a failure the journal is what
    /// it was before, and what was added is forgotten.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        let added = std::mem::take(&mut self.buffer);
        if self.torn {
            self.cut_back().map_err(self.error("repair"))?;
        }
        let written = self.file.write_all(&added).map_err(self.error("write"));
        let synced = written.and_then(|()| self.file.sync_data().map_err(self.error("sync")));
        match synced {
            Ok(()) => self.whole += added.len() as u64,
            Err(_) => {
                self.torn = true;
                if let Err(error) = self.cut_back() {
                    tracing::warn!(path = %self.path.display(), %error, "could not cut off a torn record");
                }
            }
        }
        synced
    }

    fn cut_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.whole)?;
        self.file.sync_data()?;
        self.torn = false;
        Ok(())
    }

    fn error(&self, action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
        let path = self.path.clone();
        move |source| JournalError::Io { action, path, source }
    }
}

impl History {
    fn new(path: &Path, contents: Contents, kept: Option<&str>) -> Self {
        let damage = (!contents.damages.is_empty()).then(|| tell(path, &contents, kept));
        let mut recorded: HashMap<TaskKey, Vec<Recorded>> = HashMap::new();
        for record in contents.records {
            let Record::Result(result) = record else { continue };
            let known = recorded.entry(result.key).or_default();
            known.retain(|earlier| {
                (&earlier.toolchain, &earlier.machine) != (&result.toolchain, &result.machine)
            });
            known.push(result);
        }
        Self { recorded, damage }
    }
}

/// What is said of damage: where it is, and that it costs nothing else.
fn tell(path: &Path, contents: &Contents, kept: Option<&str>) -> String {
    let damages = &contents.damages;
    let told: Vec<String> = damages.iter().take(DAMAGES_TOLD).map(Damage::to_string).collect();
    let more = match damages.len().saturating_sub(DAMAGES_TOLD) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let kept = kept.map(|name| format!("; as it was it is kept beside it, as {name}")).unwrap_or_default();
    format!(
        "the journal {} is damaged in {}{more}: what was recorded there is built again, its {} whole records count{kept}",
        path.display(),
        told.join(", "),
        contents.records.len(),
    )
}

fn load(path: &Path) -> Result<Vec<u8>, JournalError> {
    let error = |source| JournalError::Io { action: "read", path: path.to_owned(), source };
    let mut text = Vec::new();
    match Open::read().path(path) {
        Ok(mut file) => file.read_to_end(&mut text).map(drop).map_err(error)?,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        Err(wrong) => return Err(error(wrong.into())),
    }
    Ok(text)
}

fn parse(text: &[u8], path: &Path) -> Result<Contents, JournalError> {
    read(text).map_err(|found| JournalError::Newer { path: path.to_owned(), found })
}

/// Puts a journal without damage in the place of the damaged one, which is kept under another name.
fn mend(root: &Path, damaged: &[u8], mended: &[u8]) -> io::Result<()> {
    const MODE: u32 = 0o644;
    Replace::with_mode(MODE).synced().path(&root.join(DAMAGED), damaged)?;
    Ok(Replace::with_mode(MODE).synced().path(&root.join(JOURNAL), mended)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_protocol::{Attempt, Outcome};
    use std::fs;

    fn recorded(key: u8, outcome: Outcome, toolchain: Option<&str>) -> Recorded {
        Recorded {
            key: TaskKey([key; 32]),
            toolchain: toolchain.map(str::to_owned),
            machine: None,
            target: "native".parse().unwrap(),
            commit: "abc1234".into(),
            outcome,
            attempt: Attempt(1),
            host: None,
            wall_ms: 12,
            path: "01_of_01_gabc1234_x/native".into(),
        }
    }

    fn written(lines: &[Recorded]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.begin(&"r1".parse().unwrap(), 1).unwrap();
        for line in lines {
            journal.add(line.clone());
        }
        journal.sync().unwrap();
        dir
    }

    #[test]
    fn the_last_result_of_each_key_and_toolchain_stands() {
        let lines = [
            recorded(1, Outcome::Failure, None),
            recorded(1, Outcome::Success, None),
            recorded(1, Outcome::Warning, Some("gcc 13")),
            recorded(2, Outcome::Timeout, None),
        ];
        let dir = written(&lines);
        let read = Journal::open(dir.path()).unwrap().1.recorded;
        assert_eq!(read[&TaskKey([1; 32])], lines[1..3]);
        assert_eq!(read[&TaskKey([2; 32])], lines[3..]);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_wherever_it_was_torn() {
        let dir = written(&[recorded(1, Outcome::Success, None), recorded(2, Outcome::Success, None)]);
        let path = dir.path().join(JOURNAL);
        let whole = fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        for cut in last..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, history) = Journal::open(dir.path()).unwrap();
            // Without its line break alone, it is whole.
            let known = if cut == whole.len() - 1 { 2 } else { 1 };
            assert_eq!(history.recorded.len(), known, "cut at {cut}");
            assert_eq!(history.damage.is_some(), cut > last && known == 1, "cut at {cut}");
            journal.add(recorded(3, Outcome::Success, None));
            journal.sync().unwrap();
            let (_, history) = Journal::open(dir.path()).unwrap();
            assert_eq!((history.recorded.len(), history.damage), (known + 1, None), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_damaged_is_told_taken_out_and_kept_beside() {
        let dir = written(&[recorded(1, Outcome::Success, None), recorded(2, Outcome::Success, None)]);
        let path = dir.path().join(JOURNAL);
        let mut text = fs::read(&path).unwrap();
        let second = text.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        text[second..second + 20].fill(0);
        fs::write(&path, &text).unwrap();
        let seen = Journal::read(dir.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), text);
        let third = second + text[second..].iter().position(|&byte| byte == b'\n').unwrap();
        let (journal, history) = Journal::open(dir.path()).unwrap();
        assert_eq!(history.recorded.keys().collect::<Vec<_>>(), [&TaskKey([2; 32])]);
        assert_eq!(seen.recorded, history.recorded);
        let told = format!(
            "the journal {} is damaged in line 2 (bytes {second} to {third}): what was recorded there is built again, its \
             2 whole records count",
            path.display()
        );
        assert_eq!(seen.damage.as_deref(), Some(&*told));
        let kept = "; as it was it is kept beside it, as run.jsonl.damaged";
        assert_eq!(history.damage, Some(told + kept));
        assert_eq!(fs::read(dir.path().join(DAMAGED)).unwrap(), text);
        assert_eq!(journal.whole, fs::metadata(&path).unwrap().len());
        assert_eq!(Journal::open(dir.path()).unwrap().1.damage, None);
    }

    #[test]
    fn a_newer_journal_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, text) = (dir.path().join(JOURNAL), "{\"run\":{\"schema\":9,\"new\":true}}\ngarbage\n");
        fs::write(&path, text).unwrap();
        let error = Journal::open(dir.path()).unwrap_err();
        assert!(matches!(error, JournalError::Newer { found: 9, .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    /// A journal on a file that takes no more than so many bytes.
    fn limited(dir: &Path, bytes: u64) -> std::process::Output {
        // The limit is a process's own, so another process is needed; SIGXFSZ is ignored there, and
        // EFBIG is an error like any.
        let test = "store::journal::tests::writes_until_the_limit";
        std::process::Command::new("sh")
            .args(["-c", r#"trap "" XFSZ; exec prlimit --fsize="$0" "$@""#, &bytes.to_string()])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env("CREWBOSS_TEST_JOURNAL", dir)
            .output()
            .unwrap()
    }

    #[test]
    fn a_write_that_fails_leaves_whole_records_and_what_comes_later_is_whole() {
        for bytes in (700..1200).step_by(61) {
            let dir = tempfile::tempdir().unwrap();
            let output = limited(dir.path(), bytes);
            assert!(output.status.success(), "{output:?}");
            let text = fs::read(dir.path().join(JOURNAL)).unwrap();
            assert!(text.ends_with(b"\n") && text.len() as u64 <= bytes, "{bytes}");
            let (_, history) = Journal::open(dir.path()).unwrap();
            assert_eq!(history.damage, None, "{bytes}");
            assert!((1..10).contains(&history.recorded.len()), "{bytes}: {history:?}");
        }
    }

    /// Does nothing unless it is started by [`limited`].
    #[test]
    fn writes_until_the_limit() {
        let Some(dir) = std::env::var_os("CREWBOSS_TEST_JOURNAL") else { return };
        let (mut journal, _) = Journal::open(Path::new(&dir)).unwrap();
        let run = "r1".parse().unwrap();
        journal.begin(&run, 1).unwrap();
        let mut failed = 0;
        for key in 0..10 {
            journal.add(recorded(key, Outcome::Success, None));
            failed += u32::from(journal.sync().is_err());
        }
        assert!(failed > 0);
        // Shorter than a result, it may still fit.
        journal.end(&run, 2).ok();
    }
}

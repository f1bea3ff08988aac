//! The journal `run.jsonl`: append-only, synced at each result. From it a later boss knows what is done.
//!
//! A line is written whole or torn off by a crash; a torn last line is expected and cut away. Any other line that
//! cannot be read is an error: guessing what is done would be worse than asking a person.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crewboss_protocol::{Attempt, HostName, Name, Outcome, RunId};
use serde::{Deserialize, Serialize};

use super::result::{MachineInputs, TaskKey};

/// Version of the journal. A newer one is refused, since it may say things that this build does not know.
const JOURNAL_SCHEMA: u32 = 1;

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
    /// A line in the middle cannot be understood.
    #[error(
        "line {line} of the journal {} cannot be read; hint: move the file away to start anew, results stay where they are",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
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

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// A run begins.
    Run { schema: u32, run: RunId, started_ms: u64, crewboss: String },
    /// A task has its result, and its directory is in place.
    Result(Recorded),
    /// A run ended in order.
    End { run: RunId, ended_ms: u64 },
}

/// A result as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// What was built: tree and target.
    pub key: TaskKey,
    /// With which toolchain version, if the target names a toolchain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
    /// In which machine, if the target runs in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineInputs>,
    /// The target, for readers.
    pub target: Name,
    /// The commit, for readers.
    pub commit: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
    /// Which attempt it was.
    pub attempt: Attempt,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// How long it took.
    pub wall_ms: u64,
    /// The task's directory below the result directory.
    pub path: Arc<str>,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens the journal of a result directory and reads what is recorded: the last result for each key, toolchain and machine.
    pub fn open(root: &Path) -> Result<(Self, HashMap<TaskKey, Vec<Recorded>>), JournalError> {
        let path = root.join("run.jsonl");
        let error = |action| {
            let path = path.clone();
            move |source| JournalError::Io { action, path, source }
        };
        let (text, whole) = load(&path)?;
        let recorded = read(&text[..whole], &path)?;
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(error("open"))?;
        if whole < text.len() {
            tracing::info!(path = %path.display(), "cut off a torn last line");
            file.set_len(whole as u64).map_err(error("repair"))?;
        }
        Ok((Self { path, file, buffer: Vec::new() }, recorded))
    }

    /// What is recorded in a result directory, which may not exist. Nothing is changed.
    pub fn read(root: &Path) -> Result<HashMap<TaskKey, Vec<Recorded>>, JournalError> {
        let path = root.join("run.jsonl");
        let (text, whole) = load(&path)?;
        read(&text[..whole], &path)
    }

    /// Notes that a run begins.
    pub fn begin(&mut self, run: &RunId, started_ms: u64) -> Result<(), JournalError> {
        self.push(&Line::Run {
            schema: JOURNAL_SCHEMA,
            run: run.clone(),
            started_ms,
            crewboss: env!("CARGO_PKG_VERSION").to_owned(),
        });
        self.sync()
    }

    /// Adds a result, to be written by the next [`Self::sync`].
    pub fn add(&mut self, recorded: Recorded) {
        self.push(&Line::Result(recorded));
    }

    /// Notes that a run ended in order.
    pub fn end(&mut self, run: &RunId, ended_ms: u64) -> Result<(), JournalError> {
        self.push(&Line::End { run: run.clone(), ended_ms });
        self.sync()
    }

    /// Writes what was added and waits until it is on the disk.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        let error = |action| {
            let path = self.path.clone();
            move |source| JournalError::Io { action, path, source }
        };
        self.file.write_all(&self.buffer).map_err(error("write"))?;
        self.buffer.clear();
        self.file.sync_data().map_err(error("sync"))
    }

    fn push(&mut self, line: &Line) {
        // Writing to memory cannot fail, and the types have string keys only.
        if serde_json::to_writer(&mut self.buffer, line).is_ok() {
            self.buffer.push(b'\n');
        }
    }
}

/// The file, and how much of it is whole lines.
fn load(path: &Path) -> Result<(Vec<u8>, usize), JournalError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(JournalError::Io { action: "read", path: path.to_owned(), source }),
    };
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    Ok((text, whole))
}

fn read(text: &[u8], path: &Path) -> Result<HashMap<TaskKey, Vec<Recorded>>, JournalError> {
    let mut recorded: HashMap<TaskKey, Vec<Recorded>> = HashMap::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        if let Some(found) = newer_schema(line) {
            return Err(JournalError::Newer { path: path.to_owned(), found });
        }
        let line: Line = serde_json::from_slice(line).map_err(|source| JournalError::Damaged {
            path: path.to_owned(),
            line: index + 1,
            source,
        })?;
        if let Line::Result(result) = line {
            let known = recorded.entry(result.key).or_default();
            known.retain(|earlier| {
                (&earlier.toolchain, &earlier.machine) != (&result.toolchain, &result.machine)
            });
            known.push(result);
        }
    }
    Ok(recorded)
}

/// Looks at the version before anything else of the line has to be understood.
fn newer_schema(line: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Run {
        run: Schema,
    }
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    if !line.starts_with(b"{\"run\"") {
        return None;
    }
    let run: Run = serde_json::from_slice(line).ok()?;
    (run.run.schema > JOURNAL_SCHEMA).then_some(run.run.schema)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (_, read) = Journal::open(dir.path()).unwrap();
        assert_eq!(read[&TaskKey([1; 32])], lines[1..3]);
        assert_eq!(read[&TaskKey([2; 32])], lines[3..]);
    }

    #[test]
    fn a_torn_last_line_is_cut_off_wherever_it_was_torn() {
        let dir = written(&[recorded(1, Outcome::Success, None), recorded(2, Outcome::Success, None)]);
        let path = dir.path().join("run.jsonl");
        let whole = fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        for cut in last..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, read) = Journal::open(dir.path()).unwrap();
            assert_eq!(read.len(), 1, "cut at {cut}");
            journal.add(recorded(3, Outcome::Success, None));
            journal.sync().unwrap();
            assert_eq!(Journal::open(dir.path()).unwrap().1.len(), 2, "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_or_newer_journal_is_refused_and_left_alone() {
        let dir = written(&[recorded(1, Outcome::Success, None)]);
        let path = dir.path().join("run.jsonl");
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"garbage\n");
        fs::write(&path, &text).unwrap();
        let error = Journal::open(dir.path()).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { line: 3, .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), text);

        fs::write(&path, "{\"run\":{\"schema\":9,\"new\":true}}\n").unwrap();
        let error = Journal::open(dir.path()).unwrap_err();
        assert!(matches!(error, JournalError::Newer { found: 9, .. }), "{error}");
    }
}

//! What each runner is at, for whoever asks a host: a small file of each in the directory of its
//! session, whose first line is written over at every phase. That costs a task next to nothing, and
//! nobody is waited for.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crewboss_ground::{Open, age};
use crewboss_protocol::overview::RunningTask;
use crewboss_protocol::{Name, Phase, TaskRef, TreeId};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::owner::{Owner, sessions};
use crate::process::ProcessId;

/// What the files are called, before the number of the runner.
const PREFIX: &str = "doing-";

/// Longer than any line of ours.
const LINE_BYTES_MAX: u64 = 8 << 10;

/// How often a file is read that is being written over.
const LOOKS: u32 = 3;

/// What a runner has been given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct What {
    /// The attempt.
    pub at: TaskRef,
    /// Its target and its commit, unless it is a bootstrap that a person wants.
    pub task: Option<(Name, TreeId)>,
    /// The machine that it is in.
    pub machine: Option<Name>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    runner: ProcessId,
    what: What,
    phase: Phase,
    since: SystemTime,
}

/// A runner's own file.
#[derive(Debug, Default)]
pub struct Doing {
    file: Option<(PathBuf, File)>,
    runner: Option<ProcessId>,
    what: Option<What>,
}

impl Doing {
    /// A runner gets something to do, for this session. Without a file nobody is told, which is no
    /// reason not to do it.
    pub fn begin(&mut self, session: &Path, what: What) {
        if self.file.as_ref().is_none_or(|(known, _)| known != session) {
            let path = session.join(format!("{PREFIX}{}", std::process::id()));
            let file = Open::create().mode(0o600).path(&path);
            self.file = file.ok().map(|file| (session.to_owned(), file));
            self.runner = ProcessId::own();
        }
        self.what = Some(what);
    }

    /// It comes to this phase now.
    pub fn note(&self, phase: &Phase) {
        let (Some(what), Some(runner)) = (self.what.clone(), self.runner.clone()) else { return };
        let line = Line { runner, what, phase: phase.clone(), since: SystemTime::now() };
        if let Ok(text) = serde_json::to_string(&line) {
            self.write(&(text + "\n"));
        }
    }

    /// It has done it.
    pub fn end(&mut self) {
        self.what = None;
        self.write("\n");
    }

    fn write(&self, line: &str) {
        if let Some((_, file)) = &self.file {
            // The disk may be full; whoever looks then sees what was before.
            let _unsaid = file.write_all_at(line.as_bytes(), 0);
        }
    }
}

/// What goes on in all sessions of a work directory whose workers live.
pub fn running(layout: &Layout, now: SystemTime) -> Vec<RunningTask> {
    let mut found = Vec::new();
    for session in sessions(layout) {
        let Ok(Some(owner)) = Owner::load(layout, &session) else { continue };
        if owner.living().is_empty() {
            continue;
        }
        let entries = std::fs::read_dir(layout.session(&session)).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
        let lines = ours.filter_map(|entry| read(&entry.path()));
        found.extend(lines.filter(|line| line.runner.is_alive()).map(|line| shown(line, &owner, now)));
    }
    found.sort_by(|one, other| (&one.run, one.at).cmp(&(&other.run, other.at)));
    found
}

fn read(path: &Path) -> Option<Line> {
    (0..LOOKS).find_map(|_| {
        let mut text = Vec::new();
        Open::read().path(path).ok()?.take(LINE_BYTES_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(text.split(|byte| *byte == b'\n').next()?).ok()
    })
}

fn shown(line: Line, owner: &Owner, now: SystemTime) -> RunningTask {
    let (target, commit) = line.what.task.unzip();
    let long = age(line.since, now).unwrap_or(Duration::ZERO);
    RunningTask {
        boss: owner.boss.clone(),
        run: owner.run.clone(),
        at: line.what.at,
        target,
        commit,
        machine: line.what.machine,
        phase: line.phase,
        for_ms: u64::try_from(long.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::owner_of;

    #[test]
    fn what_runs_and_nothing_else_is_told_with_its_time() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        layout.make().unwrap();
        let own = ProcessId::own().unwrap();
        let owner = owner_of("run.1", &own);
        owner.write(&layout).unwrap();
        let session = layout.session(&owner.session);
        let (target, commit): (Name, _) = ("arm".parse().unwrap(), TreeId([7; 20]));
        let at: TaskRef = "3.1".parse().unwrap();
        let mut doing = Doing::default();
        doing.note(&Phase::Booting);
        let now = || SystemTime::now() + Duration::from_secs(5);
        assert_eq!(running(&layout, now()), []);
        let task = Some((target.clone(), commit));
        doing.begin(&session, What { at, task, machine: None });
        assert_eq!(running(&layout, now()), [], "nothing has begun");
        doing.note(&Phase::Stage("a-stage-with-a-long-name".parse().unwrap()));
        doing.note(&Phase::Stage("b".parse().unwrap()));
        let found = running(&layout, now());
        assert_eq!(found.len(), 1, "{found:?}");
        let one = &found[0];
        assert_eq!((one.at, &one.target, one.commit), (at, &Some(target), Some(commit)));
        assert_eq!(one.phase, Phase::Stage("b".parse().unwrap()));
        assert!((5_000..60_000).contains(&one.for_ms), "{one:?}");
        // Of a runner that is gone, and of a session whose worker is.
        let dead = Line {
            runner: ProcessId { start: own.start + 1, ..own },
            what: What { at, task: None, machine: None },
            phase: Phase::Booting,
            since: SystemTime::now(),
        };
        std::fs::write(session.join("doing-1"), serde_json::to_string(&dead).unwrap()).unwrap();
        std::fs::write(session.join("doing-2"), "half a li").unwrap();
        assert_eq!(running(&layout, now()).len(), 1);
        doing.end();
        assert_eq!(running(&layout, now()), []);
        doing.begin(&session, What { at, task: None, machine: Some("tiny".parse().unwrap()) });
        doing.note(&Phase::Bootstrapping);
        assert_eq!(running(&layout, now()).len(), 1);
        owner_of("run.1", &ProcessId { start: own.start + 1, ..own }).write(&layout).unwrap();
        assert_eq!(running(&layout, now()), []);
    }
}

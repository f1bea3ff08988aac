//! Trying a compiler: does it compile a file, and what version does it say it is?

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crewboss_ground::{Open, program};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

/// What tells one compiler from another, or from itself after an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Where symbolic links lead.
    real: PathBuf,
    size: u64,
    modified: (i64, i64),
}

/// How the trial of a compiler ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Trial {
    /// It works; its version line.
    Works(String),
    /// It does not; what it said.
    Broken(String),
    /// Something came between, so that nobody knows; what. The next probe tries again.
    Disturbed(String),
}

impl Identity {
    pub(super) fn of(compiler: &Path) -> Option<Self> {
        let real = fs::canonicalize(compiler).ok()?;
        let found = fs::metadata(&real).ok()?;
        Some(Self { real, size: found.len(), modified: (found.mtime(), found.mtime_nsec()) })
    }
}

/// A compiler that needs longer for one line hangs, or its disk does.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Longest version line that is told further.
const VERSION_BYTES_MAX: u64 = 1024;

/// What is told of a complaint: its last lines, since the first are often warnings, and no more
/// than so many bytes.
const COMPLAINT_LINES_MAX: usize = 3;
const COMPLAINT_BYTES_MAX: u64 = 400;

/// What compilers say, with other words around it, of a host that is short of something, or of a
/// part of them that was killed.
const DISTURBANCES: [&str; 6] = [
    "No space left on device",
    "quota exceeded",
    "annot allocate memory",
    "out of memory",
    "memory exhausted",
    "signal terminated program",
];

const SOURCE: &str = "int answer(int question)\n{\n\treturn question + 42;\n}\n";

/// Tries one compiler in a directory of its own.
pub(super) fn run(compiler: &Path) -> Trial {
    match compile(compiler).and_then(|()| version(compiler)) {
        Ok(version) => Trial::Works(version),
        Err(trial) => trial,
    }
}

fn untried(error: io::Error) -> Trial {
    Trial::Disturbed(format!("it could not be tried: {error}"))
}

fn compile(compiler: &Path) -> Result<(), Trial> {
    let directory = tempfile::tempdir().map_err(untried)?;
    let source = Open::create_new().path(&directory.path().join("answer.c")).map_err(io::Error::from);
    source.and_then(|mut source| source.write_all(SOURCE.as_bytes())).map_err(untried)?;
    output(compiler, &["-c", "answer.c", "-o", "answer.o"], directory.path())?;
    let object = fs::metadata(directory.path().join("answer.o"));
    let is_there = object.is_ok_and(|found| found.len() > 0);
    if is_there { Ok(()) } else { Err(Trial::Broken("it wrote no object file".to_owned())) }
}

fn version(compiler: &Path) -> Result<String, Trial> {
    let directory = tempfile::tempdir().map_err(untried)?;
    let text = output(compiler, &["--version"], directory.path())?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// What it writes, if it succeeds in time.
fn output(compiler: &Path, arguments: &[&str], directory: &Path) -> Result<String, Trial> {
    let failed = |error: io::Error| Trial::Disturbed(format!("it could not be started: {error}"));
    // A file cannot fill up as a pipe does while nobody reads it.
    let path = directory.join("output");
    let written = Open::create_new().path(&path).map_err(|error| failed(error.into()))?;
    // Of a group of its own, so that a compiler that hangs can be ended with all its parts.
    let mut command = program(compiler);
    command.args(arguments).current_dir(directory).env_clear().env("LANG", "C").env("TMPDIR", directory);
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.stdin(Stdio::null()).stderr(written.try_clone().map_err(failed)?).stdout(written);
    let mut child = command.spawn().map_err(failed)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let in_time = pid.is_some_and(ends_in_time);
    if let Some(pid) = pid.filter(|_| !in_time) {
        // It may have ended this very moment.
        kill_process_group(pid, Signal::KILL).ok();
    }
    let status = child.wait().map_err(failed)?;
    let text = read(&path, status.success() && in_time).map_err(failed)?;
    if !in_time {
        let said = if text.is_empty() { String::new() } else { format!("; it said: {text}") };
        Err(Trial::Disturbed(format!("it did not end within {} s{said}", TIME_MAX.as_secs())))
    } else if status.success() {
        Ok(text)
    } else {
        let why = format!("{status} of `{}`: {text}", arguments.join(" "));
        let disturbed = status.code().is_none() || DISTURBANCES.iter().any(|sign| text.contains(sign));
        Err(if disturbed { Trial::Disturbed(why) } else { Trial::Broken(why) })
    }
}

/// The beginning of what was written, or its last lines.
fn read(path: &Path, beginning: bool) -> io::Result<String> {
    let mut file = Open::read().path(path)?;
    let mut bytes = Vec::new();
    if beginning {
        file.take(VERSION_BYTES_MAX).read_to_end(&mut bytes)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    let surplus = file.metadata()?.len().saturating_sub(COMPLAINT_BYTES_MAX);
    file.seek(SeekFrom::Start(surplus))?;
    file.take(COMPLAINT_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok(lines[lines.len().saturating_sub(COMPLAINT_LINES_MAX)..].join("\n"))
}

fn ends_in_time(pid: Pid) -> bool {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let time = Timespec { tv_sec: TIME_MAX.as_secs().cast_signed(), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&time)) {
            Ok(events) => return events > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

//! Packing objects for the way.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use crewboss_ground::{Pauses, Watched};

use super::error::SourceError;
use super::git::program;
use super::missing::Missing;

/// Up to here libgit2 packs, which is quicker than starting a program. Above, git itself does, if
/// it is installed: it takes the deltas that its own packs have, and libgit2 computes each anew,
/// which for a first push of a repository of 40,000 objects means 15 s in place of 3.
const OWN_PACK_OBJECTS_MAX: usize = 2000;

/// What was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackStats {
    /// Objects.
    pub objects: u64,
    /// Length of the pack in bytes.
    pub bytes: u64,
}

/// Writes a pack to `out`.
pub(super) fn write(
    git_dir: &Path,
    missing: &Missing,
    out: &mut dyn Write,
) -> Result<PackStats, SourceError> {
    let mut out = Counted { out, bytes: 0 };
    let by_git = if missing.len() > OWN_PACK_OBJECTS_MAX { start_git(git_dir) } else { None };
    match by_git {
        Some(git) => pass_on(git, "pack-objects", |stdin| names(missing, stdin), &mut out)?,
        None => with_libgit2(git_dir, missing, &mut out)?,
    }
    Ok(PackStats { objects: missing.len() as u64, bytes: out.bytes })
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.out.write(data)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn with_libgit2(git_dir: &Path, missing: &Missing, out: &mut dyn Write) -> Result<(), SourceError> {
    let repository = super::open(git_dir)?;
    let failed = |source: git2::Error| SourceError::Git { doing: "pack objects", source: source.into() };
    let mut builder = repository.packbuilder().map_err(failed)?;
    for (id, path) in &missing.objects {
        builder.insert_object(*id, Some(path)).map_err(|source| match source.code() {
            git2::ErrorCode::NotFound => SourceError::absent(id.to_string(), path),
            _ => failed(source),
        })?;
    }
    let mut failure = None;
    let packed = builder.foreach(|data| match out.write_all(data) {
        Ok(()) => true,
        Err(error) => {
            failure = Some(error);
            false
        }
    });
    match (failure, packed) {
        (Some(error), _) => Err(SourceError::Write(error)),
        (None, Err(source)) => Err(failed(source)),
        (None, Ok(())) => out.flush().map_err(SourceError::Write),
    }
}

/// `None` if git is not installed.
fn start_git(git_dir: &Path) -> Option<Watched> {
    let mut git = program()?;
    git.arg("--git-dir").arg(git_dir).args(["pack-objects", "--stdout", "--delta-base-offset", "-q"]);
    start(git, "pack-objects")
}

pub(super) fn start(mut git: Command, command: &str) -> Option<Watched> {
    git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Watched::start(&mut git, &format!("git {command}")).ok()
}

/// Feeds a `git`, and passes on what it writes.
pub(super) fn pass_on(
    mut git: Watched,
    command: &'static str,
    feed: impl FnOnce(ChildStdin) + Send,
    out: &mut dyn Write,
) -> Result<(), SourceError> {
    let failed = |said: String| SourceError::Program { command, said };
    let pipes = git.pipes();
    let Some(((stdin, mut stdout), mut stderr)) = pipes.stdin.zip(pipes.stdout).zip(pipes.stderr) else {
        return Err(failed("it has no pipes".to_owned()));
    };
    let mut out = Ours { out, pauses: git.pauses() };
    let passed = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new;
        // git reads all names before it writes anything, but nothing obliges it to.
        thread().spawn_scoped(scope, move || feed(stdin))?;
        let said = thread().spawn_scoped(scope, move || {
            let mut text = Vec::new();
            let _what_came = (&mut stderr).take(4096).read_to_end(&mut text);
            let _rest = io::copy(&mut stderr, &mut io::sink());
            String::from_utf8_lossy(&text).trim().to_owned()
        })?;
        let copied = copy(&mut stdout, &mut out);
        drop(stdout);
        io::Result::Ok((copied, said.join().unwrap_or_default()))
    });
    let (copied, said) = passed.map_err(|error| failed(error.to_string()))?;
    let status = git.wait().map_err(|error| failed(error.to_string()))?;
    copied.map_err(SourceError::Write)?;
    if status.success() {
        return out.flush().map_err(SourceError::Write);
    }
    Err(failed(if said.is_empty() { status.to_string() } else { said }))
}

/// Where git's output goes: a host may take it slowly, and git waits for us meanwhile.
struct Ours<'a> {
    out: &'a mut dyn Write,
    pauses: Pauses,
}

impl Write for Ours<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let _git_waits = self.pauses.begin();
        self.out.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn names(missing: &Missing, stdin: impl Write) {
    let mut stdin = io::BufWriter::with_capacity(64 << 10, stdin);
    for (id, path) in &missing.objects {
        // The path is only a hint for finding similar objects, so one that would break the line may
        // be changed.
        let path = path.replace('\n', " ");
        if writeln!(stdin, "{id} {path}").is_err() {
            return;
        }
    }
    // If git is gone, its exit status tells.
    let _gone = stdin.flush();
}

/// Like `io::copy`, with pieces as large as a frame.
pub(super) fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

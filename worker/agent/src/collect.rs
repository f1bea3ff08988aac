//! Writing artifacts and uploads to the result disk.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crewboss_host::artifacts::{Found, Wanted, find};
use crewboss_host::process::kill_all_descendants;
use crewboss_host::program::command::look_up;
use crewboss_host::program::run::{Stream, program as start};
use crewboss_host::tar::{Attributes, Writer};
use crewboss_host::text::shortened;
use crewboss_protocol::guest::{FromGuest, PROBLEMS_MAX, RESULT_DISK, ResultDocument, TaskDocument};
use crewboss_protocol::limits::TEXT_BYTES_MAX;

use super::error::AgentError;
use super::job::Reporter;
use super::place::Place;
use super::variables;

/// `size` reads headers only; what takes longer hangs.
const SIZE_WITHIN: Duration = Duration::from_secs(60);

/// How a problem begins that the host sees itself in the archive.
const HOST_SEES: &str = "nothing matches";

/// Collects everything. `result` holds what the stages left.
pub(super) fn run(
    reporter: &mut Reporter,
    place: &Place,
    task: &TaskDocument,
    mut result: ResultDocument,
) -> Result<FromGuest, AgentError> {
    let (out, src) = (place.out(), place.src());
    let all = |patterns: &[String], roots: &[&Path]| {
        find(patterns, roots, Wanted::default()).map_err(AgentError::at(&out))
    };
    let mut found = all(&task.artifacts, &[&out, &src])?;
    let mut uploads = all(&["upload/**".to_owned()], &[&out])?;
    let problems = found.problems.drain(..).chain(uploads.problems.drain(..));
    let own = problems.filter(|problem| !problem.starts_with(HOST_SEES));
    result.problems = own.take(PROBLEMS_MAX).map(shortened).collect();
    for (name, file) in uploads.files {
        found.files.entry(name).or_insert(file);
    }
    let bytes = if found.files.is_empty() { 0 } else { archive(place, &found)? };
    if !task.sizes.is_empty() && result.stages.iter().all(|stage| stage.exit.is_success()) {
        match sizes(reporter, place, task) {
            Ok(text) => result.sizes = text,
            Err(why) => result.message = shortened(why),
        }
    }
    Ok(FromGuest::Collected { document: result.to_text(), bytes })
}

/// Writes the archive to the disk. Returns its length.
fn archive(place: &Place, found: &Found) -> Result<u64, AgentError> {
    let disk = place.disk(RESULT_DISK).ok_or(AgentError::NoDisk { serial: RESULT_DISK })?;
    let (file, size) = open(&disk).map_err(AgentError::at(&disk))?;
    let failed = |error: io::Error| match crewboss_host::storage::is_no_space(&error) {
        true => AgentError::ResultDisk { path: disk.clone(), size },
        false => AgentError::at(&disk)(error),
    };
    // Files were found by their real places, so links among them lead to where the content is.
    let real = |path: PathBuf| path.canonicalize().unwrap_or(path);
    let roots = [("out", real(place.out())), ("src", real(place.src()))];
    let mut writer = Writer::new(file);
    for (name, path) in &found.files {
        let root = roots.iter().find(|(_, root)| path.starts_with(root)).map_or("src", |(name, _)| name);
        let mut content = open_file(path).map_err(AgentError::at(path))?;
        let state = content.metadata().map_err(AgentError::at(path))?;
        let time = u64::try_from(state.mtime()).unwrap_or(0);
        let attributes = Attributes { mode: state.mode() & 0o777, time };
        let name = format!("{root}/{name}");
        writer.file(name.as_bytes(), attributes, state.len(), &mut content).map_err(failed)?;
    }
    let (file, length) = writer.finish().map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(length)
}

fn open(disk: &Path) -> io::Result<(File, u64)> {
    let mut file = File::options().write(true).open(disk)?;
    let size = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok((file, size))
}

/// Opens a file, and waits for no FIFO that came into its place.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// What `size` says of the files that the task names. The error is a sentence for a person.
fn sizes(reporter: &mut Reporter, place: &Place, task: &TaskDocument) -> Result<String, String> {
    let (out, src) = (place.out(), place.src());
    let found =
        find(&task.sizes, &[&out, &src], Wanted::default()).map_err(|error| format!("no sizes: {error}"))?;
    let variables = variables::of_task(place, task, &Default::default());
    let prefix = ["CREWBOSS_CROSS", "CROSS_COMPILE"];
    let prefix = prefix.iter().find_map(|name| variables::get(&variables, name)).unwrap_or("");
    let program = look_up(&format!("{prefix}size"), &mut Default::default(), &variables);
    let program = program.filter(|_| !found.files.is_empty());
    let program = program.ok_or("no sizes: the files or the program `size` are not there")?;
    let root = out.canonicalize().unwrap_or(out);
    std::env::set_current_dir(&root).map_err(|error| format!("no sizes: {error}"))?;
    let mut command = start(program);
    variables::set(&mut command, &variables);
    for file in found.files.values() {
        command.arg(file.strip_prefix(&root).map_or(file.clone(), |short| Path::new(".").join(short)));
    }
    let mut text = Vec::new();
    let mut take = |stream, bytes: &[u8]| {
        if stream == Stream::Out && text.len() + bytes.len() <= TEXT_BYTES_MAX {
            text.extend_from_slice(bytes);
        }
        (None, Vec::new())
    };
    if let Err(error) = reporter.run_with(command, task.at, Some(SIZE_WITHIN), &mut take) {
        kill_all_descendants(|_| ());
        return Err(format!("no sizes: {error}"));
    }
    let text = String::from_utf8(text).unwrap_or_default();
    let src = src.canonicalize().unwrap_or(src);
    Ok(text.replace(&format!("{}/", src.display()), "./"))
}

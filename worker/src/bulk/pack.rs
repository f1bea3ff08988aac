//! Receiving git packs.
//!
//! Small packs are indexed here, which saves starting a program; large ones by git, if it is there,
//! which is several times as fast and uses all processors.

use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use crewboss_ground::{end_with_starter, program};
use crewboss_host::storage::free_bytes;
use crewboss_protocol::bulk::BulkErrorKind;
use rustix::process::Signal;

use super::stream::{Frame, Input};
use super::{End, Failure};
use crate::source::Objects;

/// Packs from this size on go through git.
pub(super) const GIT_FROM: usize = 1 << 20;

/// What is kept of git's complaints.
const COMPLAINT_BYTES_MAX: u64 = 4096;

/// The shortest pack: its head and its checksum.
const PACK_BYTES_MIN: usize = 32;

/// Besides the pack itself, space for its index and for the bases of a thin pack. libgit2 writes
/// through a memory mapping, so a full disk would end the process with a signal: it is foreseen
/// instead.
const SPARE_BYTES: u64 = 4 << 20;

/// Receives frames up to their end, and stores them as a pack with its index.
pub(super) fn receive(objects: &Path, input: &mut Input<'_>) -> Result<(), End> {
    let repository = Objects::open(objects).map_err(|error| End::Lost(Failure::from(&error)))?;
    let mut head = Vec::new();
    while head.len() < GIT_FROM {
        match input.frame()? {
            Frame::Data(data) => head.extend_from_slice(data),
            Frame::End => return store_small(&repository, &head).map_err(End::Failed),
            Frame::Broken => return Err(given_up().into()),
        }
    }
    match spawn_git(objects) {
        Ok(git) => with_git(git, &head, input),
        // No git here: then it takes longer.
        Err(_) => with_library(&repository, &head, input),
    }
}

pub(super) fn given_up() -> Failure {
    Failure::new(BulkErrorKind::Objects, "the source was not completed by its sender")
}

fn store_small(objects: &Objects, pack: &[u8]) -> Result<(), Failure> {
    if pack.len() < PACK_BYTES_MIN {
        return Err(pack_failure("it is too short"));
    }
    check_space(objects, pack.len())?;
    let database = objects.database().map_err(|error| Failure::from(&error))?;
    let mut writer = database.packwriter().map_err(|error| library_failure(&error))?;
    writer.write_all(pack).map_err(|error| pack_failure(&error.to_string()))?;
    writer.commit().map_err(|error| library_failure(&error))?;
    Ok(())
}

pub(super) fn check_space(objects: &Objects, bytes: usize) -> Result<(), Failure> {
    let needed = SPARE_BYTES.saturating_add(bytes as u64);
    match free_bytes(objects.path()) {
        Ok(free) if free < needed => {
            let text = format!("cannot store the pack: {free} bytes are free, {needed} are needed");
            Err(Failure::new(BulkErrorKind::NoSpace, text))
        }
        _ => Ok(()),
    }
}

fn with_library(objects: &Objects, head: &[u8], input: &mut Input<'_>) -> Result<(), End> {
    let lost = |error: &git2::Error| End::Lost(library_failure(error));
    let database = objects.database().map_err(|error| End::Lost(Failure::from(&error)))?;
    let mut writer = database.packwriter().map_err(|error| lost(&error))?;
    writer.write_all(head).map_err(|error| End::Lost(pack_failure(&error.to_string())))?;
    loop {
        match input.frame()? {
            Frame::Data(data) => {
                check_space(objects, data.len()).map_err(End::Lost)?;
                writer.write_all(data).map_err(|error| End::Lost(pack_failure(&error.to_string())))?;
            }
            Frame::End => break,
            Frame::Broken => return Err(given_up().into()),
        }
    }
    writer.commit().map_err(|error| End::Failed(library_failure(&error)))?;
    Ok(())
}

pub(super) fn library_failure(error: &git2::Error) -> Failure {
    pack_failure(error.message())
}

fn pack_failure(message: &str) -> Failure {
    let full = ["No space left", "quota exceeded"].iter().any(|text| message.contains(text));
    let kind = if full { BulkErrorKind::NoSpace } else { BulkErrorKind::Objects };
    Failure::new(kind, format!("cannot store the pack: {}", message.trim()))
}

fn spawn_git(objects: &Path) -> io::Result<(Child, ChildStdin)> {
    let mut command = program("git");
    command.arg("--git-dir").arg(objects).args(["index-pack", "--stdin", "--fix-thin"]);
    // Nobody's configuration is to decide how our objects are stored.
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_TRACE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut git = end_with_starter(&mut command, Signal::KILL).spawn()?;
    let stdin = git.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    // As large as it may be; otherwise it is only slower.
    rustix::pipe::fcntl_setpipe_size(&stdin, 1 << 20).ok();
    Ok((git, stdin))
}

fn with_git(
    (mut git, mut stdin): (Child, ChildStdin),
    head: &[u8],
    input: &mut Input<'_>,
) -> Result<(), End> {
    let fed = feed(&mut stdin, head, input);
    // End of input: git ends too, one way or the other.
    drop(stdin);
    let mut complaint = Vec::new();
    if let Some(stderr) = git.stderr.take() {
        // Only for the message; git's exit status decides.
        drop(stderr.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint));
    }
    let status = git.wait();
    let complete = fed?;
    match status {
        Ok(status) if status.success() && complete => Ok(()),
        Ok(status) => {
            let text = format!("git index-pack: {status}: {}", String::from_utf8_lossy(&complaint));
            let failure = match status.signal() {
                // For want of memory, mostly: nothing is wrong with the pack, and another time it
                // may be stored.
                Some(_) => Failure::new(BulkErrorKind::Io, text),
                None => pack_failure(&text),
            };
            // If git gave up early, frames are still coming.
            Err(if complete { End::Failed(failure) } else { End::Lost(failure) })
        }
        Err(error) => Err(End::Lost(Failure::io("cannot wait for git index-pack", &error))),
    }
}

/// Whether all frames were taken, which git may have stopped.
fn feed(git: &mut ChildStdin, head: &[u8], input: &mut Input<'_>) -> Result<bool, End> {
    if git.write_all(head).is_err() {
        return Ok(false);
    }
    loop {
        match input.frame()? {
            Frame::Data(data) if git.write_all(data).is_err() => return Ok(false),
            Frame::Data(_) => {}
            Frame::End => return Ok(true),
            Frame::Broken => return Err(given_up().into()),
        }
    }
}

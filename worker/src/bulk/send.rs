//! Sending logs and artifacts.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crewboss_host::storage::next_data;
use crewboss_protocol::bulk::{BulkAnswer, BulkErrorKind, BulkRequest, HOLE_BYTES_MAX, LogStream};
use crewboss_protocol::limits::{ARTIFACTS_MAX, PATH_BYTES_MAX};
use crewboss_protocol::{RelPath, codec};
use rustix::fs::OFlags;
use serde::Deserialize;

use super::stream::{Input, Output};
use super::{End, Failure};

/// How long a log that does not grow is left alone. Adds to the delay of live output, but nothing
/// else waits for it.
const LOG_PAUSE: Duration = Duration::from_millis(10);

/// Longest line of the list of artifacts: a name, a path of a file, each character escaped to six.
const LIST_LINE_MAX: u64 = 6 * (PATH_BYTES_MAX as u64 + 4096) + 64;

/// A line of `artifacts.list`, which the runner writes.
#[derive(Debug, Deserialize)]
struct Listed {
    path: RelPath,
    file: PathBuf,
}

/// Sends a log from its beginning until the length that the boss announces is sent.
pub(super) fn log(
    attempt: &Path,
    stream: LogStream,
    input: &mut Input<'_>,
    output: &mut Output<'_>,
) -> Result<(), End> {
    let path = attempt.join(match stream {
        LogStream::Log => "log",
        LogStream::Err => "err",
    });
    let what = format!("cannot read {}", path.display());
    let file = open(&path).map_err(|error| Failure::io(&what, &error))?;
    let (mut sent, mut ends) = (0_u64, None);
    loop {
        let limit = ends.map_or(u64::MAX, |ends: u64| ends.saturating_sub(sent));
        if limit == 0 {
            output.end_frames();
            return Ok(());
        }
        let data = match output.frame_from(file.as_fd(), limit)? {
            Ok(data) => data.len(),
            Err(error) => return Err(broken(output, Failure::io(&what, &error))),
        };
        sent += data as u64;
        if data > 0 {
            continue;
        }
        if let Some(ends) = ends {
            // The boss knows the length only after the last byte was written.
            let text = format!("{} ends after {sent} bytes instead of {ends}", path.display());
            return Err(broken(output, Failure::new(BulkErrorKind::Io, text)));
        }
        output.flush()?;
        if let Some(line) = input.line_within(LOG_PAUSE)? {
            ends = Some(log_ends(line)?);
        }
    }
}

fn log_ends(line: &[u8]) -> Result<u64, End> {
    match super::parse(line)? {
        BulkRequest::LogEnds { bytes } => Ok(bytes),
        _ => {
            Err(End::Lost(Failure::new(BulkErrorKind::Protocol, "expected the length of the log being sent")))
        }
    }
}

/// Says in the middle of outgoing data that it ends here; the place in the channel is not lost.
fn broken(output: &mut Output<'_>, failure: Failure) -> End {
    output.break_frames();
    End::Failed(failure)
}

/// Sends all artifacts of an attempt.
pub(super) fn artifacts(attempt: &Path, output: &mut Output<'_>) -> Result<(), End> {
    at_most(ARTIFACTS_MAX, attempt, output)
}

fn at_most(limit: usize, attempt: &Path, output: &mut Output<'_>) -> Result<(), End> {
    let path = attempt.join("artifacts.list");
    let what = format!("cannot read {}", path.display());
    let failed = |error: io::Error| Failure::io(&what, &error);
    let mut list = BufReader::with_capacity(256 << 10, open(&path).map_err(failed)?);
    let mut line = Vec::new();
    let mut sent = 0;
    loop {
        line.clear();
        if io::Read::take(&mut list, LIST_LINE_MAX).read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(());
        }
        if sent == limit {
            let text = format!("more than {limit} artifacts");
            return Err(Failure::new(BulkErrorKind::Protocol, text).into());
        }
        let listed: Listed = serde_json::from_slice(&line)
            .map_err(|error| Failure::new(BulkErrorKind::Name, format!("{}: {error}", path.display())))?;
        artifact(listed, output)?;
        sent += 1;
    }
}

fn artifact(listed: Listed, output: &mut Output<'_>) -> Result<(), End> {
    let what =
        |error: &io::Error| Failure::io(&format!("cannot read artifact {}", listed.file.display()), error);
    let file = open(&listed.file).map_err(|error| what(&error))?;
    let state = file.metadata().map_err(|error| what(&error))?;
    let bytes = state.len();
    output.answer(&BulkAnswer::Artifact { path: listed.path, bytes, mode: state.mode() & 0o777 });
    let hash = content(&file, bytes, output, what)?;
    output.end_frames();
    output.answer(&BulkAnswer::Checksum { blake3: hash.to_hex().to_string() });
    output.relieve()
}

/// Sends the data of a file, and of its holes the lengths. Gives the hash of all that was sent.
fn content(
    file: &File,
    bytes: u64,
    output: &mut Output<'_>,
    what: impl Fn(&io::Error) -> Failure,
) -> Result<blake3::Hash, End> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < bytes {
        let data = match next_data(file, at, bytes) {
            Ok(Some(data)) => data,
            // If it got shorter, there is no hole either; the boss sees it by what it gets.
            Ok(None) if file.metadata().is_ok_and(|state| state.len() < bytes) => break,
            Ok(None) => bytes..bytes,
            Err(error) => return Err(broken(output, what(&error))),
        };
        while at < data.start {
            let hole = (data.start - at).min(HOLE_BYTES_MAX);
            output.hole(hole)?;
            hash_zeros(&mut hasher, hole);
            at += hole;
        }
        while at < data.end {
            match output.frame_from(file.as_fd(), data.end - at)? {
                Ok([]) => return Ok(hasher.finalize()),
                Ok(data) => {
                    hasher.update(data);
                    at += data.len() as u64;
                }
                Err(error) => return Err(broken(output, what(&error))),
            }
        }
    }
    Ok(hasher.finalize())
}

fn hash_zeros(hasher: &mut blake3::Hasher, mut count: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let piece = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
        hasher.update(&ZEROS[..piece]);
        count -= piece as u64;
    }
}

/// Opens a regular file and nothing else: no link is followed, no FIFO waited for.
#[expect(
    clippy::disallowed_methods,
    reason = "what a build has made has the owner and permissions that it chose; links and FIFOs are refused here"
)]
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

// A line with everything that can be in it still is a line.
const _: () =
    assert!(codec::PREFIX.len() + 6 * PATH_BYTES_MAX + 256 < crewboss_protocol::limits::LINE_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_artifacts_as_are_allowed_are_sent_and_no_more() {
        let attempt = tempfile::tempdir().unwrap();
        let line = serde_json::json!({ "path": "x", "file": attempt.path().join("artifacts.list") });
        let sent = |files: usize| {
            std::fs::write(attempt.path().join("artifacts.list"), format!("{line}\n").repeat(files)).unwrap();
            // Less than fits into a pipe.
            let (_reader, writer) = io::pipe().unwrap();
            at_most(3, attempt.path(), &mut Output::new(writer.as_fd()))
        };
        assert!(sent(3).is_ok());
        let Err(End::Failed(failure)) = sent(4) else { panic!("more was sent") };
        assert!(format!("{failure:?}").contains("more than 3 artifacts"), "{failure:?}");
    }
}

//! Bootstrapping a machine: the toolchain's script, and what it has installed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crewboss_host::process::kill_all_descendants;
use crewboss_host::program::command::look_up;
use crewboss_host::program::run::{Stream, program as start};
use crewboss_host::storage::remove_tree;
use crewboss_protocol::guest::{FromGuest, GUEST_TOOLCHAIN};
use crewboss_protocol::harmless::one_line;
use crewboss_protocol::id::{Attempt, TaskId};
use crewboss_protocol::{Name, TaskRef};
use rustix::fs::{Access, access};

use super::error::AgentError;
use super::job::Reporter;
use super::place::Place;
use super::variables;

/// Programs whose versions are of interest whatever the script says.
const PROGRAMS: [&str; 3] = ["cc", "gcc", "make"];

/// Printing a version takes no time; what takes longer hangs.
const VERSION_WITHIN: Duration = Duration::from_secs(20);

/// Versions that a script may report, and the length of one.
const VERSIONS_MAX: usize = 1000;
const VERSION_BYTES_MAX: usize = 200;

/// What is read of the file with them.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Programs are run for an attempt; this is none.
pub(super) const NO_TASK: TaskRef = TaskRef { task: TaskId(0), attempt: Attempt(0) };

/// Runs the script, if there is one, and collects versions. The toolchain's files are gone
/// afterwards.
pub(super) fn run(reporter: &mut Reporter, place: &Place, toolchain: &Name) -> Result<FromGuest, AgentError> {
    let directory = place.at(GUEST_TOOLCHAIN);
    for directory in [place.work(), place.home(), place.tmp()] {
        fs::create_dir_all(&directory).map_err(AgentError::at(&directory))?;
    }
    let report = place.tmp().join("versions");
    match fs::remove_file(&report) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(AgentError::at(&report)(error)),
        _ => {}
    }
    let script = directory.join("bootstrap");
    if script.is_file() {
        run_script(reporter, place, toolchain, &script, &report)?;
    }
    let mut versions = own_versions(reporter, place);
    versions.extend(reported(&report).map_err(AgentError::at(&report))?);
    let _gone = fs::remove_file(&report);
    remove_tree(&directory).map_err(AgentError::at(&directory))?;
    // The copy of the machine is taken from the disk, and the guest may be switched off any way.
    if place.is_system() {
        rustix::fs::sync();
    }
    Ok(FromGuest::Bootstrapped { versions })
}

fn run_script(
    reporter: &mut Reporter,
    place: &Place,
    toolchain: &Name,
    script: &Path,
    report: &Path,
) -> Result<(), AgentError> {
    let directory = script.parent().unwrap_or(script);
    std::env::set_current_dir(directory).map_err(AgentError::at(directory))?;
    // What was copied from elsewhere may have lost its mode.
    let mut command = if access(script, Access::EXEC_OK).is_ok() {
        start(script)
    } else {
        let mut shell = start("/bin/sh");
        shell.args(["-e".as_ref(), script.as_os_str()]);
        shell
    };
    variables::set(&mut command, &variables::common(place));
    command.env("CREWBOSS_VERSIONS", report).env("CREWBOSS_TOOLCHAIN", toolchain.as_str());
    let ended = reporter.run(command, NO_TASK).map_err(|source| {
        kill_all_descendants(|_| ());
        AgentError::Start { program: script.to_owned(), source }
    });
    // The directory is to be removed.
    let _stays = std::env::set_current_dir("/");
    let ended = ended?;
    if ended.unkillable {
        return Err(AgentError::Unkillable { what: "the bootstrap".to_owned() });
    }
    if ended.stopped.is_some() || reporter.is_cancelled() {
        return Err(AgentError::Stopped { what: "the bootstrap" });
    }
    if !ended.exit.is_success() {
        return Err(AgentError::Ended { program: script.to_owned(), exit: ended.exit });
    }
    Ok(())
}

/// Versions of the kernel and of what every build uses.
fn own_versions(reporter: &mut Reporter, place: &Place) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let kernel = rustix::system::uname();
    add(&mut versions, "kernel", &kernel.release().to_string_lossy());
    let variables = variables::common(place);
    for name in PROGRAMS {
        let Some(program) = look_up(name, &mut BTreeMap::new(), &variables) else { continue };
        if let Some(line) = first_line(reporter, program, &variables) {
            add(&mut versions, name, &line);
        }
    }
    versions
}

fn first_line(reporter: &mut Reporter, program: PathBuf, variables: &[(String, String)]) -> Option<String> {
    let mut command = start(program);
    variables::set(&mut command, variables);
    command.arg("--version");
    let mut text = Vec::new();
    let mut take = |stream, bytes: &[u8]| {
        if stream == Stream::Out && text.len() < 4 * VERSION_BYTES_MAX {
            text.extend_from_slice(&bytes[..bytes.len().min(4 * VERSION_BYTES_MAX)]);
        }
        (None, Vec::new())
    };
    let ended = reporter.run_with(command, NO_TASK, Some(VERSION_WITHIN), &mut take);
    if ended.is_err() {
        kill_all_descendants(|_| ());
    }
    ended.ok().filter(|ended| ended.exit.is_success())?;
    String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
}

/// `NAME VERSION` lines that the script wrote.
fn reported(path: &Path) -> io::Result<BTreeMap<String, String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let mut versions = BTreeMap::new();
    for line in String::from_utf8_lossy(&bytes).lines().take(VERSIONS_MAX) {
        let (name, version) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        add(&mut versions, name, version);
    }
    Ok(versions)
}

fn add(versions: &mut BTreeMap<String, String>, name: &str, version: &str) {
    let plain = |text: &str| -> String { one_line(text.trim()).chars().take(VERSION_BYTES_MAX).collect() };
    if !name.is_empty() {
        versions.insert(plain(name), plain(version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_lines_of_a_name_and_the_rest() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("versions");
        assert!(reported(&path).unwrap().is_empty());
        fs::write(&path, "gcc 12.2.0 (Debian)\n\n  make\t4.3 \nbare\nbad \x1b[1m\n").unwrap();
        let expected = [("bad", ""), ("bare", ""), ("gcc", "12.2.0 (Debian)"), ("make", "4.3")];
        let expected = expected.map(|(name, version)| (name.to_owned(), version.to_owned()));
        assert_eq!(reported(&path).unwrap(), BTreeMap::from(expected));
    }
}

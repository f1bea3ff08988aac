//! The command of a stage: which program it is, and why it could not be started.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crewboss_protocol::StageExit;
use crewboss_protocol::target::Command as StageCommand;

use super::run::program as start;

/// Runs the lines of stages.
const SHELL: &str = "/bin/sh";

/// What a shell says when a command is not there.
pub const NOT_FOUND: StageExit = StageExit::Code(127);

/// Why a program was not started, with its name. Of a script without its interpreter the system
/// says that it is not there.
pub fn not_started(command: &StageCommand, error: &io::Error) -> String {
    let program = match command {
        StageCommand::Shell(_) => SHELL,
        StageCommand::Words(words) => words.first().map_or("", String::as_str),
    };
    if error.kind() == io::ErrorKind::NotFound && Path::new(program).exists() {
        return format!("{program} is there, but not the interpreter or loader that it names: {error}");
    }
    format!("{program}: {error}")
}

/// Whether the host, and not the task, is to blame that a program could not be started.
pub fn is_of_the_host(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull
    ) || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The command of a stage, with an absolute program, since looking through `PATH` would take the
/// slow way of starting.
pub fn command(
    command: &StageCommand,
    programs: &mut BTreeMap<String, PathBuf>,
    variables: &[(String, String)],
) -> Result<Command, String> {
    match command {
        StageCommand::Shell(line) => {
            let mut command = start(SHELL);
            command.args(["-e", "-c", line]);
            Ok(command)
        }
        StageCommand::Words(words) => {
            let (program, arguments) = words.split_first().ok_or_else(String::new)?;
            let mut command = start(look_up(program, programs, variables).ok_or_else(|| program.clone())?);
            command.args(arguments);
            Ok(command)
        }
    }
}

/// Looks for a program on the `PATH` of these variables, and keeps in `programs` where it was
/// found.
pub fn look_up(
    program: &str,
    programs: &mut BTreeMap<String, PathBuf>,
    variables: &[(String, String)],
) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program));
    }
    let path =
        variables.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    let key = format!("{path}\0{program}");
    if let Some(known) = programs.get(&key) {
        return Some(known.clone());
    }
    let directories = path.split(':').filter(|directory| directory.starts_with('/'));
    let found = directories
        .map(|directory| Path::new(directory).join(program))
        .find(|file| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())?;
    programs.insert(key, found.clone());
    Some(found)
}

//! The service of an auxiliary machine: a program that says what the task needs to know, and goes
//! on running.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crewboss_host::process::kill_all_descendants;
use crewboss_host::program::run::{Stream, program as start};
use crewboss_protocol::Name;
use crewboss_protocol::guest::FromGuest;
use crewboss_protocol::message::is_variable;

use super::bootstrap::NO_TASK;
use super::error::AgentError;
use super::job::Reporter;
use super::place::Place;
use super::variables;

/// Where a machine has its service.
const SERVICE: &str = "/etc/crewboss/service";

/// What it may say before it is ready.
const GREETING_BYTES_MAX: usize = 256 << 10;
const VARIABLES_MAX: usize = 1000;

/// Starts the service, says its variables once it is ready, and stays until it ends, which is a
/// failure.
pub(super) fn run(reporter: &mut Reporter, place: &Place, name: &Name) -> Result<FromGuest, AgentError> {
    let program: PathBuf = place.at(SERVICE);
    for directory in [place.work(), place.home(), place.tmp()] {
        std::fs::create_dir_all(&directory).map_err(AgentError::at(&directory))?;
    }
    let _stays = std::env::set_current_dir(place.work());
    let mut command = start(&program);
    variables::set(&mut command, &variables::common(place));
    command.env("CREWBOSS_MACHINE", name.as_str());
    let mut greeting = Greeting::default();
    let mut take = |stream, bytes: &[u8]| match stream {
        Stream::Out => greeting.take(bytes),
        Stream::Err => (None, bytes.to_vec()),
    };
    let ended = reporter.run_with(command, NO_TASK, None, &mut take);
    let ended = ended.map_err(|source| {
        kill_all_descendants(|_| ());
        AgentError::Start { program: program.clone(), source }
    })?;
    if ended.stopped.is_some() || reporter.is_cancelled() {
        return Err(AgentError::Stopped { what: "the service" });
    }
    Err(AgentError::Ended { program, exit: ended.exit })
}

/// What the service says before it is ready. Whatever is no variable is output, as is all that
/// comes later.
#[derive(Debug, Default)]
struct Greeting {
    pending: Vec<u8>,
    seen: usize,
    variables: BTreeMap<String, String>,
    ready: bool,
}

impl Greeting {
    fn take(&mut self, bytes: &[u8]) -> (Option<FromGuest>, Vec<u8>) {
        if self.ready {
            return (None, bytes.to_vec());
        }
        self.pending.extend_from_slice(bytes);
        self.seen += bytes.len();
        let mut output = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if text == "ready" {
                self.ready = true;
                output.append(&mut self.pending);
                let variables = std::mem::take(&mut self.variables);
                return (Some(FromGuest::Environment { variables }), output);
            }
            match text.split_once('=').filter(|(name, value)| is_variable(name) && !value.contains('\0')) {
                Some((name, value)) if self.variables.len() < VARIABLES_MAX => {
                    self.variables.insert(name.to_owned(), value.to_owned());
                }
                _ => output.extend_from_slice(&line),
            }
        }
        if self.seen > GREETING_BYTES_MAX {
            // It will never be ready, which the host notices; what it says is output.
            self.ready = true;
            output.append(&mut self.pending);
        }
        (None, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_end_with_ready_and_the_rest_is_output() {
        let mut greeting = Greeting::default();
        assert_eq!(greeting.take(b"URL=http://a/?x=1\nstarting\nPO"), (None, b"starting\n".to_vec()));
        let (message, output) = greeting.take(b"RT=80\r\n1x=2\nready\nrequest\n");
        let variables = [("PORT", "80"), ("URL", "http://a/?x=1")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(message, Some(FromGuest::Environment { variables: BTreeMap::from(variables) }));
        assert_eq!(output, b"1x=2\nrequest\n");
        assert_eq!(greeting.take(b"A=b\nready\n"), (None, b"A=b\nready\n".to_vec()));
    }

    #[test]
    fn a_greeting_without_end_becomes_output() {
        let mut greeting = Greeting::default();
        let piece = [b'x'; 64 << 10];
        let passed: usize = (0..6).map(|_| greeting.take(&piece).1.len()).sum();
        assert_eq!(passed, 6 * piece.len());
    }
}

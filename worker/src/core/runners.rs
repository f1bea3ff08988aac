//! The runners, as the worker proper sees them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use crewboss_ground::program;
use crewboss_host::marked;
use crewboss_host::process::ProcessId;
use crewboss_machine::life::job::BootstrapJob;
use crewboss_protocol::SessionId;

use crate::runner::message::{Job, Spec, ToRunner};

/// What is read from a runner at once.
const READ_BYTES: usize = 64 << 10;

/// A runner is idle when it is given a job, and reads at once. One that does not stands still, and
/// the worker proper must not do so with it.
const WRITE_WITHIN: Duration = Duration::from_secs(1);

/// One runner that lives.
#[derive(Debug)]
pub struct Runner {
    child: Child,
    id: Option<ProcessId>,
    socket: File,
    input: Vec<u8>,
    defined: BTreeSet<u32>,
}

impl Runner {
    /// Starts one. Must be called from a thread that lasts.
    ///
    /// # Errors
    /// If no process can be started.
    pub fn start(session: &SessionId) -> io::Result<Self> {
        let (own, theirs) = UnixStream::pair()?;
        own.set_write_timeout(Some(WRITE_WITHIN))?;
        let mut command = program("/proc/self/exe");
        command
            .args(["runner", marked::OPTION, session.as_str()])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null());
        let child = command.spawn()?;
        let id = ProcessId::of(child.id());
        let socket = File::from(OwnedFd::from(own));
        Ok(Self { child, id, socket, input: Vec::new(), defined: BTreeSet::new() })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The descriptor, to be polled.
    pub fn fd(&self) -> &File {
        &self.socket
    }

    /// Gives it a job, and the target if it does not know it yet. The runner must be idle, so this
    /// does not wait long.
    ///
    /// # Errors
    /// If it is gone, or stands still.
    pub fn run(&mut self, job: Job, spec: impl FnOnce() -> Spec) -> io::Result<()> {
        let mut lines = Vec::new();
        let number = job.target;
        if self.defined.insert(number) {
            write_line(&mut lines, &ToRunner::Define { number, spec: Box::new(spec()) })?;
        }
        write_line(&mut lines, &ToRunner::Run(Box::new(job)))?;
        self.socket.write_all(&lines)
    }

    /// Gives it a bootstrap. The runner must be idle, so this does not wait long.
    ///
    /// # Errors
    /// If it is gone, or stands still.
    pub fn bootstrap(&mut self, job: BootstrapJob) -> io::Result<()> {
        let mut line = Vec::new();
        write_line(&mut line, &ToRunner::Bootstrap(Box::new(job)))?;
        self.socket.write_all(&line)
    }

    /// Asks it to stop its job. If it is gone that shows elsewhere.
    pub fn cancel(&mut self, at: crewboss_protocol::TaskRef) {
        let mut line = Vec::new();
        let _gone =
            write_line(&mut line, &ToRunner::Cancel { at }).and_then(|()| self.socket.write_all(&line));
    }

    /// Reads once, and hands out each whole line with its newline. Returns false once the runner is
    /// gone.
    pub fn read(&mut self, mut line: impl FnMut(&[u8])) -> bool {
        let start = self.input.len();
        self.input.resize(start + READ_BYTES, 0);
        let read = self.socket.read(&mut self.input[start..]);
        let len = *read.as_ref().unwrap_or(&0);
        self.input.truncate(start + len);
        let mut from = 0;
        let mut look = start;
        while let Some(end) = self.input[look..].iter().position(|byte| *byte == b'\n') {
            let next = look + end + 1;
            line(&self.input[from..next]);
            (from, look) = (next, next);
        }
        self.input.drain(..from);
        match read {
            Ok(len) => len > 0,
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        }
    }

    /// Ends it, if it has not ended, and reaps it. Returns who it was.
    pub fn end(mut self) -> Option<ProcessId> {
        // It may be gone already.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        self.id
    }
}

fn write_line(buffer: &mut Vec<u8>, message: &ToRunner) -> io::Result<()> {
    serde_json::to_writer(&mut *buffer, message)?;
    buffer.push(b'\n');
    Ok(())
}

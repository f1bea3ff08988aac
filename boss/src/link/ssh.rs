//! One ssh connection: a master of our own making, and channels over it.
//!
//! The master is started here and not by the `openssh` crate for two reasons: it gets a session of
//! its own, so that Ctrl-C in the terminal reaches neither it nor the `ssh` of a jump host before
//! the boss has told its workers, and what ssh wrote stays whole, to be turned into an error that
//! helps.

use std::fs;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crewboss_ground::{Open, program};
use crewboss_protocol::HostName;
use openssh::Session;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::time::timeout;

use super::channel::{ChildGroup, Exit, ExitWatch};
use super::error::{LinkError, SshFailure, excerpt};
use super::quote;
use super::ssh_config::Written;

/// A master that no channel uses ends after this long. It is what keeps the master of a killed boss
/// from staying.
const IDLE_SECONDS: u32 = 10;

/// ssh's own limit covers the TCP connection and the greeting, not a login that hangs. This is
/// added for the rest.
const LOGIN_GRACE: Duration = Duration::from_secs(5);

/// How long a master may take to say that it lives.
const ALIVE_WITHIN: Duration = Duration::from_secs(5);

/// A master answers over a local socket at once; longer means that it hangs, and is left to its
/// idle limit.
const EXIT_WITHIN: Duration = Duration::from_millis(200);

/// One connection.
#[derive(Debug)]
pub(super) struct Master {
    session: Arc<Session>,
    control: PathBuf,
    /// Its process, to be ended when it does not answer any more.
    process: Option<OwnedFd>,
}

/// What a connection is made of.
pub(super) struct Login<'a> {
    pub(super) host: &'a HostName,
    pub(super) destination: &'a str,
    /// The generated configuration.
    pub(super) config: &'a Written,
    /// Where the socket will be; the log stands beside it.
    pub(super) control: PathBuf,
    pub(super) limit: Duration,
}

impl Login<'_> {
    fn failed(&self, why: SshFailure, text: String) -> LinkError {
        LinkError::Ssh { host: self.host.clone(), destination: self.destination.to_owned(), why, text }
    }

    /// The log of a login is short, but a host may send a banner of any length.
    fn read_log(&self, path: &Path) -> String {
        const BYTES_MAX: u64 = 64 << 10;
        let mut bytes = Vec::new();
        let _as_far_as_it_can_be_read =
            Open::read().path(path).map_err(io::Error::from).and_then(|mut file| {
                let length = file.metadata()?.len();
                file.seek(io::SeekFrom::Start(length.saturating_sub(BYTES_MAX)))?;
                file.take(BYTES_MAX).read_to_end(&mut bytes)
            });
        self.config.in_words_of_the_crew(&String::from_utf8_lossy(&bytes))
    }

    /// Logs in. Returns once the host has accepted us.
    pub(super) async fn connect(self) -> Result<Master, LinkError> {
        check_destination(self.host, self.destination)?;
        let log = self.control.with_extension("log");
        let mut ssh = Command::from(program("ssh"));
        ssh.arg("-F").arg(self.config.path()).arg("-E").arg(&log).arg("-S").arg(&self.control);
        ssh.args(["-M", "-f", "-N", "-T", "-o", &format!("ControlPersist={IDLE_SECONDS}")]);
        ssh.arg("--").arg(self.destination);
        ssh.stdin(Stdio::null()).stdout(Stdio::null());
        // ssh's own words go to the log by `-E`; this is for those of a ProxyCommand.
        let words = Open::append().mode(0o600).path(&log);
        ssh.stderr(words.map_or_else(|_| Stdio::null(), Stdio::from));
        // The first process ends with the login; the master has left it and made a session of its
        // own by then.
        let mut child = ssh.kill_on_drop(true).spawn().map_err(|source| LinkError::Start {
            host: self.host.clone(),
            program: "ssh".to_owned(),
            source,
        })?;
        let mut login = Unfinished(ChildGroup::of(&child));
        let ended = async {
            login.end().await;
            child.wait().await
        };
        let Ok(ended) = timeout(self.limit + LOGIN_GRACE, ended).await else {
            return Err(self.failed(SshFailure::Timeout, excerpt(&self.read_log(&log))));
        };
        match ended {
            Ok(status) if status.success() => Ok(Master {
                session: Arc::new(Session::resume_mux(self.control.clone().into(), None)),
                process: process(&self.control),
                control: self.control,
            }),
            _ => {
                let text = self.read_log(&log);
                Err(self.failed(SshFailure::read(&text), excerpt(&text)))
            }
        }
    }
}

/// The process of a login, with what it has started: commands of `Match exec` and `ProxyCommand`.
/// Dropped, all of it is killed. After a good login the group holds what the connection goes
/// through, and is the master's.
struct Unfinished(Option<ChildGroup>);

impl Unfinished {
    /// Waits for the end of the login, and lets go of one that has ended well.
    async fn end(&mut self) {
        if let Some(group) = &self.0 {
            group.ended().await;
            if !group.is_good() {
                group.kill();
            }
            self.0 = None;
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            group.kill();
        }
    }
}

fn check_destination(host: &HostName, destination: &str) -> Result<(), LinkError> {
    let bad =
        destination.is_empty() || destination.starts_with('-') || destination.chars().any(char::is_control);
    if bad {
        return Err(LinkError::Destination { host: host.clone(), destination: destination.to_owned() });
    }
    Ok(())
}

impl Master {
    /// Runs a script of POSIX shell on the host, whatever the login shell there is.
    pub(super) async fn open(
        &self,
        host: &HostName,
        script: &str,
        [stdin, stdout, stderr]: [OwnedFd; 3],
    ) -> Result<ExitWatch, LinkError> {
        let command = format!("exec sh -c {}", quote(script));
        let child = self
            .session
            .clone()
            .arc_raw_command(command)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .await
            .map_err(|error| channel_error(host, &error))?;
        Ok(ExitWatch::remote(async move { exit(child.wait().await) }))
    }

    /// Whether the connection stands, as far as ssh knows.
    pub(super) async fn is_alive(&self) -> bool {
        timeout(ALIVE_WITHIN, self.session.check()).await.is_ok_and(|checked| checked.is_ok())
    }

    /// Ends the master and with it every channel.
    pub(super) fn close(&self) {
        if ask_to_exit(&self.control).is_err()
            && let Some(process) = &self.process
        {
            // One that was stopped would stay, and with it what it stands for on the host.
            let _gone_already = pidfd_send_signal(process, Signal::KILL);
        }
        for file in [self.control.clone(), self.control.with_extension("log")] {
            let _gone_already = fs::remove_file(file);
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.close();
    }
}

/// Asks the master behind a socket to end, and with it every channel. It does not wait for a host.
pub(super) fn hang_up(control: &Path) {
    // If it fails, the master is gone already, or it will go when it has been idle.
    let _left = ask_to_exit(control);
}

/// The process of the master behind a socket, which has left the one that was started.
fn process(control: &Path) -> Option<OwnedFd> {
    const ALIVE: [u32; 3] = [8, 0x1000_0004, 0];
    /// Length, kind, request, process.
    const ANSWER_BYTES: usize = 16;
    let mut socket = speak(control, ALIVE).ok()?;
    let mut answer = [0; ANSWER_BYTES];
    socket.read_exact(&mut answer).ok()?;
    let number = u32::from_be_bytes([answer[12], answer[13], answer[14], answer[15]]);
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// What `ssh -O exit` does, without a process for it: OpenSSH's PROTOCOL.mux, version 4.
fn ask_to_exit(control: &Path) -> io::Result<()> {
    const TERMINATE: [u32; 3] = [8, 0x1000_0005, 0];
    let mut socket = speak(control, TERMINATE)?;
    // Its consent is as long as our request. Whoever hangs up before may not be heard.
    socket.read_exact(&mut [0; size_of::<[u32; 3]>()])
}

/// Says hello and something more, and hears hello.
fn speak(control: &Path, request: [u32; 3]) -> io::Result<UnixStream> {
    const HELLO: [u32; 3] = [8, 0x0000_0001, 4];
    let mut socket = UnixStream::connect(control)?;
    socket.set_read_timeout(Some(EXIT_WITHIN))?;
    socket.set_write_timeout(Some(EXIT_WITHIN))?;
    let words: Vec<u8> = HELLO.into_iter().chain(request).flat_map(u32::to_be_bytes).collect();
    socket.write_all(&words)?;
    socket.read_exact(&mut [0; size_of::<[u32; 3]>()])?;
    Ok(socket)
}

fn channel_error(host: &HostName, error: &openssh::Error) -> LinkError {
    match error {
        openssh::Error::Disconnected => LinkError::Lost { host: host.clone() },
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(error) = source {
                text = error.to_string();
                source = error.source();
            }
            LinkError::Channel { host: host.clone(), text }
        }
    }
}

fn exit(ended: Result<std::process::ExitStatus, openssh::Error>) -> Exit {
    match ended {
        Ok(status) => status.code().map_or(Exit::Unknown, Exit::Code),
        // The crate takes 127 out of the codes.
        Err(openssh::Error::Remote(_)) => Exit::Code(127),
        Err(_) => Exit::Unknown,
    }
}

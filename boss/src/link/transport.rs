//! Connections to hosts, over whatever transport.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crewboss_ground::{end_with_starter, home, program};
use crewboss_protocol::HostName;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::channel::{Channel, ChildGroup, Exit, ExitWatch, Pipes};
use super::error::LinkError;
use super::private::Private;
use super::ssh::{Login, Master};
use super::ssh_config;
use crate::crew::{Host, Ssh, Timing, Transport};

/// Logins at the same time. sshd refuses at random from 10 unfinished ones (`MaxStartups`), and all
/// hosts of a crew may be behind one jump host.
pub const LOGINS_AT_ONCE: usize = 8;

/// Tries at a host that hangs up during login.
const TRIES: u32 = 3;

/// Mean pause before another try; doubled each time, and spread over half to one and a half.
const PAUSE: Duration = Duration::from_millis(400);

/// Connects a run to its hosts. Clones share the limits.
#[derive(Debug, Clone)]
pub struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ssh_config::Written,
    login_limit: Duration,
    timing: Timing,
    logins: Semaphore,
    next: AtomicU32,
    directory: Private,
}

impl Connector {
    /// Makes the private directory of a run and writes the configuration for `ssh` into it. Removed
    /// when the connector and all its links are dropped. Directories that killed bosses left behind
    /// are removed here.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn new(ssh: &Ssh, timing: &Timing) -> Result<Self, LinkError> {
        let failed = |(path, source)| LinkError::Directory { path, source };
        let directory = Private::new().map_err(failed)?;
        let config = ssh_config::write(directory.path(), ssh, timing)
            .map_err(|error| failed((directory.path().to_owned(), error.into())))?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                login_limit: ssh.connect_timeout,
                timing: *timing,
                logins: Semaphore::new(LOGINS_AT_ONCE),
                next: AtomicU32::new(0),
                directory,
            }),
        })
    }

    /// Connects to a host. Waits for its turn if many do so at once, and tries again if the host
    /// hangs up.
    ///
    /// # Errors
    /// If the host cannot be reached, with what `ssh` said. A local host and a command cannot fail
    /// here.
    pub async fn connect(&self, host: &Host) -> Result<Link, LinkError> {
        let carrier = match &host.transport {
            Transport::Local => Carrier::Child(Vec::new()),
            Transport::Command(words) => Carrier::Child(words.clone()),
            Transport::Ssh(destination) => Carrier::Ssh(Box::new(Connections {
                first: self.log_in(&host.name, destination).await?,
                further: Mutex::new(Vec::new()),
                destination: destination.clone(),
            })),
        };
        let inner = Inner { host: host.name.clone(), carrier, run: self.clone() };
        Ok(Link { inner: Arc::new(inner) })
    }

    async fn log_in(&self, host: &HostName, destination: &str) -> Result<Master, LinkError> {
        let mut pause = PAUSE;
        let mut tries = 1;
        loop {
            let error = match self.log_in_once(host, destination).await {
                Err(error) if tries < TRIES && error.is_passing() => error,
                end => return end,
            };
            tracing::debug!(%host, tries, %error, "login failed, trying again");
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause *= 2;
            tries += 1;
        }
    }

    async fn log_in_once(&self, host: &HostName, destination: &str) -> Result<Master, LinkError> {
        let shared = &self.shared;
        // The permit is held for one try, not for the pauses between, so a bad host delays nobody.
        let _turn = shared.logins.acquire().await;
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let login = Login {
            host,
            destination,
            config: &shared.config,
            control: shared.directory.path().join(format!("m{number}")),
            limit: shared.login_limit,
        };
        login.connect().await
    }
}

/// A connection to a host. Clones are the same connection.
#[derive(Debug, Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: HostName,
    carrier: Carrier,
    run: Connector,
}

#[derive(Debug)]
enum Carrier {
    Ssh(Box<Connections>),
    /// Each channel is a child process: these words, and a shell with the script.
    Child(Vec<String>),
}

/// The connections to one host: one for all channels, and further ones for the channels that the
/// host refuses on that.
#[derive(Debug)]
struct Connections {
    first: Master,
    further: Mutex<Vec<Arc<Master>>>,
    destination: String,
}

impl Connections {
    fn further(&self) -> MutexGuard<'_, Vec<Arc<Master>>> {
        self.further.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Which host.
    pub fn host(&self) -> &HostName {
        &self.inner.host
    }

    /// The limits that hold for it.
    pub(super) fn timing(&self) -> &Timing {
        &self.inner.run.shared.timing
    }

    /// Runs a script of POSIX shell there. It must be one line.
    ///
    /// # Errors
    /// If the connection has ended, takes no further channel, or the command cannot be started.
    pub async fn open(&self, script: &str) -> Result<Channel, LinkError> {
        debug_assert!(!script.contains('\n'), "not every login shell can be given a newline");
        match &self.inner.carrier {
            Carrier::Ssh(ssh) => self.open_over(ssh, script).await,
            Carrier::Child(words) => {
                let Pipes { near, far } = self.pipes()?;
                self.channel(near, spawn(self.host(), words, script, far)?)
            }
        }
    }

    /// sshd may allow one session on a connection, or a person's own may take all that it allows.
    async fn open_over(&self, ssh: &Connections, script: &str) -> Result<Channel, LinkError> {
        match self.open_on(&ssh.first, script).await {
            Err(refused) if refused.is_refusal() => {}
            end => return end,
        }
        let further = ssh.further().clone();
        for master in further {
            match self.open_on(&master, script).await {
                Err(refused) if refused.is_refusal() => {}
                // It was idle for too long.
                Err(_) => ssh.further().retain(|other| !Arc::ptr_eq(other, &master)),
                channel => return channel,
            }
        }
        let master = Arc::new(self.inner.run.log_in(self.host(), &ssh.destination).await?);
        let channel = self.open_on(&master, script).await?;
        ssh.further().push(master);
        Ok(channel)
    }

    async fn open_on(&self, master: &Master, script: &str) -> Result<Channel, LinkError> {
        let Pipes { near, far } = self.pipes()?;
        let within = self.inner.run.shared.login_limit;
        let opened = timeout(within, master.open(self.host(), script, far)).await;
        let text = || {
            format!(
                "it was not opened within {} s (`connect_timeout` in [ssh] of crew.toml)",
                within.as_secs()
            )
        };
        let exit =
            opened.unwrap_or_else(|_| Err(LinkError::Channel { host: self.host().clone(), text: text() }))?;
        self.channel(near, exit)
    }

    fn pipes(&self) -> Result<Pipes, LinkError> {
        Pipes::new().map_err(|source| LinkError::Pipe { host: self.host().clone(), source })
    }

    fn channel(&self, near: [OwnedFd; 3], exit: ExitWatch) -> Result<Channel, LinkError> {
        Channel::new(near, exit).map_err(|source| LinkError::Pipe { host: self.host().clone(), source })
    }

    /// Whether the connection stands, as far as can be known at once. A silent host counts as alive
    /// until keep-alive finds out.
    pub async fn is_alive(&self) -> bool {
        match &self.inner.carrier {
            Carrier::Ssh(ssh) => ssh.first.is_alive().await,
            Carrier::Child(_) => true,
        }
    }

    /// Ends the connection with all its channels, also for other clones.
    pub fn close(self) {
        if let Carrier::Ssh(ssh) = &self.inner.carrier {
            ssh.first.close();
            ssh.further().drain(..).for_each(|master| master.close());
        }
    }
}

fn spawn(
    host: &HostName,
    words: &[String],
    script: &str,
    [stdin, stdout, stderr]: [OwnedFd; 3],
) -> Result<ExitWatch, LinkError> {
    let mut argv = words.iter().map(String::as_str).chain(["sh", "-c", script]);
    let name = argv.next().unwrap_or("sh");
    // Of a session of its own, so that Ctrl-C in the terminal does not reach it before the boss has
    // said so.
    let mut command = program(name);
    if words.is_empty() {
        // A login would have set these.
        home().map(|home| command.env("HOME", home));
        if std::env::var_os("XDG_CACHE_HOME").is_some_and(|named| !Path::new(&named).is_absolute()) {
            command.env_remove("XDG_CACHE_HOME");
        }
    } else {
        // It may never look whether its input has ended. A worker that is started here does.
        end_with_starter(&mut command, Signal::TERM);
    }
    let mut command = Command::from(command);
    command.args(argv).stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    let failed = |source| LinkError::Start { host: host.clone(), program: name.to_owned(), source };
    let mut child = command.spawn().map_err(failed)?;
    let (ours, theirs) = (ChildGroup::of(&child), ChildGroup::of(&child));
    let wait = async move {
        if let Some(group) = theirs {
            group.ended().await;
            // What a command leaves behind, such as a tunnel, ends with it.
            group.end();
        }
        match child.wait().await {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Err(_) => Exit::Unknown,
        }
    };
    Ok(ExitWatch::child(wait, ours))
}

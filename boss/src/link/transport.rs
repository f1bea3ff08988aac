//! Connections to hosts, over whatever transport.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crewboss_protocol::HostName;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::channel::{Channel, Exit, ExitWatch, Pipes};
use super::error::LinkError;
use super::ssh::{Login, Master, hang_up};
use super::ssh_config;
use crate::crew::{Host, Ssh, Timing, Transport};

/// Logins at the same time. sshd refuses at random from 10 unfinished ones (`MaxStartups`), and all hosts of a crew
/// may be behind one jump host.
pub const LOGINS_AT_ONCE: usize = 8;

/// Tries at a host that hangs up during login.
const TRIES: u32 = 3;

/// Mean pause before another try; doubled each time, and spread over half to one and a half.
const PAUSE: Duration = Duration::from_millis(400);

/// Longest path of a Unix socket, less what ssh appends while it makes it.
const SOCKET_PATH_MAX: usize = 108 - 17 - 1;

/// Begins the name of the directory that one run has for its sockets.
const DIRECTORY_PREFIX: &str = "crewboss-";

/// In that directory: locked as long as its boss lives.
const LOCK: &str = "lock";

/// Its name until it is locked: what is called [`LOCK`] and is not locked belongs to nobody.
const NEW_LOCK: &str = "lock.new";

/// A directory whose lock still has that name after this much time is one that its boss was killed in making.
const MAKING_MAX: Duration = Duration::from_secs(300);

/// Connects a run to its hosts. Clones share the limits.
#[derive(Debug, Clone)]
pub struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: PathBuf,
    login_limit: Duration,
    logins: Semaphore,
    next: AtomicU32,
    directory: TempDir,
    _lock: File,
}

impl Connector {
    /// Makes the private directory of a run and writes the configuration for `ssh` into it. Removed when the connector
    /// and all its links are dropped. Directories that killed bosses left behind are removed here.
    ///
    /// # Errors
    /// If there is no place for it, or the crew's ssh configuration cannot be read.
    pub fn new(ssh: &Ssh, timing: &Timing) -> Result<Self, LinkError> {
        if let Some(path) = &ssh.config {
            File::open(path).map_err(|source| LinkError::ConfigFile { path: path.clone(), source })?;
        }
        let ssh = Ssh { config: ssh.config.as_ref().map(absolute), ..ssh.clone() };
        let place = place();
        let failed = |source| LinkError::Directory { path: place.clone(), source };
        sweep(&place);
        let (directory, lock) = private_directory(&place).map_err(failed)?;
        DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner).push(directory.path().to_owned());
        let config = directory.path().join("ssh_config");
        let home = std::env::home_dir();
        fs::write(&config, ssh_config::text(&ssh, timing, home.as_deref())).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                login_limit: ssh.connect_timeout,
                logins: Semaphore::new(LOGINS_AT_ONCE),
                next: AtomicU32::new(0),
                directory,
                _lock: lock,
            }),
        })
    }

    /// Connects to a host. Waits for its turn if many do so at once, and tries again if the host hangs up.
    ///
    /// # Errors
    /// If the host cannot be reached, with what `ssh` said. A local host and a command cannot fail here.
    pub async fn connect(&self, host: &Host) -> Result<Link, LinkError> {
        let carrier = match &host.transport {
            Transport::Local => Carrier::Child(Vec::new()),
            Transport::Command(words) => Carrier::Child(words.clone()),
            Transport::Ssh(destination) => Carrier::Ssh(self.log_in(&host.name, destination).await?),
        };
        let inner = Inner { host: host.name.clone(), carrier, _run: self.shared.clone() };
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

fn absolute(path: &PathBuf) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.clone())
}

/// Where sockets go: the user's runtime directory if its name is short enough for a socket, else `/tmp`.
fn place() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let longest = DIRECTORY_PREFIX.len() + "/XXXXXX/m4294967295".len();
    let usable = |path: &PathBuf| {
        path.is_absolute()
            && path.as_os_str().len() + longest <= SOCKET_PATH_MAX
            && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
    };
    runtime.filter(usable).unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// A directory of our own that is locked as soon as others can take it for one that may be removed.
fn private_directory(place: &Path) -> std::io::Result<(TempDir, File)> {
    let directory = tempfile::Builder::new()
        .prefix(DIRECTORY_PREFIX)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(place)?;
    let new = directory.path().join(NEW_LOCK);
    let lock = File::create(&new)?;
    lock.lock()?;
    fs::rename(&new, directory.path().join(LOCK))?;
    Ok((directory, lock))
}

/// Removes what bosses left that were killed. The lock tells: a living boss holds it.
fn sweep(place: &Path) {
    let me = rustix::process::getuid().as_raw();
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(DIRECTORY_PREFIX)
            && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == me);
        if !ours {
            continue;
        }
        // One without a lock is not ours.
        let lock = File::open(entry.path().join(LOCK)).or_else(|_| unfinished(&entry.path()));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            clear(&entry.path());
        }
    }
}

/// The lock of a directory that nobody is making any more.
fn unfinished(directory: &Path) -> std::io::Result<File> {
    let lock = File::open(directory.join(NEW_LOCK))?;
    let age = lock.metadata()?.modified()?.elapsed();
    if age.is_ok_and(|age| age > MAKING_MAX) {
        Ok(lock)
    } else {
        Err(std::io::ErrorKind::ResourceBusy.into())
    }
}

/// Ends the masters of a run and removes its directory.
fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            hang_up(&entry.path());
        }
    }
    let _next_time = fs::remove_dir_all(directory);
}

/// The directories of this process's connectors.
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Ends all connections of this process and removes their files, for a process that is about to end and cannot drop what
/// it has. Takes no longer than it takes to speak to local sockets.
pub fn abandon() {
    let directories = std::mem::take(&mut *DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner));
    directories.iter().for_each(|directory| clear(directory));
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut directories = DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner);
        directories.retain(|directory| directory != self.directory.path());
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
    _run: Arc<Shared>,
}

#[derive(Debug)]
enum Carrier {
    Ssh(Master),
    /// Each channel is a child process: these words, and a shell with the script.
    Child(Vec<String>),
}

impl Link {
    /// Which host.
    pub fn host(&self) -> &HostName {
        &self.inner.host
    }

    /// Runs a script of POSIX shell there. It must be one line.
    ///
    /// # Errors
    /// If the connection has ended, takes no further channel, or the command cannot be started.
    pub async fn open(&self, script: &str) -> Result<Channel, LinkError> {
        debug_assert!(!script.contains('\n'), "not every login shell can be given a newline");
        let host = self.host();
        let broken = |source| LinkError::Pipe { host: host.clone(), source };
        let Pipes { near, far } = Pipes::new().map_err(broken)?;
        let exit = match &self.inner.carrier {
            Carrier::Ssh(master) => master.open(host, script, far).await?,
            Carrier::Child(words) => spawn(host, words, script, far)?,
        };
        Channel::new(near, exit).map_err(broken)
    }

    /// What runs a script there as a child of this process, with streams that are still to be given to it; with
    /// `terminal` in a terminal there, if this computer's standard input is one.
    pub fn command(&self, script: &str, terminal: bool) -> std::process::Command {
        match &self.inner.carrier {
            Carrier::Ssh(master) => master.command(script, terminal),
            Carrier::Child(words) => {
                let mut argv = words.iter().map(String::as_str).chain(["sh", "-c", script]);
                let mut command = std::process::Command::new(argv.next().unwrap_or("sh"));
                command.args(argv);
                command
            }
        }
    }

    /// Whether the connection stands, as far as can be known at once. A silent host counts as alive until keep-alive
    /// finds out.
    pub async fn is_alive(&self) -> bool {
        match &self.inner.carrier {
            Carrier::Ssh(master) => master.is_alive().await,
            Carrier::Child(_) => true,
        }
    }

    /// Ends the connection with all its channels, also for other clones.
    pub fn close(self) {
        if let Carrier::Ssh(master) = &self.inner.carrier {
            master.close();
        }
    }
}

fn spawn(
    host: &HostName,
    words: &[String],
    script: &str,
    [stdin, stdout, stderr]: [std::os::fd::OwnedFd; 3],
) -> Result<ExitWatch, LinkError> {
    let mut argv = words.iter().map(String::as_str).chain(["sh", "-c", script]);
    let program = argv.next().unwrap_or("sh");
    let mut command = Command::new(program);
    command.args(argv).stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    // Of its own group, so that Ctrl-C in the terminal does not reach it before the boss has said so.
    let mut child = command.process_group(0).spawn().map_err(|source| LinkError::Start {
        host: host.clone(),
        program: program.to_owned(),
        source,
    })?;
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let pidfd = id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
    let wait = async move {
        match child.wait().await {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Err(_) => Exit::Unknown,
        }
    };
    Ok(ExitWatch::child(wait, pidfd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::SystemTime;

    #[test]
    fn a_directory_that_is_being_made_is_swept_by_nobody() {
        let place = tempfile::tempdir().unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    sweep(place.path());
                }
            });
            let made = (0..2000).all(|_| {
                let made = private_directory(place.path());
                made.is_ok_and(|(directory, _lock)| directory.path().join(LOCK).exists())
            });
            done.store(true, Ordering::Relaxed);
            assert!(made);
        });
    }

    #[test]
    fn what_a_killed_boss_left_is_swept_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str, lock: &str| {
            let directory = place.path().join(name);
            fs::create_dir(&directory).unwrap();
            File::create(directory.join(lock)).unwrap()
        };
        make("crewboss-dead", LOCK);
        let old = make("crewboss-unfinished", NEW_LOCK);
        old.set_modified(SystemTime::now() - MAKING_MAX - Duration::from_secs(1)).unwrap();
        make("crewboss-young", NEW_LOCK);
        make("crewboss-notes", "precious");
        let (living, _lock) = private_directory(place.path()).unwrap();
        sweep(place.path());
        let left = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
        left.retain(|name| !living.path().ends_with(name));
        left.sort();
        assert_eq!(left, ["crewboss-notes", "crewboss-young"]);
        assert!(living.path().exists());
    }
}

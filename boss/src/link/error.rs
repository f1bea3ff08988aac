//! What can go wrong on the way to a host.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crewboss_protocol::HostName;
use crewboss_protocol::harmless::one_line;

use super::channel::Exit;

/// Why a host could not be reached, or a channel not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// `ssh` could not log in.
    #[error("host {host}: ssh to {destination} failed: {why}{}", quoted(text))]
    Ssh {
        /// Which host.
        host: HostName,
        /// What `ssh` was given.
        destination: String,
        /// What kind of failure.
        why: SshFailure,
        /// What `ssh` said, at most a few lines.
        text: String,
    },
    /// A destination that `ssh` would take for an option, or that cannot be passed on.
    #[error(
        "host {host}: {destination:?} is not a destination for ssh: it is empty, begins with `-` or has a control character"
    )]
    Destination {
        /// Which host.
        host: HostName,
        /// As in the crew file.
        destination: String,
    },
    /// A program of this computer could not be started.
    #[error("host {host}: cannot start `{program}`")]
    Start {
        /// Which host.
        host: HostName,
        /// Which program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection has ended.
    #[error("host {host}: the connection has ended")]
    Lost {
        /// Which host.
        host: HostName,
    },
    /// The host takes no further channel on this connection.
    #[error("host {host}: no further channel on this connection: {text}")]
    Channel {
        /// Which host.
        host: HostName,
        /// What `ssh` said.
        text: String,
    },
    /// No place for the connections' sockets and the generated configuration.
    #[error("cannot make a private directory for ssh in {}", path.display())]
    Directory {
        /// Where it was tried.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Pipes to the channel failed.
    #[error("host {host}: cannot make pipes for a channel")]
    Pipe {
        /// Which host.
        host: HostName,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

impl LinkError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            LinkError::Ssh { why, .. } => why.hint(),
            LinkError::Destination { .. } => {
                Some("write it as for `ssh`: name, user@name or ssh://user@name:port")
            }
            LinkError::Channel { .. } => Some(
                "allow sessions in the host's sshd_config (MaxSessions): a run needs 4, or one on each of 4 connections",
            ),
            LinkError::Directory { .. } => {
                Some("make room there, or let XDG_RUNTIME_DIR name a directory that you can write")
            }
            LinkError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("install it, or correct the `command` of this host in the crew file")
            }
            _ => None,
        }
    }

    /// Whether the host has said that it takes no further session on this connection.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, LinkError::Channel { text, .. } if text.contains("refused"))
    }

    /// Whether trying again soon may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, LinkError::Ssh { why: SshFailure::Dropped | SshFailure::Jump, .. })
    }
}

/// Why `ssh` could not log in, as far as its words tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SshFailure {
    /// The name has no address.
    #[error("the name cannot be resolved")]
    UnknownName,
    /// Nothing listens there.
    #[error("the connection was refused")]
    Refused,
    /// No way there.
    #[error("the network or host cannot be reached")]
    Unreachable,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No key was accepted and nobody can be asked for a password.
    #[error("no key was accepted")]
    Denied,
    /// The host's key is another one than before.
    #[error("the host's key has changed")]
    HostKeyChanged,
    /// The host's key is not known and new ones are not accepted.
    #[error("the host's key is not known")]
    HostKeyUnknown,
    /// Both sides have no algorithm in common.
    #[error("no common algorithm")]
    Algorithms,
    /// The other side hung up before the login was over; a busy sshd does that.
    #[error("the host hung up during login")]
    Dropped,
    /// The way there, by a jump host or proxy command, ended.
    #[error("the jump host or proxy command ended")]
    Jump,
    /// ssh's configuration is wrong.
    #[error("ssh does not accept its configuration")]
    Config,
    /// Something else.
    #[error("login failed")]
    Other,
}

impl SshFailure {
    fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::UnknownName => "check the spelling, or give the host a HostName in ~/.ssh/config",
            Self::Refused => "is sshd running there, and is the port right?",
            Self::Unreachable => "is the host switched on, and is this computer in its network?",
            Self::Timeout => {
                "is the host switched on? `connect_timeout` in the crew file says how long to wait"
            }
            Self::Denied => {
                "nobody is asked for a password or passphrase: add a key by `ssh-copy-id`, and load it by `ssh-add`"
            }
            Self::HostKeyChanged => {
                "if the host was set up anew, forget the old key by `ssh-keygen -R`; else somebody may be in between"
            }
            Self::HostKeyUnknown => "log in once by hand, or set host_keys = \"accept-new\" in the crew file",
            Self::Algorithms => "allow an older algorithm for this host in ~/.ssh/config",
            Self::Dropped => "sshd limits logins that happen at once (MaxStartups); look into its log",
            Self::Jump => "try the jump host or ProxyCommand by hand with the same user and key",
            Self::Config => "try `ssh -G` with this host and correct the line that it names",
            Self::Other => "try to log in with `ssh -v -o BatchMode=yes`",
        })
    }

    /// What `ssh` meant by what it wrote before it ended with a failure.
    pub(super) fn read(log: &str) -> Self {
        // The first that matches counts: a changed key also ends in a "verification failed".
        const SIGNS: &[(&str, SshFailure)] = &[
            ("REMOTE HOST IDENTIFICATION HAS CHANGED", SshFailure::HostKeyChanged),
            ("POSSIBLE DNS SPOOFING", SshFailure::HostKeyChanged),
            ("host key is known for", SshFailure::HostKeyUnknown),
            ("Host key verification failed", SshFailure::HostKeyUnknown),
            // No name server answers, as on a laptop that has just woken up.
            ("Temporary failure in name resolution", SshFailure::Unreachable),
            ("Address family for hostname not supported", SshFailure::Config),
            ("Could not resolve hostname", SshFailure::UnknownName),
            ("Bad configuration option", SshFailure::Config),
            ("terminating, ", SshFailure::Config),
            ("Bad owner or permissions", SshFailure::Config),
            ("Can't open user config file", SshFailure::Config),
            ("Permission denied (", SshFailure::Denied),
            ("Too many authentication failures", SshFailure::Denied),
            ("no matching", SshFailure::Algorithms),
            ("timed out during banner exchange", SshFailure::Timeout),
            ("port 65535", SshFailure::Jump),
            ("stdio forwarding failed", SshFailure::Jump),
            ("Connection refused", SshFailure::Refused),
            ("No route to host", SshFailure::Unreachable),
            ("Network is unreachable", SshFailure::Unreachable),
            ("timed out", SshFailure::Timeout),
            ("Connection reset", SshFailure::Dropped),
            ("Connection closed", SshFailure::Dropped),
            ("closed by remote host", SshFailure::Dropped),
            ("Broken pipe", SshFailure::Dropped),
        ];
        SIGNS.iter().find(|(sign, _)| log.contains(sign)).map_or(Self::Other, |(_, why)| *why)
    }
}

/// The part of ssh's words that a person should see: the last lines, without banners of at signs,
/// in one line, not endless.
pub(super) fn excerpt(log: &str) -> String {
    const BYTES_MAX: usize = 400;
    // Of the long warning about a changed key only this helps: where the old one is kept.
    if let Some(line) = log.lines().find(|line| line.starts_with("Offending")) {
        return line.trim().to_owned();
    }
    let mut last: Vec<String> = Vec::new();
    let mut room = BYTES_MAX;
    for line in log.lines().rev().map(str::trim) {
        if line.is_empty() || line.starts_with('@') || line.starts_with("Warning: Permanently") {
            continue;
        }
        let line = one_line(line);
        match room.checked_sub(line.len()) {
            Some(left) => room = left,
            None if last.is_empty() => {
                last.push(line[line.ceil_char_boundary(line.len() - BYTES_MAX)..].to_owned());
                break;
            }
            None => break,
        }
        last.push(line);
    }
    last.reverse();
    last.join("; ")
}

/// Why the worker could not be brought to a host and started there.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Our own binary cannot be read.
    #[error("cannot read this program's own file {}", path.display())]
    OwnBinary {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host runs another system or has another kind of processor.
    #[error("host {host} is {theirs}; this build of crewboss is for {ours}")]
    Platform {
        /// Which host.
        host: HostName,
        /// Its `uname -s -m`.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// No directory on the host can take the binary.
    #[error("host {host}: no directory can take the worker: {tried}")]
    NoPlace {
        /// Which host.
        host: HostName,
        /// Each directory and what was wrong with it.
        tried: String,
        /// What to do, from the last of them.
        hint: &'static str,
    },
    /// What arrived is not what was sent.
    #[error("host {host}: the uploaded worker is damaged: {text}")]
    Damaged {
        /// Which host.
        host: HostName,
        /// What the check said.
        text: String,
    },
    /// The worker is there but cannot be executed.
    #[error("host {host}: the worker cannot be executed: {exit}, {text:?}")]
    NotExecutable {
        /// Which host.
        host: HostName,
        /// How the shell ended.
        exit: Exit,
        /// What it said.
        text: String,
    },
    /// The login shell ended before our script ran.
    #[error("host {host}: the shell there ended ({exit}) without running the script; it printed {text:?}")]
    Shell {
        /// Which host.
        host: HostName,
        /// How it ended.
        exit: Exit,
        /// The end of what it printed.
        text: String,
    },
    /// Nothing came in time.
    #[error("host {host}: no answer from {from} for {}{}; it printed {text:?}", seconds(*.after), limit_name(.limit))]
    Silent {
        /// Which host.
        host: HostName,
        /// Who is silent.
        from: &'static str,
        /// For how long.
        after: Duration,
        /// The setting that says so.
        limit: &'static str,
        /// The end of what was printed.
        text: String,
    },
    /// It moves, and would go on doing so.
    #[error("host {host}: the worker could not be brought there within {} s (`shell` and `stall` in [limits] of crew.toml)", after.as_secs())]
    Endless {
        /// Which host.
        host: HostName,
        /// How long it had.
        after: Duration,
    },
    /// A host without that has nothing to see processes by.
    #[error("host {host}: there is no /proc there, and crewboss cannot look after processes without")]
    NoProc {
        /// Which host.
        host: HostName,
    },
    /// What is written to a channel does not arrive.
    #[error(
        "host {host}: nothing of what is sent there arrives: its standard input is not passed on; it printed {text:?}"
    )]
    NoInput {
        /// Which host.
        host: HostName,
        /// The end of what was printed.
        text: String,
    },
    /// Reading or writing the channel failed.
    #[error("host {host}: the channel broke while the worker was started")]
    Io {
        /// Which host.
        host: HostName,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where a limit can be set, behind what is said of it.
pub(crate) fn limit_name(name: &str) -> String {
    format!(" (`{name}` in [limits] of crew.toml)")
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

impl ShipError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ShipError::Link(error) => error.hint(),
            ShipError::Platform { .. } => Some("use a crewboss that was built for that system"),
            ShipError::NoPlace { hint, .. } => Some(hint),
            ShipError::NotExecutable { .. } => Some(
                "is the cache directory mounted noexec, or does a security policy forbid it? Set XDG_CACHE_HOME there",
            ),
            ShipError::Silent { limit: "shell", .. } => Some(
                "if it is only slow, give it more time; else look into the shell's start-up files there (.bashrc, .profile): they must not wait without a terminal; a `command` must run the words behind it, as `[\"sh\", \"-c\", 'exec \"$@\"', \"x\"]` does",
            ),
            ShipError::Silent { .. } => Some(
                "if it is only slow, give it more time; else see what it does there: `ps -ef | grep crewboss`",
            ),
            ShipError::Shell { .. } => Some(
                "look into the shell's start-up files there (.bashrc, .profile): they must neither exit nor wait without a terminal",
            ),
            ShipError::NoProc { .. } => Some("mount it there: `mount -t proc proc /proc`"),
            ShipError::NoInput { .. } => Some(
                "the host's `command` must keep standard input open, as `docker exec -i` and `kubectl exec -i` do",
            ),
            ShipError::Damaged { .. } => Some("try again; if it stays, check the host's disk"),
            ShipError::OwnBinary { .. } | ShipError::Io { .. } | ShipError::Endless { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_writes_is_understood() {
        let captured = [
            (
                "ssh: Could not resolve hostname nowhere: Name or service not known\r\n",
                SshFailure::UnknownName,
            ),
            (
                "ssh: Could not resolve hostname lab1: Temporary failure in name resolution\r\n",
                SshFailure::Unreachable,
            ),
            (
                "ssh: Could not resolve hostname lab1: Address family for hostname not supported\r\n",
                SshFailure::Config,
            ),
            ("ssh: connect to host 127.0.0.1 port 1: Connection refused\r\n", SshFailure::Refused),
            ("ssh: connect to host 10.9.9.9 port 22: Connection timed out\r\n", SshFailure::Timeout),
            ("Connection timed out during banner exchange\r\n", SshFailure::Timeout),
            ("ssh: connect to host 10.9.9.9 port 22: No route to host\r\n", SshFailure::Unreachable),
            (
                "Warning: Permanently added '[127.0.0.1]:22' (ED25519) to the list of known hosts.\r\nme@h: Permission denied (publickey).\r\n",
                SshFailure::Denied,
            ),
            (
                "@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@\nOffending ED25519 key in /x:1\nHost key verification failed.\n",
                SshFailure::HostKeyChanged,
            ),
            (
                "No ED25519 host key is known for 127.0.0.1 and you have requested strict checking.\r\nHost key verification failed.\r\n",
                SshFailure::HostKeyUnknown,
            ),
            ("kex_exchange_identification: read: Connection reset by peer\r\n", SshFailure::Dropped),
            ("kex_exchange_identification: Connection closed by remote host\r\n", SshFailure::Dropped),
            ("Connection closed by UNKNOWN port 65535\r\n", SshFailure::Jump),
            (
                "Connection timed out during banner exchange\r\nConnection to UNKNOWN port 65535 timed out\r\n",
                SshFailure::Timeout,
            ),
            ("/tmp/c: line 3: Bad configuration option: prot\r\n", SshFailure::Config),
            (
                "Unable to negotiate with h port 22: no matching host key type found. Their offer: ssh-dss\r\n",
                SshFailure::Algorithms,
            ),
            ("", SshFailure::Other),
        ];
        for (text, why) in captured {
            assert_eq!(SshFailure::read(text), why, "{text}");
        }
    }

    #[test]
    fn a_person_sees_the_telling_lines_only() {
        let log =
            "@@@@@\n@ WARNING @\nIt is also possible that a host key has just been changed.\r\n\u{1b}[31mx\n";
        assert_eq!(excerpt(log), "It is also possible that a host key has just been changed.; x");
        let banner: String = (0..1000).map(|number| format!("Welcome {number}\n")).collect();
        let text = excerpt(&format!("{banner}me@h: Permission denied (publickey).\r\n"));
        assert!(
            text.ends_with("Welcome 999; me@h: Permission denied (publickey).") && text.len() < 500,
            "{text}"
        );
        assert!(excerpt(&format!("{}last", "long".repeat(1000))).ends_with("longlast"));
    }
}

//! The configuration file that `ssh` is given: what a run insists on, then the user's own, then
//! better defaults.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crewboss_ground::{Account, Error, Replace, account};

use crate::crew::{HostKeys, Ssh, Timing};

/// Keep-alive questions before a connection counts as dead. Three, so that one lost packet is
/// nothing.
const ALIVE_COUNT: u32 = 3;

/// How often ssh asks whether the other side is there, in whole seconds: it gives up after
/// `(count + 1)` times that, which must not be later than our own silence limit by much, or a dead
/// connection would outlive its session.
fn alive_interval(silence: Duration) -> u64 {
    (silence.as_secs() / u64::from(ALIVE_COUNT + 1)).max(1)
}

/// ssh wants whole seconds and takes 0 as "no limit".
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

/// The user's own configuration, where ssh itself looks for it: in the home directory that the
/// account has, whatever `HOME` says. (`~` in a file would obey `HOME`, but `~NAME` is looked up,
/// also where accounts come from a directory service.)
fn users_own(account: &Account) -> PathBuf {
    let home = account.home.clone().unwrap_or_else(|| format!("~{}", account.name).into());
    home.join(".ssh/config")
}

/// The configuration as it lies in the private directory of a run.
#[derive(Debug)]
pub(super) struct Written {
    path: PathBuf,
    /// Where the crew's own lies there, and where it came from.
    crews: Option<(PathBuf, PathBuf)>,
}

impl Written {
    /// What `ssh -F` is given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What ssh said, with the name that people know the crew's configuration by.
    pub(super) fn in_words_of_the_crew(&self, said: &str) -> String {
        match &self.crews {
            Some((copy, origin)) => said.replace(&*copy.to_string_lossy(), &origin.to_string_lossy()),
            None => said.to_owned(),
        }
    }
}

/// Writes the configuration into a directory, and beside it the crew's own as it was when it was
/// looked at: what lies behind its name may be another by now, and could have anything run. For ssh
/// a copy is as good: it resolves paths in it that are relative against `~/.ssh`, wherever it lies.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(directory: &Path, ssh: &Ssh, timing: &Timing) -> Result<Written, Error> {
    let written = Replace::with_mode(0o600);
    let crews = match &ssh.config {
        Some(config) => {
            let copy = directory.join("crews_ssh_config");
            written.path(&copy, &config.content)?;
            Some((copy, config.path.clone()))
        }
        None => None,
    };
    let path = directory.join("ssh_config");
    let users = [users_own(account()), "/etc/ssh/ssh_config".into()];
    let included = match &crews {
        Some((copy, _)) => std::slice::from_ref(copy),
        None => &users,
    };
    written.path(&path, text(ssh, timing, included).as_bytes())?;
    Ok(Written { path, crews })
}

/// The configuration, which includes others.
///
/// This is all that `ssh` is told, whatever it is started for: what a person has configured for
/// sessions of their own, such as `RemoteCommand`, must not become part of ours, and ssh's last
/// line is what an error is made of, so it is neither kept quiet nor buried.
///
/// ssh takes the first value it meets, so what stands before the `Include` cannot be overruled and
/// what stands after it is only a default. It also holds for jump hosts, to which ssh hands this
/// file on: nobody may be asked for a password there either.
fn text(ssh: &Ssh, timing: &Timing, included: &[PathBuf]) -> String {
    let mut text = String::new();
    let host_keys = match ssh.host_keys {
        HostKeys::AcceptNew => "accept-new",
        HostKeys::Strict => "yes",
    };
    let lines = [
        "BatchMode yes".to_owned(),
        format!("StrictHostKeyChecking {host_keys}"),
        format!("ConnectTimeout {}", whole_seconds(ssh.connect_timeout)),
        format!("ServerAliveInterval {}", alive_interval(timing.silence)),
        format!("ServerAliveCountMax {ALIVE_COUNT}"),
        "ClearAllForwardings yes".to_owned(),
        "ForwardX11 no".to_owned(),
        "LogLevel INFO".to_owned(),
        "PermitLocalCommand no".to_owned(),
        "RemoteCommand none".to_owned(),
        "Tunnel no".to_owned(),
    ];
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    included.iter().for_each(|path| include(&mut text, path));
    // Bulk data over one connection is bound by the cipher; AES-GCM is several times as fast as the
    // default on every processor of the last ten years, and `^` only moves it to the front.
    text.push_str("Host *\nCiphers ^aes128-gcm@openssh.com\n");
    text
}

/// A file that is not there is not an error for ssh's `Include`.
fn include(text: &mut String, path: &Path) {
    // Writing to a string cannot fail. Include is a glob pattern, so a name with `*` must be
    // escaped.
    let mut name = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, '*' | '?' | '[') {
            name.push('\\');
        }
        name.push(character);
    }
    let _infallible = writeln!(text, "Include \"{name}\"");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crew::SshConfig;

    #[test]
    fn what_we_insist_on_stands_before_the_users_own() {
        let included = ["/home/me/.ssh/config".into(), "/etc/ssh/ssh_config".into()];
        let text = text(&Ssh::default(), &Timing::default(), &included);
        assert_eq!(
            text,
            "BatchMode yes\nStrictHostKeyChecking accept-new\nConnectTimeout 15\nServerAliveInterval 5\n\
             ServerAliveCountMax 3\nClearAllForwardings yes\nForwardX11 no\nLogLevel INFO\nPermitLocalCommand no\n\
             RemoteCommand none\nTunnel no\nInclude \"/home/me/.ssh/config\"\nInclude \"/etc/ssh/ssh_config\"\n\
             Host *\nCiphers ^aes128-gcm@openssh.com\n"
        );
    }

    #[test]
    fn the_users_own_is_that_of_the_account() {
        let of = |home: Option<&str>| {
            users_own(&Account { name: "ann".to_owned(), home: home.map(PathBuf::from) })
        };
        assert_eq!(of(Some("/home/ann")), Path::new("/home/ann/.ssh/config"));
        assert_eq!(of(None), Path::new("~ann/.ssh/config"));
    }

    #[test]
    fn a_configuration_of_the_crew_replaces_the_users_and_the_systems() {
        let dir = tempfile::tempdir().unwrap();
        let ssh = Ssh {
            config: Some(SshConfig { path: "/lab/ssh".into(), content: b"Port 1\n".to_vec() }),
            host_keys: HostKeys::Strict,
            connect_timeout: Duration::from_millis(200),
        };
        let timing = Timing { silence: Duration::from_secs(2), ..Timing::default() };
        let place = dir.path().join("[1]");
        std::fs::create_dir(&place).unwrap();
        let written = write(&place, &ssh, &timing).unwrap();
        let text = std::fs::read_to_string(written.path()).unwrap();
        assert!(text.contains("StrictHostKeyChecking yes\nConnectTimeout 1\nServerAliveInterval 1\n"));
        let copy = place.join("crews_ssh_config");
        assert!(text.contains("\\[1]/crews_ssh_config\"\n") && !text.contains("/etc/ssh"), "{text}");
        assert_eq!(std::fs::read(&copy).unwrap(), b"Port 1\n");
        let said = format!("{}: line 1: Bad configuration option", copy.display());
        assert_eq!(written.in_words_of_the_crew(&said), "/lab/ssh: line 1: Bad configuration option");
    }
}

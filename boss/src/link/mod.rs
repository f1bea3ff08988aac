//! Reaching hosts: connections, channels on them, and the worker that ships itself.
//!
//! A [`Connector`] serves one run. It gives a [`Link`] for each host, whatever the transport, and a
//! link opens [`Channel`]s: a POSIX shell script on the host with its standard input, output and
//! error as pipes of ours. [`start`] finds or brings the binary of this very build there and starts
//! it in one of its roles.

mod channel;
mod error;
mod private;
mod ship;
mod ssh;
mod ssh_config;
mod transport;

pub use channel::{Channel, ChannelGuard, ChannelReader, Exit, RawChannel};
pub(crate) use error::limit_name;
pub use error::{LinkError, ShipError, SshFailure};
pub(crate) use private::Private;
pub use private::abandon;
pub use ship::{OwnBinary, Role, Running, start};
pub use transport::{Connector, Link};

/// A word that every shell passes on unchanged: `sh`, `bash`, `zsh`, `fish` and `csh` alike.
///
/// Inside single quotes `fish` gives a backslash a meaning and `csh` an exclamation mark, so these
/// stand outside. A newline cannot be quoted for all of them; nothing of ours has one, and hosts'
/// settings are checked before.
pub(crate) fn quote(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('\'');
    for character in word.chars() {
        if matches!(character, '\'' | '\\' | '!') {
            quoted.extend(['\'', '\\', character, '\'']);
        } else {
            quoted.push(character);
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod quoting {
    use super::quote;
    use std::process::Command;

    #[test]
    fn a_quoted_word_survives_the_shell() {
        let words = ["", "plain", "it's", r"back\slash", "wow!", "$HOME `id` \"x\"", r"\'\\'", "a  b"];
        for word in words {
            let script = format!("printf %s {}", quote(word));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn a_script_quoted_twice_survives_two_shells() {
        let inner = format!("printf %s {}", quote("it's \\ a 'test'!"));
        let outer = format!("exec sh -c {}", quote(&inner));
        let output = Command::new("sh").args(["-c", &outer]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's \\ a 'test'!");
    }
}

#[cfg(test)]
mod tests;

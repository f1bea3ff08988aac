//! Commands that a person is advised to type. Every message that names a command of ours takes it
//! from here, so that a test can run each of them; which crew is meant is known only where it is
//! printed, and added there.

use std::fmt;

use crate::id::{HostName, Name};

/// A command, as it is to be typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice<'a> {
    /// Lists the guests that can be entered.
    Guests,
    /// Gets into a guest.
    Enter(&'a HostName, &'a Name),
    /// The same, by the serial console.
    Console(&'a HostName, &'a Name),
    /// The same, in place of whoever is in it.
    TakeOver(&'a HostName, &'a Name),
    /// Ends the keeping of a guest, or the waiting of its task.
    Release(&'a HostName, &'a Name),
    /// Lists machines and how it stands with them.
    Machines(&'a HostName),
    /// Makes a machine ready.
    Bootstrap {
        /// Where.
        host: &'a HostName,
        /// Which.
        machine: &'a Name,
        /// With which toolchain.
        toolchain: &'a Name,
    },
}

impl Advice<'_> {
    /// One of each, for the test that all of them are understood.
    pub fn samples<'a>(host: &'a HostName, name: &'a Name) -> [Advice<'a>; 7] {
        [
            Advice::Guests,
            Advice::Enter(host, name),
            Advice::Console(host, name),
            Advice::TakeOver(host, name),
            Advice::Release(host, name),
            Advice::Machines(host),
            Advice::Bootstrap { host, machine: name, toolchain: name },
        ]
    }
}

/// Between backticks, by which it is found again where it is printed.
impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guests => f.write_str("`crewboss enter`"),
            Self::Enter(host, guest) => write!(f, "`crewboss enter {host}/{guest}`"),
            Self::Console(host, guest) => write!(f, "`crewboss enter {host}/{guest} --console`"),
            Self::TakeOver(host, guest) => write!(f, "`crewboss enter {host}/{guest} --take-over`"),
            Self::Release(host, guest) => write!(f, "`crewboss release {host}/{guest}`"),
            Self::Machines(host) => write!(f, "`crewboss machines {host}`"),
            Self::Bootstrap { host, machine, toolchain } => {
                write!(f, "`crewboss machines bootstrap {machine} --host {host} --toolchain {toolchain}`")
            }
        }
    }
}

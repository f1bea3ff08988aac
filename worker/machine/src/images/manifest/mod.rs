//! `manifest.toml`: what a machine is, and how it is started. Everything in it is checked before
//! anything is started.

mod check;
mod raw;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crewboss_ground::{Error, Fault, Open};
use crewboss_protocol::Name;
use crewboss_protocol::machine::MachineRole;

/// The name of the file in a revision.
pub const MANIFEST: &str = "manifest.toml";

/// Longest manifest that is read; ours have some hundred bytes.
const BYTES_MAX: u64 = 64 << 10;

/// Most guests of one machine on one host.
pub const INSTANCES_MAX: u32 = 256;

/// A machine as its manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Changes whenever the image does.
    pub id: String,
    /// The machine's name.
    pub name: Name,
    /// What it is, in a line; may be empty.
    pub summary: String,
    /// What it is for.
    pub role: MachineRole,
    /// Least memory of a guest in bytes.
    pub memory_min: u64,
    /// Most memory of a guest in bytes.
    pub memory_max: Option<u64>,
    /// Most processors of a guest.
    pub processors: Option<u32>,
    /// The file with the disk image, in the revision.
    pub disk: String,
    /// Its format.
    pub format: DiskFormat,
    /// What the guest starts from.
    pub boot: Boot,
    /// The address of its network device, if it always has the same.
    pub mac: Option<Mac>,
    /// QEMU's model of the processor.
    pub cpu: Option<String>,
    /// Further options of QEMU.
    pub options: Vec<String>,
    /// The network that it is given.
    pub network: Network,
    /// How task and result travel.
    pub exchange: Exchange,
    /// Most guests of it at once on one host; `None` for no limit.
    pub instances: Option<u32>,
    /// A bootstrapped copy older than this is made again.
    pub refresh: Option<Duration>,
    /// Whether it has a VGA card.
    pub display: bool,
    /// Whether tasks start from a saved memory state.
    pub warm_start: bool,
    /// How long things may take.
    pub limits: Limits,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskFormat {
    /// Byte for byte.
    #[default]
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What a guest starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A kernel that QEMU loads.
    Kernel {
        /// The kernel's file, in the revision.
        kernel: String,
        /// The initial file system's, in the revision.
        initrd: Option<String>,
        /// The kernel's command line.
        append: String,
    },
    /// The disk, by a BIOS.
    Bios,
    /// The disk, by UEFI.
    Uefi,
}

/// A unicast address of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The network of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// None at all.
    #[default]
    None,
    /// QEMU's own, which needs no permission.
    User,
    /// A bridge of the host.
    Bridge(String),
}

/// How task and result travel between host and guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Exchange {
    /// The agent's port and disks.
    #[default]
    Agent,
    /// A TFTP server on the host.
    Tftp,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the start of QEMU until the guest asks what to do.
    pub startup: Duration,
    /// From then until the toolchain is installed.
    pub bootstrap: Duration,
    /// From being asked to switch off until QEMU has ended.
    pub shutdown: Duration,
    /// Boots that may fail and are tried again.
    pub misboots: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            startup: Duration::from_secs(2 * 60),
            bootstrap: Duration::from_secs(10 * 60),
            shutdown: Duration::from_secs(30),
            misboots: 2,
        }
    }
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A directory, a link, a pipe.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// Which file.
        path: PathBuf,
    },
    /// Far longer than any manifest.
    #[error("{} is longer than {BYTES_MAX} bytes", path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// Bytes that are no text.
    #[error("{}:{line}: this is not UTF-8", path.display())]
    NotText {
        /// Which file.
        path: PathBuf,
        /// In which line, from 1.
        line: usize,
    },
    /// It is no TOML, or a value in it is not what its key wants.
    #[error("{}:{line}:{column}: {why}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// In which line, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
        /// What is wrong.
        why: String,
    },
    /// Values that do not go together.
    #[error("{}: `{key}`: {why}", path.display())]
    Contradiction {
        /// Which file.
        path: PathBuf,
        /// The key that should be looked at.
        key: &'static str,
        /// What is wrong.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// A file that it names cannot be used.
    #[error("{}: `{key}`: {} {why}", path.display(), file.display())]
    File {
        /// Which manifest.
        path: PathBuf,
        /// The key that names the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        hint: &'static str,
    },
}

impl ManifestError {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("every revision of a machine has a manifest.toml")
            }
            Self::Contradiction { hint, .. } | Self::File { hint, .. } => Some(hint),
            Self::Wrong { why, .. } if why.starts_with("unknown key") => {
                Some("a manifest has no other keys; look for a spelling mistake")
            }
            _ => None,
        }
    }
}

impl Manifest {
    /// Reads and checks the manifest of the machine `name` in a revision, or in a copy of one.
    ///
    /// # Errors
    /// If anything in it is wrong, or a file that it names cannot be used.
    pub fn load(revision: &Path, name: &Name) -> Result<Self, ManifestError> {
        Self::load_as(revision, revision, name)
    }

    /// The same, but errors speak of `shown`: what was read is a snapshot that nobody knows.
    pub fn load_as(revision: &Path, shown: &Path, name: &Name) -> Result<Self, ManifestError> {
        let path = shown.join(MANIFEST);
        let text = read(&revision.join(MANIFEST), &path)?;
        let raw = raw::parse(&text, &path)?;
        check::check(raw, name, revision, &path)
    }

    /// Whether guests can start from saved memory: one that speaks TFTP gets its server, and one on
    /// a bridge its place, only when it boots.
    pub fn can_start_warm(&self) -> bool {
        self.exchange == Exchange::Agent && !matches!(self.network, Network::Bridge(_))
    }

    /// Processors of a guest, of those that a slot has.
    pub fn processors(&self, has: u32) -> u32 {
        self.processors.map_or(has, |most| most.min(has)).max(1)
    }

    /// Most guests at once on one host: two guests with the same address cannot share a bridge.
    pub fn instances_max(&self) -> u32 {
        let alone = self.mac.is_some() && matches!(self.network, Network::Bridge(_));
        self.instances.unwrap_or(if alone { 1 } else { INSTANCES_MAX })
    }
}

fn read(path: &Path, shown: &Path) -> Result<String, ManifestError> {
    let failed = |source| ManifestError::Read { path: shown.to_owned(), source };
    // A link would be followed out of the revision, and opening a pipe would wait for somebody to
    // write.
    let file = match Open::read().path(path) {
        Err(error) if matches!(error.fault, Fault::Kind { .. }) => {
            return Err(ManifestError::NotRegular { path: shown.to_owned() });
        }
        Err(Error { fault: Fault::Io(source), .. }) => return Err(failed(source)),
        file => file.map_err(|error| failed(error.into()))?,
    };
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(ManifestError::TooLong { path: shown.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        ManifestError::NotText { path: shown.to_owned(), line }
    })
}

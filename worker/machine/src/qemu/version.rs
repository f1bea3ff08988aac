//! Which QEMU there is.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_ground::program;
use serde::{Deserialize, Serialize};

use super::child::Child;
use super::error::QemuError;

/// The oldest version that has all that guests need: `-netdev dgram` over a passed descriptor came
/// with 7.2.
pub const OLDEST: Version = Version { major: 7, minor: 2, micro: 0 };

/// Where some systems put it, which do not have it on `PATH`.
const ELSEWHERE: &str = "/usr/libexec/qemu-kvm";

/// QEMU that takes longer to tell its version hangs, or its disk does.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// `7` of `7.2.22`.
    pub major: u32,
    /// `2` of `7.2.22`.
    pub minor: u32,
    /// `22` of `7.2.22`.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// From what `--version` prints: `QEMU emulator version 7.2.22 (Debian ...)`.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
        let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = number.split('.').map(str::parse);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        let micro = parts.next().and_then(Result::ok).unwrap_or(0);
        Some(Self { major, minor, micro })
    }
}

/// What tells one file from another, or from itself after an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    path: PathBuf,
    size: u64,
    modified: (i64, i64),
}

/// The program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    identity: Identity,
}

impl Program {
    /// The one for guests of this host's architecture.
    ///
    /// # Errors
    /// If there is none.
    pub fn find() -> Result<Self, QemuError> {
        Self::find_on(&std::env::var_os("PATH").unwrap_or_default(), Path::new(ELSEWHERE))
    }

    /// The one in the directories of `path`, or else `elsewhere`.
    ///
    /// # Errors
    /// If there is none.
    pub fn find_on(path: &OsStr, elsewhere: &Path) -> Result<Self, QemuError> {
        // The machine type, the console and the trial guest are those of a PC.
        let architecture = std::env::consts::ARCH;
        if architecture != "x86_64" {
            return Err(QemuError::Architecture { architecture: architecture.to_owned() });
        }
        let program = format!("qemu-system-{architecture}");
        let places = std::env::split_paths(path).filter(|place| place.is_absolute());
        let found = places.map(|place| place.join(&program)).chain([elsewhere.to_owned()]);
        found.into_iter().find_map(Self::at).ok_or(QemuError::Missing { program })
    }

    fn at(path: PathBuf) -> Option<Self> {
        // Canonical, so that an update behind a link shows.
        let real = std::fs::canonicalize(&path).ok()?;
        let found = std::fs::metadata(&real).ok()?;
        let usable = found.is_file() && found.permissions().mode() & 0o111 != 0;
        let identity =
            Identity { path: real, size: found.len(), modified: (found.mtime(), found.mtime_nsec()) };
        usable.then_some(Self { path, identity })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What changes when it is replaced by another.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its version.
    ///
    /// # Errors
    /// If it does not tell in time, is no QEMU, or is too old.
    pub fn version(&self) -> Result<Version, QemuError> {
        let path = || self.path.clone();
        let failed = |source| QemuError::Start { path: path(), source };
        let mut command = program(&self.path);
        command.arg("--version");
        let mut child = Child::start_telling(command).map_err(failed)?;
        if child.wait(Instant::now() + VERSION_LIMIT).is_none() {
            return Err(QemuError::Hangs { path: path(), limit: VERSION_LIMIT });
        }
        let said = child.said();
        let version = Version::parse(&said).ok_or_else(|| QemuError::NotQemu { path: path(), said })?;
        if version < OLDEST {
            return Err(QemuError::TooOld { path: path(), version });
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        let version = |text| Version::parse(text).map(|version| version.to_string());
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nC"), Some("7.2.22".to_owned()));
        assert_eq!(version("QEMU emulator version 9.1.0-rc1"), Some("9.1.0".to_owned()));
        assert_eq!(version("QEMU emulator version 10.0\n"), Some("10.0.0".to_owned()));
        for bad in ["", "7.2", "QEMU emulator version x", "QEMU emulator version 7", "qemu-img version 7.2.0"]
        {
            assert_eq!(version(bad), None, "{bad:?}");
        }
    }
}

//! Toolchains: what a machine is given when it is bootstrapped, and the id by which a change of it
//! is noticed.

#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crewboss_ground::{Open, Replace, read_record};
use crewboss_protocol::Name;
use crewboss_protocol::machine::DEFAULT_TOOLCHAIN;
use serde::{Deserialize, Serialize};

use super::{Machines, TOOLCHAIN_NAME_HINT, directories, toolchain_name};

/// The script in a toolchain that installs it.
const BOOTSTRAP: &str = "bootstrap";

/// Where ids are kept that were worked out before. A hidden name, so no toolchain.
const CACHE: &str = ".ids.json";

/// A larger cache is not ours.
const CACHE_BYTES_MAX: u64 = 1 << 20;

/// Files and directories of one toolchain.
const ENTRIES_MAX: usize = 200_000;

/// Directories in directories of one toolchain.
const DEPTH_MAX: usize = 64;

/// Bytes of one toolchain: they go through a disk of the guest.
const BYTES_MAX: u64 = 16 << 30;

/// What was changed this recently may change again without a later time.
const RECENT: Duration = Duration::from_secs(2);

/// A toolchain as it is right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// Its name.
    pub name: Name,
    /// BLAKE3 over its files, in hexadecimal.
    pub id: String,
    /// Where its files are; `None` for the default one if it has none.
    pub path: Option<PathBuf>,
}

/// Why a toolchain cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// There is none of this name.
    #[error("there is no toolchain {name}: {} is not there", path.display())]
    NotThere {
        /// The name.
        name: Name,
        /// Where it would be.
        path: PathBuf,
    },
    /// The name would make a copy look like something else.
    #[error("no toolchain can be called {name}")]
    Name {
        /// The name.
        name: Name,
    },
    /// It has no script to install it.
    #[error("{} {why}", path.display())]
    Bootstrap {
        /// Where the script should be.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// Something in it cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device, pipe or socket.
    #[error("{} is neither file, directory nor symbolic link", path.display())]
    Special {
        /// What.
        path: PathBuf,
    },
    /// Too much.
    #[error("{} is too large: {what}", path.display())]
    TooLarge {
        /// The toolchain.
        path: PathBuf,
        /// What there is too much of, and the limit.
        what: String,
    },
}

impl ToolchainError {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Read { path: path.to_owned(), source }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotThere { .. } => Some(
                "put a directory with a `bootstrap` script there, or let the target name another toolchain",
            ),
            Self::Name { .. } => Some(TOOLCHAIN_NAME_HINT),
            Self::Bootstrap { .. } => Some("every toolchain has an executable script `bootstrap`"),
            Self::Read { .. } | Self::Special { .. } | Self::TooLarge { .. } => None,
        }
    }
}

/// One file, directory or link of a toolchain.
struct Part {
    relative: OsString,
    path: PathBuf,
    found: Metadata,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Cache {
    /// By name: what the files looked like from outside, and the id.
    ids: BTreeMap<Name, (String, String)>,
}

impl Machines {
    /// The toolchain of this name. Its files are read only if any of them looks different from when
    /// they were read last.
    ///
    /// # Errors
    /// If there is none, or it cannot be used.
    pub fn toolchain(&self, name: &Name) -> Result<Toolchain, ToolchainError> {
        if toolchain_name(name.as_str()).is_none() {
            return Err(ToolchainError::Name { name: name.clone() });
        }
        let path = self.toolchains().join(name.as_str());
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.as_str() == DEFAULT_TOOLCHAIN => {
                let id = blake3::hash(b"").to_hex().to_string();
                return Ok(Toolchain { name: name.clone(), id, path: None });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ToolchainError::Read { path, source: error });
            }
            _ => return Err(ToolchainError::NotThere { name: name.clone(), path }),
        }
        let parts = parts(&path)?;
        check_bootstrap(&path.join(BOOTSTRAP), &parts)?;
        let signature = signature(&parts);
        let known = self.load_ids().ids.remove(name).filter(|(known, _)| *known == signature);
        let id = match known {
            Some((_, id)) => id,
            None => {
                let id = identify(&parts)?;
                self.remember(name, signature, &id, &parts);
                id
            }
        };
        Ok(Toolchain { name: name.clone(), id, path: Some(path) })
    }

    /// The names of all toolchains that are there, and the default one.
    pub fn toolchain_names(&self) -> Vec<Name> {
        let found = directories(&self.toolchains()).unwrap_or_default();
        let names = found.into_iter().filter_map(|(_, name)| toolchain_name(name?.as_str()));
        let mut names: Vec<Name> = names.chain(DEFAULT_TOOLCHAIN.parse()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn load_ids(&self) -> Cache {
        let path = self.toolchains().join(CACHE);
        let cache = read_record(&path, CACHE_BYTES_MAX).ok().flatten();
        cache.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Without it the next look only takes longer, so errors do not matter: not everybody may write
    /// there.
    fn remember(&self, name: &Name, signature: String, id: &str, parts: &[Part]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let settled = i64::try_from(now.saturating_sub(RECENT).as_secs()).unwrap_or(0);
        if parts.iter().any(|part| part.found.ctime() >= settled) {
            return;
        }
        let mut cache = self.load_ids();
        cache.ids.insert(name.clone(), (signature, id.to_owned()));
        let path = self.toolchains().join(CACHE);
        let stored = serde_json::to_vec(&cache)
            .map_err(io::Error::from)
            .and_then(|bytes| Ok(Replace::with_mode(0o600).path(&path, &bytes)?));
        drop(stored);
    }
}

/// Everything below a directory, sorted by path.
fn parts(root: &Path) -> Result<Vec<Part>, ToolchainError> {
    let too_large = |what: String| Err(ToolchainError::TooLarge { path: root.to_owned(), what });
    let (mut parts, mut bytes) = (Vec::new(), 0_u64);
    let mut open = vec![(root.to_owned(), OsString::new(), 0)];
    while let Some((directory, prefix, depth)) = open.pop() {
        for entry in fs::read_dir(&directory).map_err(ToolchainError::read(&directory))? {
            let entry = entry.map_err(ToolchainError::read(&directory))?;
            let path = entry.path();
            let found = fs::symlink_metadata(&path).map_err(ToolchainError::read(&path))?;
            let mut relative = prefix.clone();
            relative.push(entry.file_name());
            if found.is_dir() {
                if depth == DEPTH_MAX {
                    return too_large(format!("directories are nested more than {DEPTH_MAX} deep"));
                }
                let mut inner = relative.clone();
                inner.push("/");
                open.push((path.clone(), inner, depth + 1));
            } else if !found.is_file() && !found.is_symlink() {
                return Err(ToolchainError::Special { path });
            }
            bytes = bytes.saturating_add(if found.is_file() { found.len() } else { 0 });
            parts.push(Part { relative, path, found });
            if parts.len() > ENTRIES_MAX {
                return too_large(format!("more than {ENTRIES_MAX} files"));
            }
        }
    }
    if bytes > BYTES_MAX {
        return too_large(format!("{bytes} bytes; the limit is {BYTES_MAX}"));
    }
    parts.sort_by(|one, other| one.relative.cmp(&other.relative));
    Ok(parts)
}

fn check_bootstrap(path: &Path, parts: &[Part]) -> Result<(), ToolchainError> {
    let refuse = |why| Err(ToolchainError::Bootstrap { path: path.to_owned(), why });
    let Some(script) = parts.iter().find(|part| part.relative == BOOTSTRAP) else {
        return refuse("is not there");
    };
    if !script.found.is_file() {
        return refuse("is not a regular file");
    }
    if script.found.mode() & 0o100 == 0 { refuse("is not executable") } else { Ok(()) }
}

/// What the files look like without reading them.
fn signature(parts: &[Part]) -> String {
    let mut hasher = blake3::Hasher::new();
    for Part { relative, found, .. } in parts {
        bytes(&mut hasher, relative.as_bytes());
        for number in [found.ino(), found.dev(), found.len(), u64::from(found.mode())] {
            hasher.update(&number.to_le_bytes());
        }
        for time in [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()] {
            hasher.update(&time.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// The id: paths, kinds, permissions and contents. Links count as what they say, not as what they
/// lead to.
fn identify(parts: &[Part]) -> Result<String, ToolchainError> {
    let mut hasher = blake3::Hasher::new();
    for Part { relative, path, found } in parts {
        bytes(&mut hasher, relative.as_bytes());
        if found.is_symlink() {
            hasher.update(b"l");
            let target = fs::read_link(path).map_err(ToolchainError::read(path))?;
            bytes(&mut hasher, target.as_os_str().as_bytes());
            continue;
        }
        hasher.update(if found.is_dir() { b"d" } else { b"f" });
        hasher.update(&(found.mode() & 0o777).to_le_bytes());
        if found.is_file() {
            let content = hash_file(path).map_err(ToolchainError::read(path))?;
            hasher.update(content.as_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_file(path: &Path) -> io::Result<blake3::Hash> {
    // Whoever may write into the directory is looked at; an operator may share out what is in it.
    let file = Open::read().of_anybody().path(path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize())
}

/// With its length, so that one text's end is never another's beginning.
fn bytes(hasher: &mut blake3::Hasher, text: &[u8]) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text);
}

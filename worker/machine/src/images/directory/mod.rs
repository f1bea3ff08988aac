//! The machine directory: volumes, machines, revisions behind a link, bootstrapped copies,
//! toolchains.
//!
//! ```text
//! <machines>/<volume>/<name>/<name>-1                  link to the current revision
//! <machines>/<volume>/<name>/<name>-1.<R>              a revision: disk image and manifest.toml
//! <machines>/<volume>/<name>/<name>-<toolchain>        a bootstrapped copy
//! <machines>/<volume>/<name>/<name>-<toolchain>-<x>    a guest: a snapshot of the copy, or of the
//!                                                      revision
//! <machines>/<volume>/<name>/<name>-<toolchain>.suspended   why the copy could not be made
//! <machines>/<volume>/<name>/<name>-<toolchain>.saved   a template of warm starts
//! <machines>/toolchains/<name>/                        what a machine is given
//! <machines>/locks/, <machines>/guests/                who uses what, which guest is whose
//! ```
//!
//! Operators publish, replace and withdraw revisions at any moment, so nothing is used where it
//! lies: first a snapshot is made, then it is made sure that it is one of what was meant, and only
//! then it is read.

mod copy;
mod error;
mod revision;
mod saved;
#[cfg(test)]
pub(crate) mod tests;
mod toolchain;

use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use crewboss_ground::Directory;
use crewboss_host::layout::Layout;
use crewboss_protocol::Name;
use crewboss_protocol::machine::MACHINE_PROTOCOL;

pub use copy::{CopyRecord, CopySnapshot, Standing};
pub use error::DirectoryError;
pub use saved::{SavedRecord, SavedSnapshot, saved_devices, saved_memory};
pub use toolchain::{Toolchain, ToolchainError};

/// Names in the machine directory that are no volumes.
const RESERVED: [&str; 3] = ["guests", "locks", "toolchains"];

/// The end of the name of the file that says why a copy could not be made.
const SUSPENDED: &str = ".suspended";

/// The end of the name of a template of warm starts.
const SAVED: &str = ".saved";

/// What a person can do about a name that [`toolchain_name`] refuses.
const TOOLCHAIN_NAME_HINT: &str =
    "it must not be a number, begin with one and a dot, or end with `.suspended` or `.saved`";

/// Random characters at the end of a guest's name.
const RANDOM_CHARACTERS: usize = 6;

/// A machine directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machines {
    root: PathBuf,
}

/// What is in a machine directory, in a stable order: by volume, then by name.
#[derive(Debug, Default)]
pub struct Listing {
    /// Machines that have a link.
    pub machines: Vec<MachineDir>,
    /// Machines that have none: an operator took them out of use.
    pub withdrawn: Vec<MachineDir>,
    /// Machines that are not used, since a volume before theirs has one of the same name.
    pub shadowed: Vec<Shadowed>,
    /// What lies there and can be no machine.
    pub misplaced: Vec<Misplaced>,
}

/// A machine in whose place another one is used.
#[derive(Debug)]
pub struct Shadowed {
    /// It.
    pub machine: MachineDir,
    /// The volume of the other one.
    pub by: Name,
}

/// Something that lies where a volume or machine should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misplaced {
    /// Where.
    pub path: PathBuf,
    /// Why it cannot be used.
    pub why: String,
}

/// The directory of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDir {
    /// The volume.
    pub volume: Name,
    /// The machine's name.
    pub name: Name,
    path: PathBuf,
}

/// What an entry of a machine's directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A copy for this toolchain.
    Copy(Name),
    /// A guest, or a copy that is being made or removed.
    Guest(Name),
    /// Why there is no copy for this toolchain.
    Suspension(Name),
    /// The template of warm starts for this toolchain.
    Saved(Name),
    /// An operator's.
    Other,
}

impl Machines {
    /// The machine directory at `root`, which should be absolute and need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory from the crew file, or the default one below the work directory.
    ///
    /// # Errors
    /// A sentence for a person if the path cannot be made absolute.
    pub fn resolve(layout: &Layout, given: Option<&str>) -> Result<Self, String> {
        let Some(given) = given else { return Ok(Self::new(layout.machines())) };
        let root = std::path::absolute(given);
        root.map(Self::new).map_err(|error| format!("the machine directory {given}: {error}"))
    }

    /// Makes sure that the directory, if it is there, is this user's, and its locks and records as
    /// well.
    ///
    /// # Errors
    /// If it may not be used.
    pub fn check(&self) -> Result<(), crewboss_ground::Error> {
        crewboss_host::layout::check(&self.root, &["guests", "locks", "toolchains"])
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lock files.
    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// The records of guests.
    pub fn guests(&self) -> PathBuf {
        self.root.join("guests")
    }

    /// The toolchains.
    pub fn toolchains(&self) -> PathBuf {
        self.root.join("toolchains")
    }

    /// The directory of a machine, which need not exist.
    pub fn machine(&self, volume: &Name, name: &Name) -> MachineDir {
        let path = self.root.join(volume.as_str()).join(name.as_str());
        MachineDir { volume: volume.clone(), name: name.clone(), path }
    }

    /// Everything that is there. Of two machines with the same name the one in the first volume is
    /// used.
    ///
    /// # Errors
    /// If the directory itself cannot be read. That there is none is fine, and means no machines.
    pub fn list(&self) -> Result<Listing, DirectoryError> {
        let mut listing = Listing::default();
        for (path, name) in directories(&self.root).map_err(DirectoryError::read(&self.root))? {
            if name.as_ref().is_some_and(|name| RESERVED.contains(&name.as_str())) {
                continue;
            }
            match name {
                Some(volume) => match refusal(&path) {
                    None => self.list_volume(&volume, &path, &mut listing),
                    Some(why) => listing.misplaced.extend(refused_volume(&path, &why)),
                },
                None => listing.misplaced.push(no_name(path, "volume")),
            }
        }
        Ok(listing)
    }

    fn list_volume(&self, volume: &Name, path: &Path, listing: &mut Listing) {
        let entries = match directories(path) {
            Ok(entries) => entries,
            Err(error) => {
                let why = format!("the volume cannot be read: {error}");
                return listing.misplaced.push(Misplaced { path: path.to_owned(), why });
            }
        };
        for (path, name) in entries {
            let Some(name) = name else {
                listing.misplaced.push(no_name(path, "machine"));
                continue;
            };
            let machine = self.machine(volume, &name);
            if let Some(why) = refusal(machine.path()) {
                listing.misplaced.push(Misplaced { path, why });
            } else if fs::symlink_metadata(machine.link()).is_err() {
                listing.withdrawn.push(machine);
            } else if let Some(first) = listing.machines.iter().find(|first| first.name == name) {
                let by = first.volume.clone();
                listing.shadowed.push(Shadowed { machine, by });
            } else {
                listing.machines.push(machine);
            }
        }
    }

    /// The machine of this name that is in use.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&self, name: &Name) -> Result<MachineDir, DirectoryError> {
        let Listing { machines, misplaced, .. } = self.list()?;
        if let Some(found) = machines.into_iter().find(|machine| machine.name == *name) {
            return Ok(found);
        }
        let of_this_name = |one: &Misplaced| one.path.file_name().is_some_and(|found| found == name.as_str());
        Err(match misplaced.into_iter().find(of_this_name) {
            Some(Misplaced { path, why }) => DirectoryError::Unfit { path, why },
            None => DirectoryError::NoMachine { root: self.root.clone(), name: name.clone() },
        })
    }
}

impl MachineDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The link to the current revision.
    pub fn link(&self) -> PathBuf {
        self.path.join(format!("{}-{MACHINE_PROTOCOL}", self.name))
    }

    /// What an entry of this directory is, by its name and by what it says of itself:
    /// `deb-arm-none00` may be the copy for `arm-none00` or a guest with the toolchain `arm`, and
    /// only the copy says that it is for `arm-none00`.
    pub(crate) fn entry(&self, name: &str) -> Entry {
        let Some(rest) = name.strip_prefix(self.name.as_str()).and_then(|rest| rest.strip_prefix('-')) else {
            return Entry::Other;
        };
        if let Some(toolchain) = rest.strip_suffix(SUSPENDED).and_then(toolchain_name) {
            return Entry::Suspension(toolchain);
        }
        if let Some(toolchain) = rest.strip_suffix(SAVED).and_then(toolchain_name) {
            return Entry::Saved(toolchain);
        }
        if let Some(toolchain) = toolchain_name(rest)
            && self.copy(&toolchain).is_ok_and(|record| record.toolchain == toolchain)
        {
            return Entry::Copy(toolchain);
        }
        let Some((toolchain, random)) = rest.rsplit_once('-') else { return Entry::Other };
        match toolchain_name(toolchain) {
            Some(toolchain) if is_random(random) => Entry::Guest(toolchain),
            _ => Entry::Other,
        }
    }

    /// The names of all entries that are text, sorted.
    pub(crate) fn entries(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
        };
        names.sort();
        Ok(names)
    }
}

/// The directories in a directory, hidden ones left out, sorted; without a name if theirs cannot be
/// one.
fn directories(path: &Path) -> io::Result<Vec<(PathBuf, Option<Name>)>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Links are not followed: what they lead to would be listed twice, or lie anywhere.
        if hidden || !entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.push((entry.path(), name));
    }
    found.sort();
    Ok(found)
}

/// Why a volume or machine cannot be used, if it is another user's or others can write to it:
/// whoever can decides what is started from it, and what is removed in it.
fn refusal(path: &Path) -> Option<String> {
    let error = Directory::fixed(path).err()?;
    let hint = error.hint().map(|hint| format!("; hint: {hint}"));
    Some(format!("{}{}", error.fault, hint.unwrap_or_default()))
}

/// Each machine of such a volume by its name, or the volume itself if it shows none.
fn refused_volume(path: &Path, why: &str) -> Vec<Misplaced> {
    let why = format!("the volume {} is not used: {why}", path.display());
    let misplaced = |path: PathBuf| Misplaced { path, why: why.clone() };
    match directories(path).unwrap_or_default() {
        machines if machines.is_empty() => vec![misplaced(path.to_owned())],
        machines => machines.into_iter().map(|(path, _)| misplaced(path)).collect(),
    }
}

fn no_name(path: PathBuf, what: &str) -> Misplaced {
    let why = format!("no {what} can have this name; it is made of letters, digits and `. _ + -`");
    Misplaced { path, why }
}

/// The name of a toolchain, unless a copy with it would look like a revision or its link, or like
/// what lies beside copies.
pub(crate) fn toolchain_name(text: &str) -> Option<Name> {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let revision = digits.len() < text.len() && (digits.is_empty() || digits.starts_with('.'));
    let beside = [SUSPENDED, SAVED].iter().any(|end| text.ends_with(end));
    if revision || beside { None } else { text.parse().ok() }
}

/// Characters that nobody else has thought of, for the end of a guest's name.
pub(crate) fn random() -> String {
    const DIGITS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut number = RandomState::new().build_hasher().finish();
    let mut digit = || {
        let digit = usize::try_from(number % 36).unwrap_or(0);
        number /= 36;
        char::from(DIGITS[digit])
    };
    (0..RANDOM_CHARACTERS).map(|_| digit()).collect()
}

fn is_random(text: &str) -> bool {
    let one = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() == RANDOM_CHARACTERS && text.bytes().all(one)
}

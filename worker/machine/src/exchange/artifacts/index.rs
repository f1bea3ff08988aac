//! What is in an archive: places and checked names, and no contents.

use std::collections::HashSet;
use std::fs::File;

use crewboss_host::tar::{self, Kind, Reader};
use crewboss_protocol::RelPath;

use super::{ArchiveError, ArchiveLimits};

/// All names together; a million files have names of 128 bytes each.
const NAMES_BYTES_MAX: usize = 128 << 20;

/// One sentence says it; a million of them say less.
const PROBLEMS_MAX: usize = 16;

/// Which directory of the guest an entry came from. In the order in which they are looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Root {
    Out,
    Src,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) root: Root,
    pub(super) name: RelPath,
    /// What is there in place of a file, if it is none.
    pub(super) not_a_file: Option<&'static str>,
    pub(super) position: u64,
    pub(super) size: u64,
    pub(super) mode: u32,
}

/// Everything that an archive holds but directories.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) files: Vec<Entry>,
    pub(super) problems: Vec<String>,
}

impl Index {
    pub(super) fn read(archive: &File, length: u64, limits: ArchiveLimits) -> Result<Self, ArchiveError> {
        let mut reader = Reader::new(archive, length);
        let mut index = Self::default();
        let (mut entries, mut names) = (0_usize, 0_usize);
        let mut seen = HashSet::new();
        while let Some(entry) = reader.next_entry()? {
            entries += 1;
            names += entry.name.len();
            if entries > limits.entries {
                return Err(ArchiveError::TooMany { limit: limits.entries });
            }
            if names > NAMES_BYTES_MAX {
                return Err(ArchiveError::Names { limit: NAMES_BYTES_MAX });
            }
            match checked(entry) {
                Ok(None) => {}
                // Names are compared by a hash that a guest cannot foresee, so they are not kept
                // twice.
                Ok(Some(entry)) if seen.insert(key(&entry)) => index.files.push(entry),
                Ok(Some(entry)) => index.problem(format!("the archive has {:?} twice", entry.name.as_str())),
                Err(problem) => index.problem(problem),
            }
        }
        Ok(index)
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

fn key(entry: &Entry) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(if entry.root == Root::Out { b"o" } else { b"s" });
    hasher.update(entry.name.as_str().as_bytes());
    *hasher.finalize().as_bytes()
}

/// Checks a name; `None` for what is no matter. A problem is a sentence.
fn checked(entry: tar::Entry) -> Result<Option<Entry>, String> {
    let not_a_file = match entry.kind {
        Kind::File => None,
        Kind::Directory => return Ok(None),
        Kind::Link(_) => Some("a symbolic link"),
        Kind::Other(b'1') => Some("a hard link"),
        Kind::Other(_) => Some("no regular file"),
    };
    let shown: String = String::from_utf8_lossy(&entry.name).chars().take(200).collect();
    let text = std::str::from_utf8(&entry.name)
        .map_err(|_| format!("the archive's entry {shown:?} has a name that is not UTF-8"))?;
    let mut text = text;
    // `tar -C directory .` puts it before every name.
    while let Some(rest) = text.strip_prefix("./") {
        text = rest;
    }
    let below = |prefix| text.strip_prefix(prefix);
    let (root, name) = match (below("out/"), below("src/")) {
        (Some(name), _) => (Root::Out, name),
        (None, Some(name)) => (Root::Src, name),
        (None, None) => {
            return Err(format!("the archive's entry {shown:?} lies neither in out/ nor in src/"));
        }
    };
    let name = RelPath::try_from(name.to_owned())
        .map_err(|error| format!("the archive has an entry that cannot be brought back: {error}"))?;
    Ok(Some(Entry {
        root,
        name,
        not_a_file,
        position: entry.position,
        size: entry.size,
        mode: entry.mode & 0o777,
    }))
}

//! Refuses what cannot be sent: submodules, files kept by Git LFS, objects that are not here, and
//! what no host would check out.

use std::collections::HashSet;

use crewboss_protocol::limits::LONG_FILE_BYTES;
use crewboss_protocol::tree;
use git2::{ErrorCode, ObjectType, Odb, Oid, Repository, Tree};

use super::error::SourceError;
use super::missing::Long;
use super::{Commit, oid};

/// How a file begins that stands for one kept by Git LFS.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// A pointer is three short lines.
const POINTER_BYTES_MAX: usize = 1024;

/// What an attributes file says if files are kept by Git LFS.
const ATTRIBUTE: &[u8] = b"filter=lfs";

/// Checks the trees of all commits, and finds the files that are too long for a pack. Each subtree
/// is looked at once, however many commits share it.
pub(super) fn all(repository: &Repository, commits: &[Commit]) -> Result<Long, SourceError> {
    let mut long = Long::new();
    let mut plain = HashSet::new();
    let mut pointers = HashSet::new();
    let mut lfs = false;
    let odb = repository
        .odb()
        .map_err(|source| SourceError::Git { doing: "open the objects", source: source.into() })?;
    for commit in commits {
        let tree = oid(commit.tree)?;
        let mut look =
            Look { repository, odb: &odb, commit, seen: &mut plain, long: &mut long, lfs, depth: 0 };
        look.walk(tree, "", &mut |look, entry, path| look.submodule_or_attributes(entry, path))?;
        lfs = look.lfs;
        if lfs {
            // Rare: only a repository that uses it pays for a look into its small files.
            let mut look =
                Look { repository, odb: &odb, commit, seen: &mut pointers, long: &mut long, lfs, depth: 0 };
            look.walk(tree, "", &mut |look, entry, path| look.pointer(entry, path))?;
        }
    }
    Ok(long)
}

struct Look<'a> {
    repository: &'a Repository,
    odb: &'a Odb<'a>,
    commit: &'a Commit,
    seen: &'a mut HashSet<Oid>,
    long: &'a mut Long,
    lfs: bool,
    depth: usize,
}

type Visit<'v> =
    dyn FnMut(&mut Look<'_>, &git2::TreeEntry<'_>, &dyn Fn() -> String) -> Result<(), SourceError> + 'v;

impl Look<'_> {
    fn walk(&mut self, id: Oid, parent: &str, visit: &mut Visit<'_>) -> Result<(), SourceError> {
        if !self.seen.insert(id) {
            return Ok(());
        }
        let entries = find_tree(self.repository, id, parent)?;
        let mut names = HashSet::new();
        for entry in &entries {
            let path = || join(parent, entry.name_bytes());
            self.fits(&entry, &mut names, &path)?;
            match entry.kind() {
                Some(ObjectType::Tree) => {
                    self.depth += 1;
                    if self.depth > tree::DEPTH_MAX {
                        let why = format!("it lies more than {} deep", tree::DEPTH_MAX);
                        // The whole path would fill many screens.
                        let path = path().chars().take(80).collect();
                        return Err(SourceError::Unfit { commit: self.commit.short.clone(), path, why });
                    }
                    self.walk(entry.id(), &path(), visit)?;
                    self.depth -= 1;
                }
                _ => visit(self, &entry, &path)?,
            }
        }
        Ok(())
    }

    /// Refuses what no host would check out: each would find it out by itself, and be of no more
    /// use to the run.
    fn fits(
        &mut self,
        entry: &git2::TreeEntry<'_>,
        names: &mut HashSet<Vec<u8>>,
        path: &dyn Fn() -> String,
    ) -> Result<(), SourceError> {
        let unfit = |why| SourceError::Unfit { commit: self.commit.short.clone(), path: path(), why };
        tree::check_name(entry.name_bytes()).map_err(unfit)?;
        if !names.insert(entry.name_bytes().to_vec()) {
            return Err(unfit("it is there twice".to_owned()));
        }
        // What is missed while the run goes on has wasted the time of every host.
        let bytes = match entry.kind() {
            Some(ObjectType::Blob) => self.size(entry.id(), path)?,
            _ => 0,
        };
        if bytes >= LONG_FILE_BYTES {
            self.long.insert(entry.id(), bytes);
        }
        match entry.filemode_raw() {
            // Submodules are refused by their own words.
            0o040_000 | 0o100_755 | 0o100_644 | 0o100_664 | 0o100_600 | 0o160_000 => Ok(()),
            0o120_000 if bytes >= LONG_FILE_BYTES => Err(unfit("it is no link".to_owned())),
            0o120_000 => tree::check_link(self.blob(entry.id(), path)?.content()).map_err(unfit),
            mode => Err(unfit(format!("it has the mode {mode:o}"))),
        }
    }

    fn submodule_or_attributes(
        &mut self,
        entry: &git2::TreeEntry<'_>,
        path: &dyn Fn() -> String,
    ) -> Result<(), SourceError> {
        if entry.kind() == Some(ObjectType::Commit) {
            return Err(SourceError::Submodule { commit: self.commit.short.clone(), path: path() });
        }
        let is_read = entry.name_bytes() == b".gitattributes" && !self.long.contains_key(&entry.id());
        if !self.lfs && is_read {
            let text = self.blob(entry.id(), path)?.content().to_vec();
            self.lfs = text.windows(ATTRIBUTE.len()).any(|part| part == ATTRIBUTE);
        }
        Ok(())
    }

    fn pointer(&mut self, entry: &git2::TreeEntry<'_>, path: &dyn Fn() -> String) -> Result<(), SourceError> {
        if entry.kind() != Some(ObjectType::Blob) {
            return Ok(());
        }
        let small = self.odb.read_header(entry.id()).is_ok_and(|(bytes, _)| bytes <= POINTER_BYTES_MAX);
        if small && self.blob(entry.id(), path)?.content().starts_with(POINTER) {
            return Err(SourceError::Lfs { commit: self.commit.short.clone(), path: path() });
        }
        Ok(())
    }

    fn size(&self, id: Oid, path: &dyn Fn() -> String) -> Result<u64, SourceError> {
        let header = self.odb.read_header(id);
        header.map(|(bytes, _)| bytes as u64).map_err(|source| absent_or(source, id, &path()))
    }

    fn blob(&self, id: Oid, path: &dyn Fn() -> String) -> Result<git2::Blob<'_>, SourceError> {
        self.repository.find_blob(id).map_err(|source| absent_or(source, id, &path()))
    }
}

/// Reads a tree; `path` is for the error only.
pub(super) fn find_tree<'r>(
    repository: &'r Repository,
    id: Oid,
    path: &str,
) -> Result<Tree<'r>, SourceError> {
    repository.find_tree(id).map_err(|source| absent_or(source, id, path))
}

fn absent_or(source: git2::Error, id: Oid, path: &str) -> SourceError {
    match source.code() {
        ErrorCode::NotFound => SourceError::absent(id.to_string(), path),
        _ => SourceError::Git { doing: "read an object", source: source.into() },
    }
}

/// A path in a tree, as text for people and for git's name hints.
pub(super) fn join(parent: &str, name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    if parent.is_empty() { name.into_owned() } else { format!("{parent}/{name}") }
}

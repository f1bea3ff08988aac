//! Which objects a host lacks.

use std::collections::{HashMap, HashSet};

use crewboss_protocol::TreeId;
use git2::{ObjectType, Oid, Repository, Tree};

use super::check::{find_tree, join};
use super::error::SourceError;
use super::{oid, tree_id};

/// Trees that each wanted one is compared with. The nearest in history share nearly everything;
/// more would cost more comparisons than they save.
const BASES_MAX: usize = 4;

/// Objects to send, with a path of each: git finds similar objects by it.
#[derive(Debug, Clone, Default)]
pub struct Missing {
    pub(super) objects: Vec<(Oid, String)>,
    /// Files that are too long for a pack, with their lengths.
    long: Vec<(TreeId, u64)>,
}

/// Files of a source that are too long for a pack, with their lengths.
pub(super) type Long = HashMap<Oid, u64>;

impl Missing {
    /// Files that are not packed, with their lengths: see [`Source::write`](super::Source::write).
    pub fn long(&self) -> &[(TreeId, u64)] {
        &self.long
    }

    /// How many objects there are to be packed.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether the host has everything.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.long.is_empty()
    }
}

/// Finds them. Each wanted tree is compared with the one before it and with the last of those that
/// the host has.
pub(super) fn find(
    repository: &Repository,
    long: &Long,
    wanted: &[TreeId],
    have: &[TreeId],
) -> Result<Missing, SourceError> {
    let mut search = Search { repository, long, seen: HashSet::new(), missing: Missing::default() };
    let mut bases: Vec<Oid> = Vec::new();
    for tree in have.iter().rev().take(BASES_MAX) {
        let id = oid(*tree)?;
        // The host may have trees of another repository, or of a branch that is gone.
        if repository.find_tree(id).is_ok() {
            bases.push(id);
        }
    }
    search.seen.extend(bases.iter().copied());
    for tree in wanted {
        let id = oid(*tree)?;
        let trees = bases.iter().filter_map(|base| repository.find_tree(*base).ok()).collect::<Vec<_>>();
        search.tree(id, String::new(), &trees)?;
        bases.insert(0, id);
        bases.truncate(BASES_MAX);
    }
    Ok(search.missing)
}

struct Search<'r> {
    repository: &'r Repository,
    long: &'r Long,
    /// Listed already, or known to be there with all below.
    seen: HashSet<Oid>,
    missing: Missing,
}

impl Search<'_> {
    fn tree(&mut self, id: Oid, path: String, bases: &[Tree<'_>]) -> Result<(), SourceError> {
        if !self.seen.insert(id) {
            return Ok(());
        }
        let tree = find_tree(self.repository, id, &path)?;
        for entry in &tree {
            let name = entry.name_bytes();
            let same_name = || bases.iter().filter_map(|base| base.get_name_bytes(name));
            if same_name().any(|base| base.id() == entry.id()) {
                continue;
            }
            let path = join(&path, name);
            if entry.kind() == Some(ObjectType::Tree) {
                let below: Vec<Tree<'_>> = same_name()
                    .filter(|base| base.kind() == Some(ObjectType::Tree))
                    .filter_map(|base| self.repository.find_tree(base.id()).ok())
                    .collect();
                self.tree(entry.id(), path, &below)?;
            } else if self.seen.insert(entry.id()) {
                match self.long.get(&entry.id()) {
                    Some(bytes) => self.missing.long.push((tree_id(entry.id()), *bytes)),
                    None => self.missing.objects.push((entry.id(), path)),
                }
            }
        }
        self.missing.objects.push((id, path));
        Ok(())
    }
}

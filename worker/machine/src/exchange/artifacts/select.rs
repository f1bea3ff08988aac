//! Which entries of an archive are wanted: the same answer as looking for the files on a disk
//! gives.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use crewboss_host::artifacts::clashes;
use crewboss_host::artifacts::pattern::Pattern;

use super::UPLOAD;
use super::index::{Entry, Index, Root};

/// As many problems as [`crewboss_host::artifacts::find`] tells.
const PROBLEMS_MAX: usize = 16;

/// What is wanted, as numbers in the index.
#[derive(Debug, Default)]
pub(super) struct Selected {
    pub(super) files: BTreeMap<String, usize>,
    pub(super) uploads: BTreeMap<String, usize>,
    pub(super) problems: Vec<String>,
}

/// Decides. A glob is looked for in the output first, and in the source only if nothing matched
/// there.
pub(super) fn select(index: &Index, globs: &[String]) -> Selected {
    let mut selected = Selected { problems: index.problems.clone(), ..Selected::default() };
    for glob in globs {
        match Pattern::parse(glob) {
            Ok(pattern) => {
                let mut seen = false;
                for root in [Root::Out, Root::Src] {
                    seen = seen || selected.take(index, root, &pattern);
                }
                if !seen {
                    selected.problems.push(format!("nothing matches the artifact {glob:?}"));
                }
            }
            Err(error) => {
                selected.problems.push(format!("{glob:?} cannot name files of a task: {error}"));
            }
        }
    }
    for (number, entry) in index.files.iter().enumerate() {
        let upload = entry.name.as_str().strip_prefix(UPLOAD).filter(|_| entry.root == Root::Out);
        if let Some(name) = upload
            && selected.is_file(entry)
        {
            selected.uploads.insert(name.to_owned(), number);
        }
    }
    for (name, below) in clashes(&selected.uploads) {
        selected.uploads.remove(&name);
        selected.problem(format!("the archive has the upload {name:?} as a file, and {below:?} below it"));
    }
    selected
}

impl Selected {
    fn take(&mut self, index: &Index, root: Root, pattern: &Pattern) -> bool {
        let mut seen = false;
        for (number, entry) in index.files.iter().enumerate() {
            if entry.root != root || !pattern.is_match(entry.name.as_str()) {
                continue;
            }
            seen = true;
            if self.is_file(entry)
                && let Slot::Vacant(slot) = self.files.entry(entry.name.as_str().to_owned())
            {
                slot.insert(number);
            }
        }
        seen
    }

    fn is_file(&mut self, entry: &Entry) -> bool {
        let Some(what) = entry.not_a_file else { return true };
        self.problem(format!("the artifact {:?} is {what} in the guest's archive", entry.name.as_str()));
        false
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

//! What tests of this crate share: repositories made of a few words.

use std::fs;

use crewboss_host::layout::Layout;
use crewboss_protocol::TreeId;
use git2::{ObjectType, Oid, Repository};

/// Stores a tree in `objects.git`. Files are `path`, `mode`, `content`.
pub(crate) fn store(layout: &Layout, files: &[(&str, u32, &str)]) -> TreeId {
    fs::create_dir_all(layout.work()).unwrap();
    let repository = Repository::open_bare(layout.objects())
        .unwrap_or_else(|_| Repository::init_bare(layout.objects()).unwrap());
    tree_of(&repository, files)
}

pub(crate) fn tree_of(repository: &Repository, files: &[(&str, u32, &str)]) -> TreeId {
    let owned: Vec<_> = files.iter().map(|(path, mode, text)| ((*path).to_owned(), *mode, *text)).collect();
    TreeId(write_tree(repository, &owned).as_bytes().try_into().unwrap())
}

fn write_tree(repository: &Repository, files: &[(String, u32, &str)]) -> Oid {
    let mut entries: Vec<(String, String, Oid)> = Vec::new();
    let mut inner: std::collections::BTreeMap<String, Vec<(String, u32, &str)>> = Default::default();
    for (path, mode, text) in files {
        match path.split_once('/') {
            Some((directory, rest)) => {
                inner.entry(directory.to_owned()).or_default().push((rest.to_owned(), *mode, text));
            }
            None => {
                let id = repository.blob(text.as_bytes()).unwrap();
                entries.push((path.clone(), format!("{mode:o}"), id));
            }
        }
    }
    for (name, files) in inner {
        entries.push((name, "40000".to_owned(), write_tree(repository, &files)));
    }
    entries.sort();
    let content: Vec<u8> = entries
        .iter()
        .flat_map(|(name, mode, id)| [mode.as_bytes(), b" ", name.as_bytes(), b"\0", id.as_bytes()].concat())
        .collect();
    repository.odb().unwrap().write(ObjectType::Tree, &content).unwrap()
}

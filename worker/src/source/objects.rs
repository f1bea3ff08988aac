//! Reading trees out of `objects.git`, trusting nothing in them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crewboss_ground::Open;
use crewboss_protocol::limits::LONG_FILE_BYTES;
use crewboss_protocol::{TreeId, tree};
use git2::{ObjectType, Odb, OdbObject, OdbReader, Oid, Repository};

use super::SourceError;

/// The bare repository of a host.
pub struct Objects {
    repository: Repository,
    path: PathBuf,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What a tree's entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file; whether it may be executed.
    File {
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Link,
    /// A directory.
    Tree,
}

/// One entry of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// The object that holds its content.
    pub id: Oid,
}

/// The entries of one tree under their names, each of which is safe as the name of one file.
pub type Entries = BTreeMap<CString, Entry>;

impl Objects {
    /// Opens the repository, and makes it if it is not there.
    ///
    /// # Errors
    /// If it can be neither opened nor made.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        // libgit2 would wait for a FIFO.
        for name in ["config", "HEAD", "packed-refs", "objects/info/alternates"] {
            match Open::read().path(&path.join(name)) {
                Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Err(SourceError::at(&error.path.clone())(error.into()));
                }
                _ => {}
            }
        }
        let repository = Repository::open_bare(path).or_else(|_| Repository::init_bare(path));
        match repository {
            Ok(repository) => Ok(Self { repository, path: path.to_owned() }),
            Err(source) => Err(SourceError::Repository { path: path.to_owned(), source }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The object database, which notices packs that others add.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn database(&self) -> Result<Odb<'_>, SourceError> {
        self.repository.odb().map_err(|source| SourceError::Repository { path: self.path.clone(), source })
    }

    /// Whether a tree is there with everything in it.
    ///
    /// # Errors
    /// If an object is there and cannot be used.
    pub fn is_complete(&self, tree: TreeId) -> Result<bool, SourceError> {
        let database = self.database()?;
        let mut pending = vec![oid(tree)?];
        let mut seen = std::collections::HashSet::new();
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            let entries = match read_tree(&database, id) {
                Err(SourceError::Missing { .. }) => return Ok(false),
                entries => entries?,
            };
            for entry in entries.values() {
                match entry.kind {
                    EntryKind::Tree => pending.push(entry.id),
                    _ if !seen.contains(&entry.id) && !database.exists(entry.id) => return Ok(false),
                    _ => {
                        seen.insert(entry.id);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// An id as git2 wants it.
pub fn oid(tree: TreeId) -> Result<Oid, SourceError> {
    Oid::from_bytes(&tree.0).map_err(|source| SourceError::Object { id: tree.to_string(), source })
}

/// Reads an object of a known kind. Its content is checked against its id.
pub fn read<'a>(database: &'a Odb<'_>, id: Oid, kind: ObjectType) -> Result<OdbObject<'a>, SourceError> {
    let object = database.read(id).map_err(|source| match source.code() {
        git2::ErrorCode::NotFound => SourceError::Missing { id: id.to_string() },
        _ => SourceError::Object { id: id.to_string(), source },
    })?;
    if object.kind() != kind {
        return Err(SourceError::Content { id: id.to_string(), why: format!("it is not a {kind}") });
    }
    Ok(object)
}

/// A file that is read piece by piece. `None` if it is not long, or in a pack, which libgit2 can
/// only read whole.
pub fn long_file<'a>(database: &'a Odb<'_>, id: Oid) -> Option<OdbReader<'a>> {
    let (reader, bytes, kind) = database.reader(id).ok()?;
    (kind == ObjectType::Blob && bytes as u64 >= LONG_FILE_BYTES).then_some(reader)
}

/// Reads a tree.
pub fn read_tree(database: &Odb<'_>, id: Oid) -> Result<Entries, SourceError> {
    let object = read(database, id, ObjectType::Tree)?;
    parse_tree(object.data()).map_err(|why| SourceError::Content { id: id.to_string(), why })
}

/// Parses the content of a tree object: mode, space, name, NUL, twenty bytes of id; again and
/// again.
fn parse_tree(mut data: &[u8]) -> Result<Entries, String> {
    let mut entries = Entries::new();
    while !data.is_empty() {
        let torn = || "it is torn".to_owned();
        let space = data.iter().position(|&b| b == b' ').ok_or_else(torn)?;
        let (mode, rest) = (&data[..space], &data[space + 1..]);
        let nul = rest.iter().position(|&b| b == 0).ok_or_else(torn)?;
        let (name, rest) = (&rest[..nul], &rest[nul + 1..]);
        let (id, rest) = rest.split_at_checked(20).ok_or_else(torn)?;
        data = rest;
        let name = check_name(name)?;
        let kind = check_mode(mode, &name)?;
        let id = Oid::from_bytes(id).map_err(|_| torn())?;
        if entries.insert(name.clone(), Entry { kind, id }).is_some() {
            return Err(format!("{name:?} is there twice"));
        }
    }
    Ok(entries)
}

fn check_name(name: &[u8]) -> Result<CString, String> {
    tree::check_name(name)?;
    CString::new(name).map_err(|_| "it is torn".to_owned())
}

fn check_mode(mode: &[u8], name: &CString) -> Result<EntryKind, String> {
    match mode {
        b"40000" | b"040000" => Ok(EntryKind::Tree),
        b"100755" => Ok(EntryKind::File { executable: true }),
        b"100644" | b"100664" | b"100600" => Ok(EntryKind::File { executable: false }),
        b"120000" => Ok(EntryKind::Link),
        b"160000" => Err(format!("{name:?} is a submodule")),
        _ => Err(format!("{name:?} has the mode {:?}", String::from_utf8_lossy(mode))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(mode: &str, name: &[u8]) -> Vec<u8> {
        [mode.as_bytes(), b" ", name, b"\0", &[7; 20]].concat()
    }

    #[test]
    fn what_a_build_put_in_the_place_of_ours_is_replaced_or_named() {
        use crate::source::{Sources, has, list};
        use crewboss_host::layout::Layout;
        use std::fs;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let tree = crate::testing::store(&layout, &[("a", 0o100_644, "text")]);
        let sources = Sources::new(layout.clone(), crewboss_host::storage::Way::Plain).unwrap();
        let place = layout.source(tree);
        for put in
            [|place: &Path| fs::write(place, "x"), |place: &Path| std::os::unix::fs::symlink("/", place)]
        {
            put(&place).unwrap();
            assert!(!has(&layout, tree) && list(&layout).is_empty());
            sources.check_out(tree, None).unwrap();
            assert_eq!(fs::read(place.join("a")).unwrap(), b"text");
            crewboss_host::storage::remove_tree(&place).unwrap();
        }
        let config = layout.objects().join("config");
        fs::remove_file(&config).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &config, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let text = crewboss_protocol::chain(&Objects::open(&layout.objects()).unwrap_err());
        assert!(text.contains("objects.git/config: it is a FIFO and not a file; hint: `mv "), "{text}");
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/etc", b".git", b".GIT", &[b'x'; 256]] {
            assert!(parse_tree(&entry("100644", name)).is_err(), "{name:?} was accepted");
        }
        for name in [&b"a"[..], b"..a", b".gitignore", b"-rf", b"a b\n", b"\xff", &[b'x'; 255]] {
            assert!(parse_tree(&entry("100644", name)).is_ok(), "{name:?} was refused");
        }
    }

    #[test]
    fn strange_modes_and_doubled_names_are_refused() {
        for mode in ["160000", "100777", "0", "", "4000x"] {
            assert!(parse_tree(&entry(mode, b"a")).is_err(), "{mode:?} was accepted");
        }
        let twice = [entry("100644", b"a"), entry("40000", b"a")].concat();
        assert!(parse_tree(&twice).unwrap_err().contains("twice"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(entries) = parse_tree(&bytes) {
                for name in entries.keys() {
                    prop_assert!(!name.as_bytes().contains(&b'/'));
                }
            }
        }
    }
}

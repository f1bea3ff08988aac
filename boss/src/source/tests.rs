use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use std::path::PathBuf;

use git2::{IndexAddOption, ObjectType, Signature};
use tempfile::TempDir;

use super::*;

struct Lab {
    directory: TempDir,
    repository: Repository,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::init(directory.path()).unwrap();
        Self { directory, repository }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn commit(&self, message: &str) -> Oid {
        let mut index = self.repository.index().unwrap();
        index.add_all(["*"], IndexAddOption::DEFAULT, None).unwrap();
        index.write().unwrap();
        let tree = self.repository.find_tree(index.write_tree().unwrap()).unwrap();
        let who = Signature::now("Test", "test@example.org").unwrap();
        let parent = self.repository.head().ok().map(|head| head.peel_to_commit().unwrap());
        let parents: Vec<_> = parent.iter().collect();
        self.repository.commit(Some("HEAD"), &who, &who, message, &tree, &parents).unwrap()
    }

    fn open(&self, selection: &Selection) -> Result<Source, SourceError> {
        Source::open(self.directory.path(), selection)
    }

    fn range(&self, range: &str) -> Result<Source, SourceError> {
        self.open(&Selection::Range(range.to_owned()))
    }

    /// Everything below `.git` with its content.
    fn git_files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.repository.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path)
                } else {
                    drop(found.insert(path.clone(), fs::read(path).unwrap()))
                }
            }
        }
        found
    }
}

/// A repository as on a host: what it has after these packs, without any history.
fn store(packs: &[Vec<u8>]) -> (TempDir, Repository) {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::init_bare(directory.path()).unwrap();
    for pack in packs {
        let odb = repository.odb().unwrap();
        let mut writer = odb.packwriter().unwrap();
        std::io::Write::write_all(&mut writer, pack).unwrap();
        writer.commit().unwrap();
    }
    (directory, repository)
}

fn files(repository: &Repository, tree: TreeId) -> BTreeMap<String, (i32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let tree = repository.find_tree(oid(tree).unwrap()).unwrap();
    tree.walk(git2::TreeWalkMode::PreOrder, |parent, entry| {
        if entry.kind() == Some(ObjectType::Blob) {
            let blob = repository.find_blob(entry.id()).unwrap();
            found.insert(
                format!("{parent}{}", entry.name().unwrap()),
                (entry.filemode(), blob.content().to_vec()),
            );
        }
        git2::TreeWalkResult::Ok
    })
    .unwrap();
    found
}

fn packed(source: &Source, wanted: &[TreeId], have: &[TreeId]) -> (Vec<u8>, PackStats) {
    let missing = source.missing(wanted, have).unwrap();
    let mut pack = Vec::new();
    let stats = source.pack(&missing, &mut pack).unwrap();
    assert_eq!(stats.bytes, pack.len() as u64);
    (pack, stats)
}

#[test]
fn a_range_gives_its_commits_with_the_oldest_first() {
    let lab = Lab::new();
    for number in 1..=3 {
        lab.write("a/file", &number.to_string());
        lab.commit(&format!("Number {number}\n\nMore\u{1b}[31m text"));
    }
    let subjects = |range: &str| -> Vec<String> {
        lab.range(range).unwrap().commits().iter().map(|commit| commit.subject.clone()).collect()
    };
    assert_eq!(subjects("HEAD~2..HEAD"), ["Number 2", "Number 3"]);
    assert_eq!(subjects("HEAD~1.."), ["Number 3"]);
    assert_eq!(subjects("HEAD~2"), ["Number 1"]);
    let commit = lab.range("HEAD").unwrap().commits()[0].clone();
    assert!(
        commit.id.to_string().starts_with(&commit.short) && commit.short.len() >= 7 && !commit.working_tree
    );
}

#[test]
fn what_names_no_commit_is_told() {
    let lab = Lab::new();
    assert!(matches!(lab.range("HEAD"), Err(SourceError::NoCommits)));
    lab.write("file", "x");
    lab.commit("One");
    assert!(matches!(lab.range("nowhere"), Err(SourceError::Range { .. })));
    assert!(matches!(lab.range("HEAD..nowhere"), Err(SourceError::Range { .. })));
    assert!(matches!(lab.range("HEAD..HEAD"), Err(SourceError::EmptyRange(_))));
    assert!(matches!(lab.range("HEAD...HEAD"), Err(SourceError::EmptyRange(_))));
    assert!(matches!(lab.range("HEAD --output=x"), Err(SourceError::Option { .. })));
    assert!(matches!(lab.range("a\0b"), Err(SourceError::Range { .. })));
    let elsewhere = tempfile::tempdir().unwrap();
    let nothing = Source::open(elsewhere.path(), &Selection::WorkingTree);
    assert!(matches!(nothing, Err(SourceError::NotARepository(_))));
    Repository::init_bare(elsewhere.path()).unwrap();
    assert!(matches!(Source::open(elsewhere.path(), &Selection::WorkingTree), Err(SourceError::Bare)));
}

#[test]
fn the_working_tree_is_taken_as_it_is_and_nothing_of_git_changes() {
    let lab = Lab::new();
    lab.write(".gitignore", "*.o\n");
    lab.write("kept", "same");
    lab.write("changed", "before");
    lab.write("gone", "x");
    lab.write("tracked.log", "x");
    lab.commit("One");
    lab.write(".git/info/exclude", "secret\n");
    lab.write("changed", "after");
    fs::remove_file(lab.path("gone")).unwrap();
    lab.write("new/deep/file", "untracked");
    lab.write("a.o", "ignored");
    lab.write("secret", "excluded");
    lab.write("crewboss-results/.gitignore", "*\n");
    lab.write("crewboss-results/run.jsonl", "x");
    lab.write("script", "#!/bin/sh\n");
    fs::set_permissions(lab.path("script"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("kept", lab.path("link")).unwrap();
    let before = lab.git_files();

    let source = lab.open(&Selection::WorkingTree).unwrap();

    assert!(before == lab.git_files(), "something below .git has changed");
    let commit = &source.commits()[0];
    assert!(commit.working_tree && commit.id == commit.tree);
    let (pack, _) = packed(&source, &[commit.tree], &[]);
    let (_directory, host) = store(&[pack]);
    let found = files(&host, commit.tree);
    let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let expected = [".gitignore", "changed", "kept", "link", "new/deep/file", "script", "tracked.log"];
    assert_eq!(names, expected.into());
    assert_eq!(found["changed"].1, b"after");
    assert_eq!((found["script"].0, found["link"].0), (0o100_755, 0o120_000));
}

#[test]
fn a_working_tree_without_commits_can_be_taken_and_a_clean_one_is_that_of_the_head() {
    let lab = Lab::new();
    lab.write("file", "x");
    assert_eq!(lab.open(&Selection::WorkingTree).unwrap().commits().len(), 1);
    lab.commit("One");
    let head = lab.range("HEAD").unwrap().commits()[0].tree;
    assert_eq!(lab.open(&Selection::WorkingTree).unwrap().commits()[0].tree, head);
}

#[test]
fn only_what_a_host_lacks_is_packed() {
    let lab = Lab::new();
    for number in 0..50 {
        lab.write(&format!("dir{}/file{number}", number % 5), &format!("content {number}"));
    }
    lab.commit("One");
    lab.write("dir3/file3", "changed");
    lab.commit("Two");
    let source = lab.range("HEAD~1").unwrap();
    let first = source.commits()[0].tree;
    let second = lab.range("HEAD").unwrap().commits()[0].tree;

    let (whole, stats) = packed(&source, &[first], &[]);
    assert_eq!(stats.objects, 50 + 5 + 1);
    // The file, its directory, the root.
    let (change, stats) = packed(&source, &[second], &[first]);
    assert_eq!(stats.objects, 3);
    assert_eq!(source.missing(&[first, second], &[]).unwrap().len(), 56 + 3);
    assert!(source.missing(&[second], &[second]).unwrap().is_empty());
    // Something that this repository does not know is no help and no error.
    assert_eq!(source.missing(&[first], &[TreeId([7; 20])]).unwrap().len(), 56);

    let (_directory, host) = store(&[whole, change]);
    assert_eq!(files(&host, second)["dir3/file3"].1, b"changed");
}

#[test]
fn many_objects_are_packed_by_git_with_the_same_result() {
    let lab = Lab::new();
    for number in 0..2100 {
        lab.write(&format!("dir {}/file{number}", number % 7), &format!("content {number}"));
    }
    // Not committed: these objects are only beside the repository.
    let source = lab.open(&Selection::WorkingTree).unwrap();
    let tree = source.commits()[0].tree;
    let (pack, stats) = packed(&source, &[tree], &[]);
    assert_eq!(stats.objects, 2108);
    let (_directory, host) = store(&[pack]);
    assert_eq!(files(&host, tree).len(), 2100);
}

#[test]
fn a_receiver_that_fails_stops_the_packing() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lab = Lab::new();
    for number in 0..2100 {
        lab.write(&format!("file{number}"), &number.to_string());
    }
    lab.commit("One");
    let source = lab.range("HEAD").unwrap();
    let mut missing = source.missing(&[source.commits()[0].tree], &[]).unwrap();
    assert!(matches!(source.pack(&missing, &mut Full), Err(SourceError::Write(_))));
    missing.objects.truncate(10);
    assert!(matches!(source.pack(&missing, &mut Full), Err(SourceError::Write(_))));
}

#[test]
fn submodules_and_lfs_are_refused_by_name() {
    let lab = Lab::new();
    lab.write("file", "x");
    let commit = lab.commit("One");
    let nested = Repository::init(lab.path("vendor/lib")).unwrap();
    let who = Signature::now("Test", "test@example.org").unwrap();
    let tree = nested.find_tree(nested.treebuilder(None).unwrap().write().unwrap()).unwrap();
    nested.commit(Some("HEAD"), &who, &who, "Inner", &tree, &[]).unwrap();
    match lab.open(&Selection::WorkingTree) {
        Err(SourceError::Nested { path, .. }) => assert_eq!(path, "vendor/lib"),
        other => panic!("{other:?}"),
    }
    fs::remove_dir_all(lab.path("vendor")).unwrap();
    lab.write("sub/.gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    assert!(lab.open(&Selection::WorkingTree).is_ok(), "an attribute without such a file does no harm");
    lab.write("sub/a.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n");
    lab.commit("Two");
    match lab.range("HEAD") {
        Err(error @ SourceError::Lfs { .. }) => assert!(error.to_string().contains("sub/a.bin"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(lab.range(&commit.to_string()).is_ok());
}

#[test]
fn an_object_that_is_not_there_is_named() {
    let lab = Lab::new();
    lab.write("dir/file", "x");
    lab.commit("One");
    let source = lab.range("HEAD").unwrap();
    let tree = source.commits()[0].tree;
    let blob =
        lab.repository.head().unwrap().peel_to_tree().unwrap().get_path(Path::new("dir/file")).unwrap().id();
    let text = blob.to_string();
    fs::remove_file(lab.path(&format!(".git/objects/{}/{}", &text[..2], &text[2..]))).unwrap();
    let missing = source.missing(&[tree], &[]).unwrap();
    match source.pack(&missing, &mut Vec::new()) {
        Err(SourceError::Absent { id, path, .. }) => assert_eq!((id, path), (text, "dir/file".to_owned())),
        other => panic!("{other:?}"),
    }
}

/// The content of a tree object with one entry.
fn raw_entry(mode: &str, name: &[u8], id: Oid) -> Vec<u8> {
    [mode.as_bytes(), b" ", name, b"\0", id.as_bytes()].concat()
}

#[test]
fn what_no_host_would_check_out_is_refused_before_anything_is_sent() {
    let lab = Lab::new();
    lab.write("file", "x");
    lab.commit("One");
    let odb = lab.repository.odb().unwrap();
    let blob = odb.write(ObjectType::Blob, b"x").unwrap();
    let long = odb.write(ObjectType::Blob, &[b'a'; 5000]).unwrap();
    let tree = |content: &[u8]| odb.write(ObjectType::Tree, content).unwrap();
    let twice = [raw_entry("100644", b"a", blob), raw_entry("100755", b"a", blob)].concat();
    let deep =
        (0..20_000).fold(tree(&raw_entry("100644", b"x", blob)), |id, _| tree(&raw_entry("40000", b"d", id)));
    let bad = [
        (raw_entry("100644", b"..", blob), "could leave its directory"),
        (raw_entry("100644", b"a/b", blob), "could leave its directory"),
        (raw_entry("40000", b".Git", tree(b"")), "reserved"),
        (raw_entry("100644", &[b'n'; 256], blob), "the limit is 255"),
        (raw_entry("120000", b"l", long), "the limit is 4095"),
        (raw_entry("20666", b"device", blob), "mode 20666"),
        (twice, "there twice"),
        (raw_entry("40000", b"d", deep), "more than 400 deep"),
    ];
    for (content, why) in bad {
        let content =
            format!("tree {}\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nBad\n", tree(&content));
        let commit = odb.write(ObjectType::Commit, content.as_bytes()).unwrap();
        match lab.range(&commit.to_string()) {
            Err(error @ SourceError::Unfit { .. }) => assert!(error.to_string().contains(why), "{error}"),
            other => panic!("{why}: {other:?}"),
        }
    }
}

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crewboss_host::storage::btrfs;
use crewboss_host::testing::{Mount, content};

use super::*;
use crate::source::SourceError;
use crate::testing::store;

const FILES: &[(&str, u32, &str)] = &[
    ("Makefile", 0o100644, "all:\n"),
    ("run.sh", 0o100755, "#!/bin/sh\n"),
    ("link", 0o120000, "src/a.c"),
    ("src/a.c", 0o100644, "int a;\n"),
    ("src/old/b.c", 0o100644, "int b;\n"),
];

/// As [`FILES`], with a file changed, one removed with its directory, and one new.
const NEXT: &[(&str, u32, &str)] = &[
    ("Makefile", 0o100644, "all:\n"),
    ("run.sh", 0o100755, "#!/bin/sh\n"),
    ("link", 0o120000, "src/a.c"),
    ("src/a.c", 0o100644, "int a = 1;\n"),
    ("new/c.c", 0o100644, "int c;\n"),
];

struct Bench {
    preparer: Preparer,
    layout: Layout,
    session: PathBuf,
    _place: Place,
}

enum Place {
    Mount { _mount: Mount },
    Plain { _directory: tempfile::TempDir },
}

impl Bench {
    /// One on btrfs with snapshots, one there with reflinks, one with plain copies.
    fn all() -> Vec<Self> {
        let snapshot = Self::on_btrfs(Way::Snapshot);
        let reflink = Self::on_btrfs(Way::Reflink);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        vec![snapshot, reflink, Self::new(path, Way::Plain, Place::Plain { _directory: directory })]
    }

    fn on_btrfs(way: Way) -> Self {
        let mount = Mount::btrfs();
        assert_eq!(Way::find(&mount.path()).unwrap(), Way::Snapshot);
        Self::new(mount.path(), way, Place::Mount { _mount: mount })
    }

    fn new(work: PathBuf, way: Way, place: Place) -> Self {
        let layout = Layout::new(work);
        for directory in [layout.locks(), layout.warm_root(), layout.tasks().join("s.1")] {
            fs::create_dir_all(directory).unwrap();
        }
        let preparer = Preparer::with_way(layout.clone(), way).unwrap();
        Self { preparer, session: layout.tasks().join("s.1"), layout, _place: place }
    }

    fn tree(&self, files: &[(&str, u32, &str)]) -> TreeId {
        let tree = store(&self.layout, files);
        self.preparer.sources.check_out(tree, None).unwrap();
        tree
    }

    fn prepare(&self, name: &str, tree: TreeId, environment: Environment, warm: bool) -> Prepared {
        let warm = warm.then(|| "0123456789abcdef".parse().unwrap());
        let request = EnvRequest { attempt_dir: self.session.join(name), tree, environment, warm };
        self.preparer.prepare(&request).unwrap()
    }

    fn snapshot(&self, name: &str, tree: TreeId) -> Prepared {
        self.prepare(name, tree, Environment::Snapshot, false)
    }
}

fn texts(files: &[(&str, u32, &str)]) -> Vec<(String, String)> {
    let text = |mode: u32, text: &str| if mode == 0o120000 { format!("-> {text}") } else { text.to_owned() };
    let mut texts: Vec<_> =
        files.iter().map(|(path, mode, t)| ((*path).to_owned(), text(*mode, t))).collect();
    texts.sort();
    texts
}

#[test]
fn every_way_gives_a_writable_copy_and_leaves_the_source_alone() {
    for bench in Bench::all() {
        let tree = bench.tree(FILES);
        let prepared = bench.snapshot("1.1", tree);
        assert_eq!(content(&prepared.src), texts(FILES), "{:?}", bench.preparer.way);
        assert_eq!(fs::metadata(prepared.src.join("run.sh")).unwrap().permissions().mode() & 0o111, 0o111);
        assert_eq!(fs::metadata(prepared.src.join("Makefile")).unwrap().permissions().mode() & 0o777, 0o644);
        let time = |root: &Path| fs::metadata(root.join("src/a.c")).unwrap().modified().unwrap();
        assert_eq!(time(&prepared.src), time(&bench.layout.source(tree)));
        fs::write(prepared.src.join("src/a.c"), "changed").unwrap();
        fs::write(prepared.src.join("extra"), "").unwrap();
        fs::remove_file(prepared.src.join("Makefile")).unwrap();
        assert_eq!(content(&bench.layout.source(tree)), texts(FILES));
        bench.preparer.remove(prepared).unwrap();
        bench.preparer.tidy().unwrap();
        assert!(fs::read_dir(&bench.session).unwrap().next().is_none());
    }
}

#[test]
fn the_directory_environment_cannot_change_the_shared_source() {
    for bench in Bench::all() {
        let tree = bench.tree(FILES);
        let prepared = bench.prepare("1.1", tree, Environment::Directory, false);
        let shared = bench.preparer.way == Way::Snapshot;
        assert_eq!(prepared.src == bench.layout.source(tree), shared);
        let written = fs::write(prepared.src.join("src/a.c"), "changed");
        assert_eq!(written.is_err(), shared);
        assert_eq!(
            fs::set_permissions(prepared.src.join("run.sh"), PermissionsExt::from_mode(0o600)).is_err(),
            shared
        );
        assert_eq!(content(&bench.layout.source(tree)), texts(FILES));
        bench.preparer.remove(prepared).unwrap();
    }
}

#[test]
fn a_source_that_was_changed_by_force_is_seen_by_nobody_else() {
    let bench = Bench::on_btrfs(Way::Snapshot);
    let tree = bench.tree(FILES);
    let place = bench.layout.source(tree);
    let force: [&dyn Fn(); 4] = [
        &|| {
            btrfs::set_read_only(&place, false).unwrap();
            fs::write(place.join("src/a.c"), "changed").unwrap();
            btrfs::set_read_only(&place, true).unwrap();
        },
        &|| btrfs::set_read_only(&place, false).unwrap(),
        &|| fs::rename(&place, place.with_extension("away")).unwrap(),
        &|| {},
    ];
    let made = || fs::metadata(place.join("src")).unwrap().created().unwrap();
    for (number, force) in force.iter().enumerate() {
        let environment = if number % 2 == 0 { Environment::Directory } else { Environment::Snapshot };
        let prepared = bench.prepare(&format!("{number}.1"), tree, environment.clone(), false);
        let before = made();
        // A change within the same tick of the file system's clock has the same time.
        let changed = |path: &Path| fs::metadata(path).map(|meta| (meta.ctime(), meta.ctime_nsec())).unwrap();
        let clock = bench.layout.work().join("clock");
        loop {
            fs::write(&clock, "tick").unwrap();
            if changed(&clock) > changed(&place) {
                break;
            }
        }
        force();
        bench.preparer.remove(prepared).unwrap();
        let prepared = bench.prepare(&format!("{number}.2"), tree, environment, false);
        assert_eq!(content(&prepared.src), texts(FILES), "{number}");
        assert_eq!(made() == before, number == 3, "made anew if and only if need be: {number}");
        bench.preparer.remove(prepared).unwrap();
    }
}

#[test]
fn an_untouched_copy_serves_again_and_a_touched_one_never() {
    for bench in Bench::all() {
        let tree = bench.tree(FILES);
        let inode = |prepared: &Prepared| fs::metadata(prepared.src.join("Makefile")).unwrap().ino();
        let device = |prepared: &Prepared| fs::metadata(&prepared.src).unwrap().dev();
        let first = bench.snapshot("1.1", tree);
        let (made, lies) = (inode(&first), device(&first));
        fs::write(first.out.join("result"), "").unwrap();
        fs::write(first.home.join(".config"), "").unwrap();
        bench.preparer.remove(first).unwrap();
        let mut second = bench.snapshot("2.1", tree);
        assert_eq!((inode(&second), device(&second)), (made, lies), "{:?}", bench.preparer.way);
        assert!(content(&second.out).is_empty() && content(&second.home).is_empty());
        let changes: [&dyn Fn(&Path); 6] = [
            &|src| fs::write(src.join("src/a.c"), "int z;\n").unwrap(),
            &|src| fs::write(src.join("src/new"), "").unwrap(),
            &|src| fs::set_permissions(src.join("run.sh"), PermissionsExt::from_mode(0o700)).unwrap(),
            &|src| fs::remove_file(src.join("link")).unwrap(),
            &|src| fs::rename(src.join("src/old"), src.join("src/older")).unwrap(),
            &|src| {
                let path = src.join("Makefile");
                let time = fs::metadata(&path).unwrap().modified().unwrap();
                fs::write(&path, "ALL:\n").unwrap();
                fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            change(&second.src);
            bench.preparer.remove(second).unwrap();
            second = bench.snapshot(&format!("{}.2", number + 3), tree);
            assert_eq!(content(&second.src), texts(FILES), "{:?}, change {number}", bench.preparer.way);
        }
    }
}

#[test]
fn a_warm_build_starts_from_the_last_good_one_at_the_same_path() {
    for bench in Bench::all() {
        let (tree, next) = (bench.tree(FILES), bench.tree(NEXT));
        let mut first = bench.prepare("1.1", tree, Environment::Snapshot, true);
        assert!(!first.warm);
        let (src, out) = (first.src.clone(), first.out.clone());
        fs::write(out.join("a.o"), "object of the first").unwrap();
        fs::write(src.join("src/old/generated"), "kept").unwrap();
        let untouched = fs::metadata(src.join("Makefile")).unwrap().modified().unwrap();
        bench.preparer.succeed(&mut first).unwrap();
        assert_eq!(fs::read_to_string(first.out.join("a.o")).unwrap(), "object of the first");

        let mut second = bench.prepare("2.1", next, Environment::Snapshot, true);
        assert!(second.warm);
        assert_eq!((&second.src, &second.out), (&src, &out));
        let mut expected = texts(NEXT);
        expected.push(("src/old/generated".to_owned(), "kept".to_owned()));
        expected.sort();
        assert_eq!(content(&src), expected, "{:?}", bench.preparer.way);
        assert_eq!(fs::metadata(src.join("Makefile")).unwrap().modified().unwrap(), untouched);
        assert!(fs::metadata(src.join("src/a.c")).unwrap().modified().unwrap() > untouched);
        fs::write(out.join("a.o"), "object of the second").unwrap();
        bench.preparer.succeed(&mut second).unwrap();
        assert_eq!(fs::read_to_string(first.out.join("a.o")).unwrap(), "object of the first");
        bench.preparer.remove(first).unwrap();
        bench.preparer.remove(second).unwrap();
        let left = fs::read_dir(bench.layout.warm("0123456789abcdef")).unwrap();
        let left =
            left.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("good"));
        assert_eq!(left.count(), 1);
    }
}

#[test]
fn a_failed_or_killed_build_never_dirties_the_good_one() {
    for bench in Bench::all() {
        let (tree, next) = (bench.tree(FILES), bench.tree(NEXT));
        let mut first = bench.prepare("1.1", tree, Environment::Snapshot, true);
        fs::write(first.out.join("a.o"), "good").unwrap();
        bench.preparer.succeed(&mut first).unwrap();
        bench.preparer.remove(first).unwrap();

        let mut failed = bench.prepare("2.1", next, Environment::Snapshot, true);
        fs::write(failed.out.join("a.o"), "bad").unwrap();
        bench.preparer.fail(&mut failed).unwrap();
        assert_eq!(fs::read_to_string(failed.out.join("a.o")).unwrap(), "bad");
        assert!(failed.out.starts_with(&bench.session));

        let killed = bench.prepare("3.1", next, Environment::Snapshot, true);
        assert_eq!(fs::read_to_string(killed.out.join("a.o")).unwrap(), "good");
        fs::write(killed.out.join("a.o"), "half").unwrap();
        // The worker dies: its locks go, its files stay.
        drop(killed);
        let after = bench.prepare("4.1", tree, Environment::Snapshot, true);
        assert!(after.warm);
        assert_eq!(fs::read_to_string(after.out.join("a.o")).unwrap(), "good");
        assert_eq!(content(&after.src), texts(FILES));
        bench.preparer.remove(failed).unwrap();
        bench.preparer.remove(after).unwrap();
    }
}

#[test]
fn while_another_builds_warm_the_next_builds_cold() {
    let bench = Bench::all().pop().unwrap();
    let tree = bench.tree(FILES);
    let first = bench.prepare("1.1", tree, Environment::Snapshot, true);
    let mut second = bench.prepare("2.1", tree, Environment::Snapshot, true);
    assert!(!second.warm && second.out.starts_with(&second.dir));
    bench.preparer.succeed(&mut second).unwrap();
    bench.preparer.remove(first).unwrap();
    let third = bench.prepare("3.1", tree, Environment::Snapshot, true);
    assert!(!third.warm && !third.out.starts_with(&third.dir));
}

#[test]
fn an_update_follows_no_link_that_a_build_left() {
    for bench in Bench::all() {
        let (tree, next) = (bench.tree(FILES), bench.tree(NEXT));
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("a.c"), "precious").unwrap();
        let mut first = bench.prepare("1.1", tree, Environment::Snapshot, true);
        fs::remove_dir_all(first.src.join("src")).unwrap();
        symlink(outside.path(), first.src.join("src")).unwrap();
        symlink(outside.path(), first.src.join("new")).unwrap();
        bench.preparer.succeed(&mut first).unwrap();
        let second = bench.prepare("2.1", next, Environment::Snapshot, true);
        assert!(second.warm);
        assert_eq!(content(outside.path()), [("a.c".to_owned(), "precious".to_owned())]);
        assert_eq!(fs::read_to_string(second.src.join("new/c.c")).unwrap(), "int c;\n");
    }
}

#[test]
fn a_near_source_saves_what_is_the_same() {
    for bench in Bench::all() {
        let tree = bench.tree(FILES);
        let next = store(&bench.layout, NEXT);
        bench.preparer.sources.check_out(next, Some(tree)).unwrap();
        assert_eq!(content(&bench.layout.source(next)), texts(NEXT));
        let time =
            |tree| fs::metadata(bench.layout.source(tree).join("Makefile")).unwrap().modified().unwrap();
        assert_eq!(time(tree), time(next));
        let read_only = fs::write(bench.layout.source(next).join("new/c.c"), "").is_err();
        assert_eq!(read_only, bench.preparer.way == Way::Snapshot);
    }
}

#[test]
fn a_source_that_cannot_be_had_leaves_nothing() {
    let bench = Bench::all().pop().unwrap();
    let request = EnvRequest {
        attempt_dir: bench.session.join("1.1"),
        tree: TreeId([1; 20]),
        environment: Environment::Snapshot,
        warm: None,
    };
    let error = bench.preparer.prepare(&request).unwrap_err();
    assert_eq!(error.refusal(), crewboss_protocol::message::Refusal::NoSource);
    for (name, mode) in [("..", 0o100644), (".git", 0o100644), ("sub", 0o160000), ("", 0o100644)] {
        let tree = store(&bench.layout, &[("fine", 0o100644, ""), (name, mode, "")]);
        let error = bench.preparer.sources.check_out(tree, None).unwrap_err();
        assert!(matches!(error, SourceError::Content { .. }), "{name:?}: {error:?}");
    }
    let error = bench.preparer.sources.check_out(TreeId([1; 20]), None).unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error:?}");
    assert!(fs::read_dir(bench.layout.sources()).unwrap().next().is_none());
}

#[test]
fn checkouts_of_one_tree_at_the_same_time_all_succeed() {
    for bench in Bench::all() {
        let tree = store(&bench.layout, FILES);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| bench.preparer.sources.check_out(tree, None).unwrap());
            }
        });
        assert_eq!(content(&bench.layout.source(tree)), texts(FILES));
        assert_eq!(fs::read_dir(bench.layout.sources()).unwrap().count(), 2);
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    let mount = Mount::tmpfs(16);
    let bench = Bench::new(mount.path(), Way::Plain, Place::Mount { _mount: mount });
    let text = "x".repeat(1 << 20);
    let tree = bench.tree(&[("big", 0o100644, &text)]);
    let request = |number| EnvRequest {
        attempt_dir: bench.session.join(format!("{number}.1")),
        tree,
        environment: Environment::Snapshot,
        warm: None,
    };
    let (number, error) = (0..20)
        .find_map(|number| bench.preparer.prepare(&request(number)).err().map(|error| (number, error)))
        .unwrap();
    assert_eq!(error.refusal(), crewboss_protocol::message::Refusal::NoSpace);
    assert!(!request(number).attempt_dir.exists());
}

#[test]
fn subvolumes_are_told_from_directories() {
    let mount = Mount::btrfs();
    let (subvolume, directory) = (mount.path().join("s"), mount.path().join("d"));
    btrfs::create_subvolume(&subvolume).unwrap();
    fs::create_dir(&directory).unwrap();
    assert!(btrfs::is_subvolume(&subvolume).unwrap());
    assert!(!btrfs::is_subvolume(&directory).unwrap());
}

#[test]
fn nothing_is_made_for_a_session_that_is_over() {
    for bench in Bench::all() {
        let tree = bench.tree(FILES);
        fs::remove_dir(&bench.session).unwrap();
        for (environment, warm) in
            [(Environment::Snapshot, false), (Environment::Directory, false), (Environment::Snapshot, true)]
        {
            let attempt_dir = bench.session.join("1.1");
            let warm = warm.then(|| "0123456789abcdef".parse().unwrap());
            let request = EnvRequest { attempt_dir, tree, environment, warm };
            let error = bench.preparer.prepare(&request).unwrap_err();
            assert!(matches!(error, EnvError::Io { .. }), "{error}");
            assert!(!bench.session.exists());
        }
    }
}

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;
use crate::testing::{Mount, run};

#[test]
fn removing_follows_no_link_and_needs_no_permission() {
    let directory = tempfile::tempdir().unwrap();
    let (outside, tree) = (directory.path().join("outside"), directory.path().join("tree"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "").unwrap();
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "").unwrap();
    symlink(&outside, tree.join("a/link")).unwrap();
    symlink("nowhere", tree.join("a/b/dangling")).unwrap();
    fs::set_permissions(tree.join("a/b"), PermissionsExt::from_mode(0o000)).unwrap();
    fs::set_permissions(tree.join("a"), PermissionsExt::from_mode(0o500)).unwrap();
    remove_tree(&tree).unwrap();
    assert!(!tree.exists() && outside.join("precious").exists());
    remove_tree(&tree).unwrap();
    symlink(&outside, &tree).unwrap();
    remove_tree(&tree).unwrap();
    assert!(fs::symlink_metadata(&tree).is_err() && outside.join("precious").exists());
}

#[test]
fn directories_deeper_than_any_path_can_say_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let mut at = fs::File::open(&tree).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, "deep", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    drop(at);
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn nested_and_read_only_subvolumes_are_removed() {
    let mount = Mount::btrfs();
    let tree = mount.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let outer = tree.join("outer");
    btrfs::create_subvolume(&outer).unwrap();
    fs::create_dir(outer.join("plain")).unwrap();
    btrfs::create_subvolume(&outer.join("plain/inner")).unwrap();
    fs::write(outer.join("plain/inner/file"), "").unwrap();
    btrfs::snapshot(&outer.join("plain/inner"), &tree.join("frozen"), true).unwrap();
    btrfs::set_read_only(&outer, true).unwrap();
    btrfs::set_read_only(&outer.join("plain/inner"), true).unwrap();
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn a_mount_is_taken_away_and_never_entered() {
    let (directory, mount) = (tempfile::tempdir().unwrap(), Mount::btrfs());
    fs::write(mount.path().join("precious"), "").unwrap();
    let at = directory.path().join("tree/a/at");
    fs::create_dir_all(&at).unwrap();
    for _ in 0..2 {
        run(Command::new("mount").arg("--bind").args([&mount.path(), &at]));
    }
    remove_tree(&directory.path().join("tree")).unwrap();
    assert!(mount.path().join("precious").exists() && !directory.path().join("tree").exists());
}

#[test]
fn what_nobody_may_change_goes_and_the_rest_goes_around_what_cannot() {
    let mount = Mount::btrfs();
    let tree = mount.path().join("tree");
    fs::create_dir_all(tree.join("a/fixed/b")).unwrap();
    fs::write(tree.join("a/fixed/file"), "").unwrap();
    fs::write(tree.join("a/log"), "").unwrap();
    run(Command::new("chattr").args(["+a"]).arg(tree.join("a/log")));
    run(Command::new("chattr").args(["+i"]).args([
        tree.join("a/fixed/file"),
        tree.join("a/fixed"),
        tree.join("a"),
    ]));
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    // What is swapped to can be neither removed nor changed.
    fs::create_dir_all(tree.join("a")).unwrap();
    for name in ["a/1", "a/3", "b"] {
        fs::write(tree.join(name), "").unwrap();
    }
    let busy = tree.join("a/2");
    fs::write(&busy, "").unwrap();
    run(Command::new("chattr").args(["+C"]).arg(&busy));
    run(Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=1", "status=none"])
        .arg(format!("of={}", busy.display())));
    fs::set_permissions(&busy, PermissionsExt::from_mode(0o600)).unwrap();
    run(Command::new("mkswap").arg("-q").arg(&busy));
    run(Command::new("swapon").arg(&busy));
    let error = remove_tree(&tree).unwrap_err();
    let left = fs::read_dir(tree.join("a")).unwrap().count();
    run(Command::new("swapoff").arg(&busy));
    assert!(error.to_string().starts_with(&format!("cannot remove {}: ", busy.display())), "{error}");
    assert!(left == 1 && !tree.join("b").exists());
    remove_tree(&tree).unwrap();
}

#[test]
fn an_ordinary_user_removes_subvolumes_by_emptying_them() {
    let mount = Mount::btrfs();
    let home = mount.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(mount.path().parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    // A process of its own: credentials belong to a whole process.
    let exe = std::env::current_exe().unwrap();
    let copy = mount.path().join("tests");
    // Not by this process: one that another test is just starting would keep the copy open for
    // writing, and so busy.
    run(Command::new("cp").arg(exe).arg(&copy));
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy);
    command
        .args(["--exact", "storage::tests::as_an_ordinary_user", "--nocapture"])
        .env("CREWBOSS_TEST_HOME", &home);
    run(&mut command);
    assert!(home.join("done").exists());
}

/// Does nothing unless started by [`an_ordinary_user_removes_subvolumes_by_emptying_them`].
#[test]
fn as_an_ordinary_user() {
    let Some(home) = std::env::var_os("CREWBOSS_TEST_HOME") else { return };
    let home = Path::new(&home);
    assert_eq!(Way::find(home).unwrap(), Way::Snapshot);
    let (source, copy) = (home.join("source"), home.join("copy"));
    btrfs::create_subvolume(&source).unwrap();
    fs::create_dir(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), "").unwrap();
    btrfs::snapshot(&source, &copy, true).unwrap();
    assert_eq!(btrfs::destroy(&copy).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    remove_tree(&copy).unwrap();
    remove_tree(&source).unwrap();
    assert_eq!(fs::read_dir(home).unwrap().count(), 0);
    fs::write(home.join("done"), "").unwrap();
}

/// Removes what `make` makes with two threads at once, again and again.
fn two_at_once(place: &Path, rounds: usize, make: impl Fn(&Path)) {
    for round in 0..rounds {
        let tree = place.join(format!("tree-{round}"));
        make(&tree);
        std::thread::scope(|scope| {
            for other in [(); 2].map(|()| scope.spawn(|| remove_tree(&tree))) {
                other.join().unwrap().unwrap();
            }
        });
        assert!(!tree.exists());
    }
}

#[test]
fn two_who_remove_the_same_tree_both_succeed() {
    let (directory, mount) = (tempfile::tempdir().unwrap(), Mount::btrfs());
    for place in [directory.path(), &mount.path()] {
        two_at_once(place, 4, |tree| {
            for number in 0..300 {
                let inner = tree.join(format!("{}/{number}/inner", number % 7));
                fs::create_dir_all(&inner).unwrap();
                fs::write(inner.join("file"), "").unwrap();
                fs::set_permissions(&inner, PermissionsExt::from_mode(0o300)).unwrap();
            }
            fs::write(tree.join("file"), "").unwrap();
        });
    }
}

#[test]
fn two_who_remove_the_same_file_both_succeed() {
    let directory = tempfile::tempdir().unwrap();
    two_at_once(directory.path(), 300, |tree| fs::write(tree, "").unwrap());
}

#[test]
fn two_who_remove_the_same_subvolumes_both_succeed() {
    let mount = Mount::btrfs();
    two_at_once(&mount.path(), 8, |tree| {
        btrfs::create_subvolume(tree).unwrap();
        for number in 0..6 {
            let inner = tree.join(number.to_string());
            btrfs::create_subvolume(&inner).unwrap();
            fs::write(inner.join("file"), "").unwrap();
            btrfs::set_read_only(&inner, number % 2 == 0).unwrap();
        }
    });
}

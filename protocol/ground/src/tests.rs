//! What may lie behind a fixed name, and what is said of it.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use super::*;

/// A user who is not us and has no group in common with anybody.
const STRANGER: u32 = 987_654;

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn give_away(path: &Path) {
    std::os::unix::fs::lchown(path, Some(STRANGER), Some(STRANGER)).unwrap();
}

/// Everything that can have the name of a file and is none, with the words for it.
fn odd_things(top: &Path) -> Vec<(PathBuf, &'static str)> {
    let at = |name: &str| top.join(name);
    fs::write(at("precious"), "precious").unwrap();
    symlink(at("precious"), at("link")).unwrap();
    symlink(at("not-there"), at("dangling")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, at("device"), FileType::CharacterDevice, mode, rustix::fs::makedev(1, 5))
        .unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
    let kinds = [
        ("link", "a symbolic link"),
        ("dangling", "a symbolic link"),
        ("loop", "a symbolic link"),
        ("directory", "a directory"),
        ("fifo", "a FIFO"),
        ("device", "a device"),
        ("socket", "a socket"),
    ];
    kinds.map(|(name, words)| (at(name), words)).to_vec()
}

#[test]
fn what_is_no_file_is_named_and_neither_waited_for_nor_followed() {
    let top = tempfile::tempdir().unwrap();
    for (path, words) in odd_things(top.path()) {
        for open in [Open::read(), Open::append(), Open::create(), Open::lock()] {
            let text = open.path(&path).unwrap_err().to_string();
            assert!(text.contains(&format!("it is {words} and not a file")), "{open:?}: {text}");
            assert!(text.contains(path.to_str().unwrap()) && text.contains("hint: `mv "), "{text}");
        }
        assert_eq!(Open::create_new().path(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let record = read_record(&path, 100).unwrap_err();
        assert!(record.to_string().contains(words), "{record}");
    }
    assert_eq!(fs::read(top.path().join("precious")).unwrap(), b"precious");
    assert!(!top.path().join("not-there").exists());
}

#[test]
fn what_another_user_has_or_can_write_to_is_refused() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("file");
    fs::write(&path, "text").unwrap();
    for (mode, writable) in [(0o644, false), (0o664, false), (0o646, true), (0o666, true)] {
        set_mode(&path, mode);
        let opened = Open::create().path(&path).and(Open::read().path(&path));
        assert_eq!(opened.is_err(), writable, "{mode:o}");
    }
    let text = Open::create().path(&path).unwrap_err().to_string();
    assert!(text.contains("other users can write to it (its mode is 666); hint: `chmod go-w "), "{text}");

    // A group that is not the owner's own, and one that the access list speaks for.
    set_mode(&path, 0o664);
    std::os::unix::fs::chown(&path, None, Some(STRANGER)).unwrap();
    assert!(matches!(Open::read().path(&path).unwrap_err().fault, Fault::Writable { mode: 0o664 }));
    set_mode(&path, 0o644);
    Open::read().path(&path).unwrap();

    give_away(&path);
    let error = Open::append().path(&path).unwrap_err();
    assert!(error.to_string().contains("it belongs to the user with the number 987654"), "{error}");
    Open::read().also_of(&[STRANGER]).path(&path).unwrap();
    assert!(read_record(&path, 100).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied));
}

#[test]
fn a_file_with_an_access_list_is_not_writable_by_its_group_alone() {
    // Version 2; the owner rw, the user 987654 rw, the group r, the mask rw, others r.
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 6, STRANGER), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 4, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        list.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    // Where files live that outlast a boot: memory file systems mostly have no access lists.
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let set = rustix::fs::XattrFlags::empty();
    if rustix::fs::fsetxattr(file.as_file(), "system.posix_acl_access", &list, set).is_ok() {
        assert_eq!(mode_of(file.path()), 0o664);
        assert!(matches!(Open::read().path(file.path()).unwrap_err().fault, Fault::Writable { .. }));
    }
}

#[test]
fn files_are_read_appended_to_and_made_anew() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("file");
    assert_eq!(Open::read().path(&path).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(read_record(&path, 3).unwrap(), None);
    assert_eq!(read_record(&path.join("below"), 3).unwrap(), None);
    Open::append().mode(0o600).path(&path).unwrap().write_all(b"on").unwrap();
    Open::append().path(&path).unwrap().write_all(b"e").unwrap();
    assert_eq!(mode_of(&path), 0o600);
    assert_eq!(read_record(&path, 3).unwrap().as_deref(), Some(&b"one"[..]));
    assert!(matches!(read_record(&path, 2).unwrap_err().fault, Fault::TooLong { max: 2 }));
    Open::create().path(&path).unwrap().write_all(b"x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
    assert_eq!(read_record(&path.join("below"), 3).unwrap_err().kind(), ErrorKind::NotADirectory);
}

#[test]
fn nobody_else_can_open_the_file_of_a_lock() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("lock");
    let mut text = String::new();
    for mode in [0o600, 0o644, 0o666] {
        fs::write(&path, "text").unwrap();
        set_mode(&path, mode);
        let held = Held::new(Open::lock().path(&path).unwrap());
        assert_eq!(mode_of(&path), 0o600);
        (&*held).read_to_string(&mut text).unwrap();
        assert!(held.is_at(&path).unwrap());
    }
    assert_eq!(text, "text".repeat(3), "what it says stays");
    set_mode(&path, 0o666);
    give_away(&path);
    assert!(matches!(Open::lock().path(&path).unwrap_err().fault, Fault::Owner { owner: STRANGER }));
    assert_eq!(mode_of(&path), 0o666);
}

#[test]
fn a_directory_is_ours_or_it_is_not_used() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("a/b");
    drop(Directory::make(&path).unwrap());
    assert_eq!(mode_of(&path), 0o700);
    set_mode(&path, 0o755);
    drop(Directory::make(&path).unwrap());
    assert_eq!(mode_of(&path), 0o755, "what somebody chose is kept");
    let link = top.path().join("link");
    symlink(&path, &link).unwrap();
    drop(Directory::make(&link).unwrap());

    for mode in [0o757, 0o1777, 0o777] {
        set_mode(&path, mode);
        let text = Directory::make(&path).unwrap_err().to_string();
        assert!(text.contains(&format!("other users can write to it (its mode is {mode:03o})")), "{text}");
    }
    set_mode(&path, 0o700);
    give_away(&path);
    for opened in [Directory::open(&path), Directory::make(&link)] {
        assert!(matches!(opened.unwrap_err().fault, Fault::Owner { owner: STRANGER }));
    }
    let missing = Directory::open(&top.path().join("none")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn what_is_no_directory_of_ours_has_no_children() {
    let top = tempfile::tempdir().unwrap();
    let odd = odd_things(top.path());
    let directory = Directory::open(top.path()).unwrap();
    for (path, words) in odd.iter().filter(|(_, words)| *words != "a directory") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = directory.make_child(name).unwrap_err().to_string();
        assert!(text.contains(&format!("{name}: it is {words} and not a directory")), "{text}");
    }
    let child = directory.make_child("directory").unwrap().make_child("deeper").unwrap();
    assert_eq!(mode_of(child.path()), 0o700);
    Open::create_new().within(&child, "file").unwrap().write_all(b"x").unwrap();
    assert!(Open::create_new().within(&child, "file").unwrap_err().to_string().contains("deeper/file"));
    assert_eq!(fs::read(top.path().join("directory/deeper/file")).unwrap(), b"x");
}

#[test]
fn a_file_is_replaced_whole_and_never_written_into() {
    let top = tempfile::tempdir().unwrap();
    for (path, words) in odd_things(top.path()) {
        let written = Replace::with_mode(0o640).path(&path, b"new");
        if words == "a directory" {
            assert_eq!(written.unwrap_err().kind(), ErrorKind::IsADirectory);
        } else {
            written.unwrap();
            assert_eq!((fs::read(&path).unwrap(), mode_of(&path)), (b"new".to_vec(), 0o640));
        }
    }
    assert_eq!(fs::read(top.path().join("precious")).unwrap(), b"precious");
    let directory = Directory::open(top.path()).unwrap();
    let how = Replace::with_mode(0o600).new_only().synced();
    how.within(&directory, "once", b"1").unwrap();
    assert_eq!(how.within(&directory, "once", b"2").unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(top.path().join("once")).unwrap(), b"1");
    let left = fs::read_dir(top.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(".tmp")));
}

#[test]
fn a_directory_that_others_can_put_another_in_the_place_of_is_named() {
    let top = tempfile::tempdir().unwrap();
    let (above, own) = (top.path().join("project/a"), top.path().join("project/a/work"));
    fs::create_dir_all(&own).unwrap();
    let checked = || Directory::fixed(&own).unwrap().check_above().map_err(|error| error.to_string());
    assert_eq!(checked(), Ok(()));
    let project = top.path().join("project");
    for (mode, refused) in [(0o1777, false), (0o775, false), (0o777, true), (0o711, false)] {
        set_mode(&project, mode);
        let told = checked().err().unwrap_or_default();
        let named = told.contains(&format!("{}: other users can write", project.display()));
        assert_eq!((named, told.is_empty()), (refused, !refused), "{mode:o}: {told}");
    }
    std::os::unix::fs::chown(&above, None, Some(STRANGER)).unwrap();
    set_mode(&above, 0o2775);
    assert!(checked().unwrap_err().contains("a: other users can write to it (its mode is 2775)"));
    set_mode(&above, 0o755);
    std::os::unix::fs::chown(&above, Some(STRANGER), None).unwrap();
    assert!(checked().unwrap_err().contains("it belongs to the user with the number 987654"));
}

//! What lies on the disk of a held guest, without any guest.

use crewboss_protocol::machine::Accelerator;

use super::*;
use crate::qemu::command::{Format, Link, Nic};
use crate::qemu::firmware::Uefi;

fn disk(path: PathBuf, access: Access) -> Disk {
    Disk { path, format: Format::Raw, serial: Some("serial".to_owned()), access }
}

fn kept(guest: &Path, source: &Path) -> Kept {
    Kept {
        config: GuestConfig {
            name: "debian12-gcc12-k3x9ab".to_owned(),
            accelerator: Accelerator::Tcg,
            cpu: None,
            memory: 1 << 28,
            backing: Backing::Private("/somewhere/memory".into()),
            processors: 2,
            boot: Boot::Uefi(Uefi { code: "/usr/code".into(), variables: guest.join("variables") }),
            disks: vec![
                disk(guest.join("disk.img"), Access::Throwaway),
                disk(source.to_owned(), Access::ReadOnly),
                disk(guest.join("result.img"), Access::Throwaway),
            ],
            agent: true,
            shell: true,
            networks: vec![Nic { link: Link::Tap, mac: Some("52:54:00:12:34:56".to_owned()) }],
            firmware_entries: vec![("opt/x".to_owned(), "a,b".to_owned())],
            display: Some("vnc".into()),
            incoming: false,
            options: vec!["-device".to_owned(), "x".to_owned()],
        },
        bridge: Some("br0".to_owned()),
        instances: 8,
        startup_ms: 120_000,
        memory: true,
        prepared: true,
        qemu: "7.2.22".to_owned(),
        document: "crewboss-task 1\nend\n".to_owned(),
    }
}

struct Scene {
    base: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { base: tempfile::tempdir().unwrap() };
        fs::create_dir(scene.guest()).unwrap();
        for (name, text) in [("disk.img", "one"), ("result.img", ""), ("variables", "v")] {
            fs::write(scene.guest().join(name), text).unwrap();
        }
        fs::write(scene.source(), "source").unwrap();
        scene
    }

    fn guest(&self) -> PathBuf {
        self.base.path().join("guest")
    }

    fn source(&self) -> PathBuf {
        self.base.path().join("source.tar")
    }

    fn hold(&self) -> (Shelf, Kept) {
        let (shelf, mut kept) = (Shelf::new(&self.guest()), kept(&self.guest(), &self.source()));
        let draft = shelf.begin(1).unwrap();
        fs::write(draft.state(), "memory one").unwrap();
        kept.own_disks(&self.guest()).unwrap();
        draft.commit(&kept).unwrap();
        (shelf, kept)
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }
}

#[test]
fn what_is_kept_is_read_as_it_was_written() {
    let scene = Scene::new();
    let (shelf, kept) = scene.hold();
    let (number, found, state) = shelf.load().unwrap();
    assert_eq!((number, &found, Scene::read(&state).as_str()), (1, &kept, "memory one"));
    assert_eq!(found.config.backing, Backing::Anonymous, "the shared memory file may be gone by then");
    assert!(found.config.disks[1].path.starts_with(scene.guest()), "the host's source may be gone by then");
    assert_eq!(Scene::read(&found.config.disks[1].path), "source");
}

#[test]
fn a_source_that_is_gone_becomes_an_empty_disk() {
    let scene = Scene::new();
    fs::remove_file(scene.source()).unwrap();
    let (_, kept) = scene.hold();
    assert_eq!(fs::metadata(&kept.config.disks[1].path).unwrap().len(), crate::exchange::SOURCE_DISK_BYTES);
}

#[test]
fn whoever_does_not_come_to_an_end_changes_nothing() {
    let scene = Scene::new();
    let (shelf, kept) = scene.hold();
    for killed in [true, false] {
        let draft = shelf.begin(2).unwrap();
        let config = draft.clone_disks(&kept.config).unwrap();
        let written: Vec<&PathBuf> =
            [&config.disks[0], &config.disks[2]].into_iter().map(|disk| &disk.path).collect();
        for path in &written {
            fs::write(path, "changed").unwrap();
        }
        fs::write(draft.state().with_extension("part"), "half").unwrap();
        assert_eq!(config.disks[1], kept.config.disks[1], "what is only read is not cloned");
        let Boot::Uefi(uefi) = &config.boot else { panic!("{config:?}") };
        assert_eq!(Scene::read(&uefi.variables), "v");
        if killed {
            std::mem::forget(draft);
        }
    }
    let (number, found, state) = shelf.load().unwrap();
    assert_eq!((number, &found, Scene::read(&state).as_str()), (1, &kept, "memory one"));
    assert_eq!(Scene::read(&found.config.disks[0].path), "one");
    assert!(!directory(&scene.guest(), 2).exists());
}

#[test]
fn the_next_state_takes_the_place_of_the_last_one() {
    let scene = Scene::new();
    let (shelf, kept) = scene.hold();
    let mut last = kept;
    for number in 2..4 {
        let draft = shelf.begin(number).unwrap();
        let config = draft.clone_disks(&last.config).unwrap();
        fs::write(&config.disks[0].path, format!("disk {number}")).unwrap();
        last = Kept { config, memory: false, ..last };
        draft.commit(&last).unwrap();
        let (found_number, found, state) = shelf.load().unwrap();
        assert_eq!((found_number, &found), (number, &last));
        assert_eq!(Scene::read(&found.config.disks[0].path), format!("disk {number}"));
        assert!(!state.exists() && !directory(&scene.guest(), number - 1).exists());
    }
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let scene = Scene::new();
    let (shelf, _) = scene.hold();
    let restore = directory(&scene.guest(), 1).join(RESTORE);
    fs::write(&restore, "{}").unwrap();
    assert!(matches!(shelf.load(), Err(ShelfError::Unreadable { .. })));
    let link = scene.guest().join(LINK);
    fs::remove_file(&link).unwrap();
    assert!(matches!(shelf.load(), Err(ShelfError::Io { .. })));
    std::os::unix::fs::symlink("../elsewhere", &link).unwrap();
    assert!(shelf.load().unwrap_err().to_string().contains("held"));
}

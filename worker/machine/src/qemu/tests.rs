//! Real guests under emulation, and programs that are no QEMU.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use crewboss_host::process::ProcessId;

use super::child::Ended;
use super::command::{Access, Backing, Disk, Format, Link, Nic};
use super::error::QemuError;
use super::fixture::{LIMIT, Running, Scene, UP};
use super::process::Qemu;
use super::qmp::{Event, Incoming, QmpError};
use super::saved::{self, Kind, SavedError};
use super::version::Program;

fn soon() -> Instant {
    Instant::now() + LIMIT
}

fn disk(path: &str, serial: &str, access: Access) -> Disk {
    Disk { path: path.into(), format: Format::Raw, serial: Some(serial.to_owned()), access }
}

/// Waits for QEMU to end and returns the events that it told until then.
fn events_until_end(guest: &mut Running) -> (Vec<Event>, Ended) {
    let end = soon();
    while guest.read(end) {
        assert!(Instant::now() < end, "it does not end: {}", guest.seen);
    }
    let is_closed = |incoming: &Incoming| matches!(incoming, Incoming::Closed);
    guest.qemu.qmp.wait("the end", soon(), is_closed).unwrap();
    let ended = guest.qemu.child.wait(soon()).expect("QEMU closed its monitor and lives on");
    let mut events = Vec::new();
    while let Some(incoming) = guest.qemu.qmp.take() {
        if let Incoming::Event(event) = incoming {
            events.push(event);
        }
    }
    (events, ended)
}

fn shutdown(reason: &str) -> Event {
    Event::Shutdown { guest: true, reason: reason.to_owned() }
}

#[test]
fn a_guest_that_powers_itself_off_or_resets_ends_with_the_reason() {
    // At the same time: a boot is mostly waiting for one processor.
    let reset = std::thread::spawn(|| {
        let scene = Scene::new();
        let mut guest = scene.start();
        guest.expect(UP);
        guest.say("reset");
        events_until_end(&mut guest)
    });
    let mut scene = Scene::new();
    fs::write(scene.path("disk,1"), vec![0; 1 << 20]).unwrap();
    scene.config.disks = vec![disk("disk,1", "crewboss-result", Access::Throwaway)];
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let nic = |link| Nic { link, mac: Some("52:54:00:12:34:56".to_owned()) };
    scene.config.networks = vec![nic(Link::User), nic(Link::Frames)];
    scene.config.shell = true;
    scene.config.display = Some("vnc,1".into());
    scene.config.firmware_entries = vec![("opt/crewboss/tftp".to_owned(), "10.0.2.2:5,6".to_owned())];
    let mut guest = scene.start_with(vec![OwnedFd::from(theirs)]);
    let version = guest.qemu.wait_ready(soon()).unwrap();
    assert_eq!(version, Program::find().unwrap().version().unwrap());
    assert!(scene.path("vnc,1").exists(), "a relative path is one in the guest's directory");
    guest.expect(UP);
    guest.say("run cat /sys/bus/pci/devices/*/vendor | grep -c 0x1af4");
    assert_eq!(guest.expect("RAN 0").trim(), "5", "random numbers, ports, disk and two cards");
    assert!(guest.qemu.qmp.status(soon()).unwrap().running);
    guest.say("off");
    let (events, ended) = events_until_end(&mut guest);
    assert_eq!((events.last(), ended), (Some(&shutdown("guest-shutdown")), Ended::Code(0)));
    assert_eq!(ours.send(b"a frame").unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let (events, ended) = reset.join().unwrap();
    assert_eq!((events.last(), ended), (Some(&shutdown("guest-reset")), Ended::Code(0)));
}

#[test]
fn a_linux_that_panics_ends_instead_of_hanging() {
    let scene = Scene::new();
    let mut guest = scene.start();
    guest.expect(UP);
    guest.say("panic");
    let (events, _) = events_until_end(&mut guest);
    let reasons = [shutdown("guest-reset"), shutdown("guest-panic")];
    assert!(events.last().is_some_and(|last| reasons.contains(last)), "{events:?}");
}

#[test]
fn a_held_guest_goes_on_where_it_was_stopped() {
    let mut scene = Scene::new();
    fs::write(scene.path("disk"), vec![0; 1 << 20]).unwrap();
    scene.config.disks = vec![disk("disk", "crewboss-result", Access::Throwaway)];
    let state = scene.path("state");
    let mut guest = scene.start();
    guest.expect(UP);
    guest.say("run echo kept >/tmp/word");
    guest.expect("RAN 0");
    saved::save(&mut guest.qemu.qmp, &state, Kind::Whole, soon()).unwrap();
    assert!(!guest.qemu.qmp.status(soon()).unwrap().running);
    guest.qemu.qmp.cont(soon()).unwrap();
    guest.answers("saved and let go on");
    assert!(guest.qemu.kill());
    // A guest that lies in a file is saved and restored as any other.
    fs::write(scene.path("ram"), "").unwrap();
    scene.config.backing = Backing::Private("ram".into());
    scene.config.incoming = true;
    let mut restored = scene.start();
    saved::restore(&mut restored.qemu.qmp, &state, Kind::Whole, soon()).unwrap();
    let status = restored.qemu.qmp.status(soon()).unwrap();
    assert!(!status.running, "{status:?}");
    restored.qemu.qmp.cont(soon()).unwrap();
    restored.say("run cat /tmp/word");
    assert!(restored.expect("RAN 0").contains("kept"));
    assert!(!scene.path("state.part").exists());
}

#[test]
fn many_guests_start_from_one_saved_memory_and_none_changes_it() {
    let mut scene = Scene::new();
    scene.config.backing = Backing::Shared(scene.path("ram"));
    let state = scene.path("state");
    let mut template = scene.start();
    template.expect(UP);
    saved::save(&mut template.qemu.qmp, &state, Kind::Devices, soon()).unwrap();
    assert!(template.qemu.kill());
    assert!(fs::metadata(&state).unwrap().len() < 4 << 20, "memory is in the other file");
    let before = blake3::hash(&fs::read(scene.path("ram")).unwrap());
    scene.config.backing = Backing::Private(scene.path("ram"));
    scene.config.incoming = true;
    let mut guests: Vec<_> = (0..2).map(|_| scene.start()).collect();
    for (index, guest) in guests.iter_mut().enumerate() {
        saved::restore(&mut guest.qemu.qmp, &state, Kind::Devices, soon()).unwrap();
        guest.qemu.qmp.cont(soon()).unwrap();
        guest.say(&format!("run [ ! -e /tmp/word ] && echo {index} >/tmp/word"));
        guest.expect("RAN 0");
    }
    for (index, guest) in guests.iter_mut().enumerate() {
        guest.say("run cat /tmp/word");
        assert!(guest.expect("RAN 0").contains(&index.to_string()), "they share memory");
    }
    drop(guests);
    assert_eq!(blake3::hash(&fs::read(scene.path("ram")).unwrap()), before);
}

#[test]
fn a_state_that_is_cut_off_or_of_another_guest_is_refused() {
    let mut scene = Scene::new();
    let state = scene.path("state");
    let mut guest = scene.start();
    guest.qemu.wait_ready(soon()).unwrap();
    saved::save(&mut guest.qemu.qmp, &state, Kind::Whole, soon()).unwrap();
    drop(guest);
    let whole = fs::read(&state).unwrap();
    scene.config.incoming = true;
    let restore = |scene: &Scene| {
        let mut guest = scene.start();
        let restored = saved::restore(&mut guest.qemu.qmp, &scene.path("state"), Kind::Whole, soon());
        guest.qemu.child.wait(Instant::now() + Duration::from_secs(5));
        (restored, guest.qemu.child.said())
    };
    restore(&scene).0.unwrap();
    for bad in [&whole[..whole.len() / 2], b"", b"not a state at all"] {
        fs::write(&state, bad).unwrap();
        let error = restore(&scene).0.unwrap_err();
        assert!(
            matches!(error, SavedError::Failed { .. } | SavedError::Monitor(QmpError::Closed)),
            "{error:?}"
        );
    }
    fs::write(&state, &whole).unwrap();
    scene.config.memory *= 2;
    let (restored, said) = restore(&scene);
    assert!(restored.is_err() && said.contains("pc.ram"), "{restored:?} {said}");
    fs::remove_file(&state).unwrap();
    assert!(matches!(restore(&scene).0, Err(SavedError::File { action: "open", .. })));
}

#[test]
fn a_disk_of_the_host_that_is_full_leaves_no_half_of_a_state() {
    let small = crewboss_host::testing::Mount::tmpfs(4);
    let scene = Scene::new();
    let mut guest = scene.start();
    guest.expect(UP);
    let error =
        saved::save(&mut guest.qemu.qmp, &small.path().join("state"), Kind::Whole, soon()).unwrap_err();
    assert!(matches!(error, SavedError::Failed { action: "save", .. }), "{error:?}");
    assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
    guest.qemu.qmp.cont(soon()).unwrap();
    guest.answers("it lives on");
}

#[test]
fn a_qemu_that_somebody_kills_at_its_start_is_told_as_that() {
    let mut scene = Scene::new();
    // Stopped before it greets: it waits for somebody to connect.
    let options = ["-chardev", "socket,id=late,host=127.0.0.1,port=0,server=on,wait=on"];
    scene.config.options = options.map(str::to_owned).to_vec();
    let mut guest = scene.start();
    let pid = ProcessId::of(guest.qemu.child.pid()).unwrap();
    assert!(pid.signal(crewboss_host::process::KILL));
    let error = guest.qemu.wait_ready(soon()).unwrap_err();
    assert!(matches!(error, QemuError::Killed), "{error}");
}

#[test]
fn options_and_files_that_qemu_refuses_are_told_in_its_words() {
    let refusal = |change: fn(&mut Scene)| {
        let mut scene = Scene::new();
        change(&mut scene);
        let mut guest = scene.start();
        let error = guest.qemu.wait_ready(soon()).unwrap_err();
        assert!(matches!(error, QemuError::Refused { .. } | QemuError::Firmware { .. }), "{error:?}");
        error.to_string()
    };
    let said = refusal(|scene| scene.config.options = vec!["-device".to_owned(), "no-such".to_owned()]);
    assert!(said.contains("'no-such' is not a valid device model name"), "{said}");
    let said = refusal(|scene| scene.config.disks = vec![disk("nowhere", "x", Access::Kept)]);
    assert!(said.contains("nowhere") && said.contains("No such file"), "{said}");
    let said = refusal(|scene| scene.config.options = vec!["-bios".to_owned(), "no-bios".to_owned()]);
    assert!(said.contains("seabios"), "{said}");
}

#[test]
fn two_guests_never_write_to_one_disk() {
    let mut scene = Scene::new();
    fs::write(scene.path("disk"), vec![0; 1 << 20]).unwrap();
    scene.config.disks = vec![disk("disk", "x", Access::Throwaway)];
    let mut first = scene.start();
    first.qemu.wait_ready(soon()).unwrap();
    let error = scene.start().qemu.wait_ready(soon()).unwrap_err().to_string();
    assert!(error.contains("lock"), "{error}");
}

#[test]
fn a_killed_guest_is_gone_and_so_is_one_that_is_dropped() {
    let scene = Scene::new();
    let mut guest = scene.start();
    let mut other = scene.start();
    let process = |guest: &Running| ProcessId::of(guest.qemu.child.pid()).unwrap();
    let (killed, dropped) = (process(&guest), process(&other));
    other.qemu.wait_ready(soon()).unwrap();
    assert!(guest.qemu.kill() && !killed.is_alive());
    assert_eq!(guest.qemu.child.try_ended(), Some(Ended::Signal(libc::SIGKILL)));
    assert!(other.qemu.qmp.status(soon()).unwrap().running, "the other one was not touched");
    drop(other);
    assert!(!dropped.is_alive());
}

#[test]
fn programs_that_are_no_qemu_are_told_apart() {
    let scene = Scene::new();
    let start = |script: &str, patience: u64| {
        let path = scene.path("qemu-system-x86_64");
        crewboss_host::testing::write_script(&path, &format!("#!/bin/bash\n{script}\n"));
        let program = Program::find_on(scene.directory.path().as_os_str(), Path::new("/nowhere")).unwrap();
        let mut qemu = Qemu::start(&program, &scene.config, scene.directory.path(), Vec::new()).unwrap();
        qemu.wait_ready(Instant::now() + Duration::from_secs(patience)).unwrap_err()
    };
    let monitor = r#"fd=$(printf '%s' "$*" | sed -n 's/.*id=monitor,fd=\([0-9]*\).*/\1/p')"#;
    assert!(matches!(start("exec sleep 1000", 1), QemuError::Monitor(QmpError::Deadline { .. })));
    assert!(matches!(start("exit 3", 60), QemuError::Silent { how } if how == "exit code 3"));
    let garbage = start(&format!("{monitor}; echo 'login:' >&$fd; exec sleep 1000"), 60);
    assert!(matches!(garbage, QemuError::Monitor(QmpError::Garbage(_))), "{garbage:?}");
    let greeting = r#"{"QMP": {"version": {"qemu": {"major": 6, "minor": 1, "micro": 0}}}}"#;
    let old = start(&format!("{monitor}; echo '{greeting}' >&$fd; exec sleep 1000"), 60);
    assert!(matches!(old, QemuError::TooOld { .. }), "{old:?}");
}

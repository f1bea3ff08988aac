use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crewboss_host::storage::{btrfs, remove_tree};
use crewboss_host::testing::Mount;
use crewboss_protocol::machine::{AGENT_VERSION, CopyState, MachineState};

use super::toolchain::tests::toolchain;
use super::*;
use crate::books::probe;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A manifest whose disk says the same as its id.
fn manifest(name: &str, id: &str) -> String {
    format!(
        "id = \"{id}\"\nname = \"{name}\"\nrole = \"build\"\nmemory = {{ min = \"16 MiB\" }}\ndisk = \"disk.img\"\n"
    )
}

/// Makes a revision, and leaves the link to it alone.
fn revision(machine: &MachineDir, revision: &str, id: &str) -> PathBuf {
    fs::create_dir_all(machine.path()).unwrap();
    let path = machine.path().join(format!("{}-1.{revision}", machine.name));
    btrfs::create_subvolume(&path).unwrap();
    fs::write(path.join("disk.img"), id).unwrap();
    fs::write(path.join("manifest.toml"), manifest(machine.name.as_str(), id)).unwrap();
    path
}

fn link(machine: &MachineDir, target: &str) {
    let new = machine.path().join("new-link");
    symlink(target, &new).unwrap();
    fs::rename(new, machine.link()).unwrap();
}

/// A machine with one revision, `<name>-a`.
pub(crate) fn machine(machines: &Machines, volume: &str, text: &str) -> MachineDir {
    let machine = machines.machine(&name(volume), &name(text));
    revision(&machine, "1", &format!("{text}-a"));
    link(&machine, &format!("{text}-1.1"));
    machine
}

/// Makes the copy for a toolchain as a bootstrap would.
pub(crate) fn bootstrap(machines: &Machines, machine: &MachineDir, toolchain: &str) -> CopyRecord {
    let toolchain = machines.toolchain(&name(toolchain)).unwrap();
    let staging = machine.path().join(format!("{}-{}-000000", machine.name, toolchain.name));
    let manifest = machine.snapshot_revision(&staging).unwrap();
    let record = CopyRecord {
        machine_id: manifest.id,
        toolchain: toolchain.name,
        toolchain_id: toolchain.id,
        agent: AGENT_VERSION,
        versions: [("gcc".to_owned(), "12".to_owned())].into(),
        made: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(),
    };
    machine.publish(&staging, &record).unwrap();
    assert!(!staging.exists(), "the old copy is still there");
    record
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn machines_are_listed_in_a_stable_order_and_nothing_odd_is_lost() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    for (volume, name) in [("two", "deb"), ("one", "zeta"), ("one", "deb"), ("one", "alpha")] {
        machine(&machines, volume, name);
    }
    for other in
        ["locks/x", "guests/x", "toolchains/x", ".hidden/x", "one/gone", "one/a b", "no volume", "lost+found"]
    {
        fs::create_dir_all(mount.path().join(other)).unwrap();
    }
    fs::write(mount.path().join("notes"), "mine").unwrap();
    symlink("one", mount.path().join("again")).unwrap();
    let listing = machines.list().unwrap();
    let names =
        |list: &[MachineDir]| list.iter().map(|m| format!("{}/{}", m.volume, m.name)).collect::<Vec<_>>();
    assert_eq!(names(&listing.machines), ["one/alpha", "one/deb", "one/zeta"]);
    assert_eq!(names(&listing.withdrawn), ["one/gone"]);
    let wrong: Vec<String> =
        listing.misplaced.iter().map(|one| format!("{}: {}", one.path.display(), one.why)).collect();
    let [shadowed] = &listing.shadowed[..] else { panic!("{listing:?}") };
    assert!(shadowed.machine.path().ends_with("two/deb") && shadowed.by.as_str() == "one", "{shadowed:?}");
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong[0].contains("no volume: no volume can have this name"), "{wrong:?}");
    assert!(wrong[1].contains("one/a b: no machine can have this name"), "{wrong:?}");
    assert_eq!(machines.find(&name("deb")).unwrap().volume, name("one"));
    let error = machines.find(&name("none")).unwrap_err();
    assert!(error.to_string().starts_with("there is no machine none in /"), "{error}");
    assert!(Machines::new("/nowhere").list().unwrap().machines.is_empty());
    let facts = probe::machines(&machines, 1 << 30);
    let shown: Vec<_> = facts.iter().map(|machine| machine.name.as_str()).collect();
    assert_eq!(shown, ["alpha", "deb", "zeta", "deb", "no_volume", "a_b"]);
    assert!(facts[3].copies.len() == facts[1].copies.len() && !facts[3].copies.is_empty(), "{:?}", facts[3]);
}

#[test]
fn a_volume_or_machine_that_others_can_change_is_named_and_not_used() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let deb = machine(&machines, "one", "deb");
    machine(&machines, "two", "zeta");
    let volume = deb.path().parent().unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let find = || machines.find(&name("deb")).map(|found| found.volume).map_err(|error| error.to_string());
    assert_eq!(find(), Ok(name("one")));
    mode(deb.path(), 0o777);
    let text = find().unwrap_err();
    let hint = format!("hint: `chmod go-w '{}'` keeps them out", deb.path().display());
    assert!(
        text.contains("one/deb: other users can write to it (its mode is 777)") && text.ends_with(&hint),
        "{text}"
    );
    mode(deb.path(), 0o755);
    std::os::unix::fs::chown(volume, Some(987_654), None).unwrap();
    let text = find().unwrap_err();
    assert!(
        text.contains("one/deb: the volume ") && text.contains("it belongs to the user with the number"),
        "{text}"
    );
    let listing = machines.list().unwrap();
    assert_eq!((listing.machines.len(), listing.misplaced.len()), (1, 1));
    std::os::unix::fs::chown(volume, Some(0), None).unwrap();
    assert_eq!(find(), Ok(name("one")));
}

#[test]
fn every_wrong_link_is_an_error_of_its_own() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = machine(&machines, "vol", "deb");
    let outside = mount.path().join("deb-1.9");
    btrfs::create_subvolume(&outside).unwrap();
    fs::create_dir(machine.path().join("deb-1.dir")).unwrap();
    fs::write(machine.path().join("deb-1.file"), "x").unwrap();
    symlink("deb-1.loop", machine.path().join("deb-1.loop")).unwrap();
    let to = machine.path().join("deb-gcc-abcdef");
    let cases = [
        ("deb-1.none", "leads nowhere: deb-1.none is not there"),
        (outside.to_str().unwrap(), "that is an absolute path"),
        ("../../deb-1.9", "outside of the machine's directory"),
        ("x/../deb-1.1", "not in the machine's directory itself"),
        ("./deb-1.1", "not in the machine's directory itself"),
        ("deb-1.1/", "a revision is called <machine>-1.<revision>"),
        ("deb-1.", "a revision is called <machine>-1.<revision>"),
        ("deb-gcc", "a revision is called <machine>-1.<revision>"),
        ("deb-1", "a revision is called <machine>-1.<revision>"),
        ("deb-1.loop", "that is a link again"),
        ("deb-1.dir", "is not a btrfs subvolume"),
        ("deb-1.file", "is not a btrfs subvolume"),
    ];
    for (target, expected) in cases {
        link(&machine, target);
        let before = entries(machine.path());
        for error in [machine.manifest().unwrap_err(), machine.snapshot_revision(&to).unwrap_err()] {
            assert!(error.to_string().contains(expected), "{target}: {error}");
            assert!(error.hint().is_some(), "{target}: no hint");
        }
        assert_eq!(entries(machine.path()), before, "{target}: something is left");
        let facts = probe::machines(&machines, 1 << 30);
        let MachineState::Unusable { why } = &facts[0].state else { panic!("{target}: {facts:?}") };
        assert!(why.contains(expected) && why.contains("hint: "), "{why}");
    }
    fs::remove_file(machine.link()).unwrap();
    assert!(matches!(machine.manifest(), Err(DirectoryError::Withdrawn { .. })));
    fs::create_dir(machine.link()).unwrap();
    assert!(matches!(machine.manifest(), Err(DirectoryError::NoLink { .. })));
}

#[test]
fn what_is_not_on_btrfs_or_lies_is_refused_with_the_revision_s_path() {
    let mount = Mount::tmpfs(8);
    let machine = Machines::new(mount.path()).machine(&name("vol"), &name("deb"));
    fs::create_dir_all(machine.path().join("deb-1.1")).unwrap();
    symlink("deb-1.1", machine.link()).unwrap();
    let to = machine.path().join("deb-gcc-abcdef");
    assert!(matches!(machine.snapshot_revision(&to), Err(DirectoryError::NoSubvolume { .. })));

    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = self::machine(&machines, "vol", "deb");
    let to = machine.path().join("deb-gcc-abcdef");
    fs::write(machine.path().join("deb-1.1/disk.img"), "").unwrap();
    let error = machine.snapshot_revision(&to).unwrap_err().to_string();
    assert!(
        error.contains("vol/deb/deb-1.1/manifest.toml: `disk`")
            && error.contains("deb-1.1/disk.img is empty")
    );
    assert_eq!(entries(machine.path()), ["deb-1", "deb-1.1"]);
    fs::create_dir(&to).unwrap();
    fs::write(machine.path().join("deb-1.1/disk.img"), "x").unwrap();
    let error = machine.snapshot_revision(&to).unwrap_err();
    assert!(matches!(error, DirectoryError::Snapshot { .. }), "{error}");
}

/// An operator at work, until the guard is dropped.
fn meanwhile(stop: &AtomicBool, mut work: impl FnMut(u32)) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        work(number);
    }
}

#[test]
fn revisions_that_are_published_replaced_and_withdrawn_meanwhile_are_copied_whole_or_not_at_all() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = machine(&machines, "vol", "deb");
    let stop = AtomicBool::new(false);
    let operator = || {
        meanwhile(&stop, |number| {
            let (text, old) = (format!("r{number}"), format!("r{}", number.saturating_sub(1)));
            let new = revision(&machine, &text, &text);
            if number % 7 == 0 {
                fs::remove_file(machine.link()).unwrap();
            }
            link(&machine, &format!("deb-1.{text}"));
            // Some remove what they have withdrawn by hand, file by file.
            let old = machine.path().join(format!("deb-1.{old}"));
            if number % 2 == 0 {
                fs::remove_dir_all(&old).unwrap()
            } else {
                remove_tree(&old).unwrap()
            }
            assert!(new.exists());
        });
    };
    let end = Instant::now() + Duration::from_secs(60);
    let taker = |thread: u32| {
        let mut good = 0;
        for round in 0.. {
            let to = machine.path().join(format!("deb-gcc-{thread}{round:05}"));
            match machine.snapshot_revision(&to) {
                Ok(manifest) => {
                    assert_eq!(fs::read_to_string(to.join("disk.img")).unwrap(), manifest.id);
                    remove_tree(&to).unwrap();
                    good += 1;
                }
                Err(DirectoryError::Withdrawn { .. } | DirectoryError::Restless { .. }) => {}
                Err(error) => panic!("{error} ({:?})", std::error::Error::source(&error)),
            }
            assert!(!to.exists(), "something is left");
            if good == 40 {
                return;
            }
            assert!(Instant::now() < end, "only {good} of {round} succeeded");
        }
    };
    std::thread::scope(|scope| {
        let operator = scope.spawn(operator);
        let takers = [1, 2].map(|thread| scope.spawn(move || taker(thread)));
        let failed = takers.map(|taker| taker.join().is_err());
        stop.store(true, Ordering::Relaxed);
        operator.join().unwrap();
        assert_eq!(failed, [false, false]);
    });
}

/// As `publish` does for a user who may not destroy subvolumes: the old one is emptied file by
/// file.
fn replace_by_hand(machine: &MachineDir, number: u32) {
    let copy = machine.copy_path(&name("default"));
    let staging = machine.path().join("deb-default-000001");
    // Nobody else replaces it.
    let snapshot = machine.snapshot_copy(&name("default"), &staging).unwrap();
    let record = CopyRecord { machine_id: format!("by hand {number}"), ..snapshot.record };
    fs::write(staging.join("disk.img"), &record.machine_id).unwrap();
    fs::write(staging.join("manifest.toml"), manifest("deb", &record.machine_id)).unwrap();
    fs::write(staging.join("bootstrapped.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, &staging, rustix::fs::CWD, &copy, exchange).unwrap();
    fs::remove_dir_all(&staging).unwrap();
}

#[test]
fn copies_that_are_replaced_meanwhile_are_copied_whole() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = machine(&machines, "vol", "deb");
    bootstrap(&machines, &machine, "default");
    let end = Instant::now() + Duration::from_secs(60);
    let stop = AtomicBool::new(false);
    let publisher = || {
        meanwhile(&stop, |number| {
            let id = format!("id{number}");
            fs::write(machine.path().join("deb-1.1/manifest.toml"), manifest("deb", &id)).unwrap();
            fs::write(machine.path().join("deb-1.1/disk.img"), &id).unwrap();
            bootstrap(&machines, &machine, "default");
            replace_by_hand(&machine, number);
        });
    };
    std::thread::scope(|scope| {
        let publisher = scope.spawn(publisher);
        let takers = [1, 2].map(|thread: u32| {
            let machine = &machine;
            scope.spawn(move || {
                let (mut good, mut round) = (0, 0);
                while good < 100 {
                    round += 1;
                    assert!(Instant::now() < end, "only {good} of {round} succeeded");
                    let to = machine.path().join(format!("deb-default-{thread}{round:05}"));
                    let snapshot = match machine.snapshot_copy(&name("default"), &to) {
                        Err(DirectoryError::Restless { .. }) => continue,
                        snapshot => snapshot.unwrap(),
                    };
                    assert_eq!(fs::read_to_string(to.join("disk.img")).unwrap(), snapshot.record.machine_id);
                    assert_eq!(snapshot.manifest.id, snapshot.record.machine_id);
                    remove_tree(&to).unwrap();
                    good += 1;
                }
            })
        });
        let failed = takers.map(|taker| taker.join().is_err());
        stop.store(true, Ordering::Relaxed);
        publisher.join().unwrap();
        assert_eq!(failed, [false, false]);
    });
    assert_eq!(entries(machine.path()), ["deb-1", "deb-1.1", "deb-default"]);
}

#[test]
fn a_copy_is_made_again_when_anything_that_it_was_made_of_has_changed() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = machine(&machines, "vol", "deb");
    let gcc = toolchain(&machines, "gcc");
    let now = SystemTime::now();
    let standing = |later: u64| {
        let toolchain = machines.toolchain(&name("gcc")).unwrap();
        let now = now + Duration::from_secs(later);
        machine.standing(&machine.manifest().unwrap(), &toolchain, now).unwrap()
    };
    let why = |standing| match standing {
        Standing::Remake { why } => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(standing(0)), "it was never bootstrapped");
    assert!(matches!(
        machine.snapshot_copy(&name("gcc"), &machine.path().join("deb-gcc-abcdef")),
        Err(DirectoryError::NotBootstrapped { .. })
    ));
    let record = bootstrap(&machines, &machine, "gcc");
    assert_eq!(standing(0), Standing::Ready(record.clone()));
    assert_eq!(machine.copy(&name("gcc")).unwrap(), record);

    fs::write(gcc.join("lib/data"), "other").unwrap();
    assert_eq!(why(standing(0)), "the toolchain gcc has changed");
    bootstrap(&machines, &machine, "gcc");
    let text = manifest("deb", "deb-a") + "refresh = \"2d\"\n";
    fs::write(machine.path().join("deb-1.1/manifest.toml"), text).unwrap();
    assert!(matches!(standing(24 * 3600), Standing::Ready(_)));
    assert_eq!(why(standing(49 * 3600)), "the copy is 2 days old");
    fs::write(machine.path().join("deb-1.1/manifest.toml"), manifest("deb", "deb-b")).unwrap();
    assert_eq!(why(standing(0)), "the machine is deb-b now, the copy was made of deb-a");

    let said = machine.copy_path(&name("gcc")).join("bootstrapped.json");
    let with_agent = |agent| {
        let record = CopyRecord { agent, ..machine.copy(&name("gcc")).unwrap() };
        fs::write(&said, serde_json::to_vec(&record).unwrap()).unwrap();
    };
    with_agent(AGENT_VERSION + 1);
    assert_eq!(
        standing(0),
        Standing::Newer { agent: AGENT_VERSION + 1 },
        "a newer crewboss's copy was taken"
    );
    with_agent(AGENT_VERSION - 1);
    fs::write(machine.path().join("deb-1.1/manifest.toml"), manifest("deb", "deb-a")).unwrap();
    assert_eq!(
        why(standing(0)),
        format!("its agent has version {}, this crewboss {AGENT_VERSION}", AGENT_VERSION - 1)
    );
    fs::write(&said, "{").unwrap();
    assert_eq!(why(standing(0)), "what the copy says of itself is damaged");
    fs::remove_file(&said).unwrap();
    assert_eq!(why(standing(0)), "the copy does not say what it is");
}

#[test]
fn a_suspension_ends_with_what_it_was_about() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = machine(&machines, "vol", "deb");
    let default = machines.toolchain(&name("default")).unwrap();
    let now = SystemTime::now();
    let standing = || machine.standing(&machine.manifest().unwrap(), &default, now).unwrap();
    machine
        .suspend(&machine.manifest().unwrap(), &default, "it did not boot three times", b"panic", now)
        .unwrap();
    let since = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (why, console) = ("it did not boot three times".to_owned(), "panic".to_owned());
    assert_eq!(standing(), Standing::Suspended { why, since, console });
    let facts = probe::machines(&machines, 1 << 30);
    assert!(matches!(&facts[0].copies[0].state, CopyState::Suspended { why } if why.contains("three times")));
    // A new revision is worth a try.
    fs::write(machine.path().join("deb-1.1/manifest.toml"), manifest("deb", "deb-b")).unwrap();
    assert!(matches!(standing(), Standing::Remake { .. }));
    machine.suspend(&machine.manifest().unwrap(), &default, "again", b"", now).unwrap();
    assert!(matches!(standing(), Standing::Suspended { .. }));
    // A person may lift it, and so does a copy that was made.
    machine.lift(&default.name).unwrap();
    machine.lift(&default.name).unwrap();
    assert!(matches!(standing(), Standing::Remake { .. }));
    machine.suspend(&machine.manifest().unwrap(), &default, "again", b"", now).unwrap();
    bootstrap(&machines, &machine, "default");
    assert!(matches!(standing(), Standing::Ready(_)));
}

#[test]
fn entries_are_what_they_say_and_not_what_they_look_like() {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = machine(&machines, "vol", "deb");
    toolchain(&machines, "arm");
    toolchain(&machines, "arm-none00");
    bootstrap(&machines, &machine, "arm-none00");
    bootstrap(&machines, &machine, "arm");
    assert_eq!(machine.entry("deb-arm-none00"), Entry::Copy(name("arm-none00")));
    machine.snapshot_copy(&name("arm"), &machine.path().join("deb-arm-none11")).unwrap();
    assert_eq!(machine.entry("deb-arm-none11"), Entry::Guest(name("arm")));
    assert_eq!(machine.entry("deb-arm.suspended"), Entry::Suspension(name("arm")));
    assert_eq!(machine.entry("deb-arm.saved"), Entry::Saved(name("arm")));
    for other in [
        "deb-1",
        "deb-1.1",
        "deb-1.2-abcdef",
        "deb-12-abcdef",
        "debx-arm-abcdef",
        "deb-arm-ABCDEF",
        "deb-arm-abc",
        "deb-x",
    ] {
        assert_eq!(machine.entry(other), Entry::Other, "{other}");
    }
    for reserved in ["1", "12", "1.x", "x.suspended", "x.saved"] {
        assert!(machines.toolchain(&name(reserved)).unwrap_err().hint().is_some(), "{reserved}");
    }
    assert!(toolchain_name("1-x").is_some() && toolchain_name("1x").is_some());
    let facts = probe::machines(&machines, 1 << 20);
    assert_eq!(facts[0].state, MachineState::LittleMemory { needs: 16 << 20, has: 1 << 20 });
    let copies: Vec<_> = facts[0].copies.iter().map(|copy| (copy.toolchain.as_str(), &copy.state)).collect();
    assert_eq!(copies[0], ("arm", &CopyState::Ready));
    assert_eq!(copies[1], ("arm-none00", &CopyState::Ready));
    assert!(matches!(copies[2], ("default", CopyState::NeedsBootstrap { .. })));
    assert_eq!(facts[0].copies[0].versions["gcc"], "12");
}

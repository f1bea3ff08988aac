use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crewboss_host::marked::MARK;
use crewboss_host::testing::Mount;
use crewboss_protocol::machine::{HeldGuest, MachineHolder, Visitor};
use crewboss_protocol::{Outcome, TreeId};

use super::*;
use crate::books::lock::{Locks, Wanted};
use crate::books::record::{Owners, Step, held};
use crate::images::directory::SavedRecord;
use crate::images::directory::tests::{bootstrap, machine, name};

/// Set for the processes that a test starts: the machine directory, and how far to go.
const ROOT: &str = "CREWBOSS_TEST_MACHINES";
const UNTIL: &str = "CREWBOSS_TEST_UNTIL";

const STEPS: [Step; 8] = [
    Step::Copied,
    Step::Booting,
    Step::Bootstrapping,
    Step::Preparing,
    Step::Running,
    Step::Collecting,
    Step::Stopping,
    Step::Saving,
];

fn own_processes() -> Owners {
    let own = ProcessId::own().unwrap();
    Owners { guardian: own.clone(), worker: own.clone(), runner: own }
}

fn dead_processes() -> Owners {
    let older = |process: ProcessId| ProcessId { start: process.start - 1, ..process };
    let Owners { guardian, worker, runner } = own_processes();
    Owners { guardian: older(guardian), worker: older(worker), runner: older(runner) }
}

fn session(text: &str) -> SessionId {
    format!("{text}-{}.1", std::process::id()).parse().unwrap()
}

fn guest(machines: &Machines, machine: &MachineDir, owners: Owners) -> GuestRecord {
    let work = PathBuf::from("/nowhere");
    let record =
        GuestRecord::create(machines, machine, &name("default"), &session("guest"), &work, owners).unwrap();
    machine.snapshot_copy(&record.toolchain, &record.snapshot(machines)).unwrap();
    record
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn held_until(record: &GuestRecord, until: SystemTime) -> HeldGuest {
    HeldGuest {
        id: record.id.clone(),
        machine: record.machine.clone(),
        target: name("unzip"),
        commit: TreeId([7; 20]),
        at: "3.1".parse().unwrap(),
        stage: Some(name("build")),
        outcome: Outcome::Timeout,
        boss: "me@here".to_owned(),
        run: "run".parse().unwrap(),
        since: 0,
        until: seconds(until),
        memory: false,
        entered: None,
    }
}

/// A machine directory with a bootstrapped machine, and nothing else.
fn prepared() -> (Mount, Machines, MachineDir) {
    let mount = Mount::btrfs();
    let machines = Machines::new(mount.path());
    let machine = machine(&machines, "vol", "deb");
    bootstrap(&machines, &machine, "default");
    (mount, machines, machine)
}

/// What is there besides an operator's things and the copy.
fn leftovers(machines: &Machines, machine: &MachineDir) -> Vec<String> {
    let names = |directory: PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let mut all = names(machine.path().to_owned());
    all.retain(|name| !["deb-1", "deb-1.1", "deb-default"].contains(&name.as_str()));
    all.extend(names(machines.guests()));
    all.extend(names(machines.locks()));
    all
}

fn swept(machines: &Machines, held: HeldGuests) -> CleanReport {
    let mut report = CleanReport::default();
    sweep(machines, held, &mut report);
    assert_eq!(report.errors, Vec::<String>::new());
    report
}

#[test]
fn nothing_is_removed_where_others_can_put_what_they_like() {
    let (_mount, machines, machine) = prepared();
    let record = guest(&machines, &machine, dead_processes());
    let volume = machine.path().parent().unwrap();
    fs::set_permissions(volume, fs::Permissions::from_mode(0o777)).unwrap();
    let mut report = CleanReport::default();
    sweep(&machines, HeldGuests::Keep, &mut report);
    assert_eq!((report.guests, report.errors.len()), (0, 1), "{report:?}");
    assert!(
        report.errors[0].contains("other users can write to it (its mode is 777); hint: `chmod go-w "),
        "{report:?}"
    );
    assert!(record.snapshot(&machines).exists());
    fs::set_permissions(volume, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(swept(&machines, HeldGuests::Keep).guests, 1);
}

#[test]
fn guests_of_the_dead_go_at_every_step_and_those_of_the_living_stay() {
    let (_mount, machines, machine) = prepared();
    let planned = |owners| {
        let session = session("guest");
        GuestRecord::create(&machines, &machine, &name("default"), &session, &PathBuf::from("/w"), owners)
            .unwrap()
    };
    planned(dead_processes());
    let waiting = planned(own_processes());
    let mut living = guest(&machines, &machine, own_processes());
    living.advance(&machines, Step::Running).unwrap();
    for step in STEPS {
        guest(&machines, &machine, dead_processes()).advance(&machines, step).unwrap();
        let mut of_another_boot = guest(&machines, &machine, own_processes());
        of_another_boot.boot = "other".to_owned();
        of_another_boot.advance(&machines, step).unwrap();
    }
    let report = swept(&machines, HeldGuests::Keep);
    assert_eq!((report.guests, report.subvolumes), (1 + 16, 16));
    assert_eq!(GuestRecord::load(&machines, &living.id), Some(living.clone()));
    assert!(living.snapshot(&machines).join("disk.img").exists());
    assert_eq!(leftovers(&machines, &machine).len(), 3);
    assert_eq!(swept(&machines, HeldGuests::EndAll), CleanReport::default());
    living.remove(&machines).unwrap();
    waiting.remove(&machines).unwrap();
    assert_eq!(leftovers(&machines, &machine), Vec::<String>::new());
}

#[test]
fn held_guests_stay_until_their_time_is_over_or_somebody_ends_them() {
    let (_mount, machines, machine) = prepared();
    let now = SystemTime::now();
    let later = now + Duration::from_secs(3600);
    let hold = |owners, until| {
        let mut record = guest(&machines, &machine, owners);
        let held = held_until(&record, until);
        record.hold(&machines, held).unwrap();
        record
    };
    let over = hold(dead_processes(), now - Duration::from_secs(1));
    let entered = hold(dead_processes(), now - Duration::from_secs(1));
    let visitor = Visitor { person: "eve@desk".to_owned(), from: None, pid: std::process::id(), since: 1 };
    let lock = lock::try_guest(&machines, &entered.id, Some(&visitor)).unwrap().unwrap();
    let (of_the_dead, of_the_living) = (hold(dead_processes(), later), hold(own_processes(), later));

    let mut report = CleanReport::default();
    sweep_session(&machines, &of_the_dead.session, &mut report);
    assert_eq!(report, CleanReport::default(), "the end of a session ends what is held");
    let report = swept(&machines, HeldGuests::Keep);
    assert_eq!((report.guests, report.held_ended.len(), report.held_left.len()), (1, 1, 0));
    assert_eq!(report.held_ended[0].id, over.id);
    let listed: Vec<_> = held(&machines, now).into_iter().map(|held| (held.id, held.entered)).collect();
    let mut expected = [(of_the_dead.id.clone(), None), (of_the_living.id.clone(), None)];
    expected.sort_by_key(|(id, _)| id.clone());
    assert_eq!(listed, expected);

    let report = swept(&machines, HeldGuests::End);
    assert_eq!(report.held_ended.iter().map(|held| &held.id).collect::<Vec<_>>(), [&of_the_dead.id]);
    let left: Vec<_> = report.held_left.iter().map(|held| (held.id.clone(), held.entered.clone())).collect();
    let mut expected = [(entered.id.clone(), Some(visitor)), (of_the_living.id.clone(), None)];
    expected.sort_by_key(|(id, _)| id.clone());
    assert_eq!(left, expected);
    drop(lock);
    let mut report = CleanReport::default();
    expire(&machines, &mut report);
    assert_eq!(report.held_ended.iter().map(|held| &held.id).collect::<Vec<_>>(), [&entered.id]);
    let report = swept(&machines, HeldGuests::EndAll);
    assert_eq!(report.held_ended.iter().map(|held| &held.id).collect::<Vec<_>>(), [&of_the_living.id]);
    assert_eq!(leftovers(&machines, &machine), Vec::<String>::new());
}

#[test]
fn guests_of_a_dead_runner_go_while_their_worker_lives() {
    let (_mount, machines, machine) = prepared();
    let runner = dead_processes().runner;
    guest(&machines, &machine, Owners { runner: runner.clone(), ..own_processes() });
    let other = guest(&machines, &machine, own_processes());
    assert_eq!(swept(&machines, HeldGuests::Keep).guests, 0);
    let mut report = CleanReport::default();
    sweep_runner(&machines, &runner, &mut report);
    assert_eq!((report.guests, report.errors.len()), (1, 0));
    sweep_session(&machines, &other.session, &mut report);
    assert_eq!((report.guests, report.subvolumes), (2, 2));
    assert_eq!(leftovers(&machines, &machine), Vec::<String>::new());
}

#[test]
fn what_nobody_wrote_down_goes_when_it_is_old_enough() {
    let (_mount, machines, machine) = prepared();
    let record = guest(&machines, &machine, dead_processes());
    // The power went before the record was on the disk.
    let path = record::path(&machines, &record.id);
    fs::write(&path, "").unwrap();
    fs::write(machines.guests().join(".tmp123"), "").unwrap();
    fs::write(machine.path().join("deb-default-notes"), "an operator's").unwrap();
    fs::create_dir(machine.path().join("deb-default-abcdef")).unwrap();
    assert_eq!(swept(&machines, HeldGuests::Keep), CleanReport::default());
    assert!(record.snapshot(&machines).exists() && path.exists(), "it was too young");

    let later = |machines: &Machines| {
        let mut report = CleanReport::default();
        let mut sweep = Sweep::new(machines, HeldGuests::Keep, &mut report);
        sweep.now += YOUNG * 2;
        sweep.damaged(&record.id);
        sweep.machines();
        sweep.temporary_files();
        sweep.locks();
        report
    };
    let report = later(&machines);
    assert_eq!((report.subvolumes, report.errors.len()), (1, 0));
    // Neither what is no subvolume nor the copy itself, however old, is taken for a guest.
    let mut left = leftovers(&machines, &machine);
    left.sort();
    assert_eq!(left, ["deb-default-abcdef", "deb-default-notes"]);
    assert!(machine.copy(&name("default")).is_ok());
}

#[test]
fn a_record_that_lies_about_its_snapshot_touches_nothing_else() {
    let (mount, machines, machine) = prepared();
    let mut record = guest(&machines, &machine, dead_processes());
    let text = fs::read_to_string(record::path(&machines, &record.id)).unwrap();
    let id = record.id.to_string();
    for (forged, name) in [
        (text.replace(&id, "deb-default"), "deb-default"),
        (text.replace("\"machine\":\"deb\"", "\"machine\":\"..\""), id.as_str()),
        (text.replace("\"volume\":\"vol\"", "\"volume\":\"../..\""), id.as_str()),
        (text.replace("\"toolchain\":\"default\"", "\"toolchain\":\"1\""), id.as_str()),
        (text.replace(&id, "deb-1.1"), "deb-1.1"),
    ] {
        assert_ne!(forged, text);
        fs::write(machines.guests().join(format!("{name}.json")), forged).unwrap();
        assert_eq!(GuestRecord::load(&machines, &name.parse().unwrap()), None, "{name}");
    }
    swept(&machines, HeldGuests::EndAll);
    assert!(machine.copy_path(&name("default")).exists() && machine.manifest().is_ok());
    assert!(mount.path().exists());
    record.step = Step::Running;
    record.remove(&machines).unwrap();
}

#[test]
fn a_template_goes_with_its_copy_and_stays_as_long_as_that() {
    let (_mount, machines, machine) = prepared();
    let default = name("default");
    let note = || {
        let copy = machine.copy(&default).unwrap();
        let record = SavedRecord { key: String::new(), copy, result_bytes: 0, since: 0, failed: None };
        machine.note_saved(&default, &record).unwrap();
    };
    note();
    assert_eq!(swept(&machines, HeldGuests::EndAll), CleanReport::default());
    assert!(machine.saved_path(&default).exists());
    remove_tree(&machine.copy_path(&default)).unwrap();
    assert_eq!(swept(&machines, HeldGuests::Keep).subvolumes, 1);
    assert_eq!(leftovers(&machines, &machine), Vec::<String>::new());
    bootstrap(&machines, &machine, "default");
    note();
    fs::remove_file(machine.link()).unwrap();
    assert_eq!(swept(&machines, HeldGuests::Keep).subvolumes, 2);
    assert_eq!(leftovers(&machines, &machine), Vec::<String>::new());
}

#[test]
fn the_copies_of_a_withdrawn_machine_go_unless_somebody_uses_them() {
    let (_mount, machines, machine) = prepared();
    let holder = MachineHolder {
        boss: "me@here".to_owned(),
        run: "run".parse().unwrap(),
        host: "lab".parse().unwrap(),
        pid: 0,
        priority: 0,
        task: None,
        since: 0,
    };
    let manifest = machine.manifest().unwrap();
    let toolchain = machines.toolchain(&name("default")).unwrap();
    machine.suspend(&manifest, &toolchain, "why", b"", SystemTime::now()).unwrap();
    let locks = Locks::new(&machines, holder).unwrap();
    let wanted = Wanted { machine: name("deb"), toolchain: name("default"), instances: 1 };
    let place = locks.try_places(&[wanted]).unwrap().unwrap();
    fs::remove_file(machine.link()).unwrap();
    assert_eq!(swept(&machines, HeldGuests::Keep).subvolumes, 0);
    drop(place);
    let bootstrapping = locks.try_bootstrap(&name("deb"), &name("default")).unwrap().unwrap();
    assert_eq!(swept(&machines, HeldGuests::Keep).subvolumes, 0);
    drop(bootstrapping);
    assert_eq!(swept(&machines, HeldGuests::Keep).subvolumes, 1);
    assert_eq!(leftovers(&machines, &machine), Vec::<String>::new());
    assert!(!machine.copy_path(&name("default")).exists());
    assert!(machine.path().join("deb-1.1").exists(), "an operator's revision was removed");
}

#[test]
fn the_copies_of_a_toolchain_that_is_gone_go() {
    let (_mount, machines, machine) = prepared();
    let toolchain = machines.toolchains().join("gcc13");
    fs::create_dir_all(&toolchain).unwrap();
    fs::write(toolchain.join("bootstrap"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(toolchain.join("bootstrap"), fs::Permissions::from_mode(0o755)).unwrap();
    bootstrap(&machines, &machine, "gcc13");
    assert_eq!(swept(&machines, HeldGuests::Keep), CleanReport::default());
    fs::remove_dir_all(&toolchain).unwrap();
    assert_eq!(swept(&machines, HeldGuests::Keep).subvolumes, 1);
    assert!(!machine.copy_path(&name("gcc13")).exists());
    assert!(machine.copy_path(&name("default")).exists());
}

#[test]
fn nothing_is_made_where_no_machines_are() {
    let root = tempfile::tempdir().unwrap();
    let machines = Machines::new(root.path().join("none"));
    assert_eq!(swept(&machines, HeldGuests::EndAll), CleanReport::default());
    assert!(!machines.root().exists());
}

/// Where an owner is killed.
const POINTS: [&str; 7] =
    ["planned", "copied", "booting", "qemu runs", "half removed", "being removed", "published"];

/// The life of a guest up to a point, where it stays until it is killed. By itself it does nothing.
#[test]
fn one_owner() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let until = std::env::var(UNTIL).unwrap();
    let machines = Machines::new(root);
    let machine = machines.find(&name("deb")).unwrap();
    let reached = |point: &str| {
        assert!(POINTS.contains(&point));
        if point == until {
            fs::write(machines.root().join(".reached"), "").unwrap();
            loop {
                std::thread::park();
            }
        }
    };
    let session: SessionId = std::env::var(MARK).unwrap().parse().unwrap();
    let (work, toolchain) = (PathBuf::from("/w"), name("default"));
    let mut record =
        GuestRecord::create(&machines, &machine, &toolchain, &session, &work, own_processes()).unwrap();
    reached("planned");
    let snapshot = record.snapshot(&machines);
    machine.snapshot_copy(&toolchain, &snapshot).unwrap();
    reached("copied");
    record.advance(&machines, Step::Booting).unwrap();
    reached("booting");
    // As QEMU does, it carries the mark, and killing its parent does not kill it.
    let mut qemu = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    reached("qemu runs");
    if until == "published" {
        let old = machine.copy(&toolchain).unwrap();
        machine.publish(&snapshot, &old).unwrap();
    }
    reached("published");
    fs::remove_file(snapshot.join("disk.img")).unwrap();
    reached("half removed");
    let _lock = lock::try_guest(&machines, &record.id, None).unwrap();
    reached("being removed");
    qemu.wait().unwrap();
}

/// Such a process. When dropped it is killed, and so is whatever it started.
struct Owner(Child, SessionId);

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
        for process in crewboss_host::process::with_variable(MARK, self.1.as_str()) {
            process.signal(Signal::KILL);
        }
    }
}

fn owner(machines: &Machines, session: &SessionId, until: &str) -> Owner {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["books::sweep::tests::one_owner", "--exact", "--nocapture"])
        .env(ROOT, machines.root())
        .env(UNTIL, until)
        .env(MARK, session.as_str())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Owner(child, session.clone())
}

#[test]
fn whoever_is_killed_at_whatever_point_the_next_sweep_leaves_nothing() {
    let (_mount, machines, machine) = prepared();
    for until in POINTS {
        let session = session(&format!("killed-{}", until.replace(' ', "-")));
        let mut owner = owner(&machines, &session, until);
        let reached = machines.root().join(".reached");
        let there = wait_until(Duration::from_secs(20), || reached.exists());
        owner.0.kill().unwrap();
        owner.0.wait().unwrap();
        assert!(there, "{until}: the point was not reached");
        fs::remove_file(reached).unwrap();
        let report = swept(&machines, HeldGuests::Keep);
        assert_eq!(report.guests, 1, "{until}");
        assert_eq!(report.processes, u32::from(!POINTS[..3].contains(&until)), "{until}");
        assert_eq!(leftovers(&machines, &machine), Vec::<String>::new(), "{until}");
        assert!(machine.copy(&name("default")).is_ok(), "{until}: the copy was lost");
        assert_eq!(crewboss_host::process::with_variable(MARK, session.as_str()), []);
    }
}

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::*;

/// Set for the processes that a test starts: the directory to contend in.
const CONTEND: &str = "CREWBOSS_TEST_CONTEND";
/// The number of such a process.
const NUMBER: &str = "CREWBOSS_TEST_NUMBER";
/// How often each of them has to get what it wants.
const ROUNDS: u32 = 150;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn holder() -> MachineHolder {
    MachineHolder {
        boss: "me@here".to_owned(),
        run: "run".parse().unwrap(),
        host: "lab".parse().unwrap(),
        pid: 0,
        priority: 7,
        task: Some("3.1".parse().unwrap()),
        since: 0,
    }
}

fn locks(root: &Path) -> (Machines, Locks) {
    let machines = Machines::new(root);
    let locks = Locks::new(&machines, holder()).unwrap();
    (machines, locks)
}

fn wanted(machine: &str, instances: u32) -> Wanted {
    Wanted { machine: name(machine), toolchain: name("gcc"), instances }
}

fn files(machines: &Machines) -> usize {
    std::fs::read_dir(machines.locks()).unwrap().count()
}

#[test]
fn places_are_taken_once_and_leave_no_file() {
    let root = tempfile::tempdir().unwrap();
    let (machines, locks) = locks(root.path());
    let take = |instances| locks.try_places(&[wanted("deb", instances)]).unwrap();
    let (one, two) = (take(2).unwrap(), take(2).unwrap());
    assert_eq!((one[0].number, two[0].number), (1, 2));
    assert!(take(2).is_none(), "a third place of two");
    let found = holdings(&machines);
    assert_eq!(found.len(), 2);
    assert_eq!((found[1].place, found[1].machine.as_str()), (Some(2), "deb"));
    assert_eq!((found[0].toolchain.as_str(), found[0].holder.pid), ("gcc", std::process::id()));
    assert_eq!((found[0].holder.task, found[0].holder.priority), (Some("3.1".parse().unwrap()), 7));
    assert!(found[0].holder.since > 1_000_000_000);
    drop(one);
    assert_eq!(take(2).unwrap()[0].number, 1);
    drop(two);
    assert_eq!((files(&machines), holdings(&machines)), (0, Vec::new()));
}

#[test]
fn several_places_are_taken_together_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let (machines, locks) = locks(root.path());
    let busy = locks.try_places(&[wanted("two", 1)]).unwrap().unwrap();
    assert!(locks.try_places(&[wanted("one", 1), wanted("two", 1)]).unwrap().is_none());
    assert_eq!(holdings(&machines).len(), 1, "the first place was kept");
    drop(busy);
    let twice = locks.try_places(&[wanted("one", 2), wanted("one", 2)]).unwrap().unwrap();
    assert_eq!([twice[0].number, twice[1].number], [1, 2]);
}

#[test]
fn names_that_are_glued_together_do_not_meet() {
    let root = tempfile::tempdir().unwrap();
    let (machines, locks) = locks(root.path());
    let _one = locks.try_bootstrap(&name("a-b"), &name("c")).unwrap().unwrap();
    let _two = locks.try_bootstrap(&name("a"), &name("b-c")).unwrap().unwrap();
    assert!(locks.try_bootstrap(&name("a"), &name("b-c")).unwrap().is_none());
    let _three = locks.try_places(&[wanted("a.1", 1), wanted("a", 11)]).unwrap().unwrap();
    let found: Vec<_> =
        holdings(&machines).into_iter().map(|one| (one.machine.to_string(), one.place)).collect();
    let expected = [("a", None), ("a", Some(1)), ("a-b", None), ("a.1", Some(1))];
    assert_eq!(found, expected.map(|(machine, place)| (machine.to_owned(), place)));
}

#[test]
fn a_file_that_was_removed_meanwhile_is_not_the_lock() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("deb.1");
    // Somebody opens the file while another holds it, and locks it only after that one has removed
    // it.
    let first = LockFile::try_lock(&path).unwrap().unwrap();
    let opened = std::fs::File::open(&path).unwrap();
    drop(first);
    let second = LockFile::try_lock(&path).unwrap().unwrap();
    opened.try_lock().expect("nobody holds the removed file");
    assert!(LockFile::try_lock(&path).unwrap().is_none(), "the removed file's lock counts");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn what_is_no_lock_file_is_neither_followed_nor_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let (machines, locks) = locks(root.path());
    std::os::unix::fs::symlink("/etc/passwd", machines.locks().join("deb.1")).unwrap();
    let error = locks.try_places(&[wanted("deb", 1)]).unwrap_err();
    assert!(error.to_string().ends_with("locks/deb.1"), "{error}");
    crewboss_host::testing::run(Command::new("mkfifo").arg(machines.locks().join("pipe.1")));
    std::fs::write(machines.locks().join("junk.1"), "{\"process\":").unwrap();
    std::fs::write(machines.locks().join("notes"), "mine").unwrap();
    assert_eq!(holdings(&machines), Vec::new());
    assert_eq!(remove_stale(&machines).unwrap(), 1, "only the junk");
    assert!(machines.locks().join("notes").exists());
}

/// Runs one test of this module in a process of its own.
fn child(test: &str, root: &Path, number: u32) -> Child {
    let path = format!("books::lock::tests::{test}");
    Command::new(std::env::current_exe().unwrap())
        .args([path.as_str(), "--exact", "--nocapture"])
        .env(CONTEND, root)
        .env(NUMBER, number.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Fails if another process is where this one is.
fn alone(root: &Path, what: &str, inside: impl FnOnce()) {
    let mark = root.join(format!("inside-{what}"));
    std::fs::File::create_new(&mark).unwrap_or_else(|error| panic!("two at once in {what}: {error}"));
    inside();
    std::fs::remove_file(mark).unwrap();
}

/// One of several processes that want the same machines in different orders. By itself it does
/// nothing.
#[test]
fn one_contender() {
    let Some(root) = std::env::var_os(CONTEND).map(PathBuf::from) else { return };
    let number: u32 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let (_, locks) = locks(&root);
    let mut sets = [
        vec![wanted("one", 2)],
        vec![wanted("one", 2), wanted("two", 1)],
        vec![wanted("two", 1), wanted("one", 2), wanted("one", 2)],
    ];
    for wanted in sets.iter_mut().flatten() {
        wanted.toolchain = name(if number.is_multiple_of(2) { "gcc" } else { "clang" });
    }
    let mut done = 0;
    while done < ROUNDS {
        let places = locks.try_places(&sets[(done + number) as usize % sets.len()]).unwrap();
        for place in places.iter().flatten() {
            alone(&root, &format!("{}.{}", place.machine, place.number), std::thread::yield_now);
        }
        done += u32::from(places.is_some());
        drop(places);
        if let Some(_lock) = locks.try_bootstrap(&name("one"), &name("gcc")).unwrap() {
            alone(&root, "bootstrap", std::thread::yield_now);
        }
        std::thread::yield_now();
    }
}

#[test]
fn four_processes_never_hold_one_place_at_once_and_never_block_each_other() {
    let root = tempfile::tempdir().unwrap();
    let machines = Machines::new(root.path());
    let mut contenders: Vec<Child> =
        (0..4).map(|number| child("one_contender", root.path(), number)).collect();
    let end = Instant::now() + Duration::from_secs(120);
    let mut open: Vec<usize> = (0..4).collect();
    while !open.is_empty() {
        // As probe and sweep of others would, all the time.
        holdings(&machines);
        if machines.locks().exists() {
            remove_stale(&machines).unwrap();
        }
        open.retain(|index| match contenders[*index].try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "contender {index}: {status}");
                false
            }
            None => true,
        });
        if Instant::now() > end {
            contenders.iter_mut().for_each(|child| drop(child.kill()));
            panic!("contenders {open:?} are stuck");
        }
        std::thread::yield_now();
    }
    remove_stale(&machines).unwrap();
    assert_eq!(files(&machines), 0);
}

/// A process that takes a place and stays. By itself it does nothing.
#[test]
fn one_that_stays() {
    let Some(root) = std::env::var_os(CONTEND).map(PathBuf::from) else { return };
    let (machines, locks) = locks(&root);
    let _place = locks.try_places(&[wanted("deb", 1)]).unwrap().unwrap();
    let visitor = Visitor { person: "eve@desk".to_owned(), from: None, pid: std::process::id(), since: 1 };
    let _guest = try_guest(&machines, &name("deb-gcc-abcdef"), Some(&visitor)).unwrap().unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_holder_holds_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (machines, locks) = locks(root.path());
    let guest = name("deb-gcc-abcdef");
    let mut child = child("one_that_stays", root.path(), 0);
    let end = Instant::now() + Duration::from_secs(20);
    while in_guest(&machines, &guest).is_none() {
        assert!(Instant::now() < end, "it has not taken the guest's lock");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(holdings(&machines)[0].holder.pid, child.id());
    assert!(locks.try_places(&[wanted("deb", 1)]).unwrap().is_none());
    assert!(try_guest(&machines, &guest, None).unwrap().is_none());
    assert_eq!(remove_stale(&machines).unwrap(), 0, "a live holder's file was removed");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((holdings(&machines), in_guest(&machines, &guest)), (Vec::new(), None));
    assert_eq!(remove_stale(&machines).unwrap(), 2);
    assert_eq!(locks.try_places(&[wanted("deb", 1)]).unwrap().unwrap()[0].number, 1);
}

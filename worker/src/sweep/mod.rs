//! Cleaning a host: what dead sessions left, and, when asked for, sessions that live.
//!
//! Everything is found by its recorded owner: the session's directory, its control group, the
//! processes that carry its id in their environment. Nothing is found by the name of a program.

mod purge;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use crewboss_ground::{Directory, Held, Open, is_younger};
use crewboss_host::layout::Layout;
use crewboss_host::marked::{self, END_WITHIN, kill_marked, wait_until};
use crewboss_host::owner::{Owner, sessions};
use crewboss_host::process::{KILL_WITHIN, ProcessId};
use crewboss_host::storage::remove_tree;
use crewboss_host::{cgroup, short};
use crewboss_machine::books::sweep::HeldGuests;
use crewboss_machine::images::directory::Machines;
use crewboss_protocol::clean::{CleanReport, LeftAlone, WhyLeft};
use crewboss_protocol::message::Hello;
use crewboss_protocol::{SessionId, codec};
use rustix::process::Signal;

use crate::slots::lock_alone;

/// A session without a readable owner record is swept only when it is older than this: it may be
/// about to write it.
const YOUNG: Duration = Duration::from_secs(60);

/// The root directory of every btrfs subvolume has this inode number.
const SUBVOLUME_INODE: u64 = 256;

/// How thoroughly a host is cleaned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thoroughly {
    /// Sessions of live bosses are ended, too.
    pub force: bool,
    /// What is kept for later runs is removed, too.
    pub purge: bool,
}

/// `crewboss clean`: sweeps the host and prints a [`CleanReport`] as one line. Returns 1 if
/// something could not be done. `machines` is the host's machine directory from the crew file, if
/// that names one.
pub fn clean_main(how: Thoroughly, work: Option<PathBuf>, machines: Option<&str>) -> ExitCode {
    let resolved = Layout::resolve(work).and_then(|layout| {
        let machines = Machines::resolve(&layout, machines)?;
        Ok((layout, machines))
    });
    let report = match resolved {
        Ok((layout, machines)) => match layout.check().and_then(|()| machines.check()) {
            Ok(()) => {
                let mut report = clean(&layout, &machines, how.force);
                if how.purge {
                    purge::purge(&layout, &mut report);
                }
                report
            }
            Err(error) => CleanReport { errors: vec![error.to_string()], ..CleanReport::default() },
        },
        Err(error) => CleanReport { errors: vec![error], ..CleanReport::default() },
    };
    let mut line = Vec::new();
    codec::encode(&report, &mut line);
    let written = std::io::stdout().lock().write_all(&line).is_ok();
    if report.errors.is_empty() && written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Removes what dead sessions left and ends those whose boss is gone; with `force` ends all that
/// this user may end. Guests that are held for a person are ended as well, except those of living
/// sessions and, without `force`, those that somebody is in.
pub fn clean(layout: &Layout, machines: &Machines, force: bool) -> CleanReport {
    let mut report = CleanReport::default();
    for session in sessions(layout) {
        match load(layout, &session, &mut report) {
            Found::Living(owner) => clean_session(layout, &session, &owner, force, &mut report),
            Found::Dead(owner) => remove_dead(layout, &session, owner.as_ref(), &mut report),
            Found::Unknown => {}
        }
    }
    remove_stale_waiters(layout, &mut report);
    let held = if force { HeldGuests::EndAll } else { HeldGuests::End };
    crewboss_machine::books::sweep::sweep(machines, held, &mut report);
    report
}

/// Removes what dead sessions left, and ends those that nobody can want any more: those that stand
/// still while their boss is gone, and those that `new`, another of the same boss, takes the place
/// of. Touches nothing else that lives, nor what is held: for the start of a worker.
pub fn sweep_dead(layout: &Layout, machines: &Machines, new: &Hello) -> CleanReport {
    let mut report = CleanReport::default();
    for session in sessions(layout) {
        match load(layout, &session, &mut report) {
            Found::Dead(owner) => remove_dead(layout, &session, owner.as_ref(), &mut report),
            Found::Living(owner) if owner.is_replaced_by(new) || is_abandoned(layout, &owner) => {
                end_session(layout, &session, &owner, &mut report);
            }
            Found::Living(_) | Found::Unknown => {}
        }
    }
    remove_stale_waiters(layout, &mut report);
    crewboss_machine::books::sweep::sweep(machines, HeldGuests::Keep, &mut report);
    report
}

/// Ends the sessions of others that stand still while their boss is gone: what they hold is in the
/// way. Returns what could not be done.
pub fn end_abandoned(layout: &Layout, own: &SessionId) -> Vec<String> {
    let (mut report, mut unread) = (CleanReport::default(), CleanReport::default());
    for session in sessions(layout).into_iter().filter(|session| session != own) {
        match load(layout, &session, &mut unread) {
            Found::Living(owner) if is_abandoned(layout, &owner) => {
                end_session(layout, &session, &owner, &mut report);
            }
            _ => {}
        }
    }
    report.errors
}

/// A worker ends itself when its boss is gone, and its guardian ends it if it cannot. Those that
/// somebody has stopped do not.
fn is_abandoned(layout: &Layout, owner: &Owner) -> bool {
    let nobody_serves = || owner.is_given_up(layout, SystemTime::now()) || !owner.worker.is_alive();
    stands_still(&owner.living()) && nobody_serves()
}

fn stands_still(processes: &[&ProcessId]) -> bool {
    processes.iter().any(|process| process.is_stopped())
}

/// What is known of a session.
enum Found {
    /// A process of it lives.
    Living(Owner),
    /// None lives, or there is no record that makes sense.
    Dead(Option<Owner>),
    /// It cannot be told. That is complained of, and the session is left alone: it may be
    /// another's, and live.
    Unknown,
}

fn load(layout: &Layout, session: &SessionId, report: &mut CleanReport) -> Found {
    // What is no directory of ours holds no record of ours.
    let found = Directory::fixed(&layout.session(session)).and_then(|_| Owner::load(layout, session));
    match found {
        Ok(Some(owner)) if !owner.living().is_empty() => Found::Living(owner),
        Ok(owner) => Found::Dead(owner),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Unknown,
        Err(error) => {
            report.errors.push(error.to_string());
            Found::Unknown
        }
    }
}

fn clean_session(layout: &Layout, session: &SessionId, owner: &Owner, force: bool, report: &mut CleanReport) {
    let mut leave = |why| {
        let (boss, run) = (owner.boss.clone(), owner.run.clone());
        report.left.push(LeftAlone { session: session.clone(), boss, run, why });
    };
    if !force && !owner.is_forsaken(layout, SystemTime::now()) && !is_abandoned(layout, owner) {
        return leave(WhyLeft::BossAlive);
    }
    if !may_signal(owner.living()) {
        return leave(WhyLeft::OtherUser);
    }
    end_session(layout, session, owner, report);
}

/// Ends a session that lives, and removes what is left of it.
fn end_session(layout: &Layout, session: &SessionId, owner: &Owner, report: &mut CleanReport) {
    end(owner, report);
    if owner.living().is_empty() {
        report.ended.push(session.clone());
        remove_leftovers(layout, session, Some(owner), report);
    } else {
        report
            .errors
            .push(format!("the worker of session {session} (process {}) lives on", owner.guardian.pid));
    }
}

fn may_signal(processes: Vec<&ProcessId>) -> bool {
    processes.into_iter().all(|process| {
        let pid = i32::try_from(process.pid).ok().and_then(rustix::process::Pid::from_raw);
        pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::PERM))
    })
}

/// Asks a live worker to end; kills it, and all that it has started, when it does not. One that was
/// stopped is not asked: it hears nothing, and whoever has stopped it, such as a build, would do so
/// again.
fn end(owner: &Owner, report: &mut CleanReport) {
    if !stands_still(&owner.living()) {
        // Whoever of the two gets the signal stops the other as well.
        if !owner.guardian.signal(Signal::TERM) {
            owner.worker.signal(Signal::TERM);
        }
        if wait_until(END_WITHIN, || owner.living().is_empty()) {
            return;
        }
    }
    let living: Vec<ProcessId> =
        owner.living().into_iter().filter(|process| process.is_own()).cloned().collect();
    report.processes += u32::try_from(marked::kill(&living)).unwrap_or(u32::MAX);
    wait_until(KILL_WITHIN, || owner.living().is_empty());
}

fn remove_dead(layout: &Layout, session: &SessionId, owner: Option<&Owner>, report: &mut CleanReport) {
    let directory = layout.session(session);
    // Whoever is about to write one uses the work directory already.
    if owner.is_none() && is_young(&directory) && !is_unused(layout) {
        return;
    }
    if remove_leftovers(layout, session, owner, report) {
        report.removed.push(session.clone());
    }
}

fn is_young(directory: &Path) -> bool {
    let modified = std::fs::symlink_metadata(directory).and_then(|meta| meta.modified());
    modified.is_ok_and(|at| is_younger(at, YOUNG, SystemTime::now()))
}

fn is_unused(layout: &Layout) -> bool {
    lock_alone(layout).is_ok_and(|alone| alone.is_some())
}

/// Kills what is left of a session whose worker is dead, and removes its guests and its directory.
pub fn remove_leftovers(
    layout: &Layout,
    session: &SessionId,
    owner: Option<&Owner>,
    report: &mut CleanReport,
) -> bool {
    let group = owner.and_then(|owner| owner.cgroup.as_deref());
    if let Some(group) = group.filter(|group| cgroup::belongs_to(group, session)) {
        report.processes += u32::try_from(cgroup::members(group).len()).unwrap_or(u32::MAX);
        if !cgroup::kill_and_remove(group) {
            report.errors.push(format!("the control group {} is not empty", group.display()));
        }
    }
    if !kill_marked(session, report) {
        report.errors.push(format!("processes of session {session} live on after SIGKILL"));
    }
    if let Some(machines) = owner.and_then(|owner| owner.machines.as_deref()) {
        let machines = Machines::new(machines);
        match machines.check() {
            Ok(()) => crewboss_machine::books::sweep::sweep_session(&machines, session, report),
            Err(error) => report.errors.push(error.to_string()),
        }
    }
    if let Some(short) = owner.and_then(|owner| owner.short.as_deref())
        && let Err(error) = short::remove(short)
    {
        report.errors.push(format!("cannot remove {}: {error}", short.display()));
        return false;
    }
    let directory = layout.session(session);
    if !directory.exists() {
        return true;
    }
    // The record goes last: as long as anything is left its owner is known.
    match remove_but_record(&directory) {
        Ok(subvolumes) => {
            report.directories += 1;
            report.subvolumes += subvolumes;
            true
        }
        Err(error) => {
            report.errors.push(format!("cannot remove {}: {error}", directory.display()));
            false
        }
    }
}

fn remove_but_record(directory: &Path) -> std::io::Result<u32> {
    let subvolumes = count_subvolumes(directory);
    let mut first = Ok(());
    let entries = match std::fs::read_dir(directory) {
        // Another worker that starts sweeps as well.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(subvolumes),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_name() == "owner.json" {
            continue;
        }
        let removed = remove_tree(&entry.path());
        first = first.and(removed);
    }
    first?;
    remove_tree(directory)?;
    Ok(subvolumes)
}

/// Subvolumes where we make them: attempts, and what lies directly in attempts.
fn count_subvolumes(directory: &Path) -> u32 {
    let inner = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let is_subvolume = |entry: &std::fs::DirEntry| {
        entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.ino() == SUBVOLUME_INODE)
    };
    let attempts: Vec<_> = inner(directory).collect();
    let below = attempts.iter().flat_map(|attempt| inner(&attempt.path()).collect::<Vec<_>>());
    let found =
        attempts.iter().filter(|entry| is_subvolume(entry)).count() + below.filter(is_subvolume).count();
    u32::try_from(found).unwrap_or(u32::MAX)
}

/// Waiters' files that nobody holds a lock on any more.
pub(crate) fn remove_stale_waiters(layout: &Layout, report: &mut CleanReport) {
    let Ok(entries) = std::fs::read_dir(layout.locks()) else { return };
    for entry in entries.flatten() {
        let waiting = entry.file_name().to_string_lossy().starts_with("waiting-");
        let Some(file) = waiting.then(|| Open::read().path(&entry.path()).ok()).flatten() else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let held = Held::new(file);
        // Its session may have removed it itself, and wait again behind another file.
        let is_it = held.is_at(&entry.path()).unwrap_or(false);
        report.locks += u32::from(is_it && std::fs::remove_file(entry.path()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crewboss_host::marked::MARK;
    use crewboss_host::process::{boot_id, with_variable};
    use crewboss_host::testing::hello;
    use crewboss_host::testing::owner_of;
    use std::process::Command;

    fn dead_process() -> ProcessId {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        id
    }

    fn session_name(test: &str) -> String {
        format!("sweep-{test}-{}.1", std::process::id())
    }

    #[test]
    fn what_the_dead_left_goes_and_what_lives_stays() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let (dead, live) = (session_name("dead"), session_name("live"));
        let mut owner = owner_of(&dead, &dead_process());
        let record = |short: Option<&Path>| {
            owner.short = short.map(Path::to_owned);
            owner.write(&layout)
        };
        let short = short::make(record).unwrap().unwrap();
        std::fs::create_dir_all(layout.tasks().join(&dead).join("1.1/out")).unwrap();
        short::lead(&short.join("0"), &layout.tasks().join(&dead).join("1.1")).unwrap();
        let mut marked = Command::new("/bin/sleep").arg("1000").env(MARK, &dead).spawn().unwrap();
        owner_of(&live, &ProcessId::own().unwrap()).write(&layout).unwrap();
        // Executing takes the child a moment; only then is the mark in its environment.
        assert!(wait_until(Duration::from_secs(10), || !with_variable(MARK, &dead).is_empty()));

        let report = clean(&layout, &Machines::new(layout.machines()), false);
        assert_eq!(report.removed, [dead.parse().unwrap()]);
        assert_eq!(report.left[0].why, WhyLeft::BossAlive);
        assert_eq!((report.processes, report.directories), (1, 1));
        assert_eq!(report.errors, Vec::<String>::new());
        assert!(
            !short.exists() && !layout.tasks().join(&dead).exists() && layout.tasks().join(&live).exists()
        );
        assert!(!marked.wait().unwrap().success());
    }

    #[test]
    fn a_live_worker_is_ended_by_force_or_when_its_boss_is_gone() {
        for force in [true, false] {
            let work = tempfile::tempdir().unwrap();
            let layout = Layout::new(work.path());
            let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            let mut owner = owner_of(&session_name("forsaken"), &ProcessId::of(child.id()).unwrap());
            owner.silence_ms = if force { 60_000 } else { 0 };
            owner.write(&layout).unwrap();
            let waiter = std::thread::spawn(move || child.wait().unwrap());
            let report = clean(&layout, &Machines::new(layout.machines()), force);
            assert_eq!(report.ended, [owner.session.clone()], "{report:?}");
            assert!(!waiter.join().unwrap().success());
            assert!(!layout.session(&owner.session).exists());
        }
    }

    #[test]
    fn a_starting_worker_ends_who_stands_still_without_a_boss_and_whose_place_it_takes() {
        // How long its boss is silent, whether it stands still, whether its worker proper is dead,
        // whether the new one is of the same boss.
        for (silent, stopped, dead, same, ends) in [
            (30, true, false, false, true),
            (60, false, false, false, false),
            (0, true, false, false, false),
            (0, true, true, false, true),
            (0, false, true, false, false),
            (0, false, false, true, true),
        ] {
            let work = tempfile::tempdir().unwrap();
            let layout = Layout::new(work.path());
            let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            let process = ProcessId::of(child.id()).unwrap();
            let mut owner = owner_of(&session_name("standing"), &process);
            if dead {
                owner.worker = dead_process();
            }
            owner.write(&layout).unwrap();
            let alive = std::fs::File::options().append(true).open(layout.alive(&owner.session)).unwrap();
            alive.set_modified(SystemTime::now() - Duration::from_secs(silent)).unwrap();
            if stopped {
                process.signal(Signal::STOP);
                assert!(wait_until(Duration::from_secs(10), || process.is_stopped()));
            }
            let mut new = hello(&session_name("new"));
            (new.boss, new.host) = (owner.boss.clone(), owner.host.clone());
            new.run = if same { owner.run.clone() } else { "other".parse().unwrap() };
            let reaper = std::thread::spawn(move || child.wait().unwrap());
            let report = sweep_dead(&layout, &Machines::new(layout.machines()), &new);
            let case = (silent, stopped, dead, same);
            assert_eq!(report.ended.len(), usize::from(ends), "{case:?}: {report:?}");
            assert_eq!(
                (process.is_alive(), layout.session(&owner.session).exists()),
                (!ends, !ends),
                "{case:?}"
            );
            process.signal(Signal::KILL);
            reaper.join().unwrap();
        }
    }

    #[test]
    fn what_may_be_another_s_is_left_alone_and_named() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let precious = work.path().join("precious");
        std::fs::create_dir_all(precious.join("file")).unwrap();
        let theirs = owner_of(&session_name("theirs"), &dead_process());
        theirs.write(&layout).unwrap();
        std::os::unix::fs::chown(layout.owner(&theirs.session), Some(987_654), None).unwrap();
        std::os::unix::fs::symlink(&precious, layout.tasks().join("evil.1")).unwrap();
        let machines = Machines::new(layout.machines());
        for report in [clean(&layout, &machines, true), sweep_dead(&layout, &machines, &hello("other.1"))] {
            assert!(report.removed.is_empty() && report.ended.is_empty());
            let told = report.errors.join("\n");
            assert!(told.contains("evil.1: it is a symbolic link and not a directory"), "{told}");
            assert!(told.contains("owner.json: it belongs to the user with the number 987654"), "{told}");
        }
        assert!(precious.join("file").exists() && layout.session(&theirs.session).exists());
    }

    #[test]
    fn a_number_that_another_process_got_is_not_touched() {
        let work = tempfile::tempdir().unwrap();
        let layout = Layout::new(work.path());
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let real = ProcessId::of(child.id()).unwrap();
        let older = ProcessId { pid: real.pid, start: real.start - 1 };
        owner_of(&session_name("reused"), &older).write(&layout).unwrap();
        let report = clean(&layout, &Machines::new(layout.machines()), true);
        assert_eq!((report.removed.len(), report.processes), (1, 0));
        assert!(real.is_alive() && !boot_id().is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

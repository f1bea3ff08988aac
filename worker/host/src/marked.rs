//! The processes of a session: finding all of them, and ending them though they do not want to.
//!
//! Processes of tasks carry the session in their environment. Our own cannot be looked into by
//! others of their user ([`crate::sys::keep_to_itself`]), but everybody can read with which
//! arguments they were started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crewboss_protocol::SessionId;
use crewboss_protocol::clean::CleanReport;
use rustix::process::Signal;

use crate::process::{KILL_WITHIN, ProcessId, all, descendants, identified, with_variable};

/// The variable that every process of a task or a bulk channel carries.
pub const MARK: &str = crewboss_protocol::SESSION_VARIABLE;

/// By this option our own processes are told their session.
pub const OPTION: &str = "--session";

/// What of ours is started for a session, and ends with it.
const ROLES: [&[u8]; 2] = [b"runner", b"bulk"];

/// How long a worker that was asked to end may take before it is killed. Its own limit for stopping
/// is below this.
pub const END_WITHIN: Duration = Duration::from_secs(6);

/// Between two looks at a worker that is ending.
const END_LOOK: Duration = Duration::from_millis(5);

/// Between two looks at processes that are about to stop.
const LOOK: Duration = Duration::from_millis(1);

/// Every process of this user that says of itself that it belongs to the session. This one is left
/// out.
pub fn of_session(session: &SessionId) -> Vec<ProcessId> {
    let mut found = with_variable(MARK, session.as_str());
    found.extend(identified(&all(), |pid| is_for(pid, session)));
    let own = std::process::id();
    found.retain(|process| process.pid != own && process.is_own());
    found
}

fn is_for(pid: u32, session: &SessionId) -> bool {
    let line = crewboss_ground::kernel_bytes(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let told = [OPTION.as_bytes(), session.as_str().as_bytes()];
    words.get(1).is_some_and(|role| ROLES.contains(role)) && words.windows(2).any(|pair| pair == told)
}

/// Kills these processes and everything below them, and spares this one. All of them are stopped
/// before the first is killed: whoever is stopped starts nothing, and as long as its parents are
/// there everything is found. Returns how many they were.
pub fn kill(roots: &[ProcessId]) -> usize {
    let spared = BTreeSet::from([std::process::id()]);
    let below = || roots.iter().flat_map(|root| descendants(root.pid, &spared)).collect::<BTreeSet<u32>>();
    let mut known: BTreeMap<u32, ProcessId> = BTreeMap::new();
    let mut new: Vec<ProcessId> = roots.iter().filter(|root| root.is_alive()).cloned().collect();
    let end = Instant::now() + KILL_WITHIN;
    while !new.is_empty() && Instant::now() < end {
        for process in new {
            process.deliver(Signal::STOP);
            known.insert(process.pid, process);
        }
        std::thread::sleep(LOOK);
        let found: Vec<ProcessId> = below().into_iter().filter_map(ProcessId::of).collect();
        // A number that went to another process meanwhile is below nobody of these any more.
        let still = below();
        let is_new = |process: &ProcessId| known.get(&process.pid) != Some(process);
        new = found.into_iter().filter(|process| still.contains(&process.pid) && is_new(process)).collect();
    }
    known.values().filter(|process| process.deliver(Signal::KILL)).count()
}

/// Kills every process that says that it belongs to the session, again and again, since they may
/// fork.
pub fn kill_marked(session: &SessionId, report: &mut CleanReport) -> bool {
    let mut killed = BTreeSet::new();
    let gone = wait_until(KILL_WITHIN, || {
        let living: Vec<ProcessId> = of_session(session).into_iter().filter(ProcessId::is_alive).collect();
        for process in &living {
            if process.signal(Signal::KILL) {
                killed.insert((process.pid, process.start));
            }
        }
        living.is_empty()
    });
    report.processes += u32::try_from(killed.len()).unwrap_or(u32::MAX);
    gone
}

/// Waits until something holds, for no longer than that. Returns whether it does.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(END_LOOK);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn a_family_that_grows_and_wakes_each_other_is_killed_whole() {
        let mark = format!("grows-{}", std::process::id());
        let grow = "while :; do setsid sleep 1000 & kill -CONT $PPID $!; sleep 0.01; done";
        let mut root = Command::new("/bin/sh");
        root.args(["-c", &format!("sh -c '{grow}' & wait")]).env("CREWBOSS_TEST_FAMILY", &mark);
        let mut root = root.spawn().unwrap();
        let id = ProcessId::of(root.id()).unwrap();
        wait_for("it grows", || descendants(root.id(), &BTreeSet::new()).len() > 10);
        assert!(kill(std::slice::from_ref(&id)) > 10);
        root.wait().unwrap();
        let left = || with_variable("CREWBOSS_TEST_FAMILY", &mark);
        wait_for("they are gone", || !left().iter().any(ProcessId::is_alive));
    }

    #[test]
    fn our_own_processes_are_known_by_their_arguments() {
        let session = |end| format!("family-{}.{end}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let start = |role: &str, session: &str| {
            std::fs::write(dir.path().join(role), "read -r line").unwrap();
            let mut command = Command::new("/bin/sh");
            command.args([role, OPTION, session]).current_dir(dir.path()).stdin(Stdio::piped());
            command.spawn().unwrap()
        };
        let mut started = [("runner", 1), ("bulk", 1), ("other", 1), ("runner", 11)]
            .map(|(role, end)| start(role, &session(end)));
        let found = || of_session(&session(1).parse().unwrap());
        let numbers = |found: &[ProcessId]| found.iter().map(|one| one.pid).collect::<BTreeSet<u32>>();
        let wanted: BTreeSet<u32> = started[..2].iter().map(std::process::Child::id).collect();
        wait_for("both are there", || numbers(&found()).is_superset(&wanted));
        let all = numbers(&found());
        for child in &mut started {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(all, wanted);
    }
}

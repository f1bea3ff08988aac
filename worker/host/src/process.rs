//! Processes: telling one from another that later got its number, finding descendants, ending them
//! all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::sys::{Reap, Reaped, reap};

/// Ends a process, whatever it wants.
pub const KILL: Signal = Signal::KILL;

/// Asks a process to end.
pub const TERM: Signal = Signal::TERM;

/// Between two looks at processes that are being killed. Death takes the kernel far less than this,
/// mostly.
const KILL_POLL: Duration = Duration::from_micros(500);

/// A process that lives on after SIGKILL for this long hangs in the kernel; waiting longer helps
/// nobody.
pub const KILL_WITHIN: Duration = Duration::from_secs(5);

/// One process, for ever: its number is used again only with another start time or after another
/// boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot.
    pub start: u64,
}

impl ProcessId {
    /// Reads the start time of a process that exists now.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, start: Stat::read(pid)?.start })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it lives. A zombie is dead: it does nothing any more.
    pub fn is_alive(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.start == self.start && !stat.dead)
    }

    /// Whether it was stopped, and waits for somebody who lets it go on.
    pub fn is_stopped(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.start == self.start && stat.stopped)
    }

    /// Whether it is a process of this user. A record, whoever has written it, names no others that
    /// we would end.
    pub fn is_own(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let owner = std::fs::metadata(format!("/proc/{}", self.pid)).map(|found| found.uid());
        owner.is_ok_and(|owner| owner == rustix::process::geteuid().as_raw())
    }

    /// Sends a signal if it is still the same process, and this user's; says whether it was
    /// delivered.
    pub fn signal(&self, signal: Signal) -> bool {
        self.is_own() && self.deliver(signal)
    }

    /// The same whosever it is, for one of which it is known otherwise that it is to be ended.
    pub(crate) fn deliver(&self, signal: Signal) -> bool {
        // The descriptor pins the process, so it cannot be replaced between the check and the
        // signal.
        let Some(pid) = raw_pid(self.pid) else { return false };
        let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            return false;
        };
        self.is_alive() && rustix::process::pidfd_send_signal(fd, signal).is_ok()
    }
}

/// The id of this boot; start times of another boot mean nothing.
pub fn boot_id() -> String {
    let text = crewboss_ground::kernel_text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn raw_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

struct Stat {
    parent: u32,
    start: u64,
    dead: bool,
    stopped: bool,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let bytes = crewboss_ground::kernel_bytes(format!("/proc/{pid}/stat")).ok()?;
        // The name of the program is in parentheses and may hold anything, parentheses included.
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&bytes[end + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        // The start time is field 22 of the line; state was field 3 and parent field 4.
        let start = fields.nth(17)?.parse().ok()?;
        let (dead, stopped) = (matches!(state, "Z" | "X" | "x"), matches!(state, "T" | "t"));
        Some(Self { parent, start, dead, stopped })
    }
}

/// All processes that can be seen.
pub fn all() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Every process below `root`, without `root` itself and without what lies below `spared`.
pub fn descendants(root: u32, spared: &BTreeSet<u32>) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in all() {
        if let Some(stat) = Stat::read(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            if !spared.contains(&child) {
                found.push(child);
                open.push(child);
            }
        }
    }
    found
}

/// Sends a signal to every descendant of this process, except `spared` and those below them.
/// Returns how many there were.
pub fn signal_descendants(signal: Signal, spared: &BTreeSet<u32>) -> usize {
    let found = descendants(std::process::id(), spared);
    for pid in found.iter().copied().filter_map(raw_pid) {
        // A process that has just ended, or is not ours to signal, shows in the next look.
        let _gone = rustix::process::kill_process(pid, signal);
    }
    found.len()
}

/// Reaps whatever has ended. Returns false once this process has no child left.
pub fn reap_ended(mut seen: impl FnMut(Reaped)) -> bool {
    loop {
        match reap(None) {
            Reap::Ended(reaped) => seen(reaped),
            Reap::Running => return true,
            Reap::Childless => return false,
        }
    }
}

/// Kills every descendant of this process, which must be a sub-reaper, until none is left. Orphans
/// come to the sub-reaper, so "no child" proves "no descendant", whatever they forked meanwhile.
/// Returns false if some lived on for [`KILL_WITHIN`].
pub fn kill_all_descendants(mut seen: impl FnMut(Reaped)) -> bool {
    let end = Instant::now() + KILL_WITHIN;
    while reap_ended(&mut seen) {
        signal_descendants(Signal::KILL, &BTreeSet::new());
        if !reap_ended(&mut seen) {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(KILL_POLL);
    }
    true
}

/// Kills every descendant of this sub-reaper except the children `spared` and what lies below them,
/// and reaps those of them that have become its children. Returns false if some lived on for
/// [`KILL_WITHIN`].
pub fn kill_orphans(spared: &BTreeSet<u32>) -> bool {
    let end = Instant::now() + KILL_WITHIN;
    loop {
        let found = descendants(std::process::id(), spared);
        if found.is_empty() {
            return true;
        }
        for pid in found.into_iter().filter_map(raw_pid) {
            // A process that has just ended, or is not ours to signal, shows in the next look.
            let _gone = rustix::process::kill_process(pid, Signal::KILL);
            // Only by its number: a runner that ended in this moment must be left to who waits for
            // it.
            let _later = reap(Some(pid.as_raw_nonzero().get()));
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(KILL_POLL);
    }
}

/// Every process of this user whose environment holds `name=value`. Anybody can write that into the
/// environment of a process of theirs, which root can look into and must not wait for.
pub fn with_variable(name: &str, value: &str) -> Vec<ProcessId> {
    let wanted = format!("{name}={value}").into_bytes();
    let own = std::process::id();
    let has = |pid: u32| {
        let environment = crewboss_ground::kernel_bytes(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
    };
    let marked = identified(&all(), has).into_iter().filter(|process| process.pid != own);
    marked.filter(ProcessId::is_own).collect()
}

/// The processes that something holds of. Who they are is asked before: a number that goes to
/// another process meanwhile then belongs to none that is found, and it is not the other that is
/// ended for what the first one was.
pub fn identified(pids: &[u32], holds: impl Fn(u32) -> bool) -> Vec<ProcessId> {
    pids.iter().filter_map(|pid| ProcessId::of(*pid)).filter(|process| holds(process.pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let other = ProcessId { pid: id.pid, start: id.start + 1 };
        assert!(id.is_alive() && !other.is_alive());
        assert!(!other.signal(Signal::KILL));
        assert!(id.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn a_process_is_known_before_anything_is_asked_of_its_number() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        let child = std::cell::RefCell::new(&mut child);
        // It ends while it is asked after, and its number is free for others: what was found can
        // end none of those.
        let found = identified(&[pid], |_| {
            child.borrow_mut().kill().unwrap();
            child.borrow_mut().wait().unwrap();
            true
        });
        assert_eq!(found.len(), 1);
        assert!(!found[0].is_alive() && !found[0].signal(Signal::KILL));
    }

    #[test]
    fn a_process_of_another_user_is_not_ended_whatever_a_record_says() {
        use std::os::unix::process::CommandExt as _;
        let mut child = Command::new("/bin/sleep").arg("1000").uid(65_534).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive() && !id.signal(Signal::KILL));
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_of_another_user_that_carries_a_mark_is_not_taken_for_marked() {
        use std::os::unix::process::CommandExt as _;
        let marker = format!("foreign-{}", std::process::id());
        let sleeper = |uid| {
            let mut command = Command::new("/bin/sleep");
            command.arg("1000").env("CREWBOSS_TEST_MARK", &marker).uid(uid).spawn().unwrap()
        };
        let (mut foreign, mut ours) = (sleeper(65_534), sleeper(rustix::process::geteuid().as_raw()));
        // It has started, so its environment is there to be seen, before ours has.
        let environment = format!("/proc/{}/environ", foreign.id());
        let wanted = format!("CREWBOSS_TEST_MARK={marker}").into_bytes();
        let end = Instant::now() + Duration::from_secs(60);
        while !std::fs::read(&environment).unwrap().split(|byte| *byte == 0).any(|one| one == wanted) {
            assert!(Instant::now() < end, "it did not start");
        }
        loop {
            let found = with_variable("CREWBOSS_TEST_MARK", &marker);
            let is = |child: &std::process::Child| found.iter().any(|id| id.pid == child.id());
            assert!(!is(&foreign), "{found:?}");
            if is(&ours) {
                break;
            }
            assert!(Instant::now() < end, "ours was not seen");
        }
        for child in [&mut foreign, &mut ours] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn descendants_are_found_through_generations_and_spared_ones_are_not() {
        let mut child = Command::new("/bin/sh").args(["-c", "sleep 1000 & wait"]).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        let own = std::process::id();
        while descendants(child.id(), &BTreeSet::new()).is_empty() {
            assert!(Instant::now() < end, "the shell started nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        let grandchild = descendants(child.id(), &BTreeSet::new());
        assert!(descendants(own, &BTreeSet::new()).contains(&grandchild[0]));
        assert!(!descendants(own, &BTreeSet::from([child.id()])).contains(&grandchild[0]));
        for pid in grandchild.into_iter().chain([child.id()]) {
            ProcessId::of(pid).unwrap().signal(Signal::KILL);
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_variable_marks_a_process() {
        let marker = format!("marker-{}", std::process::id());
        let mut child =
            Command::new("/bin/sleep").arg("1000").env("CREWBOSS_TEST_MARK", &marker).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let found = with_variable("CREWBOSS_TEST_MARK", &marker);
            if found.iter().any(|id| id.pid == child.id()) {
                break;
            }
            assert!(Instant::now() < end, "the marker was not seen");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

//! Programs that are waited for, such as git.
//!
//! Nobody knows how long one may work: a repository can have any size. But one that does nothing
//! waits for something that may never come (a disk that is gone, whoever has stopped it), and we
//! would wait for it for ever. So a thread looks at it, and ends it once it has neither used the
//! processor nor read nor written anything for a while. Looks are counted and no clock, so that
//! time in which we did not run ourselves is not the program's.
#![expect(unsafe_code, reason = "what a child asks of the kernel before its program begins are system calls")]

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

/// Looks in the time that a program may do nothing, and the longest time between two.
const LOOKS: u32 = 8;
const EVERY_MAX: Duration = Duration::from_secs(2);

/// In milliseconds; see [`set_patience`].
static PATIENCE: AtomicU64 = AtomicU64::new(30_000);

/// How long programs that start from now on may do nothing. Without it: 30 s.
pub fn set_patience(patience: Duration) {
    PATIENCE.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// A program did nothing for too long, and was ended.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{name}` stood still: for {} s it used neither processor nor disk, and it was ended (`stall` in [limits] of crew.toml)",
    patience.as_secs_f64()
)]
struct StoodStill {
    name: String,
    patience: Duration,
}

/// Whether an error says that a program stood still.
pub fn stood_still(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<StoodStill>())
}

/// Has the kernel send this to the program of a command when the thread that starts it ends.
pub fn end_with_starter(command: &mut Command, signal: Signal) -> &mut Command {
    // SAFETY: makes one system call.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(signal)).map_err(io::Error::from)
        })
    }
}

/// Runs a program of [`crate::program()`] to its end with this input, and gives what it wrote.
/// `name` is what a person calls it.
///
/// # Errors
/// If it cannot be started, or stood still.
pub fn output(command: &mut Command, name: &str, input: &[u8]) -> io::Result<Output> {
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let mut watched = Watched::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()), name)?;
    let Pipes { stdin, stdout, stderr } = watched.pipes();
    let (stdout, stderr) = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new;
        // If the program is gone, its exit status tells.
        thread().spawn_scoped(scope, move || stdin.map(|mut stdin| stdin.write_all(input)))?;
        let stderr = thread().spawn_scoped(scope, move || all(stderr))?;
        io::Result::Ok((all(stdout)?, stderr.join().unwrap_or_else(|_| Ok(Vec::new()))?))
    })?;
    Ok(Output { status: watched.wait()?, stdout, stderr })
}

fn all(stream: Option<impl io::Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.map_or(Ok(0), |mut stream| stream.read_to_end(&mut bytes)).map(|_| bytes)
}

/// A program that is looked at. It ends with this, or with the thread that has started it.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    name: String,
    patience: Duration,
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

/// The streams of a program, as far as they are pipes.
#[derive(Debug)]
pub struct Pipes {
    /// What it reads.
    pub stdin: Option<ChildStdin>,
    /// What it writes.
    pub stdout: Option<ChildStdout>,
    /// What it complains of.
    pub stderr: Option<ChildStderr>,
}

/// Makes the program wait for us: time in which this is held is not the program's.
#[derive(Debug)]
pub struct Pause(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// It has ended, and its number is about to be another's.
    over: bool,
    pauses: u32,
    stood_still: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Starts a program of [`crate::program()`]. `name` is what a person calls it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, name: &str) -> io::Result<Self> {
        let patience = Duration::from_millis(PATIENCE.load(Ordering::Relaxed));
        let child = end_with_starter(command, Signal::KILL).spawn()?;
        let shared = Arc::new(Shared::default());
        let mut watched = Self { child, name: name.to_owned(), patience, shared, watcher: None };
        let (leader, shared) = (watched.pid()?, watched.shared.clone());
        let watch = move || watch(leader, patience, &shared);
        watched.watcher = Some(std::thread::Builder::new().name("watcher".to_owned()).spawn(watch)?);
        Ok(watched)
    }

    /// Its streams, once.
    pub fn pipes(&mut self) -> Pipes {
        let Child { stdin, stdout, stderr, .. } = &mut self.child;
        Pipes { stdin: stdin.take(), stdout: stdout.take(), stderr: stderr.take() }
    }

    /// Something by which it can be said that the program waits for us.
    pub fn pauses(&self) -> Pauses {
        Pauses(self.shared.clone())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// If it stood still.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.ended()?;
        let status = self.child.wait()?;
        if self.shared.lock().stood_still {
            let (name, patience) = (self.name.clone(), self.patience);
            return Err(io::Error::new(io::ErrorKind::TimedOut, StoodStill { name, patience }));
        }
        Ok(status)
    }

    fn pid(&self) -> io::Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound.into())
    }

    /// Waits for the end, and for the watcher; only after that the program's number may become
    /// another's.
    fn ended(&mut self) -> io::Result<()> {
        let Some(watcher) = self.watcher.take() else { return Ok(()) };
        let ended = loop {
            match waitid(WaitId::Pid(self.pid()?), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                ended => break ended,
            }
        };
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        drop(watcher.join());
        ended.map(drop).map_err(io::Error::from)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            self.shared.lock().over = true;
            self.shared.changed.notify_all();
            drop(watcher.join());
            if let Ok(leader) = self.pid() {
                end(leader);
            }
        }
        // Reaped already, mostly.
        drop(self.child.wait());
    }
}

/// See [`Watched::pauses`].
#[derive(Debug, Clone)]
pub struct Pauses(Arc<Shared>);

impl Pauses {
    /// The program waits for us until this is dropped.
    pub fn begin(&self) -> Pause {
        self.0.lock().pauses += 1;
        Pause(self.0.clone())
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.lock().pauses -= 1;
    }
}

fn watch(leader: Pid, patience: Duration, shared: &Shared) {
    let every = (patience / LOOKS).clamp(Duration::from_millis(10), EVERY_MAX);
    let (mut seen, mut still) = (None, Duration::ZERO);
    let mut state = shared.lock();
    loop {
        (state, _) = shared.changed.wait_timeout(state, every).unwrap_or_else(PoisonError::into_inner);
        if state.over {
            return;
        }
        let now = Some(work_of(leader));
        still = if now == seen && state.pauses == 0 { still + every } else { Duration::ZERO };
        seen = now;
        if still >= patience {
            state.stood_still = true;
            end(leader);
            return;
        }
    }
}

/// Ends a program with all that it has started in its session.
fn end(leader: Pid) {
    for pid in session(leader).iter().filter_map(|(pid, _)| Pid::from_raw(*pid)) {
        let _gone = kill_process(pid, Signal::KILL);
    }
    let _gone = kill_process_group(leader, Signal::KILL);
}

/// What a program and all that it has started have done so far: times, page faults, bytes and
/// calls. It only matters whether it is another number than before.
fn work_of(leader: Pid) -> u64 {
    let moved = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(|word| word.parse::<u64>().ok()).fold(0, u64::wrapping_add)
    };
    let of = |(pid, work): (i32, u64)| work.wrapping_add(moved(pid));
    session(leader).into_iter().map(of).fold(0, u64::wrapping_add)
}

/// The processes of a session, each with its page faults and times.
fn session(leader: Pid) -> Vec<(i32, u64)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, work_in_session(pid, leader)?))).collect()
}

fn work_in_session(pid: i32, leader: Pid) -> Option<u64> {
    let bytes = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses and may hold anything, parentheses included.
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&str> = std::str::from_utf8(&bytes[end + 1..]).ok()?.split_ascii_whitespace().collect();
    // What stands here is field 3 of the line; the session is field 6, faults and times are fields
    // 10 to 15.
    let is_in = fields.get(3)?.parse() == Ok(leader.as_raw_nonzero().get());
    let work = fields.get(7..13)?.iter().filter_map(|field| field.parse::<u64>().ok());
    is_in.then(|| work.fold(0, u64::wrapping_add))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Command {
        let mut command = crate::program("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// The patience is one for all tests of this process.
    fn short() {
        set_patience(Duration::from_millis(400));
    }

    fn is_gone(pid: &str) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        state.map_or(true, |state| state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    fn wait_until(mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < end, "it never happens");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_program_says_to_its_input_is_given_with_its_end() {
        short();
        let said = output(&mut shell("cat; echo bad >&2; exit 3"), "cat", b"in").unwrap();
        assert_eq!(
            (said.status.code(), &said.stdout[..], &said.stderr[..]),
            (Some(3), &b"in"[..], &b"bad\n"[..])
        );
    }

    #[test]
    fn a_program_that_does_nothing_is_ended_with_what_it_has_started() {
        short();
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pids");
        for script in [
            "sleep 1000 & echo $$ $! >NOTE; wait",
            "echo $$ >NOTE; kill -STOP $$",
            "echo $$ >NOTE; exec >&- 2>&-; sleep 1000",
        ] {
            let script = script.replace("NOTE", note.to_str().unwrap());
            let error = output(&mut shell(&script), "git log", b"").unwrap_err();
            assert!(stood_still(&error) && error.to_string().starts_with("`git log` stood still"), "{error}");
            let pids = std::fs::read_to_string(&note).unwrap();
            wait_until(|| pids.split_whitespace().all(is_gone));
        }
    }

    #[test]
    fn work_has_no_limit_and_neither_has_our_own_slowness() {
        set_patience(Duration::from_millis(400));
        let begun = Instant::now();
        let busy = "end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done; echo done";
        assert_eq!(output(&mut shell(busy), "busy", b"").unwrap().stdout, b"done\n");
        assert!(begun.elapsed() > Duration::from_secs(1));

        let mut watched =
            Watched::start(shell("read go; echo $go").stdin(Stdio::piped()).stdout(Stdio::piped()), "slow")
                .unwrap();
        let mut pipes = watched.pipes();
        let pause = watched.pauses().begin();
        std::thread::sleep(Duration::from_millis(1200));
        pipes.stdin.take().unwrap().write_all(b"on\n").unwrap();
        drop(pause);
        assert_eq!(all(pipes.stdout.take()).unwrap(), b"on\n");
        assert!(watched.wait().unwrap().success());
    }

    #[test]
    fn a_program_ends_with_who_waits_for_it_and_with_the_thread_that_started_it() {
        short();
        let watched = Watched::start(&mut shell("exec sleep 1000"), "sleep").unwrap();
        let pid = watched.child.id().to_string();
        drop(watched);
        assert!(is_gone(&pid));
        let pid = std::thread::spawn(|| {
            end_with_starter(&mut shell("exec sleep 1000"), Signal::KILL).spawn().unwrap().id()
        });
        let pid = pid.join().unwrap().to_string();
        wait_until(|| is_gone(&pid));
    }
}

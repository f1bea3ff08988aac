//! Starting programs.
//!
//! Whoever started us may have had signals ignored (`nohup`, a script's `&`) or blocked, files
//! open, and a terminal that we now have, too. A program would inherit all of that through us: a
//! build that asks the terminal would be stopped by it, `make` would not hear SIGINT, a daemon
//! would keep a lock of ours. So every program is started here, and begins as one that the system
//! itself starts: signals do what they do by default, nothing is open but the three standard
//! streams, as many files can be open as we were allowed ourselves, and it has a session of its
//! own, which has no terminal.
#![expect(unsafe_code, reason = "signals and descriptors of a process can only be set by system calls")]

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};

/// Descriptors that are looked at where the kernel cannot mark all at once (before 5.11).
const DESCRIPTORS: libc::c_int = 4096;

/// How many files this process could have open before we raised that; 0 if we did not.
static OPEN_FILES: AtomicU64 = AtomicU64::new(0);

/// How many files this process can have open, and how many it may allow itself. No number is no
/// limit.
pub fn open_files() -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum)
}

/// Allows this process so many open files. It is for us alone: programs that we start get what we
/// were given, since some take much longer, or do not work, where more is allowed than they reckon
/// with.
///
/// # Errors
/// If the system does not allow it.
pub fn raise_open_files(number: u64) -> io::Result<()> {
    let (given, maximum) = open_files();
    setrlimit(Resource::Nofile, Rlimit { current: Some(number), maximum })?;
    let given = given.unwrap_or(u64::MAX);
    // Only what we were given counts, not what we have raised before.
    let _raised_before = OPEN_FILES.compare_exchange(0, given, Ordering::Relaxed, Ordering::Relaxed);
    Ok(())
}

/// A command that starts a program afresh. It leads a session and with it a process group, so
/// `process_group` must not be asked for. What it is to be passed besides its standard streams has
/// to be made inheritable in a `pre_exec` of the caller's.
pub fn program(program: impl AsRef<OsStr>) -> Command {
    starting(program, begin_anew)
}

/// As [`program`], for one that a person is to talk to: it keeps the session, and with it the
/// terminal.
pub fn program_for_person(program: impl AsRef<OsStr>) -> Command {
    starting(program, reset)
}

fn starting(program: impl AsRef<OsStr>, prepare: fn() -> io::Result<()>) -> Command {
    let mut command = Command::new(program);
    // SAFETY: both functions make system calls alone, and allocate nothing.
    unsafe { command.pre_exec(prepare) };
    command
}

/// Makes this process what a program is that [`program`] has started; for one that was just forked.
/// It makes system calls alone, and leaves open descriptors open until another program is executed.
///
/// # Errors
/// If this process leads a group already.
pub fn begin_anew() -> io::Result<()> {
    setsid()?;
    reset()
}

fn reset() -> io::Result<()> {
    // The kernel's own structure, all of it zero: what the system does by default. The C library
    // would keep two signals for itself, which may be ignored as well. Two cannot be set at all.
    let default = [0_u64; 4];
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the structure is no longer than that, and its set of signals has eight bytes; no
        // handler is installed.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8_usize)
        };
    }
    // SAFETY: the set is valid plain data.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    let given = OPEN_FILES.load(Ordering::Relaxed);
    if given != 0 {
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(given), maximum })?;
    }
    // SAFETY: marks numbers and touches no memory.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked != 0 {
        for descriptor in 3..DESCRIPTORS {
            // SAFETY: sets a flag of a number and touches no memory. Most are not open.
            unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Sets what signals this process hears of, whatever it was started with. The end of a child is
/// one: where that is ignored, the system tells nobody how a child ended. A file that grows beyond
/// `ulimit -f` is none: that is an error of the write, which has a path, and no end without a word.
pub fn set_signals() {
    // SAFETY: sets what the system does by default, and that it does nothing.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Lets the program that this process becomes have these descriptors. For a child between fork and
/// exec: it makes system calls alone.
///
/// # Errors
/// If one is not open.
pub fn pass(descriptors: &[i32]) -> io::Result<()> {
    for descriptor in descriptors {
        // SAFETY: sets a flag of a number and touches no memory.
        if unsafe { libc::fcntl(*descriptor, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd as _;
    use std::process::Output;

    /// Runs a part of a test in a process of its own, whose signals nobody else depends on.
    fn alone(name: &str) -> bool {
        const ALONE: &str = "CREWBOSS_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        let mut own = Command::new(std::env::current_exe().unwrap());
        let output = own.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        false
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn said(mut command: Command) -> String {
        let output: Output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    fn shell(mut start: Command, script: &str) -> Command {
        start.args(["-c", script]);
        start
    }

    #[test]
    fn a_program_begins_afresh_whatever_we_were_started_with() {
        if !alone("program::tests::a_program_begins_afresh_whatever_we_were_started_with") {
            return;
        }
        let open = File::open("/dev/null").unwrap();
        // SAFETY: this process does nothing else, and the set is valid plain data.
        unsafe {
            libc::fcntl(open.as_raw_fd(), libc::F_SETFD, 0);
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
            for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGPIPE, libc::SIGTTOU] {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
        let look = "grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd";
        for start in [program("/bin/sh"), program_for_person("/bin/sh")] {
            let said = said(shell(start, look));
            let words: Vec<&str> = said.split_whitespace().collect();
            assert_eq!(words[1], "0000000000000000", "blocked: {said}");
            assert_eq!(words[3], "0000000000000000", "ignored: {said}");
            // `ls` has the directory itself open.
            assert_eq!(words[4..], ["0", "1", "2", "3"], "{said}");
        }
    }

    #[test]
    fn children_are_heard_of_whatever_we_were_started_with() {
        if !alone("program::tests::children_are_heard_of_whatever_we_were_started_with") {
            return;
        }
        // SAFETY: this process does nothing else.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        assert!(program("/bin/true").status().is_err());
        set_signals();
        assert!(program("/bin/true").status().unwrap().success());
    }

    #[test]
    fn a_file_that_grows_too_long_is_an_error_of_ours_and_ends_others_as_ever() {
        if !alone("program::tests::a_file_that_grows_too_long_is_an_error_of_ours_and_ends_others_as_ever") {
            return;
        }
        set_signals();
        setrlimit(Resource::Fsize, Rlimit { current: Some(4096), maximum: None }).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long");
        let error = std::fs::write(&path, [0; 5000]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
        let mut shell = program("/bin/sh");
        shell.args(["-c", "exec dd if=/dev/zero bs=5000 count=2 status=none of=\"$0\""]).arg(&path);
        let ended = std::os::unix::process::ExitStatusExt::signal(&shell.status().unwrap());
        assert_eq!(ended, Some(libc::SIGXFSZ));
    }

    #[test]
    fn a_limit_that_we_raise_for_ourselves_is_not_passed_on() {
        if !alone("program::tests::a_limit_that_we_raise_for_ourselves_is_not_passed_on") {
            return;
        }
        let maximum = open_files().1;
        setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum }).unwrap();
        for more in [300, 400] {
            raise_open_files(more).unwrap();
            assert_eq!(open_files(), (Some(more), maximum));
            for start in [program("/bin/sh"), program_for_person("/bin/sh")] {
                assert_eq!(said(shell(start, "ulimit -Sn")), "200\n");
            }
        }
    }

    #[test]
    fn it_leads_a_session_unless_it_is_for_a_person() {
        let leads =
            |start| said(shell(start, "set -- $$ $(cat /proc/$$/stat); [ $1 = $7 ] && echo yes || echo no"));
        assert_eq!(
            (leads(program("/bin/sh")), leads(program_for_person("/bin/sh"))),
            ("yes\n".into(), "no\n".into())
        );
    }

    #[test]
    fn it_has_no_terminal() {
        assert_eq!(said(shell(program("/bin/sh"), "(: </dev/tty) 2>/dev/null || echo none")), "none\n");
    }

    #[test]
    fn it_gets_what_it_is_passed() {
        let open = File::open("/dev/null").unwrap();
        let number = open.as_raw_fd();
        let mut command = shell(program("/bin/sh"), &format!("[ -e /proc/self/fd/{number} ] && echo there"));
        // SAFETY: makes system calls alone.
        unsafe { command.pre_exec(move || pass(&[number])) };
        assert_eq!(said(command), "there\n");
    }
}

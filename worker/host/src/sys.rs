//! The few system calls that neither std nor rustix has: signal masks, signalfd, and waiting with
//! resource usage.

use std::io;
use std::mem::offset_of;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, Timespec};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// A blocked set of signals that is read from a descriptor instead.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data; sigemptyset makes it valid, and sigaddset gets constants of
    // this system.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

impl Signals {
    /// Blocks the signals for this thread and all that come from it, children included, and opens
    /// the descriptor. Programs that are started by [`crewboss_ground::program`] are not concerned.
    ///
    /// # Errors
    /// As the system says; practically only for want of descriptors.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals);
        // SAFETY: `set` is valid for both calls; the new descriptor belongs to nobody else.
        unsafe {
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { fd: OwnedFd::from_raw_fd(fd) })
        }
    }

    /// The descriptor, to be polled.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Takes one pending signal.
    pub fn take(&self) -> Option<i32> {
        self.take_with_sender().map(|(number, _)| number)
    }

    /// As [`Self::take`], with the process that has sent it. None has if it was the kernel itself.
    pub fn take_with_sender(&self) -> Option<(i32, Option<Sender>)> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            Ok(len) if len == info.len() => {}
            _ => return None,
        }
        let word = |at: usize| info[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
        let number = i32::try_from(word(offset_of!(libc::signalfd_siginfo, ssi_signo))).ok()?;
        let pid = word(offset_of!(libc::signalfd_siginfo, ssi_pid));
        let sender = match word(offset_of!(libc::signalfd_siginfo, ssi_code)).cast_signed() {
            libc::SI_USER | libc::SI_TKILL => {
                Some(Sender { pid, uid: Some(word(offset_of!(libc::signalfd_siginfo, ssi_uid))) })
            }
            // See `pass_on`.
            libc::SI_QUEUE => {
                let at = offset_of!(libc::signalfd_siginfo, ssi_ptr);
                let value = info[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
                let [pid, uid] = [value & u64::from(u32::MAX), value >> 32];
                let whole = cfg!(target_pointer_width = "64");
                Some(Sender {
                    pid: u32::try_from(pid).unwrap_or(0),
                    uid: u32::try_from(uid).ok().filter(|_| whole),
                })
            }
            _ => None,
        };
        Some((number, sender))
    }
}

/// Who has sent a signal. The process may have ended meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Its number.
    pub pid: u32,
    /// Its user, if that is known.
    pub uid: Option<u32>,
}

/// Sends a signal on behalf of another, who is told with it.
///
/// # Errors
/// As the system says: if the process is gone, or not ours to signal.
pub fn pass_on(pid: i32, signal: i32, sender: Sender) -> io::Result<()> {
    let value = u64::from(sender.uid.unwrap_or(0)) << 32 | u64::from(sender.pid);
    // Where an address has 32 bits, there is room for the number alone.
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(value as usize) };
    // SAFETY: passes plain numbers, of which none is used as an address.
    if unsafe { libc::sigqueue(pid, signal, value) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps others of this user, above all what a build starts, from looking into this process: they
/// can neither trace it nor open what it has open by way of `/proc`, where they would find the pipe
/// that results go through. What is started by it is not concerned, and root is not kept from
/// anything.
pub fn keep_to_itself() {
    // Without it everything else is as it was.
    let _open = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Takes a variable out of the environment of this process and its children to come.
///
/// To be called before there is a second thread: nobody else may look at the environment meanwhile.
pub fn forget_variable(name: &str) {
    // SAFETY: the callers are the beginnings of processes that have one thread.
    unsafe { std::env::remove_var(name) };
}

/// Moves standard input to another descriptor, which no child inherits, and puts `/dev/null` in its
/// place, so that starting a child with an inherited standard input costs nothing and gives it
/// nothing.
///
/// # Errors
/// As the system says; practically only for want of descriptors.
#[expect(clippy::disallowed_methods, reason = "a device of the system")]
pub fn take_stdin() -> io::Result<OwnedFd> {
    let null = std::fs::File::open("/dev/null")?;
    let own = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    // SAFETY: both descriptors are open; what was at 0 lives on in `own`.
    let moved = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 0) };
    if moved == 0 { Ok(own) } else { Err(io::Error::last_os_error()) }
}

/// A child that has ended and was reaped.
#[derive(Debug, Clone, Copy)]
pub struct Reaped {
    /// Its process id.
    pub pid: i32,
    /// Its wait status, undecoded.
    pub status: i32,
    /// Processor time of it and of those of its descendants that were waited for.
    pub cpu: Duration,
    /// Largest resident size among them in KiB.
    pub rss_kib: u64,
}

/// What [`reap`] found.
#[derive(Debug, Clone, Copy)]
pub enum Reap {
    /// This child has ended.
    Ended(Reaped),
    /// There are children, but none has ended.
    Running,
    /// There are no children at all: nothing that ever descended from this process is left, if it
    /// is a sub-reaper.
    Childless,
}

/// Reaps one child, `pid` or any (`None`), without waiting.
pub fn reap(pid: Option<i32>) -> Reap {
    let mut status = 0;
    // SAFETY: rusage is plain data, and both pointers are valid for the call.
    let (got, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let flags = libc::WNOHANG | libc::__WALL;
        let got = libc::wait4(pid.unwrap_or(-1), &raw mut status, flags, &raw mut usage);
        (got, usage)
    };
    match got {
        0 => Reap::Running,
        pid if pid > 0 => Reap::Ended(Reaped {
            pid,
            status,
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        }),
        _ => Reap::Childless,
    }
}

fn time(value: libc::timeval) -> Duration {
    let seconds = u64::try_from(value.tv_sec).unwrap_or(0);
    let micros = u64::try_from(value.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

/// Polls descriptors; an interruption counts as the time being over.
///
/// # Errors
/// As the system says; only for want of memory or with too many descriptors.
pub fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|duration| Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready),
        Err(rustix::io::Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_names_who_has_sent_it_also_if_another_passes_it_on() {
        // A thread of its own: signals that it blocks nobody else misses, since they are sent to it
        // alone.
        std::thread::spawn(|| {
            let signals = Signals::block(&[libc::SIGUSR2]).unwrap();
            let own = Sender { pid: std::process::id(), uid: Some(rustix::process::geteuid().as_raw()) };
            // SAFETY: sends a signal that is blocked to this very thread.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(signals.take_with_sender(), Some((libc::SIGUSR2, Some(own))));
            let another = Sender { pid: 4711, uid: Some(1_000_000) };
            let value = usize::try_from(u64::from(1_000_000_u32) << 32 | 4711).unwrap();
            let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(value) };
            // SAFETY: as above; the value is a number.
            unsafe { libc::pthread_sigqueue(libc::pthread_self(), libc::SIGUSR2, value) };
            assert_eq!(signals.take_with_sender(), Some((libc::SIGUSR2, Some(another))));
            assert_eq!(signals.take(), None);
        })
        .join()
        .unwrap();
    }
}

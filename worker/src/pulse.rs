//! How a guardian knows that its worker proper goes on: the worker promises, through a pipe, to be
//! heard again within some time.
//!
//! The guardian counts its own looks and no clock, so that time in which it did not run itself is
//! not the worker's.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crewboss_protocol::limits::STANDSTILL;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};

/// How often a worker proper is heard while it waits, and how often its guardian looks.
pub const EVERY: Duration = Duration::from_secs(5);

/// A promise, in milliseconds.
const BYTES: usize = 8;

/// The guardian's end.
#[derive(Debug)]
pub struct Listener {
    pipe: OwnedFd,
    /// Kept open until the worker proper has it, and after.
    theirs: OwnedFd,
    left: Duration,
}

impl Listener {
    /// A pipe of a worker that is about to start. Sweeping and probing may take it a while.
    ///
    /// # Errors
    /// For want of descriptors.
    pub fn new() -> std::io::Result<Self> {
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { pipe, theirs, left: STANDSTILL })
    }

    /// Passes the worker proper its end. Returns the name by which it finds that: one of its own,
    /// as it cannot look into us.
    #[expect(unsafe_code, reason = "what a child inherits is decided between fork and exec")]
    pub fn pass_to(&self, worker: &mut Command) -> PathBuf {
        use std::os::unix::process::CommandExt as _;
        let number = self.theirs.as_raw_fd();
        // SAFETY: it makes system calls alone.
        unsafe { worker.pre_exec(move || crewboss_ground::pass(&[number])) };
        own_name(number)
    }

    /// The descriptor, to be polled.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes what has been promised meanwhile.
    pub fn hear(&mut self) {
        let mut promise = [0; BYTES];
        while let Ok(BYTES) = rustix::io::read(&self.pipe, &mut promise) {
            self.left = Duration::from_millis(u64::from_ne_bytes(promise));
        }
    }

    /// Whoever the worker works for is gone: it sees that itself, and has so long to say that it
    /// ends.
    pub fn hurry(&mut self, within: Duration) {
        self.left = self.left.min(within);
    }

    /// One more look without a word, `after` the last one. Whether the worker has broken its
    /// promise.
    pub fn is_overdue(&mut self, after: Duration) -> bool {
        self.left = self.left.saturating_sub(after);
        self.left.is_zero()
    }
}

/// How a process opens what it has open already, to have it in another mode.
fn own_name(number: i32) -> PathBuf {
    format!("/proc/self/fd/{number}").into()
}

/// The worker proper's end.
#[derive(Debug)]
pub struct Pulse {
    pipe: Option<File>,
    guardian: Option<Pid>,
    due: Instant,
}

impl Pulse {
    /// To the guardian that has started us. Without a name there is none that listens.
    #[expect(clippy::disallowed_methods, reason = "a FIFO that the guardian has made")]
    pub fn open(name: Option<PathBuf>, guardian: Option<Pid>) -> Self {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let open = |name| OpenOptions::new().write(true).custom_flags(nonblocking).open(name).ok();
        Self { pipe: name.and_then(open), guardian, due: Instant::now() }
    }

    /// When [`Self::beat`] has something to do.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Says from time to time that this process will go on being heard; so it has `within` for
    /// whatever it does between two calls.
    pub fn beat(&mut self, now: Instant, within: Duration) {
        if now >= self.due {
            self.due = now + EVERY;
            self.promise(within);
        }
    }

    /// Promises to be heard, or to have ended, within so long. A guardian that was stopped is
    /// woken: without it nobody would clean up.
    pub fn promise(&mut self, within: Duration) {
        let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        if let Some(pipe) = &mut self.pipe {
            // A guardian that does not read has heard enough.
            let _full = pipe.write_all(&ms.to_ne_bytes());
        }
        if let Some(guardian) = self.guardian {
            // If it is gone, its end is told otherwise.
            let _gone = kill_process(guardian, Signal::CONT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_last_counts_and_only_looks_wear_it_out() {
        let mut listener = Listener::new().unwrap();
        let own = Some(rustix::process::getpid());
        let mut pulse = Pulse::open(Some(own_name(listener.theirs.as_raw_fd())), own);
        pulse.promise(STANDSTILL);
        pulse.promise(2 * EVERY);
        listener.hear();
        assert!(!listener.is_overdue(EVERY) && listener.is_overdue(EVERY));
        let now = Instant::now();
        pulse.beat(now, EVERY * 3);
        listener.hear();
        assert!(!listener.is_overdue(EVERY));
        // Too soon: it was heard a moment ago.
        pulse.beat(now, EVERY * 9);
        listener.hear();
        assert!(!listener.is_overdue(EVERY) && listener.is_overdue(EVERY));
        listener.hurry(EVERY * 9);
        assert!(listener.is_overdue(Duration::ZERO), "hurrying gives no time");
    }
}

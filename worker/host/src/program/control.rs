//! Who can cancel a program that runs.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crewboss_protocol::TaskRef;

/// What running a program needs of whoever can cancel it.
pub trait Control {
    /// The descriptor to poll for what the other end says; `None` once that is gone.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Reads once; waits if there is nothing.
    fn fill(&mut self);

    /// Whether the attempt is to end, by all that has been read: the other end wants it, or is
    /// gone.
    fn is_cancelled(&mut self, at: TaskRef) -> bool;

    /// Sends the live output that has come together, if its time has come. Never waits. Returns how
    /// long until there is more to send; `None` if there is nothing, as where nobody watches.
    fn flush_live(&mut self, at: TaskRef, now: Instant) -> Option<Duration>;
}

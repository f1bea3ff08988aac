//! Whether a transfer moves. What stands still on the other side says nothing, and the thread that waits for it would wait for
//! ever: so whoever waits for the thread looks whether it has been in one and the same read or write for too long.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;

/// A pipe that is slow takes so much at once, and moves with that; the kernel would only come back with all that it was given.
const AT_ONCE: usize = 64 << 10;

/// Looks until something counts as standing still.
const LOOKS: u32 = 10;

/// Counts the beginnings and ends of reads, or of writes: odd in the middle of one.
#[derive(Debug, Clone, Default)]
struct Pulse(Arc<AtomicU64>);

impl Pulse {
    fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Ordering::Relaxed);
        let done = work();
        self.0.fetch_add(1, Ordering::Relaxed);
        done
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One direction of a channel, with its pulse.
pub(super) struct Beating<T> {
    inner: T,
    pulse: Pulse,
}

impl<T: Read> Read for Beating<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pulse.during(|| self.inner.read(buffer))
    }
}

impl<T: Write> Write for Beating<T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.pulse.during(|| self.inner.write(&data[..data.len().min(AT_ONCE)]))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pulse.during(|| self.inner.flush())
    }
}

/// Looks after both directions of a channel.
#[derive(Debug)]
pub(super) struct Patience {
    stall: Duration,
    reading: Pulse,
    writing: Pulse,
}

impl Patience {
    /// A direction that has been in one read or write for `stall` stands still.
    pub(super) fn new(stall: Duration) -> Self {
        Self { stall, reading: Pulse::default(), writing: Pulse::default() }
    }

    pub(super) fn reader<T: Read>(&self, inner: T) -> Beating<T> {
        Beating { inner, pulse: self.reading.clone() }
    }

    pub(super) fn writer<T: Write>(&self, inner: T) -> Beating<T> {
        Beating { inner, pulse: self.writing.clone() }
    }

    /// Waits for something that the thread of the channel does; gives up, with the time that was waited, when the other side
    /// stands still. What this computer does itself may take as long as it takes, and the time in which this process did not
    /// run, for it was stopped or its computer slept, does not count.
    pub(super) async fn wait<T>(&self, done: impl Future<Output = T>) -> Result<T, Duration> {
        tokio::pin!(done);
        let (mut seen, mut looks) = (self.pulses(), 0);
        loop {
            if let Ok(done) = timeout(self.stall / LOOKS, &mut done).await {
                return Ok(done);
            }
            let now = self.pulses();
            let stands = (0..2).any(|at| now[at] == seen[at] && now[at] % 2 == 1);
            looks = if stands { looks + 1 } else { 0 };
            seen = now;
            if looks >= LOOKS {
                return Err(self.stall);
            }
        }
    }

    fn pulses(&self) -> [u64; 2] {
        [self.reading.now(), self.writing.now()]
    }
}

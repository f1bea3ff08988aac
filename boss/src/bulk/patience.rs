//! Whether a transfer moves. What stands still on the other side says nothing, and the thread that
//! waits for it would wait for ever: so whoever waits for the thread looks for how long it has been
//! the other side's turn, and how much came of that. A byte now and then is not enough.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crewboss_protocol::limits::STALL_BYTES;
use tokio::time::timeout;

/// A pipe that is slow takes so much at once, and moves with that; the kernel would only come back
/// with all that it was given.
const AT_ONCE: usize = 16 << 10;

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

    fn is_beating(&self) -> bool {
        self.0.load(Ordering::Relaxed) % 2 == 1
    }
}

/// Counts what has moved, in either direction.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<AtomicU64>);

impl Meter {
    /// So many bytes have come or gone, or are as good as that.
    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One direction of a channel, with its pulse.
pub(super) struct Beating<T> {
    inner: T,
    pulse: Pulse,
    meter: Meter,
}

impl<T> Beating<T> {
    fn moved(&self, count: io::Result<usize>) -> io::Result<usize> {
        self.meter.add(count.as_ref().map_or(0, |&count| count as u64));
        count
    }
}

impl<T: Read> Read for Beating<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pulse.during(|| self.inner.read(buffer));
        self.moved(count)
    }
}

impl<T: Write> Write for Beating<T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.pulse.during(|| self.inner.write(&data[..data.len().min(AT_ONCE)]));
        self.moved(count)
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
    meter: Meter,
}

impl Patience {
    /// A channel on which less than [`STALL_BYTES`] move while it was the other side's turn for
    /// `stall` stands still.
    pub(super) fn new(stall: Duration) -> Self {
        Self { stall, reading: Pulse::default(), writing: Pulse::default(), meter: Meter::default() }
    }

    /// What has moved is told here.
    pub(super) fn meter(&self) -> Meter {
        self.meter.clone()
    }

    pub(super) fn reader<T: Read>(&self, inner: T) -> Beating<T> {
        Beating { inner, pulse: self.reading.clone(), meter: self.meter() }
    }

    pub(super) fn writer<T: Write>(&self, inner: T) -> Beating<T> {
        Beating { inner, pulse: self.writing.clone(), meter: self.meter() }
    }

    /// Waits for something that the thread of the channel does; gives up, with the time that was
    /// waited, when the other side stands still. What this computer does itself may take as long as
    /// it takes, and the time in which this process did not run, for it was stopped or its computer
    /// slept, does not count.
    pub(super) async fn wait<T>(&self, done: impl Future<Output = T>) -> Result<T, Duration> {
        tokio::pin!(done);
        let (mut seen, mut stood) = (self.meter.now(), Duration::ZERO);
        loop {
            if let Ok(done) = timeout(self.stall / LOOKS, &mut done).await {
                return Ok(done);
            }
            let now = self.meter.now();
            stood = stood.saturating_sub(self.worth(now.wrapping_sub(seen)));
            seen = now;
            if self.reading.is_beating() || self.writing.is_beating() {
                stood += self.stall / LOOKS;
            }
            if stood >= self.stall {
                return Err(self.stall);
            }
        }
    }

    /// The time that so many bytes may take.
    fn worth(&self, bytes: u64) -> Duration {
        self.stall * u32::try_from(bytes).unwrap_or(STALL_BYTES).min(STALL_BYTES) / STALL_BYTES
    }
}

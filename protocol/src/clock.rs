//! One clock for all that decides by time, so that a simulation can turn it.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A moment in milliseconds, from an origin that its owner chooses: those of one clock can be
/// compared, those of different processes cannot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// A moment of the system's monotonic clock. Earlier moments than the first that was asked for
    /// count as that.
    pub fn of(at: Instant) -> Self {
        static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let since = at.saturating_duration_since(*ORIGIN);
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Now, by the system's monotonic clock.
    pub fn now() -> Self {
        Self::of(Instant::now())
    }

    /// The time from an earlier moment to this one; none if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

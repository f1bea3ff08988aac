//! How many lines a host says: one that never stops would take the boss's time from all others.

use std::time::{Duration, Instant};

/// What comes at once may be much; over this time it must not be.
const OVER: Duration = Duration::from_secs(10);

/// Counts the lines of a host.
#[derive(Debug)]
pub struct Flood {
    per_second: u32,
    since: Instant,
    lines: u64,
}

impl Flood {
    /// So many lines in a second are enough.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, since: now, lines: 0 }
    }

    /// One more has come. Whether that is one too many.
    pub fn is_one_with_this(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= OVER {
            (self.since, self.lines) = (now, 0);
        }
        self.lines += 1;
        self.lines > u64::from(self.per_second) * OVER.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_none_and_a_stream_without_end_is() {
        let now = Instant::now();
        let mut flood = Flood::new(100, now);
        assert!((0..1000).all(|_| !flood.is_one_with_this(now)));
        assert!((0..1000).all(|_| !flood.is_one_with_this(now + OVER)));
        assert!(flood.is_one_with_this(now + OVER + OVER / 2));
    }
}

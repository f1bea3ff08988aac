//! Not too many subvolumes at once: the kernel frees their space later, and takes the processors
//! and disks of those who work for it.

use std::time::{Duration, Instant};

/// Subvolumes destroyed in one second.
pub(super) const PER_SECOND: u32 = 32;

/// Says how long to wait before the next one.
#[derive(Debug)]
pub(super) struct Throttle {
    since: Instant,
    done: u32,
}

impl Throttle {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, done: 0 }
    }

    /// Counts one more, and says how long to wait before it is destroyed.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let second = Duration::from_secs(1);
        if now.saturating_duration_since(self.since) >= second {
            *self = Self::new(now);
        }
        self.done += 1;
        if self.done <= PER_SECOND {
            return Duration::ZERO;
        }
        let next = self.since + second;
        *self = Self { since: next, done: 1 };
        next.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_allowed_are_destroyed_in_a_second() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let mut now = start;
        let mut times = Vec::new();
        for _ in 0..10 * PER_SECOND {
            now += throttle.next(now);
            times.push(now - start);
            now += Duration::from_millis(1);
        }
        for (index, time) in times.iter().enumerate() {
            let seconds = u64::try_from(index).unwrap() / u64::from(PER_SECOND);
            assert!(*time >= Duration::from_secs(seconds), "number {index} after {time:?}");
        }
        assert!(*times.last().unwrap() < Duration::from_secs(10), "slower than needed");
    }

    #[test]
    fn who_destroys_few_never_waits() {
        let mut now = Instant::now();
        let mut throttle = Throttle::new(now);
        for _ in 0..100 {
            assert_eq!(throttle.next(now), Duration::ZERO);
            now += Duration::from_millis(50);
        }
    }
}

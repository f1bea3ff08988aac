//! How old a file is, when clocks lie.

use std::time::{Duration, SystemTime};

/// The clock of a file server may be ahead of ours by this much; what is further ahead has another
/// reason.
const SKEW_MAX: Duration = Duration::from_secs(60);

/// How long ago a time was. `None` if it is still to come: a clock was set back since, or somebody
/// has made it up, and neither says that it was just now.
pub fn age(time: SystemTime, now: SystemTime) -> Option<Duration> {
    match now.duration_since(time) {
        Ok(age) => Some(age),
        Err(ahead) => (ahead.duration() <= SKEW_MAX).then_some(Duration::ZERO),
    }
}

/// Whether a time was less than `limit` ago. One that is still to come was not.
pub fn is_younger(time: SystemTime, limit: Duration, now: SystemTime) -> bool {
    age(time, now).is_some_and(|age| age < limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_is_not_just_now() {
        let (now, second) = (SystemTime::now(), Duration::from_secs(1));
        assert_eq!(age(now - second, now), Some(second));
        assert_eq!(age(now + second, now), Some(Duration::ZERO), "a file server's clock");
        assert_eq!(age(now + SKEW_MAX + second, now), None);
        assert!(is_younger(now - second, second * 2, now) && !is_younger(now - second, second, now));
        assert!(!is_younger(now + second * 3600, second * 7200, now));
    }
}

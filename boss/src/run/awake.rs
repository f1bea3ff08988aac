//! Whether this process itself stood still: it was stopped (Ctrl-Z), or its computer slept.
//!
//! Workers end when they hear nothing from their boss, and that is then nobody's fault but ours: no
//! task has failed, and no host is to blame. Nor is such a time one in which others could have done
//! something.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::crew::Timing;

/// How often somebody looks.
const EVERY: Duration = Duration::from_millis(500);

/// A shorter standstill may be a busy computer.
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug)]
pub struct Awake {
    silence: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    seen: Moment,
    /// By the clock of [`Instant`], which stands still itself while the computer sleeps.
    stood: Duration,
    last: Option<Standstill>,
    untold: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Standstill {
    length: Duration,
    ended: Instant,
}

/// One moment by two clocks.
#[derive(Debug, Clone, Copy)]
struct Moment {
    at: Instant,
    /// Since the boot, sleep included.
    boot: Duration,
}

impl Moment {
    fn now() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let seconds = Duration::from_secs(u64::try_from(boot.tv_sec).unwrap_or(0));
        Self {
            at: Instant::now(),
            boot: seconds + Duration::from_nanos(u64::try_from(boot.tv_nsec).unwrap_or(0)),
        }
    }
}

impl Awake {
    /// Looks again and again from now on; only that makes a time without a look one in which
    /// nothing ran. Workers take silence of this length for the end of their boss.
    pub fn watching(silence: Duration) -> Arc<Self> {
        let awake = Arc::new(Self::new(silence));
        let watched = Arc::downgrade(&awake);
        tokio::spawn(async move {
            while let Some(awake) = watched.upgrade() {
                awake.look(Moment::now());
                drop(awake);
                tokio::time::sleep(EVERY).await;
            }
        });
        awake
    }

    fn new(silence: Duration) -> Self {
        let state = State { seen: Moment::now(), stood: Duration::ZERO, last: None, untold: None };
        Self { silence, state: Mutex::new(state) }
    }

    /// How long this process has stood still in all, by the clock of [`Instant`].
    pub fn stood(&self) -> Duration {
        self.look(Moment::now());
        self.lock().stood
    }

    /// How long it stood still if that was so lately that it explains what has ended now.
    pub fn explains(&self) -> Option<Duration> {
        let now = Moment::now();
        self.look(now);
        let last = self.lock().last?;
        let lately = now.at.saturating_duration_since(last.ended) <= self.silence.max(LONGEST);
        // The last word before was said up to a heartbeat earlier, and not every worker's clock is
        // exact.
        (lately && last.length >= self.silence / 2).then_some(last.length)
    }

    /// A standstill that nobody was told of yet.
    pub fn take_untold(&self) -> Option<Duration> {
        self.look(Moment::now());
        self.lock().untold.take()
    }

    fn look(&self, now: Moment) {
        let mut state = self.lock();
        let length = now.boot.saturating_sub(state.seen.boot);
        if length >= (self.silence / 2).clamp(SHORTEST, LONGEST) {
            let seen = state.seen.at;
            state.stood += now.at.saturating_duration_since(seen);
            state.last = Some(Standstill { length, ended: now.at });
            state.untold = Some(state.untold.unwrap_or_default() + length);
        }
        state.seen = now;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When another counts as heard last, once one's own heartbeat comes that was due at `due`. If it
/// comes later than the next one, this process itself stood still, and what the other said
/// meanwhile may not have been read: it has time to say something.
pub fn forgiven(
    heard: tokio::time::Instant,
    due: tokio::time::Instant,
    timing: &Timing,
    now: tokio::time::Instant,
) -> tokio::time::Instant {
    if now.saturating_duration_since(due) < timing.heartbeat {
        return heard;
    }
    let grace = timing.silence.saturating_sub(2 * timing.heartbeat);
    now.checked_sub(grace).map_or(heard, |lately| lately.max(heard))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(20);

    /// Some time later by each of the clocks.
    fn later(awake: &Awake, monotonic: u64, boot: u64) {
        let seen = awake.lock().seen;
        let moment = Moment {
            at: seen.at + Duration::from_secs(monotonic),
            boot: seen.boot + Duration::from_secs(boot),
        };
        awake.look(moment);
    }

    #[test]
    fn a_time_without_a_look_is_a_standstill_and_explains_what_ends_then() {
        let awake = Awake::new(SILENCE);
        later(&awake, 1, 1);
        assert!(awake.explains().is_none() && awake.take_untold().is_none());
        later(&awake, 90, 90);
        assert_eq!(awake.lock().stood, Duration::from_secs(90));
        assert_eq!(awake.take_untold(), Some(Duration::from_secs(90)));
        assert_eq!(awake.take_untold(), None, "it is told once");
        // A computer that sleeps: the clock of the process sleeps with it.
        later(&awake, 0, 3600);
        assert_eq!(awake.lock().stood, Duration::from_secs(90));
        assert_eq!(awake.explains(), Some(Duration::from_secs(3600)));
    }

    #[tokio::test]
    async fn a_time_in_which_there_was_nothing_to_do_is_none() {
        let awake = Awake::watching(Duration::from_secs(1));
        tokio::time::sleep(SHORTEST + 2 * EVERY).await;
        assert_eq!(awake.take_untold(), None);
    }

    #[test]
    fn who_was_silent_while_we_stood_still_has_time_to_say_something() {
        let timing = Timing { heartbeat: Duration::from_secs(5), silence: SILENCE, ..Timing::default() };
        let now = tokio::time::Instant::now();
        let before = |seconds| now - Duration::from_secs(seconds);
        assert_eq!(forgiven(before(9), before(4), &timing, now), before(9), "it was only late");
        let left = forgiven(before(100), before(95), &timing, now) + SILENCE - now;
        assert_eq!(left, 2 * timing.heartbeat);
        assert_eq!(forgiven(now, before(95), &timing, now), now);
    }

    #[test]
    fn what_is_short_or_long_ago_explains_nothing() {
        let awake = Awake::new(SILENCE);
        later(&awake, 9, 9);
        assert_eq!((awake.explains(), awake.lock().stood), (None, Duration::ZERO));
        later(&awake, 90, 90);
        awake.lock().last.as_mut().unwrap().ended -= SILENCE + Duration::from_secs(200);
        assert_eq!(awake.explains(), None);
    }
}

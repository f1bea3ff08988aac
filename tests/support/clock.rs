//! A clock for promises of the kind "within five seconds", on machines that stand still now and
//! then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long it sleeps between two looks.
const TURN: Duration = Duration::from_millis(20);

/// The most that counts of one turn. What is more is a pause of the machine, in which nobody could
/// do anything.
const TURN_MAX: Duration = Duration::from_millis(40);

/// Counts the time in which this machine ran. Dropped, it ends.
#[derive(Debug)]
pub struct FairClock {
    counted_us: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl FairClock {
    /// Begins to count.
    pub fn start() -> Self {
        let clock = Self { counted_us: Arc::default(), over: Arc::default() };
        let (counted, over) = (clock.counted_us.clone(), clock.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let turn = Instant::now();
                std::thread::sleep(TURN);
                let took = u64::try_from(turn.elapsed().min(TURN_MAX).as_micros()).expect("a short time");
                counted.fetch_add(took, Ordering::Relaxed);
            }
        });
        clock
    }

    /// How much it has counted.
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.counted_us.load(Ordering::Relaxed))
    }
}

impl Drop for FairClock {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

//! How fast one thread of this host works, from a short measured kernel.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crewboss_protocol::host::SpeedSource;
use serde::{Deserialize, Serialize};

/// One round of the kernel takes the reference machine (a server processor of about 2020 at 2.6
/// GHz) this long: its speed is 1000. A host that takes half as long has 2000.
const REFERENCE: Duration = Duration::from_micros(375);

/// Rounds, many and far shorter than a time slice; the fastest counts, since other work on the host
/// can only make a round slower.
const ROUNDS: usize = 100;

/// On a busy host fewer rounds are made: a first task should not wait for them.
const BUDGET: Duration = Duration::from_millis(60);

/// The two fastest rounds differ by at most this (in per cent) if nothing else got in between.
const SETTLED_PERCENT_MAX: u128 = 10;

/// Bogomips of the reference machine.
const REFERENCE_BOGOMIPS: u64 = 6000;

/// Larger than the caches next to a core and smaller than the last one, as the working set of a
/// compiler is.
const TABLE_WORDS: usize = 1 << 18;

/// Steps of one round.
const STEPS: u32 = 1 << 15;

/// What the measured speed depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    /// A virtual machine may have moved to another processor's host between boots.
    boot: String,
    processor: String,
}

impl Key {
    pub(super) fn of_this_host() -> Self {
        let boot = crewboss_ground::kernel_text("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let text = crewboss_ground::kernel_text("/proc/cpuinfo").unwrap_or_default();
        // Other architectures name it otherwise, or not at all.
        let named = |line: &&str| {
            ["model name", "Model", "CPU part", "uarch"].iter().any(|name| line.starts_with(name))
        };
        let processor = text.lines().find(named).unwrap_or_default();
        // An unoptimised build measures itself, not the host; an optimised one must not take its
        // word for it.
        let build = if cfg!(debug_assertions) { " (debug build)" } else { "" };
        Self { boot, processor: format!("{processor}{build}") }
    }
}

/// What a measurement came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measurement {
    /// In thousandths of the reference machine.
    pub(super) speed: u32,
    /// Where it comes from.
    pub(super) source: SpeedSource,
    /// Whether nothing disturbed it. Otherwise the host is at least this fast.
    pub(super) settled: bool,
}

/// Measures. Takes about 40 ms on the reference machine.
pub(super) fn measure() -> Measurement {
    let mut table: Vec<u64> =
        (0..TABLE_WORDS as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let begun = Instant::now();
    let mut times: Vec<u128> = Vec::new();
    while times.len() < 2 || (times.len() < ROUNDS && begun.elapsed() < BUDGET) {
        let start = Instant::now();
        black_box(round(black_box(&mut table)));
        times.push(start.elapsed().as_nanos());
    }
    times.sort_unstable();
    let settled = times[1] * 100 <= times[0] * (100 + SETTLED_PERCENT_MAX);
    let bogomips = || bogomips().unwrap_or(REFERENCE_BOGOMIPS);
    match times[0] {
        // The clock stands still, as under some emulators: then nothing can be measured.
        0 => {
            let speed = score(u128::from(bogomips() * 1000 / REFERENCE_BOGOMIPS));
            Measurement { speed, source: SpeedSource::Bogomips, settled: true }
        }
        fastest => {
            let speed = score(REFERENCE.as_nanos() * 1000 / fastest);
            Measurement { speed, source: SpeedSource::Measured, settled }
        }
    }
}

fn score(thousandths: u128) -> u32 {
    u32::try_from(thousandths).unwrap_or(u32::MAX).clamp(1, 1_000_000)
}

/// Integer arithmetic, branches that cannot be foreseen and reads and writes all over the table:
/// what compilers do.
fn round(table: &mut [u64]) -> u64 {
    let mask = table.len() as u64 - 1;
    let (mut state, mut sum) = (0x2545_f491_4f6c_dd1d_u64, 0_u64);
    for _ in 0..STEPS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let index = usize::try_from((state ^ sum) & mask).unwrap_or(0);
        let value = table[index];
        sum = if value & 1 == 0 { sum.wrapping_add(value ^ state) } else { sum.rotate_left(7) ^ value };
        table[index] = value.wrapping_add(sum | 1);
    }
    sum
}

/// The kernel's own number, for one processor.
fn bogomips() -> Option<u64> {
    let text = crewboss_ground::kernel_text("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with("bogomips"))?;
    line.split(':').nth(1)?.trim().split('.').next()?.parse().ok()
}

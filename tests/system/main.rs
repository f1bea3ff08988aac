//! Everything that decides, in virtual time: the boss's core (scheduler and results) and the core
//! of every worker, joined by links that delay, double, reorder and lose lines, on hosts that crash
//! and come back, with disks that fill. A checker judges from outside what a person could see.
//!
//! A world is made from one number and is the same each time: `CREWBOSS_SEED=N` repeats one,
//! `CREWBOSS_SEEDS=N` sets how many are tried, and `CREWBOSS_TRACE=1` prints all that happens.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by a panic, and says what it has found"
)]

mod checker;
mod host;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use world::{Bug, World};

/// Worlds at most, and the time that they may take: a run of the tests is not held up for long.
const SEEDS: u64 = 5_000;
const WITHIN: Duration = Duration::from_secs(90);

/// Within so many worlds each planted bug must show.
const SEEDS_FOR_A_BUG: u64 = 5_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn random_systems_keep_every_promise() {
    let begin = Instant::now();
    let asked = number("CREWBOSS_SEEDS");
    let seeds = match number("CREWBOSS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked.unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| World::random(seed, None).run())) {
            println!("to repeat: CREWBOSS_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        if asked.is_none() && begin.elapsed() > WITHIN {
            println!("{seed} worlds in {WITHIN:?}");
            break;
        }
    }
}

/// A checker that finds nothing proves nothing.
#[test]
fn every_planted_bug_is_found() {
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let found: Vec<(Bug, Option<(u64, String)>)> = Bug::ALL.map(|bug| (bug, find(bug))).to_vec();
    std::panic::set_hook(silent);
    for (bug, seed) in &found {
        println!("{bug:?}: {seed:?}");
    }
    let missed: Vec<Bug> = found.iter().filter(|(_, seed)| seed.is_none()).map(|(bug, _)| *bug).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

fn find(bug: Bug) -> Option<(u64, String)> {
    (0..SEEDS_FOR_A_BUG).find_map(|seed| {
        let panic = catch_unwind(AssertUnwindSafe(|| World::random(seed, Some(bug)).run())).err()?;
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Some((seed, text.unwrap_or_default()))
    })
}

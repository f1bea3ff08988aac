//! What a guest costs besides its boot: the same steps that a task takes, without waiting for the guest.
//!
//! `guest_overhead MACHINES NAME SOURCE [ROUNDS]`: the machine NAME in the directory MACHINES must be bootstrapped; SOURCE is
//! an archive as `crewboss` makes it, or any file. Prints a line for each step: its name and the median of its milliseconds.
#![allow(clippy::print_stdout, reason = "printing the figures is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use crewboss_protocol::machine::{Accelerator, MachineHolder};
use crewboss_worker::machine::directory::Machines;
use crewboss_worker::machine::guest::Guest;
use crewboss_worker::machine::lock::{Locks, Wanted};
use crewboss_worker::machine::plan::{Life, Plan, Purpose};
use crewboss_worker::machine::record::{GuestRecord, Owners, Step};
use crewboss_worker::process::ProcessId;

type Figures = BTreeMap<&'static str, Vec<f64>>;

/// The steps in their order; `qemu` is the one that a boot by hand has, too.
const STEPS: [&str; 6] = ["lock", "record", "snapshot", "qemu", "kill-and-delete", "unlock"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, name, source, rest @ ..] = &arguments[..] else {
        return Err("guest_overhead MACHINES NAME SOURCE [ROUNDS]".into());
    };
    let rounds: usize = rest.first().map_or(Ok(20), |rounds| rounds.parse())?;
    let machines = Machines::new(std::path::absolute(root)?);
    let mut figures = Figures::new();
    // The first one finds nothing in any cache.
    for _ in 0..=rounds {
        for (step, took) in guest(&machines, name, Path::new(source))? {
            figures.entry(step).or_default().push(took);
        }
    }
    let median = |step| {
        let mut values = figures.get(step).map_or(Vec::new(), |values| values[1..].to_vec());
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    for step in STEPS {
        println!("{step} {:.2}", median(step));
    }
    let outside: f64 = STEPS.into_iter().filter(|step| *step != "qemu").map(median).sum();
    println!("outside-the-boot {outside:.2}");
    Ok(())
}

/// One guest from its lock to its end, killed as soon as its monitor answers.
fn guest(machines: &Machines, name: &str, source: &Path) -> Result<Vec<(&'static str, f64)>, Box<dyn Error>> {
    let mut took = Vec::new();
    let mut since = Instant::now();
    let mut step = |name| {
        took.push((name, since.elapsed().as_secs_f64() * 1000.0));
        since = Instant::now();
    };
    let directory = machines.find(&name.parse()?)?;
    let (toolchain, own) = ("default".parse()?, ProcessId::own().ok_or("no entry in /proc")?);
    let locks = Locks::new(machines, holder()?)?;
    let wanted = Wanted { machine: directory.name.clone(), toolchain, instances: 4 };
    let places = locks.try_places(std::slice::from_ref(&wanted))?.ok_or("all places are taken")?;
    step("lock");
    let owners = Owners { guardian: own.clone(), worker: own.clone(), runner: own };
    let session = "20261122-000000-bench.1".parse()?;
    let mut record = GuestRecord::create(
        machines,
        &directory,
        &wanted.toolchain,
        &session,
        Path::new("/nowhere"),
        owners,
    )?;
    step("record");
    let copy = directory.snapshot_copy(&wanted.toolchain, &record.snapshot(machines))?;
    record.advance(machines, Step::Copied)?;
    step("snapshot");
    let mut guest = Guest::start(Plan {
        machines,
        record,
        manifest: &copy.manifest,
        accelerator: Accelerator::Tcg,
        memory: copy.manifest.memory_min,
        processors: 1,
        purpose: Purpose::Task { source, document: String::new() },
        life: Life::Boot,
        wire: None,
        shows_console: false,
    })?;
    guest.advance(Step::Booting)?;
    step("qemu");
    let problems = guest.end();
    step("kill-and-delete");
    drop(places);
    step("unlock");
    if problems.is_empty() { Ok(took) } else { Err(problems.join("; ").into()) }
}

fn holder() -> Result<MachineHolder, Box<dyn Error>> {
    Ok(MachineHolder {
        boss: "bench@here".to_owned(),
        run: "20261122-000000-bench".parse()?,
        host: "here".parse()?,
        pid: 0,
        priority: 0,
        task: None,
        since: 0,
    })
}

//! What a guest costs besides its boot: the same steps that a task takes, without waiting for the
//! guest.
//!
//! `guest_overhead MACHINES NAME SOURCE [ROUNDS [warm PROCESSORS]]`: the machine NAME in the
//! directory MACHINES must be bootstrapped; SOURCE is an archive as `crewboss` makes it, or any
//! file. Prints a line for each step: its name and the median of its milliseconds. With the further
//! word `warm`, the steps of a start from the machine's template, which must be there, until the
//! guest has answered; it must have been made for so many processors (1) and the most memory of the
//! machine.
#![allow(clippy::print_stdout, reason = "printing the figures is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crewboss_host::process::ProcessId;
use crewboss_host::sys;
use crewboss_machine::books::lock::{Locks, Wanted};
use crewboss_machine::books::record::{GuestRecord, Owners, Step};
use crewboss_machine::guest::identity;
use crewboss_machine::guest::new_guest::NewGuest;
use crewboss_machine::guest::plan::{Life, Plan, Purpose};
use crewboss_machine::guest::running::GuestEvent;
use crewboss_machine::images::directory::{MachineDir, Machines, saved_devices};
use crewboss_machine::images::manifest::Manifest;
use crewboss_machine::qemu::saved::{self, Kind};
use crewboss_protocol::guest::ToGuest;
use crewboss_protocol::machine::{Accelerator, DEFAULT_TOOLCHAIN, MachineHolder};
use rustix::event::PollFd;

/// A guest that has not answered by then will not.
const LIMIT: Duration = Duration::from_secs(60);

type Figures = BTreeMap<&'static str, Vec<f64>>;

/// The steps in their order; `qemu` is the one that a boot by hand has, too.
const STEPS: [&str; 6] = ["lock", "record", "snapshot", "qemu", "kill-and-delete", "unlock"];

/// Those of a warm start.
const WARM: [&str; 6] = ["snapshot", "qemu", "restore", "go-on", "answer", "kill-and-delete"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, name, source, rest @ ..] = &arguments[..] else {
        return Err("guest_overhead MACHINES NAME SOURCE [ROUNDS [warm PROCESSORS]]".into());
    };
    let rounds: usize = rest.first().map_or(Ok(20), |rounds| rounds.parse())?;
    let is_warm = rest.get(1).is_some_and(|word| word == "warm");
    let processors: u32 = rest.get(2).map_or(Ok(1), |number| number.parse())?;
    let steps = if is_warm { WARM } else { STEPS };
    let machines = Machines::new(std::path::absolute(root)?);
    let mut figures = Figures::new();
    // The first one finds nothing in any cache.
    for _ in 0..=rounds {
        let one = if is_warm { warm_guest } else { guest };
        for (step, took) in one(&machines, name, Path::new(source), processors)? {
            figures.entry(step).or_default().push(took);
        }
    }
    let median = |step| {
        let mut values = figures.get(step).map_or(Vec::new(), |values| values[1..].to_vec());
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    for step in steps {
        println!("{step} {:.2}", median(step));
    }
    let outside: f64 = steps.into_iter().filter(|step| *step != "qemu").map(median).sum();
    if is_warm {
        // What is left of a start if QEMU waits for it already.
        let ahead: f64 = ["restore", "go-on", "answer"].into_iter().map(median).sum();
        println!("ahead {ahead:.2}");
    } else {
        println!("outside-the-boot {outside:.2}");
    }
    Ok(())
}

type Took = Vec<(&'static str, f64)>;

/// Takes the time of steps.
struct Clock {
    took: Took,
    since: Instant,
}

impl Clock {
    fn new() -> Self {
        Self { took: Vec::new(), since: Instant::now() }
    }

    fn step(&mut self, name: &'static str) {
        self.took.push((name, self.since.elapsed().as_secs_f64() * 1000.0));
        self.since = Instant::now();
    }
}

/// One guest from its lock to its end, killed as soon as its monitor answers.
fn guest(machines: &Machines, name: &str, source: &Path, processors: u32) -> Result<Took, Box<dyn Error>> {
    let mut clock = Clock::new();
    let directory = machines.find(&name.parse()?)?;
    let locks = Locks::new(machines, holder()?)?;
    let wanted =
        Wanted { machine: directory.name.clone(), toolchain: DEFAULT_TOOLCHAIN.parse()?, instances: 4 };
    let places = locks.try_places(std::slice::from_ref(&wanted))?.ok_or("all places are taken")?;
    clock.step("lock");
    let mut new = new_guest(machines, &directory)?;
    clock.step("record");
    let copy = directory.snapshot_copy(&wanted.toolchain, &new.snapshot())?;
    new.is_copied()?;
    clock.step("snapshot");
    let mut guest = plan(machines, new, &copy.manifest, source, Life::Boot, processors).start()?;
    guest.advance(Step::Booting)?;
    clock.step("qemu");
    let problems = guest.end();
    clock.step("kill-and-delete");
    drop(places);
    clock.step("unlock");
    if problems.is_empty() { Ok(clock.took) } else { Err(problems.join("; ").into()) }
}

/// One guest from a template until it has answered.
fn warm_guest(
    machines: &Machines,
    name: &str,
    source: &Path,
    processors: u32,
) -> Result<Took, Box<dyn Error>> {
    let mut clock = Clock::new();
    let directory = machines.find(&name.parse()?)?;
    let new = new_guest(machines, &directory)?;
    let until = Instant::now() + LIMIT;
    let place = new.snapshot();
    let saved = directory.snapshot_saved(&DEFAULT_TOOLCHAIN.parse()?, &place)?.ok_or("no template")?;
    clock.step("snapshot");
    let life = Life::Saved(saved.memory());
    let mut guest = plan(machines, new, &saved.copy.manifest, source, life, processors).start()?;
    clock.step("qemu");
    saved::restore(&mut guest.qemu().qmp, &saved_devices(&place), Kind::Devices, until)?;
    clock.step("restore");
    guest.qemu().qmp.cont(until)?;
    clock.step("go-on");
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    guest.tell(&ToGuest::Renew(identity::make_up(&directory.name, None, u64::try_from(now)?)?))?;
    while !guest.look(Instant::now()).iter().any(|event| matches!(event, GuestEvent::Said(_))) {
        if Instant::now() > until {
            return Err("no answer".into());
        }
        let mut fds = Vec::new();
        guest.add_fds(&mut fds);
        let mut fds: Vec<_> = fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        sys::poll(&mut fds, Some(LIMIT))?;
    }
    clock.step("answer");
    guest.end();
    clock.step("kill-and-delete");
    Ok(clock.took)
}

fn new_guest(machines: &Machines, directory: &MachineDir) -> Result<NewGuest, Box<dyn Error>> {
    let own = ProcessId::own().ok_or("no entry in /proc")?;
    let owners = Owners { guardian: own.clone(), worker: own.clone(), runner: own };
    let session = "20261122-000000-bench.1".parse()?;
    let toolchain = DEFAULT_TOOLCHAIN.parse()?;
    let record =
        GuestRecord::create(machines, directory, &toolchain, &session, Path::new("/nowhere"), owners)?;
    Ok(NewGuest::of(machines, record))
}

fn plan<'a>(
    machines: &'a Machines,
    guest: NewGuest,
    manifest: &'a Manifest,
    source: &'a Path,
    life: Life,
    processors: u32,
) -> Plan<'a> {
    Plan {
        machines,
        guest,
        manifest,
        accelerator: Accelerator::Tcg,
        memory: manifest.memory_max.unwrap_or(manifest.memory_min),
        processors,
        purpose: Purpose::Task { source, document: String::new() },
        life,
        wire: None,
        shows_console: false,
    }
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

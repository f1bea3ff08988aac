//! `crewboss overview`: who uses this host right now, in one line, without touching anything.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use crewboss_host::doing;
use crewboss_host::layout::Layout;
use crewboss_machine::books::lock::{self, Holding};
use crewboss_machine::books::record::{self, GuestRecord};
use crewboss_machine::images::directory::Machines;
use crewboss_protocol::limits::MACHINES_MAX;
use crewboss_protocol::overview::{Overview, RunningGuest, Waiting};
use crewboss_protocol::{Name, codec};

use crate::probe;

/// Prints an [`Overview`] as one line. Returns 1 if the directories cannot be resolved.
pub fn main(work: Option<PathBuf>, machines: Option<&str>) -> ExitCode {
    let resolved = Layout::resolve(work).and_then(|layout| {
        let machines = Machines::resolve(&layout, machines)?;
        Ok((layout, machines))
    });
    let Ok((layout, machines)) = resolved else { return ExitCode::FAILURE };
    let mut line = Vec::new();
    codec::encode(&overview(&layout, &machines), &mut line);
    let written = std::io::stdout().lock().write_all(&line).is_ok();
    if written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Who uses a host.
pub fn overview(layout: &Layout, machines: &Machines) -> Overview {
    let holdings = lock::holdings(machines);
    let records = record::guests(machines).into_iter().filter_map(|id| GuestRecord::load(machines, &id));
    let running = records.filter(|record| record.held.is_none() && record.is_owned());
    let guests = running.filter_map(|record| guest(machines, &holdings, record));
    Overview {
        slots: probe::holders(layout),
        tasks: doing::running(layout, SystemTime::now()),
        guests: guests.take(MACHINES_MAX).collect(),
        held: crewboss_machine::books::probe::held(machines),
    }
}

fn guest(machines: &Machines, holdings: &[Holding], record: GuestRecord) -> Option<RunningGuest> {
    let runner = record.owners.runner.pid;
    let of_it = |holding: &&Holding| holding.machine == record.machine && holding.holder.pid == runner;
    let entered = lock::in_guest(machines, &record.id).map(|(_, visitor)| visitor);
    let step: Name = serde_json::to_value(record.step).ok()?.as_str()?.parse().ok()?;
    Some(RunningGuest {
        user: holdings.iter().find(of_it).map(|holding| holding.holder.clone()),
        id: record.id,
        machine: record.machine,
        step,
        waiting: record.waiting.map(|waiting| Waiting { entered, ..waiting }),
    })
}

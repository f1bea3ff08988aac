//! A bootstrap that a person asked for, ahead of the first task that needs it.

use std::time::Instant;

use crewboss_host::text::{millis, shortened};
use crewboss_machine::guest::verdict::Stop;
use crewboss_machine::guest::watch::Watch;
use crewboss_machine::images::directory::Standing;
use crewboss_machine::life::job::BootstrapJob;
use crewboss_machine::life::supply::{Supply, Told, newer};
use crewboss_protocol::Phases;
use crewboss_protocol::message::{BootstrapEnd, Cause};

use crate::runner::link::Link;

/// Makes a machine ready. A suspension is forgotten: who asks has looked. If somebody kills its
/// QEMU, that says nothing of the machine: it is tried once more, and left as it is the second
/// time.
pub(crate) fn bootstrap(job: &BootstrapJob, link: &mut Link) -> BootstrapEnd {
    let at = job.order.at;
    let mut watch = Watch::new(link, at, Phases::default());
    let mut end = make(job, &mut watch);
    let first = end.as_ref().err().filter(|stop| stop.cause() == Cause::Killed).map(Stop::to_string);
    if let Some(first) = &first {
        // As a task is: what has killed it may be gone.
        watch.step(format!("tries it once more: {first}"));
        end = make(job, &mut watch);
    }
    let end = end.unwrap_or_else(|stop| {
        let why = shortened(match &first {
            Some(first) => format!("{stop}\nthe try before it: {first}"),
            None => stop.to_string(),
        });
        match stop {
            Stop::Cancelled => BootstrapEnd::Cancelled,
            Stop::Killed { .. } => BootstrapEnd::Abnormal { why },
            stop if stop.spares_machine() => BootstrapEnd::Failed { why },
            _ => BootstrapEnd::Suspended { why },
        }
    });
    link.flush(at, Instant::now(), true);
    end
}

fn make(job: &BootstrapJob, watch: &mut Watch<'_>) -> Result<BootstrapEnd, Stop> {
    let order = &job.order;
    let supply = Supply::new(&job.machine, None)?;
    let mut told = Told::default();
    loop {
        let found = supply.find(&order.machine)?;
        if job.machine.memory < found.manifest.memory_min {
            return Err(Stop::Host(format!(
                "{} needs {} MiB of memory, and a slot of this host has {}; give the host fewer slots",
                order.machine,
                found.manifest.memory_min >> 20,
                job.machine.memory >> 20
            )));
        }
        let tools = supply.toolchain(&order.toolchain)?;
        let why = match supply.standing(&found, &tools)? {
            Standing::Ready(record) if !order.force => {
                return Ok(BootstrapEnd::Ready { versions: record.versions });
            }
            Standing::Ready(_) => "a person wants it".to_owned(),
            Standing::Newer { agent } => return Err(newer(&found.directory, &tools.name, agent)),
            Standing::Suspended { .. } => {
                found.directory.lift(&tools.name).map_err(|error| Stop::host(&error))?;
                continue;
            }
            Standing::Remake { why } => why,
        };
        let force = order.force;
        let still = |standing: &Standing| {
            matches!(standing, Standing::Remake { .. }) || force && matches!(standing, Standing::Ready(_))
        };
        let begun = Instant::now();
        if let Some(versions) = supply.bootstrap(watch, &found, &tools, &why, &mut told, still)? {
            return Ok(BootstrapEnd::Made { versions, took_ms: millis(begun.elapsed()) });
        }
    }
}

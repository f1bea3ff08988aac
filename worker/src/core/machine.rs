//! What a runner is told about the guest that a task runs in.

use std::path::PathBuf;

use crewboss_host::layout::Layout;
use crewboss_machine::life::job::{BootstrapJob, MachineJob};
use crewboss_protocol::machine::DEFAULT_TOOLCHAIN;
use crewboss_protocol::message::{BootstrapOrder, Hello, Hold, TaskOrder};
use crewboss_protocol::{Environment, HostFacts, MachineUse, Name, Target};

use crate::environment::Prepared;

/// From this priority on a guest gets all processors of the host.
const BOOST_PRIORITY: u32 = 10_000;

/// Everything about the guest of an order; `None` if it runs in none.
pub fn job(
    order: &TaskOrder,
    target: &Target,
    prepared: &Prepared,
    layout: &Layout,
    hello: &Hello,
    facts: &HostFacts,
) -> Option<Box<MachineJob>> {
    let Environment::Machine(machines) = &target.environment else { return None };
    let default = || DEFAULT_TOOLCHAIN.parse().ok();
    let toolchain = target.toolchain.clone().or_else(default)?;
    let job = any_job(machines.clone(), toolchain, layout, hello, facts)?;
    Some(Box::new(MachineJob {
        source: prepared.src.clone(),
        hold: order.hold,
        pause: order.pause.clone(),
        ..job
    }))
}

/// Everything about the guest of a bootstrap; `None` if this host can run none.
pub fn bootstrap_job(
    order: BootstrapOrder,
    layout: &Layout,
    hello: &Hello,
    facts: &HostFacts,
) -> Option<BootstrapJob> {
    let machines = MachineUse { name: order.machine.clone(), auxiliary: Vec::new() };
    let machine = any_job(machines, order.toolchain.clone(), layout, hello, facts)?;
    Some(BootstrapJob { order, machine })
}

fn any_job(
    machines: MachineUse,
    toolchain: Name,
    layout: &Layout,
    hello: &Hello,
    facts: &HostFacts,
) -> Option<MachineJob> {
    Some(MachineJob {
        directory: directory(layout, hello),
        work: layout.work().to_owned(),
        session: hello.session.clone(),
        machines,
        toolchain,
        accelerator: facts.emulator.as_ref()?.accelerator,
        memory: facts.guest_memory,
        processors: processors(facts.threads, facts.slots, hello.priority),
        source: PathBuf::new(),
        hold: Hold::default(),
        pause: None,
        boss: hello.boss.clone(),
        run: hello.run.clone(),
        host: hello.host.clone(),
        priority: hello.priority,
    })
}

/// Where the machines of a host lie: absolute, since runners move about.
pub fn directory(layout: &Layout, hello: &Hello) -> PathBuf {
    let Some(given) = &hello.machines else { return layout.machines() };
    // It fails without a working directory; a path that is relative then leads nowhere anyway.
    std::path::absolute(given).unwrap_or_else(|_| PathBuf::from(given))
}

/// A slot's share of the processors.
fn processors(threads: u32, slots: u32, priority: u32) -> u32 {
    if priority >= BOOST_PRIORITY { threads } else { (threads / slots.max(1)).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_the_processors_of_its_slot_or_all_if_nothing_is_more_urgent() {
        let shares = [(8, 2, 0), (8, 3, 9_999), (2, 8, 0), (8, 0, 0), (8, 4, BOOST_PRIORITY)];
        assert_eq!(
            shares.map(|(threads, slots, priority)| processors(threads, slots, priority)),
            [4, 2, 1, 8, 8]
        );
    }
}

//! What a runner is told about the guest that a task runs in.

use std::path::PathBuf;

use crewboss_protocol::machine::DEFAULT_TOOLCHAIN;
use crewboss_protocol::message::{Hello, TaskOrder};
use crewboss_protocol::{Environment, HostFacts, Target};

use crate::environment::Prepared;
use crate::layout::Layout;
use crate::runner::message::MachineJob;

/// From this priority on a guest gets all processors of the host.
const BOOST_PRIORITY: u32 = 10_000;

/// Memory that guests leave to the host, in hundredths: its kernel, QEMU itself, the page cache for their disks.
const HOST_PERCENT: u64 = 10;

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
    Some(Box::new(MachineJob {
        directory: directory(layout, hello),
        work: layout.work().to_owned(),
        session: hello.session.clone(),
        machines: machines.clone(),
        toolchain: target.toolchain.clone().or_else(default)?,
        accelerator: facts.emulator.as_ref()?.accelerator,
        memory: memory(facts),
        processors: processors(facts, hello.priority),
        source: prepared.src.clone(),
        hold: order.hold,
        pause: order.pause.clone(),
        boss: hello.boss.clone(),
        run: hello.run.clone(),
        host: hello.host.clone(),
        priority: hello.priority,
    }))
}

/// Where the machines of a host lie.
pub fn directory(layout: &Layout, hello: &Hello) -> PathBuf {
    hello.machines.as_ref().map_or_else(|| layout.machines(), PathBuf::from)
}

/// A slot's share of the memory.
fn memory(facts: &HostFacts) -> u64 {
    facts.memory / 100 * (100 - HOST_PERCENT) / u64::from(facts.slots.max(1))
}

/// A slot's share of the processors.
fn processors(facts: &HostFacts, priority: u32) -> u32 {
    if priority >= BOOST_PRIORITY { facts.threads } else { (facts.threads / facts.slots.max(1)).max(1) }
}

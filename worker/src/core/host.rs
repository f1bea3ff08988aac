//! What the worker proper needs to know of its host.

use crewboss_protocol::host::SpeedSource;
use crewboss_protocol::message::Hello;
use crewboss_protocol::{HostFacts, Load};

use crate::layout::Layout;

/// Finds out what the host is and can do.
///
/// # Errors
/// A sentence for a person.
pub fn facts(layout: &Layout, hello: &Hello) -> Result<HostFacts, String> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let threads = u32::try_from(threads).unwrap_or(1);
    let uname = rustix::system::uname();
    Ok(HostFacts {
        kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
        architecture: uname.machine().to_string_lossy().into_owned(),
        threads,
        memory: 0,
        disk_free: 0,
        work: layout.work().display().to_string(),
        slots: hello.slots.unwrap_or(threads).min(4096),
        speed: 1000,
        speed_source: SpeedSource::Bogomips,
        toolchains: Vec::new(),
        broken_toolchains: Vec::new(),
        features: Default::default(),
        load: load(layout),
        holders: crate::slots::holders(layout, threads),
        trees: Vec::new(),
    })
}

/// The state of the host right now.
pub fn load(_layout: &Layout) -> Load {
    Load::default()
}

//! What this host is and can do. A second probe of the same host takes milliseconds: what is slow
//! to find out is kept in `probe.json`, under keys that change when the answer may.

mod cache;
mod features;
mod load;
mod speed;
mod toolchain;
mod trial;

use std::fs;
use std::io;
use std::path::PathBuf;

use crewboss_ground::Open;
use crewboss_host::layout::Layout;
use crewboss_machine::guest::memory::slot_share;
use crewboss_machine::images::directory::Machines;
use crewboss_machine::qemu::accelerator;
use crewboss_protocol::host::SlotHolder;
use crewboss_protocol::message::Hello;
use crewboss_protocol::{HostFacts, TreeId, chain};
use rustix::fs::{StatVfsMountFlags, statvfs};

pub use load::load;

use crate::source;
use crate::source::objects::{self, Objects};
use cache::Cache;

/// Trees that are told to the boss: the most recently used ones.
const TREES_MAX: usize = 256;

/// Slots that a host may have (what the protocol accepts).
const SLOTS_MAX: u32 = 65_536;

/// Longest text of a slot's file that is believed.
const HOLDER_BYTES_MAX: u64 = 4096;

/// Why a host cannot be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The work directory cannot be used.
    #[error("cannot use the work directory {}", path.display())]
    Work {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What a task makes could not be run, and each would be told as a failure of the task.
    #[error(
        "the work directory {} is on a file system that is mounted noexec; hint: name another directory for this host by `work` in crew.toml",
        .0.display()
    )]
    NoExec(PathBuf),
}

/// Finds out everything about the host. Makes the work directory if it is not there.
///
/// # Errors
/// Only if the work directory cannot be made or written; whatever else cannot be found out is left
/// out.
pub fn probe(layout: &Layout, hello: &Hello) -> Result<HostFacts, ProbeError> {
    let work = layout.work();
    let failed = |source| ProbeError::Work { path: work.to_owned(), source };
    layout.make_work().map_err(|error| failed(error.into()))?;
    let mount = statvfs(work).map_err(|error| failed(error.into()))?;
    if mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err(ProbeError::NoExec(work.to_owned()));
    }
    let mut cache = if hello.refresh { Cache::default() } else { Cache::load(&layout.probe_cache()) };
    let threads =
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let (speed, speed_source) = cache.speed(&speed::Key::of_this_host(), speed::measure);
    let (toolchains, broken_toolchains) = toolchain::find(&hello.toolchains, &mut cache);
    let features = features::find(work, &mut cache).map_err(failed)?;
    // The next probe then only takes longer.
    drop(cache.store(&layout.probe_cache()));
    let load = load(layout);
    let (emulator, no_emulator) = match accelerator::of_host(layout, hello) {
        Some(Ok(emulator)) => (Some(emulator), String::new()),
        Some(Err(error)) => (None, chain(&error)),
        None => (None, String::new()),
    };
    let memory = load::memory_total();
    let slots = hello.slots.map_or(threads, |cap| cap.min(threads)).clamp(1, SLOTS_MAX);
    let guest_memory = slot_share(memory, slots);
    let (machines, held) = match Machines::resolve(layout, hello.machines.as_deref()) {
        Ok(machines) => (
            crewboss_machine::books::probe::machines(&machines, guest_memory),
            crewboss_machine::books::probe::held(&machines),
        ),
        Err(_) => (Vec::new(), Vec::new()),
    };
    Ok(HostFacts {
        kernel: format!("{} {}", kernel("ostype"), kernel("osrelease")),
        architecture: sysinfo::System::cpu_arch(),
        threads,
        memory,
        disk_free: load.disk_free,
        work: work.to_string_lossy().into_owned(),
        slots,
        speed,
        speed_source,
        toolchains,
        broken_toolchains,
        features,
        load,
        holders: holders(layout),
        trees: trees(layout),
        emulator,
        no_emulator,
        guest_memory,
        machines,
        held,
    })
}

fn kernel(what: &str) -> String {
    crewboss_ground::kernel_text(format!("/proc/sys/kernel/{what}")).unwrap_or_default().trim().to_owned()
}

/// Only trees whose objects are there as well: what the boss leaves out when it sends another tree
/// is taken from them, and somebody may have removed one and not the other.
fn trees(layout: &Layout) -> Vec<TreeId> {
    let path = layout.objects();
    let Some(objects) = path.is_dir().then(|| Objects::open(&path).ok()).flatten() else { return Vec::new() };
    let Ok(database) = objects.database() else { return Vec::new() };
    let is_there = |tree: &TreeId| objects::oid(*tree).is_ok_and(|id| database.exists(id));
    source::list(layout).into_iter().map(|(tree, _)| tree).filter(is_there).take(TREES_MAX).collect()
}

/// Who holds which slot: a slot's file is held as long as it is locked, and says by whom.
pub(crate) fn holders(layout: &Layout) -> Vec<SlotHolder> {
    let Ok(entries) = fs::read_dir(layout.locks()) else { return Vec::new() };
    let slot = |entry: &fs::DirEntry| {
        entry.file_name().to_str().and_then(|name| name.strip_prefix("slot-")?.parse::<u32>().ok())
    };
    let mut holders: Vec<_> =
        entries.filter_map(Result::ok).filter_map(|entry| holder(slot(&entry)?, &entry.path())).collect();
    holders.sort_by_key(|holder| holder.slot);
    holders
}

fn holder(slot: u32, path: &std::path::Path) -> Option<SlotHolder> {
    let file = Open::read().path(path).ok()?;
    // A shared lock, so that two probes do not take each other for holders.
    if file.try_lock_shared().is_ok() {
        return None;
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, HOLDER_BYTES_MAX), &mut text).ok()?;
    let holder: SlotHolder = serde_json::from_str(&text).ok()?;
    Some(SlotHolder { slot, ..holder })
}

#[cfg(test)]
mod tests;

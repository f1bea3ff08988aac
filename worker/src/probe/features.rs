//! What kernel and file system allow, found out by trying it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crewboss_ground::{output, program};
use crewboss_host::storage::Way;
use crewboss_protocol::Feature;

use super::cache::Cache;

/// The features of this host. Kept until the next boot, or until the work directory lies elsewhere.
pub(super) fn find(work: &Path, cache: &mut Cache) -> io::Result<BTreeSet<Feature>> {
    let state = fs::metadata(work)?;
    let boot = crewboss_ground::kernel_text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let user = rustix::process::geteuid().as_raw();
    cache.features(format!("{} {} {user}", boot.trim(), state.dev()), || try_all(work))
}

#[expect(clippy::disallowed_methods, reason = "a device of the system")]
fn try_all(work: &Path) -> io::Result<BTreeSet<Feature>> {
    let mut features = BTreeSet::new();
    match Way::find(work)? {
        Way::Snapshot => features.extend([Feature::Btrfs, Feature::Reflink]),
        Way::Reflink => features.extend([Feature::Reflink]),
        Way::Plain => {}
    }
    if cgroup() {
        features.insert(Feature::Cgroup);
    }
    if File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        features.insert(Feature::Kvm);
    }
    if namespaces() {
        features.insert(Feature::Namespaces);
    }
    Ok(features)
}

/// Whether a control group can be made below our own.
fn cgroup() -> bool {
    let Ok(text) = crewboss_ground::kernel_text("/proc/self/cgroup") else { return false };
    let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return false };
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().any(|root| {
        let trial = Path::new(root).join(own).join(format!("crewboss-try-{}", std::process::id()));
        // Of version 2, or the file is not there.
        let made = trial.parent().is_some_and(|own| own.join("cgroup.procs").exists())
            && fs::create_dir(&trial).is_ok();
        let usable = made && trial.join("cgroup.procs").exists();
        if made {
            drop(fs::remove_dir(&trial));
        }
        usable
    })
}

/// Whether a process can have a mount namespace of its own, as root or with a user namespace. Tried
/// in a child, since it cannot be undone.
fn namespaces() -> bool {
    let mut arguments = vec!["-m"];
    if !rustix::process::geteuid().is_root() {
        arguments.insert(0, "-Ur");
    }
    let mut command = program("unshare");
    output(command.args(arguments).arg("true"), "unshare", b"").is_ok_and(|said| said.status.success())
}

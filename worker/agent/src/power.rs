//! Switching the guest off.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crewboss_ground::program;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::Signal;
use rustix::system::{RebootCommand, reboot};

use super::complain;
use super::place::Place;

/// Between asking all processes of the guest to end and ending them.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How long an init system is given to begin; the host's patience ends the guest in any case.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(10);

/// Left by our own loader when it is the first process itself and started the agent as a child.
const LOADER: &str = "/run/crewboss-loader";

/// Writes everything to disk and switches off. Returns only if that is somebody else's to do, or
/// cannot be done.
pub(super) fn off(place: &Place) {
    if !place.is_system() {
        return;
    }
    rustix::fs::sync();
    let first = std::process::id() == 1;
    if !first && !Path::new(LOADER).exists() && ask_init() {
        return;
    }
    if first {
        end_all();
    }
    detach();
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        complain(format_args!("cannot switch off: {error}"));
    }
    if first {
        // Nothing is left to do, and the kernel would panic.
        loop {
            std::thread::sleep(ACCEPTED_WITHIN);
        }
    }
}

/// Lets the init system of the guest do it. Returns whether it took the order.
fn ask_init() -> bool {
    let mut command = program("poweroff");
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let child = command.stdin(Stdio::null()).spawn();
    let Ok(mut child) = child else { return false };
    let end = Instant::now() + ACCEPTED_WITHIN;
    while Instant::now() < end {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => return true,
        }
    }
    true
}

/// Ends every process but this one, which must be the first.
fn end_all() {
    let all = |signal: Signal| {
        // SAFETY: sends a signal and touches no memory. rustix has no call for "all processes".
        unsafe { libc::kill(-1, signal.as_raw()) };
    };
    all(Signal::TERM);
    let end = Instant::now() + TERM_GRACE;
    while crewboss_host::process::reap_ended(|_| ()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    all(Signal::KILL);
    crewboss_host::process::kill_all_descendants(|_| ());
}

/// Unmounts what can be, and makes the rest read-only, the last mounted first.
fn detach() {
    let mounts = crewboss_ground::kernel_text("/proc/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let Some(place) = line.split(' ').nth(1).map(plain) else { continue };
        if matches!(place.as_str(), "/proc" | "/sys" | "/dev") {
            continue;
        }
        if place == "/" || unmount(place.as_str(), UnmountFlags::empty()).is_err() {
            // Some file systems cannot, and have nothing to write either.
            let _stays = mount_remount(place.as_str(), MountFlags::RDONLY, "");
        }
    }
}

/// The kernel writes blanks in the list of mounts as octal numbers.
fn plain(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"].iter().fold(text.to_owned(), |text, pair| {
        let (code, character) = pair.split_at(4);
        text.replace(code, character)
    })
}

//! Saved guests: the state of a guest in a file, and a guest from such a file.
//!
//! Saving is QEMU's migration into an open file that it is handed through the monitor; no shell and
//! no path is involved. A guest is stopped first, so that it is one pass, and stays stopped after
//! it: whoever restores it makes its world right (clock, random numbers, names) before or while it
//! goes on with [`super::qmp::Qmp::cont`].

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_ground::Open;
use serde_json::{Value, json};

use super::command::{GuestConfig, shape};
use super::qmp::{Event, Incoming, Migration, Qmp, QmpError};
use super::version::Identity;

/// Bytes per second: none that counts, since the guest is stopped.
const BANDWIDTH: u64 = 1 << 40;

/// How often is asked whether a state is still wanted while it is saved.
pub const LOOK: Duration = Duration::from_millis(100);

/// What the file is called towards QEMU.
const FILE: &str = "state";

/// What is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything, memory included, in one file: a guest that is held.
    Whole,
    /// The devices alone. Memory is in the file of [`super::command::Backing`], shared while the
    /// guest is saved and private when one is restored, so that any number of guests start from it
    /// without copying it: a warm start.
    Devices,
}

/// Why a guest was not saved, or not restored.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file.
    #[error("cannot {action} the saved state {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU could not write or read it: the disk is full, or the state is of another guest.
    #[error("QEMU could not {action} the state: {why}")]
    Failed {
        /// `save` or `restore`.
        action: &'static str,
        /// Its own words.
        why: String,
    },
    /// Whoever wanted it saved does not want it any more.
    #[error("it was given up")]
    GivenUp,
    /// The monitor failed.
    #[error("the monitor failed while a state was saved or restored")]
    Monitor(#[from] QmpError),
}

/// Stops a guest and saves it to `path`, whole or not at all. It stays stopped; QEMU may end then.
///
/// # Errors
/// If it is not saved until then. The guest is stopped in any case that the monitor allows.
pub fn save(qmp: &mut Qmp, path: &Path, kind: Kind, until: Instant) -> Result<(), SavedError> {
    save_while(qmp, path, kind, until, &mut || true)
}

/// As [`save`], as long as it is wanted, which is asked every [`LOOK`].
///
/// # Errors
/// As [`save`], and if it is not wanted any more.
pub fn save_while(
    qmp: &mut Qmp,
    path: &Path,
    kind: Kind,
    until: Instant,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<(), SavedError> {
    let part = path.with_added_extension("part");
    let saved = save_part(qmp, &part, path, kind, until, wanted);
    if saved.is_err() {
        // Whatever is there of it is useless.
        fs::remove_file(&part).ok();
    }
    saved
}

fn save_part(
    qmp: &mut Qmp,
    part: &Path,
    path: &Path,
    kind: Kind,
    until: Instant,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<(), SavedError> {
    let failed = |action| move |source| SavedError::File { action, path: part.to_owned(), source };
    let file = Open::create().mode(0o600).path(part).map_err(|error| failed("create")(error.into()))?;
    qmp.stop(until)?;
    prepare(qmp, kind, until)?;
    let bandwidth = json!({ "max-bandwidth": BANDWIDTH });
    qmp.call("migrate-set-parameters", &bandwidth, until)?;
    migrate(qmp, "migrate", "save", &file, until, wanted)?;
    if kind == Kind::Whole {
        // It waits for a person, who may well come after a power failure.
        file.sync_all().map_err(failed("sync"))?;
    }
    fs::rename(part, path).map_err(failed("rename"))
}

/// Restores a guest from `path` into a QEMU that was started with the same configuration and
/// [`GuestConfig::incoming`]. It is stopped then.
///
/// # Errors
/// If it is not restored until then. QEMU is of no use afterwards.
pub fn restore(qmp: &mut Qmp, path: &Path, kind: Kind, until: Instant) -> Result<(), SavedError> {
    let failed = |source| SavedError::File { action: "open", path: path.to_owned(), source };
    let file = Open::read().path(path).map_err(|error| failed(error.into()))?;
    prepare(qmp, kind, until)?;
    migrate(qmp, "migrate-incoming", "restore", &file, until, &mut || true)
}

fn prepare(qmp: &mut Qmp, kind: Kind, until: Instant) -> Result<(), SavedError> {
    let capability = |name: &str, state: bool| json!({ "capability": name, "state": state });
    let shared = capability("x-ignore-shared", kind == Kind::Devices);
    let capabilities = json!({ "capabilities": [capability("events", true), shared] });
    qmp.call("migrate-set-capabilities", &capabilities, until)?;
    Ok(())
}

fn migrate(
    qmp: &mut Qmp,
    command: &'static str,
    action: &'static str,
    file: &File,
    until: Instant,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<(), SavedError> {
    qmp.pass(FILE, file.as_fd(), until)?;
    qmp.call(command, &json!({ "uri": format!("fd:{FILE}") }), until)?;
    let over = |incoming: &Incoming| {
        let Incoming::Event(Event::Migration(how)) = incoming else { return false };
        *how != Migration::Going
    };
    match wait_while(qmp, command, until, over, wanted)? {
        Incoming::Event(Event::Migration(Migration::Completed)) => Ok(()),
        _ => {
            // An incoming one that failed ends QEMU, which then answers no more; its messages say
            // why.
            let answer = qmp.call("query-migrate", &Value::Null, until).unwrap_or_default();
            let why = answer.get("error-desc").and_then(Value::as_str);
            let why = why.unwrap_or("it does not say why here").to_owned();
            Err(SavedError::Failed { action, why })
        }
    }
}

fn wait_while(
    qmp: &mut Qmp,
    command: &'static str,
    until: Instant,
    over: impl Fn(&Incoming) -> bool,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<Incoming, SavedError> {
    loop {
        let look = until.min(Instant::now() + LOOK);
        match qmp.wait(command, look, &over) {
            Err(QmpError::Deadline { .. }) if !wanted() => return Err(SavedError::GivenUp),
            Err(QmpError::Deadline { .. }) if look < until => {}
            end => return Ok(end?),
        }
    }
}

/// Under what name a saved state is kept: it changes with everything that a restored guest must
/// have in common with the saved one. `qemu` is the program that runs it, and `boot` what it booted
/// from: the hashes of kernel and initial file system, or whatever identifies its image.
pub fn key(qemu: &Identity, config: &GuestConfig, boot: &[&str]) -> String {
    let mut hash = blake3::Hasher::new();
    // With lengths, so that no two lists look the same.
    let mut add = |bytes: &[u8]| {
        hash.update(&bytes.len().to_le_bytes());
        hash.update(bytes);
    };
    // Its version would have to be asked for, which takes longer than restoring a guest.
    add(format!("{qemu:?}").as_bytes());
    boot.iter().for_each(|one| add(one.as_bytes()));
    add(b"");
    shape(config).iter().for_each(|argument| add(argument.as_encoded_bytes()));
    hash.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::fixture::Scene;
    use super::super::version::Program;
    use super::*;

    #[test]
    fn the_key_of_a_state_changes_with_all_that_it_depends_on() {
        let scene = Scene::new();
        let program = |text: &str| {
            let path = scene.path("qemu-system-x86_64");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            Program::find_on(scene.directory.path().as_os_str(), Path::new("/nowhere")).unwrap()
        };
        let (old, new) = (program("old"), program("newer"));
        let of = key;
        let version = old.identity();
        let first = of(version, &scene.config, &["kernel", "initrd"]);
        assert_eq!(first.len(), 32);
        assert_eq!(first, of(version, &scene.config, &["kernel", "initrd"]));
        let newer = new.identity();
        let more = GuestConfig { memory: 256 << 20, ..scene.config.clone() };
        let others = [
            of(newer, &scene.config, &["kernel", "initrd"]),
            of(version, &more, &["kernel", "initrd"]),
            of(version, &scene.config, &["kernel", "other"]),
            of(version, &scene.config, &["kernelinitrd"]),
            of(version, &scene.config, &["kernel"]),
        ];
        assert!(others.iter().all(|other| *other != first), "{others:?}");
    }
}

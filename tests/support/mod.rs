//! What the end-to-end tests share: labs of hosts, projects to build, running bosses, and the
//! search for leftovers.
//!
//! Nothing here knows how crewboss works inside: it is used by its command line, and judged by its
//! exit code, its result directory, its event stream and what it leaves on the hosts.

// Every test file is a program of its own, and none uses all of it.
#![allow(dead_code, reason = "each test file uses a part")]
// The tests are not `#[cfg(test)]` code by themselves, and what they print is shown only for those
// that fail.
#![allow(clippy::print_stderr, reason = "shown when a test fails")]

pub mod boss;
pub mod clock;
pub mod gate;
pub mod ground;
pub mod lab;
pub mod machines;
pub mod scene;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Long enough for anything that should happen at once, on a machine that is slow and busy with
/// other things. As with all these limits, only what hangs ever reaches it.
pub const SOON: Duration = Duration::from_secs(60);

/// Long enough for a whole run of a small plan, losing hosts included.
pub const A_RUN: Duration = Duration::from_secs(300);

/// How often conditions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `look` finds something; panics with what was waited for when the time is up.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Runs a command to its end; panics if it cannot be started or fails. Gives its standard output.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, whatever that is.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Reads a file as text, whatever is in it.
pub fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes a file, with the directories above it.
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    let parent = path.parent().expect("a file is in a directory");
    std::fs::create_dir_all(parent)
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", parent.display()));
    std::fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// The commands of ours that a text advises, between backticks, as they are to be typed.
pub fn advised(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|one| one.starts_with("crewboss ")).map(str::to_owned).collect()
}

/// How long a phase took by a `result.json` or a `task_done`, in milliseconds, if it is there.
pub fn phase_ms(result: &serde_json::Value, phase: &serde_json::Value) -> Option<u64> {
    let phases = result["phases"].as_array()?;
    phases.iter().find(|one| one["phase"] == *phase)?["wall_ms"].as_u64()
}

//! Standing still at a step of a guest's life, so that what happens when everything is killed there
//! can be tried. Only in builds for that: nobody can have a released program stop by a variable.

use super::books::record::Step;

/// Stops this process, as Ctrl-Z would, if the step is the one that was named.
#[cfg(debug_assertions)]
pub fn at(step: Step) {
    /// The variable that names the step, as records do: `CREWBOSS_HALT_AT=booting`; with a file,
    /// `booting=FILE`, only who makes that file stands still, which is the first one to get there.
    const VARIABLE: &str = "CREWBOSS_HALT_AT";
    let Some(wanted) = std::env::var(VARIABLE).ok() else { return };
    let (wanted, file) =
        wanted.split_once('=').map_or((wanted.as_str(), None), |(step, file)| (step, Some(file)));
    let name = serde_json::to_value(step).ok();
    let is_it = name.as_ref().and_then(|name| name.as_str()) == Some(wanted);
    if is_it && file.is_none_or(|file| std::fs::File::create_new(file).is_ok()) {
        // If it cannot be stopped, it goes on, and whoever waits for it to stand still sees that.
        let _stopped =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub fn at(_: Step) {}

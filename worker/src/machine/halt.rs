//! Standing still at a step of a guest's life, so that what happens when everything is killed there can be tried.

use super::record::Step;

/// The variable that names the step, as records do: `CREWBOSS_HALT_AT=booting`.
const VARIABLE: &str = "CREWBOSS_HALT_AT";

/// Stops this process, as Ctrl-Z would, if the step is the one that was named.
pub fn at(step: Step) {
    let Some(wanted) = std::env::var_os(VARIABLE) else { return };
    let name = serde_json::to_value(step).ok();
    if name.as_ref().and_then(|name| name.as_str()) == wanted.to_str() {
        // If it cannot be stopped, it goes on, and whoever waits for it to stand still sees that.
        let _stopped =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
}

//! The environment of a stage: what it is on a host, as far as a guest has it.

use std::collections::BTreeMap;
use std::process::Command;

use crewboss_protocol::guest::TaskDocument;

use super::place::Place;

/// Where programs are looked for if whoever started the agent has no `PATH`; a kernel has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What everything that the agent starts sees.
pub(super) fn common(place: &Place) -> Vec<(String, String)> {
    let path = std::env::var("PATH").ok().filter(|path| !path.is_empty());
    [
        ("PATH", path.unwrap_or_else(|| DEFAULT_PATH.to_owned())),
        ("LANG", "C.UTF-8".to_owned()),
        ("LOGNAME", "root".to_owned()),
        ("USER", "root".to_owned()),
        ("SHELL", "/bin/sh".to_owned()),
        ("HOME", text(&place.home())),
        ("TMPDIR", text(&place.tmp())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What a stage of a task sees; later ones win.
pub(super) fn of_task(
    place: &Place,
    task: &TaskDocument,
    more: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let mut variables = common(place);
    let mut add = |name: &str, value: String| variables.push((name.to_owned(), value));
    add("CREWBOSS_JOBS", task.jobs.to_string());
    add("CREWBOSS_TARGET", task.target.to_string());
    task.all_variables().for_each(|(name, value)| add(name, value.clone()));
    more.iter().for_each(|(name, value)| add(name, value.clone()));
    // These are where they are, whatever a target says.
    add("HOME", text(&place.home()));
    add("TMPDIR", text(&place.tmp()));
    add("CREWBOSS_SRC", text(&place.src()));
    add("CREWBOSS_OUT", text(&place.out()));
    add("CREWBOSS_COMMIT", task.commit.to_string());
    add("CREWBOSS_TASK", task.at.to_string());
    variables
}

/// The value that a program would see.
pub(super) fn get<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
    variables.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Gives a program these variables and no others.
pub(super) fn set(command: &mut Command, variables: &[(String, String)]) {
    command.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

//! What `build` is asked to do with guests for a person: keep them, or let the person in.

use std::time::Duration;

use crewboss_boss::plan::TargetPlan;
use crewboss_boss::run::Guests;
use crewboss_protocol::limits::INTERACTIVE;
use crewboss_protocol::message::{Hold, Pause};
use crewboss_protocol::units::duration;
use crewboss_protocol::{Environment, Target};

use super::CommandError;
use crate::cli::BuildArgs;
use crate::config::{BuildPlan, parse_duration_or_none};

/// The word that stands for any stage that fails.
const FAILURE: &str = "failure";

/// Reads options and build file. The targets are those that were chosen.
///
/// # Errors
/// If what is asked cannot be done with these targets.
pub fn guests(arguments: &BuildArgs, build: &BuildPlan) -> Result<Guests, CommandError> {
    Ok(Guests { hold: hold(arguments, build)?, pause: pause(arguments, &build.targets)? })
}

fn hold(arguments: &BuildArgs, build: &BuildPlan) -> Result<Hold, CommandError> {
    let Some(option) = &arguments.hold else {
        return Ok(Hold { for_ms: millis(build.hold), failure: false });
    };
    if !build.targets.iter().any(|plan| in_machine(&plan.target)) {
        return Err(usage("--hold: none of the targets runs in a machine, so there is no guest to keep"));
    }
    let time = option.as_ref().map(|text| parse_duration_or_none(text)).transpose();
    let time = time.map_err(|why| usage(&format!("--hold: {why}")))?;
    Ok(Hold { for_ms: millis(time.unwrap_or(build.hold)), failure: true })
}

fn pause(arguments: &BuildArgs, targets: &[TargetPlan]) -> Result<Option<Pause>, CommandError> {
    let Some(place) = &arguments.interactive else { return Ok(None) };
    let [TargetPlan { target, .. }] = targets else {
        return Err(usage("--interactive: name the one target whose guest you want to enter"));
    };
    if !in_machine(target) {
        return Err(usage(&format!(
            "--interactive: {} does not run in a machine, so there is no guest to enter",
            target.name
        )));
    }
    let limit = arguments.interactive_limit.as_ref().map(|text| duration(text)).transpose();
    let limit = limit.map_err(|why| usage(&format!("--interactive-limit: {why}")))?;
    let limit_ms = millis(limit.unwrap_or(INTERACTIVE));
    let before = match place.as_deref() {
        None => None,
        Some(FAILURE) => return Ok(Some(Pause { before: None, on_failure: true, limit_ms })),
        Some(text) => {
            let stage = target.stages.iter().find(|stage| stage.name.as_str() == text);
            let name = stage.map(|stage| stage.name.clone());
            Some(name.ok_or_else(|| usage(&no_stage(text, target)))?)
        }
    };
    Ok(Some(Pause { before, on_failure: false, limit_ms }))
}

fn no_stage(text: &str, target: &Target) -> String {
    let stages: Vec<&str> = target.stages.iter().map(|stage| stage.name.as_str()).collect();
    format!(
        "--interactive: {} has no stage {text:?}\n  hint: there is {}, or {FAILURE}",
        target.name,
        stages.join(", ")
    )
}

fn in_machine(target: &Target) -> bool {
    matches!(target.environment, Environment::Machine(_))
}

fn usage(text: &str) -> CommandError {
    CommandError::Usage(text.to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config::{find_build, load_build};
    use clap::Parser as _;

    const BUILD: &str = "hold = \"2h\"\n\
                         [target.here]\nstages.build = \"make\"\n\
                         [target.guest]\nstages.build = \"make\"\nstages.test = \"make check\"\n\
                         environment = { machine = \"debian12\" }\n";

    fn of(line: &str) -> Result<Guests, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".git")).unwrap();
        std::fs::write(directory.path().join("build.toml"), BUILD).unwrap();
        let words = ["crewboss", "build"].into_iter().chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Build(arguments) = cli.command else { panic!("{line}") };
        let mut build = load_build(find_build(None, directory.path()).unwrap().file).unwrap();
        build.select(&arguments.targets).unwrap();
        guests(&arguments, &build).map_err(|error| error.to_string())
    }

    #[test]
    fn guests_are_kept_as_the_file_or_the_option_says() {
        let hold = |line| of(line).unwrap().hold;
        assert_eq!(hold(""), Hold { for_ms: 7_200_000, failure: false });
        assert_eq!(hold("--hold"), Hold { for_ms: 7_200_000, failure: true });
        assert_eq!(hold("--hold=30m guest"), Hold { for_ms: 1_800_000, failure: true });
        assert_eq!(hold("--hold=0"), Hold { for_ms: 0, failure: true });
        assert!(of("--hold here").unwrap_err().contains("no guest to keep"));
        assert!(of("--hold=30").unwrap_err().contains("its unit is missing"));
    }

    #[test]
    fn a_person_is_let_in_where_it_was_asked() {
        let pause = |line| of(line).unwrap().pause;
        let stage = |name: &str| Some(name.parse().unwrap());
        assert_eq!(pause(""), None);
        let first = Pause { before: None, on_failure: false, limit_ms: 3_600_000 };
        assert_eq!(pause("guest --interactive"), Some(first.clone()));
        assert_eq!(pause("--interactive guest"), Some(first.clone()), "a target is no stage");
        assert_eq!(pause("guest --interactive=test"), Some(Pause { before: stage("test"), ..first }));
        assert_eq!(
            pause("guest --interactive=failure --interactive-limit 5m"),
            Some(Pause { on_failure: true, limit_ms: 300_000, ..first })
        );
        for (line, why) in [
            ("--interactive", "name the one target"),
            ("here --interactive", "here does not run in a machine"),
            ("guest --interactive=tset", "there is build, test, or failure"),
            ("guest --interactive --interactive-limit 0s", "it is nothing"),
        ] {
            let told = of(line).unwrap_err();
            assert!(told.contains(why), "{line}: {told}");
        }
    }
}

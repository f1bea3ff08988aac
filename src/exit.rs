//! Exit codes: part of the interface, so each is named here and nowhere else.

use std::process::ExitCode;

use crewboss_boss::event::{Stopped, Summary};
use crewboss_protocol::Outcome;

/// How `crewboss` ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: all good.
    Good,
    /// 2: wrong usage or configuration; nothing was started.
    Usage,
    /// 100: some task failed.
    TaskFailed,
    /// 101: nothing failed, but there were warnings, and `--fail-on-warnings` was given.
    Warnings,
    /// 102: some task could not be run, or crewboss itself could not go on.
    CouldNotRun,
    /// 130: interrupted by Ctrl-C or SIGTERM.
    Interrupted,
}

impl Exit {
    /// The number that the caller sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Good => 0,
            Exit::Usage => 2,
            Exit::TaskFailed => 100,
            Exit::Warnings => 101,
            Exit::CouldNotRun => 102,
            Exit::Interrupted => 130,
        }
    }

    /// What a run came to. A skipped task counts by the outcome that stands recorded for it. That a
    /// task could not be run weighs more than that one failed: the results are then incomplete.
    pub fn of_run(summary: &Summary, fail_on_warnings: bool) -> Self {
        match &summary.stopped {
            Some(Stopped::Interrupted) => return Exit::Interrupted,
            Some(Stopped::Error(_)) => return Exit::CouldNotRun,
            None => {}
        }
        let count = |outcome| {
            let of = |counts: &std::collections::BTreeMap<Outcome, u32>| {
                counts.get(&outcome).copied().unwrap_or(0)
            };
            u64::from(of(&summary.outcomes)) + u64::from(of(&summary.recorded))
        };
        let any = |outcomes: &[Outcome]| outcomes.iter().any(|outcome| count(*outcome) > 0);
        let not_run = [Outcome::Infrastructure, Outcome::Interrupted, Outcome::Cancelled];
        if summary.unfinished > 0 || any(&not_run) {
            Exit::CouldNotRun
        } else if any(&[Outcome::Failure, Outcome::Timeout, Outcome::Abnormal]) {
            Exit::TaskFailed
        } else if fail_on_warnings && any(&[Outcome::Warning]) {
            Exit::Warnings
        } else {
            Exit::Good
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outcomes: &[(Outcome, u32)], recorded: &[(Outcome, u32)]) -> Summary {
        Summary {
            outcomes: outcomes.iter().copied().collect(),
            recorded: recorded.iter().copied().collect(),
            ..Summary::default()
        }
    }

    #[test]
    fn the_code_follows_from_the_outcomes() {
        use Outcome::{Abnormal, Failure, Infrastructure, Skipped, Success, Timeout, Warning};
        let code = |summary: &Summary| Exit::of_run(summary, false).code();
        assert_eq!(code(&run(&[], &[])), 0);
        assert_eq!(code(&run(&[(Success, 3), (Warning, 1)], &[])), 0);
        assert_eq!(Exit::of_run(&run(&[(Success, 3), (Warning, 1)], &[]), true).code(), 101);
        for bad in [Failure, Timeout, Abnormal] {
            assert_eq!(Exit::of_run(&run(&[(bad, 1), (Warning, 1)], &[]), true).code(), 100);
        }
        assert_eq!(code(&run(&[(Infrastructure, 1), (Failure, 9)], &[])), 102);
        assert_eq!(code(&run(&[(Failure, 0)], &[])), 0);
        assert_eq!(code(&run(&[(Skipped, 1)], &[(Success, 1)])), 0);
        assert_eq!(code(&run(&[(Skipped, 2)], &[(Success, 1), (Failure, 1)])), 100);
        assert_eq!(Exit::of_run(&run(&[(Skipped, 1)], &[(Warning, 1)]), true).code(), 101);
    }

    #[test]
    fn every_code_is_documented() {
        let all =
            [Exit::Good, Exit::Usage, Exit::TaskFailed, Exit::Warnings, Exit::CouldNotRun, Exit::Interrupted];
        let documentation = include_str!("../CONFIGURATION.md");
        for exit in all {
            assert!(documentation.contains(&format!("| {} |", exit.code())), "{exit:?} is not documented");
        }
    }

    #[test]
    fn being_stopped_weighs_most() {
        let stopped = |stopped| Summary { stopped: Some(stopped), ..run(&[(Outcome::Failure, 1)], &[]) };
        assert_eq!(Exit::of_run(&stopped(Stopped::Interrupted), false).code(), 130);
        assert_eq!(Exit::of_run(&stopped(Stopped::Error("no space".to_owned())), false).code(), 102);
        let unfinished = Summary { unfinished: 1, ..Summary::default() };
        assert_eq!(Exit::of_run(&unfinished, false).code(), 102);
    }
}

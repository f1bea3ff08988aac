//! Why a task in a guest does not come to its end, and what that means: pure.

use std::time::Duration;

use crewboss_protocol::guest::GuestLoad;
use crewboss_protocol::message::{Cause, Hold};
use crewboss_protocol::{Name, Outcome, Phase, StageExit};

use crate::images::directory::DirectoryError;
use crate::qemu::error::QemuError;

/// What put an end to a task.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The worker proper asked for it, or is gone.
    #[error("it was stopped")]
    Cancelled,
    /// The time of its target was up.
    #[error("stopped {} after {} ms{}", .phase.during(), .limit.as_millis(), condition(.load))]
    Timeout {
        /// How far the task had come.
        phase: Phase,
        /// The limit.
        limit: Duration,
        /// How the guest was.
        load: Option<GuestLoad>,
    },
    /// The guest ended, crashed or started anew by itself.
    #[error("the guest of {machine} {how} {}; its console ended with: {last_words}", .phase.during())]
    Ended {
        /// Which machine.
        machine: Name,
        /// How far the task had come.
        phase: Phase,
        /// What it did.
        how: String,
        /// The end of its console.
        last_words: String,
    },
    /// Somebody else has killed its QEMU.
    #[error("QEMU of a guest of {machine} was killed from outside, by {how}")]
    Killed {
        /// Which machine.
        machine: Name,
        /// With what, and what else is known.
        how: String,
    },
    /// The agent does not answer any more.
    #[error(
        "the guest of {machine} has not answered for {} s {}{}",
        .silence.as_secs(), .phase.during(), condition(.load)
    )]
    Silent {
        /// Which machine.
        machine: Name,
        /// How far the task had come.
        phase: Phase,
        /// For how long.
        silence: Duration,
        /// How it was before.
        load: Option<GuestLoad>,
    },
    /// The agent is there and cannot go on.
    #[error("the agent in the guest of {machine} cannot go on {}: {why}", .phase.during())]
    Failed {
        /// Which machine.
        machine: Name,
        /// How far the task had come.
        phase: Phase,
        /// What it says.
        why: String,
    },
    /// What comes out of it is too much for the host's disk.
    #[error(
        "the guest of {machine} was stopped {}: {why}; \
         hint: have it write less, or say with `needs.disk` how much it takes",
        .phase.during()
    )]
    Full {
        /// Which machine.
        machine: Name,
        /// How far the task had come.
        phase: Phase,
        /// How much it is.
        why: String,
    },
    /// What the guest sent makes no sense.
    #[error("what the guest of {machine} sent cannot be read: {why}")]
    Unreadable {
        /// Which machine.
        machine: Name,
        /// What is wrong.
        why: String,
    },
    /// The guest cannot do what it was asked to, for want of space mostly.
    #[error("the guest of {machine} cannot run it: {why}")]
    Unable {
        /// Which machine.
        machine: Name,
        /// What its agent says.
        why: String,
    },
    /// It never came up.
    #[error("{machine} did not boot, {tries} times: {why}")]
    Misboot {
        /// Which machine.
        machine: Name,
        /// How often it was tried.
        tries: u32,
        /// What happened the last time.
        why: String,
    },
    /// A machine that serves the task is not there, or not any more.
    #[error("the auxiliary machine {name} is missing: {why}")]
    Auxiliary {
        /// What the task calls it.
        name: Name,
        /// What happened.
        why: String,
    },
    /// The machine is none that can be used now.
    #[error("{0}")]
    Machine(String),
    /// The task asks for what is not to be had here, and trying again would not change that: a
    /// machine that is suspended, a toolchain that is not there, what QEMU or the host's network
    /// does not have.
    #[error("{0}")]
    Lasting(String),
    /// The host cannot run it: lock, disk, QEMU.
    #[error("{0}")]
    Host(String),
}

/// A build that hangs often does so since it has no memory or no disk left.
fn condition(load: &Option<GuestLoad>) -> String {
    let Some(GuestLoad { load_percent, memory_available, disk_free }) = load else { return String::new() };
    format!(
        "; it last said that its load is {}.{:02}, and {} MiB of memory and {} MiB of its disk are free",
        load_percent / 100,
        load_percent % 100,
        memory_available >> 20,
        disk_free >> 20
    )
}

impl Stop {
    /// An error of this host, with its causes.
    pub fn host(error: &dyn std::error::Error) -> Self {
        Stop::Host(crewboss_protocol::chain(error))
    }

    /// An error of a machine's directory, with its causes: an operator may do with that what he
    /// likes, at any time.
    pub fn directory(error: &DirectoryError) -> Self {
        if error.is_of_host() { Stop::host(error) } else { Stop::Machine(crewboss_protocol::chain(error)) }
    }

    /// How the task ends.
    pub fn outcome(&self) -> Outcome {
        match self {
            Stop::Cancelled => Outcome::Cancelled,
            Stop::Timeout { .. } => Outcome::Timeout,
            Stop::Ended { .. } | Stop::Silent { .. } | Stop::Failed { .. } | Stop::Unreadable { .. } => {
                Outcome::Abnormal
            }
            // What a task makes is its own doing, and would be the same elsewhere.
            Stop::Full { .. } => Outcome::Failure,
            Stop::Unable { .. }
            | Stop::Misboot { .. }
            | Stop::Auxiliary { .. }
            | Stop::Machine(_)
            | Stop::Lasting(_)
            | Stop::Killed { .. }
            | Stop::Host(_) => Outcome::Infrastructure,
        }
    }

    /// How a stage ended that ran when this happened.
    pub fn stage_exit(&self) -> StageExit {
        match self {
            Stop::Timeout { .. } => StageExit::Timeout,
            Stop::Ended { .. }
            | Stop::Killed { .. }
            | Stop::Silent { .. }
            | Stop::Failed { .. }
            | Stop::Unreadable { .. } => StageExit::Lost,
            Stop::Cancelled
            | Stop::Full { .. }
            | Stop::Unable { .. }
            | Stop::Misboot { .. }
            | Stop::Auxiliary { .. }
            | Stop::Machine(_)
            | Stop::Lasting(_)
            | Stop::Host(_) => StageExit::Stopped,
        }
    }

    /// What it is due to. Tasks that run elsewhere than in these machines may do well on the host,
    /// unless that is the cause.
    pub fn cause(&self) -> Cause {
        match self {
            Stop::Lasting(_) => Cause::Lasting,
            Stop::Killed { .. } => Cause::Killed,
            Stop::Host(_) => Cause::Host,
            stop if stop.outcome() == Outcome::Infrastructure => Cause::Machine,
            _ => Cause::default(),
        }
    }

    /// Whether a machine that does not come to its copy for this reason is none the worse.
    pub fn spares_machine(&self) -> bool {
        matches!(
            self,
            Stop::Cancelled | Stop::Machine(_) | Stop::Lasting(_) | Stop::Killed { .. } | Stop::Host(_)
        )
    }

    /// What QEMU could not do, or would not.
    pub fn qemu(error: &QemuError) -> Self {
        let text = crewboss_protocol::chain(error);
        if error.is_lasting() { Stop::Lasting(text) } else { Stop::Host(text) }
    }
}

/// Whether the guest of a task that ended so is kept for a person.
pub fn is_held(outcome: Outcome, hold: Hold) -> bool {
    hold.for_ms > 0
        && match outcome {
            Outcome::Timeout | Outcome::Abnormal => true,
            Outcome::Failure => hold.failure,
            _ => false,
        }
}

/// Whether people want to see the console of a task that ended so.
pub fn keeps_console(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Timeout | Outcome::Abnormal | Outcome::Infrastructure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_to_blame_decides_the_outcome() {
        let name: Name = "debian".parse().unwrap();
        let stop = Stop::Ended {
            machine: name,
            phase: Phase::Stage("build".parse().unwrap()),
            how: "switched itself off".to_owned(),
            last_words: "Power down".to_owned(),
        };
        assert_eq!(stop.outcome(), Outcome::Abnormal);
        assert_eq!(
            stop.to_string(),
            "the guest of debian switched itself off in stage build; its console ended with: Power down"
        );
        let limit = Duration::from_secs(2);
        assert_eq!(stop.stage_exit(), StageExit::Lost);
        let stop = Stop::Timeout { phase: Phase::Person, limit, load: None };
        assert_eq!(stop.to_string(), "stopped while waiting for a person after 2000 ms");
        assert_eq!(stop.stage_exit(), StageExit::Timeout);
        let load = GuestLoad { load_percent: 405, memory_available: 3 << 20, disk_free: 1 << 30 };
        let stop = Stop::Timeout { phase: Phase::Stages, limit, load: Some(load) };
        assert_eq!(
            stop.to_string(),
            "stopped in its stages after 2000 ms; it last said that its load is 4.05, and 3 MiB of memory and \
             1024 MiB of its disk are free"
        );
        let (machine, why) =
            ("debian".parse().unwrap(), "its log has 300 MiB, and the host has room for 256".to_owned());
        let full = Stop::Full { machine, phase: Phase::Collecting, why };
        assert_eq!((full.outcome(), full.cause()), (Outcome::Failure, Cause::default()));
        assert_eq!(
            full.to_string(),
            "the guest of debian was stopped while collecting: its log has 300 MiB, and the host has room for 256; hint: have it write less, or say with `needs.disk` how much it takes"
        );
        for (stop, cause) in [
            (Stop::Host("no disk".to_owned()), Cause::Host),
            (Stop::Machine("withdrawn".to_owned()), Cause::Machine),
            (Stop::Lasting("suspended".to_owned()), Cause::Lasting),
            (Stop::Killed { machine: "debian".parse().unwrap(), how: "signal 9".to_owned() }, Cause::Killed),
        ] {
            assert_eq!((stop.outcome(), stop.cause()), (Outcome::Infrastructure, cause));
        }
    }

    #[test]
    fn a_guest_is_held_after_strange_ends_and_after_failures_if_asked_for() {
        let (usual, asked) = (Hold::default(), Hold { failure: true, ..Hold::default() });
        for outcome in Outcome::ALL {
            let strange = matches!(outcome, Outcome::Timeout | Outcome::Abnormal);
            assert_eq!(is_held(outcome, usual), strange, "{outcome}");
            assert_eq!(is_held(outcome, asked), strange || outcome == Outcome::Failure, "{outcome}");
            assert!(!is_held(outcome, Hold { for_ms: 0, failure: true }));
        }
    }
}

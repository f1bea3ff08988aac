//! Why a task in a guest does not come to its end, and what that means: pure.

use std::time::Duration;

use crewboss_protocol::guest::GuestLoad;
use crewboss_protocol::message::Hold;
use crewboss_protocol::{Name, Outcome};

/// What put an end to a task.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The worker proper asked for it, or is gone.
    #[error("it was stopped")]
    Cancelled,
    /// The time of its target was up.
    #[error("stopped in {} after {} ms{}", place(.stage), .limit.as_millis(), condition(.load))]
    Timeout {
        /// In which stage.
        stage: Option<Name>,
        /// The limit.
        limit: Duration,
        /// How the guest was.
        load: Option<GuestLoad>,
    },
    /// The guest ended, crashed or started anew by itself.
    #[error("the guest of {machine} {how} in {}; its console ended with: {last_words}", place(.stage))]
    Ended {
        /// Which machine.
        machine: Name,
        /// In which stage.
        stage: Option<Name>,
        /// What it did.
        how: String,
        /// The end of its console.
        last_words: String,
    },
    /// The agent does not answer any more.
    #[error("the guest of {machine} has not answered for {} s in {}{}", .silence.as_secs(), place(.stage), condition(.load))]
    Silent {
        /// Which machine.
        machine: Name,
        /// In which stage.
        stage: Option<Name>,
        /// For how long.
        silence: Duration,
        /// How it was before.
        load: Option<GuestLoad>,
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
    /// The machine is none that can be used: suspended, or QEMU will not have it.
    #[error("{0}")]
    Machine(String),
    /// The host cannot run it: lock, disk, QEMU.
    #[error("{0}")]
    Host(String),
}

fn place(stage: &Option<Name>) -> String {
    stage.as_ref().map_or_else(|| "its preparation".to_owned(), |stage| format!("stage {stage}"))
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

    /// The host has no room for what a guest writes.
    pub fn starved(why: &str) -> Self {
        Stop::Host(format!("the host has no room for what a guest writes to its disk ({why})"))
    }

    /// How the task ends.
    pub fn outcome(&self) -> Outcome {
        match self {
            Stop::Cancelled => Outcome::Cancelled,
            Stop::Timeout { .. } => Outcome::Timeout,
            Stop::Ended { .. } | Stop::Silent { .. } | Stop::Unreadable { .. } => Outcome::Abnormal,
            Stop::Unable { .. }
            | Stop::Misboot { .. }
            | Stop::Auxiliary { .. }
            | Stop::Machine(_)
            | Stop::Host(_) => Outcome::Infrastructure,
        }
    }

    /// Whether this says nothing of the host: tasks that run elsewhere than in these machines may do well there.
    pub fn blames_machine(&self) -> bool {
        self.outcome() == Outcome::Infrastructure && !matches!(self, Stop::Host(_))
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
            stage: Some("build".parse().unwrap()),
            how: "switched itself off".to_owned(),
            last_words: "Power down".to_owned(),
        };
        assert_eq!(stop.outcome(), Outcome::Abnormal);
        assert_eq!(
            stop.to_string(),
            "the guest of debian switched itself off in stage build; its console ended with: Power down"
        );
        let limit = Duration::from_secs(2);
        let stop = Stop::Timeout { stage: None, limit, load: None };
        assert_eq!(stop.to_string(), "stopped in its preparation after 2000 ms");
        let load = GuestLoad { load_percent: 405, memory_available: 3 << 20, disk_free: 1 << 30 };
        let stop = Stop::Timeout { stage: None, limit, load: Some(load) };
        assert_eq!(
            stop.to_string(),
            "stopped in its preparation after 2000 ms; it last said that its load is 4.05, and 3 MiB of memory and \
             1024 MiB of its disk are free"
        );
        let (host, machine) = (Stop::Host("no QEMU".to_owned()), Stop::Machine("suspended".to_owned()));
        assert_eq!((host.outcome(), host.blames_machine()), (Outcome::Infrastructure, false));
        assert_eq!((machine.outcome(), machine.blames_machine()), (Outcome::Infrastructure, true));
        assert!(!stop.blames_machine());
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

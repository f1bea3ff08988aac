//! What the worker proper and its runners say to each other over their socket.
//!
//! To a runner: JSON lines. From a runner: lines too, but a result already is the line for the
//! boss, with the two words in front that the worker proper needs. So nothing is parsed twice on
//! the way of a task.

use std::path::PathBuf;
use std::time::Duration;

use crewboss_machine::life::job::{BootstrapJob, MachineJob};
use crewboss_protocol::message::TaskLimits;
use crewboss_protocol::{Outcome, Phases, Target, TaskRef, Toolchain, TreeId};

use serde::{Deserialize, Serialize};

/// To a runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToRunner {
    /// Everything about a target that does not change from task to task. Comes before the first job
    /// that names it.
    Define {
        /// The number by which jobs name it.
        number: u32,
        /// The definition.
        spec: Box<Spec>,
    },
    /// Run this now. Comes only while no other job runs.
    Run(Box<Job>),
    /// Make a machine ready now. Comes only while no other job runs.
    Bootstrap(Box<BootstrapJob>),
    /// Stop the job, if it is this one.
    Cancel {
        /// Which.
        at: TaskRef,
    },
}

/// A target as a runner needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The target.
    pub target: Target,
    /// The toolchain that it asks for.
    pub toolchain: Option<Toolchain>,
    /// The variables that are the same for every task.
    pub variables: Vec<(String, String)>,
    /// How long a runner may do one thing without a sign of life.
    pub standstill: Duration,
    /// How much a task may leave.
    pub limits: TaskLimits,
}

/// One attempt, ready to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Which.
    pub at: TaskRef,
    /// Where its time went before it got a runner.
    #[serde(default)]
    pub phases: Phases,
    /// The number of its target.
    pub target: u32,
    /// The commit, for `$CREWBOSS_COMMIT`.
    pub commit: TreeId,
    /// Whether the environment is a warm one.
    pub warm: bool,
    /// The attempt's directory, where logs go.
    pub dir: PathBuf,
    /// `$CREWBOSS_SRC`.
    pub src: PathBuf,
    /// `$CREWBOSS_OUT`.
    pub out: PathBuf,
    /// A link that is to lead to `dir`: `$HOME` and `$TMPDIR` are named by it, since sockets need
    /// short paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<PathBuf>,
    /// Where the stages start.
    pub cwd: PathBuf,
    /// What it takes to run it in a guest, if it is to run in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Box<MachineJob>>,
}

/// A line from a runner, as far as the worker proper looks at it. `line` is a whole line for the
/// boss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromRunner<'a> {
    /// For the live view: may be dropped when the boss is slow.
    Live {
        /// Which attempt.
        at: TaskRef,
        /// The bytes of output in it.
        bytes: u64,
        /// The line.
        line: &'a [u8],
    },
    /// For the worker proper alone: the runner is heard again within so long.
    Within {
        /// How long, in milliseconds.
        ms: u64,
    },
    /// Must reach the boss.
    Forward {
        /// The line.
        line: &'a [u8],
    },
    /// The job has ended, and the runner is free.
    Done {
        /// Which attempt.
        at: TaskRef,
        /// How.
        outcome: Outcome,
        /// The line.
        line: &'a [u8],
    },
}

impl<'a> FromRunner<'a> {
    /// Takes a line (with its newline) apart. `None`: no runner of ours has written that.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let (kind, rest) = text.split_first()?;
        match kind {
            b'F' => Some(Self::Forward { line: rest }),
            b'W' => {
                let ms = std::str::from_utf8(rest.strip_suffix(b"\n")?).ok()?.parse().ok()?;
                Some(Self::Within { ms })
            }
            b'L' => {
                let (at, rest) = word(rest)?;
                let (bytes, line) = word(rest)?;
                Some(Self::Live { at: at.parse().ok()?, bytes: bytes.parse().ok()?, line })
            }
            b'D' => {
                let (at, rest) = word(rest)?;
                let (outcome, line) = word(rest)?;
                let outcome = Outcome::ALL.into_iter().find(|known| known.as_str() == outcome)?;
                Some(Self::Done { at: at.parse().ok()?, outcome, line })
            }
            _ => None,
        }
    }
}

fn word(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b' ')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_runner_writes_can_be_read_and_nothing_else() {
        let at = "3.1".parse().unwrap();
        let line = b"@cb x\n".as_slice();
        assert_eq!(
            FromRunner::parse(b"D3.1 success @cb x\n"),
            Some(FromRunner::Done { at, outcome: Outcome::Success, line })
        );
        assert_eq!(FromRunner::parse(b"L3.1 9 @cb x\n"), Some(FromRunner::Live { at, bytes: 9, line }));
        assert_eq!(FromRunner::parse(b"F@cb x\n"), Some(FromRunner::Forward { line }));
        assert_eq!(FromRunner::parse(b"W1500\n"), Some(FromRunner::Within { ms: 1500 }));
        for bad in [
            b"".as_slice(),
            b"\n",
            b"X\n",
            b"D3.1\n",
            b"D3.1 good x\n",
            b"Lx 9 x\n",
            b"L3.1 \xff x\n",
            b"W-1\n",
            b"W1",
        ] {
            assert_eq!(FromRunner::parse(bad), None);
        }
    }
}

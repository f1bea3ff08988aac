//! How tasks and stages end. Never a bare integer, never a free string.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::Name;

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every stage exited with 0.
    Success,
    /// As `success`, and warnings were written.
    Warning,
    /// A stage exited with another code or died by a signal, or a promised artifact is missing.
    Failure,
    /// The time limit ran out.
    Timeout,
    /// The environment ended strangely.
    Abnormal,
    /// The task could not be run.
    Infrastructure,
    /// Work of a higher priority took the place.
    Interrupted,
    /// A person, or the end of the run, stopped it.
    Cancelled,
    /// Already done under the same key.
    Skipped,
}

impl Outcome {
    /// Every outcome, in the order in which summaries list them.
    pub const ALL: [Outcome; 9] = [
        Outcome::Success,
        Outcome::Warning,
        Outcome::Failure,
        Outcome::Timeout,
        Outcome::Abnormal,
        Outcome::Infrastructure,
        Outcome::Interrupted,
        Outcome::Cancelled,
        Outcome::Skipped,
    ];

    /// Whether the task is tried again by itself, elsewhere first. All others are results.
    pub fn is_retried(self) -> bool {
        matches!(self, Outcome::Infrastructure | Outcome::Interrupted)
    }

    /// Whether the task did what it was asked to.
    pub fn is_good(self) -> bool {
        matches!(self, Outcome::Success | Outcome::Warning | Outcome::Skipped)
    }

    /// The word used on the wire, in files and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Warning => "warning",
            Outcome::Failure => "failure",
            Outcome::Timeout => "timeout",
            Outcome::Abnormal => "abnormal",
            Outcome::Infrastructure => "infrastructure",
            Outcome::Interrupted => "interrupted",
            Outcome::Cancelled => "cancelled",
            Outcome::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageExit {
    /// Its first process exited with this code.
    Code(u8),
    /// Its first process was ended by this signal.
    Signal(u8),
    /// The time of its task was up, and it was stopped.
    Timeout,
    /// It was stopped for another reason: a person, the end of the run, no room for what it wrote.
    Stopped,
    /// Nobody saw its end: its guest, or what ran it, ended before or made no sense any more.
    Lost,
}

impl StageExit {
    /// Whether the next stage may start.
    pub fn is_success(self) -> bool {
        self == StageExit::Code(0)
    }

    /// Whether it ended by itself, so that its own process said how.
    pub fn is_its_own(self) -> bool {
        matches!(self, StageExit::Code(_) | StageExit::Signal(_))
    }

    /// The number a shell would show: the code, or 128 plus the signal.
    pub fn shell_code(self) -> u8 {
        match self {
            StageExit::Code(code) => code,
            StageExit::Signal(signal) => 128_u8.saturating_add(signal),
            // What is stopped gets SIGTERM.
            StageExit::Timeout | StageExit::Stopped => 143,
            StageExit::Lost => 137,
        }
    }
}

impl fmt::Display for StageExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StageExit::Code(code) => write!(f, "exit code {code}"),
            StageExit::Signal(signal) => write!(f, "signal {signal}"),
            StageExit::Timeout => f.write_str("its time was up"),
            StageExit::Stopped => f.write_str("it was stopped"),
            StageExit::Lost => f.write_str("nobody saw its end"),
        }
    }
}

/// One stage that began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageResult {
    /// The stage's name.
    pub name: Name,
    /// How it ended.
    pub exit: StageExit,
    /// Wall time in milliseconds.
    pub wall_ms: u64,
    /// Processor time of all its processes, user and system, in milliseconds.
    pub cpu_ms: u64,
}

//! Failures that are not told at once.
//!
//! A host that is shut down in order sends SIGTERM to everything on it, the compilers of a task as
//! well as us, and in any order: a `make` whose children were ended exits with 2, which looks like
//! a result of the task and is none. So a failure is told only when this worker still lives a
//! moment later. Nobody waits for that: the slot is free at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crewboss_protocol::message::Ending;
use crewboss_protocol::{Outcome, TaskRef};

use super::{Action, Core, ended_without_running};

/// How long a failure is held back.
pub const HOLD_BACK: Duration = Duration::from_secs(2);

/// Attempts that failed a moment ago, the first one first.
#[derive(Debug, Default)]
pub(super) struct HeldBack(VecDeque<(Instant, TaskRef)>);

impl HeldBack {
    /// When the first one is to be told.
    pub(super) fn first(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }
}

/// Whether an attempt can have ended so because its host is being shut down.
fn is_doubtful(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failure | Outcome::Abnormal)
}

impl Core {
    /// An attempt has ended, and its result is there: tells it, now or in a moment.
    pub(super) fn report(&mut self, at: TaskRef, outcome: Outcome, now: Instant, actions: &mut Vec<Action>) {
        if !is_doubtful(outcome) {
            actions.push(Action::Report { at });
        } else if self.stopping.is_none() {
            self.held_back.0.push_back((now + HOLD_BACK, at));
        } else {
            self.report_at_the_end(at, actions);
        }
    }

    /// Tells the failures whose moment is over.
    pub(super) fn report_failures(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((_, at)) = self.held_back.0.pop_front_if(|(due, _)| *due <= now) {
            actions.push(Action::Report { at });
        }
    }

    /// This worker ends.
    pub(super) fn report_held_back(&mut self, actions: &mut Vec<Action>) {
        for (_, at) in std::mem::take(&mut self.held_back.0) {
            self.report_at_the_end(at, actions);
        }
    }

    /// A failure at the end is one only if it is the boss that wants the end.
    fn report_at_the_end(&self, at: TaskRef, actions: &mut Vec<Action>) {
        if self.ending == Some(Ending::Asked) {
            return actions.push(Action::Report { at });
        }
        actions.push(Action::Forget { at });
        let text = "it failed just when the worker was ended";
        actions.push(Action::Send(ended_without_running(at, Outcome::Cancelled, text.to_owned())));
    }
}

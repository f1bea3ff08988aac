//! Queues of waiting tasks: one per class, and the order between classes.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crewboss_protocol::TaskId;

use super::requirement::Requirement;
use super::types::HostIndex;

/// Order within a class: priority, longest expected first (what is not known may be long), plan.
pub(super) type Key = (Reverse<u32>, Reverse<u64>, TaskId);

/// Order between classes: priority, fewest hosts, longest expected, the order of making.
pub(super) type ClassKey = (Reverse<u32>, u32, Reverse<u64>, u32);

/// What a host is to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It will never take these tasks, as far as is known.
    Never,
    /// It may take them later: it is connecting, paused, or lacks space while tasks still run
    /// there.
    Later,
    /// It takes them now.
    Now,
}

#[derive(Debug)]
pub(super) struct Class {
    pub requirement: Requirement,
    pub queue: BTreeSet<Key>,
    /// By host.
    pub fit: Vec<Fit>,
    /// How many hosts take it now.
    pub now: u32,
    /// How many take it now or later.
    pub possible: u32,
    /// Where it stands in the order of classes; none while the queue is empty.
    pub filed: Option<ClassKey>,
    /// Segments that run and have so much left that they can be split, longest first.
    pub splittable: BTreeSet<(Reverse<u32>, u32)>,
}

impl Class {
    pub fn new(requirement: Requirement, hosts: usize) -> Self {
        Self {
            requirement,
            queue: BTreeSet::new(),
            fit: vec![Fit::Never; hosts],
            now: 0,
            possible: 0,
            filed: None,
            splittable: BTreeSet::new(),
        }
    }

    pub fn takes(&self, host: HostIndex) -> bool {
        self.fit[host.0 as usize] == Fit::Now
    }

    pub fn set_fit(&mut self, host: HostIndex, fit: Fit) {
        let old = std::mem::replace(&mut self.fit[host.0 as usize], fit);
        self.now = self.now + u32::from(fit == Fit::Now) - u32::from(old == Fit::Now);
        self.possible = self.possible + u32::from(fit != Fit::Never) - u32::from(old != Fit::Never);
    }

    /// Where it should stand in the order of classes.
    pub fn key(&self, index: u32) -> Option<ClassKey> {
        let (priority, expected, _) = self.queue.first()?;
        Some((*priority, self.now, *expected, index))
    }
}

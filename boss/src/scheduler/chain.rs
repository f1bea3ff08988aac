//! Incremental targets: their tasks go out in commit order, as long runs of neighbours to one host.
//!
//! A chain is cut into segments. Only the first task of a segment that has none out is in a queue,
//! so at most one task of a segment is on a host at a time, and never two of one chain on the same
//! host. A segment normally stays with its host to the end (see [`super::Scheduler`],
//! continuations). A host that would idle otherwise takes the back half of the longest segment that
//! still has [`SPLIT_MIN`] tasks left: with one chain and four hosts that makes four contiguous
//! pieces.

use std::cmp::Reverse;

use crewboss_protocol::TaskId;

use super::Scheduler;
use super::task::{NO_SEGMENT, Phase};
use super::types::{ChainId, HostIndex};

/// Tasks that a segment must have left, besides the one that is out, to be split. The first build
/// of a piece is a full one, so a piece of one task gains nothing over waiting for the incremental
/// one.
pub const SPLIT_MIN: u32 = 4;

#[derive(Debug)]
pub(super) struct Chain {
    pub id: ChainId,
    pub tasks: Vec<TaskId>,
    /// The segment that reaches the end, to which further tasks are appended.
    pub tail: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub chain: u32,
    pub class: u32,
    /// The next task to go out, as a place in the chain.
    pub start: u32,
    /// Behind the last task.
    pub end: u32,
    /// The task that is out.
    pub held: Option<TaskId>,
}

impl Segment {
    pub fn left(&self) -> u32 {
        self.end - self.start
    }
}

impl Scheduler {
    /// Puts a new task at the end of its chain.
    pub(super) fn append_to_chain(&mut self, task: TaskId, id: ChainId, class: u32) {
        let next = u32::try_from(self.chains.len()).unwrap_or(NO_SEGMENT);
        let chain = *self.chain_index.entry(id).or_insert(next);
        if chain == next {
            self.chains.push(Chain { id, tasks: Vec::new(), tail: NO_SEGMENT });
        }
        let place = u32::try_from(self.chains[chain as usize].tasks.len()).unwrap_or(u32::MAX);
        self.chains[chain as usize].tasks.push(task);
        let state = self.task_mut(task);
        state.chain = chain;
        state.phase = Phase::Blocked;
        let tail = self.chains[chain as usize].tail;
        let open = self.segments.get(tail as usize).is_some_and(|s| s.left() > 0 || s.held.is_some());
        if open {
            self.lengthen(tail);
        } else {
            let segment =
                self.new_segment(Segment { chain, class, start: place, end: place + 1, held: None });
            self.chains[chain as usize].tail = segment;
            self.advance(segment);
        }
    }

    fn lengthen(&mut self, segment: u32) {
        let part = &self.segments[segment as usize];
        // The length is part of what the first task is sorted by.
        let queued = part.held.is_none().then(|| self.chains[part.chain as usize].tasks[part.start as usize]);
        if let Some(first) = queued {
            self.unqueue(first);
        }
        self.unfile_split(segment);
        self.segments[segment as usize].end += 1;
        self.file_split(segment);
        if let Some(first) = queued {
            self.make_ready(first);
        }
    }

    fn new_segment(&mut self, segment: Segment) -> u32 {
        self.segments.push(segment);
        u32::try_from(self.segments.len() - 1).unwrap_or(NO_SEGMENT)
    }

    /// Makes the next task of a segment ready that has none out; says which.
    pub(super) fn advance(&mut self, segment: u32) -> Option<TaskId> {
        loop {
            let part = &self.segments[segment as usize];
            if part.left() == 0 || part.held.is_some() {
                return None;
            }
            let task = self.chains[part.chain as usize].tasks[part.start as usize];
            if self.task(task).phase == Phase::Blocked {
                self.task_mut(task).segment = segment;
                self.make_ready(task);
                return Some(task);
            }
            self.segments[segment as usize].start += 1;
        }
    }

    /// The first task of a segment goes out.
    pub(super) fn chain_sent(&mut self, task: TaskId, host: HostIndex) {
        let segment = self.task(task).segment;
        let part = &mut self.segments[segment as usize];
        part.held = Some(task);
        part.start += 1;
        let (class, id) = (part.class, self.chains[part.chain as usize].id);
        self.file_split(segment);
        self.host_mut(host).chains.insert(id);
        // Somebody who idles may now be able to take half of it.
        if self.segments[segment as usize].left() >= SPLIT_MIN {
            self.flagged.insert(class);
        }
    }

    /// The task that was out is not any more; whether it comes back is for the caller to say.
    pub(super) fn chain_released(&mut self, task: TaskId, host: HostIndex) {
        let segment = self.task(task).segment;
        self.unfile_split(segment);
        let part = &mut self.segments[segment as usize];
        part.held = None;
        let id = self.chains[part.chain as usize].id;
        self.host_mut(host).chains.remove(&id);
    }

    /// A released task is to be tried again: it is the first of its segment once more.
    pub(super) fn chain_put_back(&mut self, task: TaskId) {
        let segment = self.task(task).segment;
        self.segments[segment as usize].start -= 1;
    }

    /// A task whose turn is over is to be tried again after all: it becomes a segment of its own.
    pub(super) fn chain_reopen(&mut self, task: TaskId) {
        let state = self.task(task);
        let (chain, class) = (state.chain, state.class);
        let place = self.chains[chain as usize].tasks.iter().position(|t| *t == task).unwrap_or(0);
        let start = u32::try_from(place).unwrap_or(0);
        let segment = self.new_segment(Segment { chain, class, start, end: start + 1, held: None });
        self.task_mut(task).segment = segment;
    }

    /// The back half of a segment of this class for a host that would idle otherwise.
    pub(super) fn split_for(&mut self, class: u32, host: HostIndex) -> Option<TaskId> {
        let holds = &self.host(host).chains;
        let mut whole = None;
        for (_, segment) in &self.classes[class as usize].splittable {
            let part = &self.segments[*segment as usize];
            if !holds.contains(&self.chains[part.chain as usize].id) {
                whole = Some(*segment);
                break;
            }
        }
        let segment = whole?;
        self.unfile_split(segment);
        let mut back = self.segments[segment as usize].clone();
        back.start += back.left() / 2;
        back.held = None;
        self.segments[segment as usize].end = back.start;
        self.file_split(segment);
        let chain = back.chain as usize;
        let new = self.new_segment(back);
        if self.chains[chain].tail == segment {
            self.chains[chain].tail = new;
        }
        self.advance(new)
    }

    fn file_split(&mut self, segment: u32) {
        let part = &self.segments[segment as usize];
        if part.held.is_some() && part.left() >= SPLIT_MIN {
            let entry = (Reverse(part.left()), segment);
            self.classes[part.class as usize].splittable.insert(entry);
        }
    }

    fn unfile_split(&mut self, segment: u32) {
        let part = &self.segments[segment as usize];
        let entry = (Reverse(part.left()), segment);
        self.classes[part.class as usize].splittable.remove(&entry);
    }
}

//! One transfer, pure: packets and the time go in, steps come out.
//!
//! Nothing here touches sockets, files or clocks: [`Sending`] and [`Receiving`] say which blocks to
//! send or store, and the caller does it. Blocks are counted with 64 bits; the wire has the last 16
//! of them, so after block 65535 comes 0, as with busybox and most others.
//!
//! A packet that was seen before never causes a block to be sent again (the "Sorcerer's Apprentice"
//! of RFC 1123): only the time does.

use std::time::{Duration, Instant};

/// How often, and how long, a silent client is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time until a packet is sent again; doubled each time.
    pub first: Duration,
    /// The most that it grows to.
    pub most: Duration,
    /// A client that brings a transfer no further for so long is given up.
    pub patience: Duration,
    /// How long a finished receiver still answers repetitions of the last block.
    pub dally: Duration,
}

impl Pace {
    /// With the interval that a client wants.
    #[must_use]
    pub fn every(self, seconds: u8) -> Self {
        let interval = Duration::from_secs(seconds.into());
        Self { first: interval, most: interval, patience: self.patience.max(interval * 3), ..self }
    }
}

/// The terms of a transfer, after negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Size of a block.
    pub block: u16,
    /// Blocks before an acknowledgement.
    pub window: u16,
    /// Whether the client gave options, so that the first packet grants them.
    pub options: bool,
    /// When to ask again.
    pub pace: Pace,
}

/// What a sender does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendStep {
    /// Nothing.
    Nothing,
    /// Grants the options.
    Options,
    /// Sends blocks; the first block of a file is number 1.
    Blocks {
        /// The first of them.
        first: u64,
        /// How many.
        count: u16,
    },
    /// It is over, and everything has arrived.
    Done,
    /// It is over: the client is silent.
    GiveUp,
}

/// What a receiver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveStep {
    /// Nothing.
    Nothing,
    /// Grants the options.
    Options,
    /// Acknowledges a block.
    Ack(u16),
    /// Keeps the data of this packet, then acknowledges it if so told.
    Store {
        /// The block to acknowledge.
        ack: Option<u16>,
        /// Whether this was the end of the file: it must be safe before it is acknowledged.
        last: bool,
    },
    /// It is over: the file was complete before, and the client has had time to hear of it.
    Done,
    /// It is over: the client is silent.
    GiveUp,
}

/// When to do something without a packet.
#[derive(Debug, Clone, Copy)]
struct Timer {
    pace: Pace,
    wait: Duration,
    due: Instant,
    end: Instant,
}

impl Timer {
    fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, wait: pace.first, due: now + pace.first, end: now + pace.patience }
    }

    /// The client brought the transfer further.
    fn progress(&mut self, now: Instant) {
        *self = Self::new(self.pace, now);
    }

    /// Stops asking, and waits for repetitions only.
    fn dally(&mut self, now: Instant) {
        self.end = now + self.pace.dally;
        self.due = self.end;
    }

    fn deadline(&self) -> Instant {
        self.due.min(self.end)
    }

    /// Something is sent again: the next time comes later.
    fn repeat(&mut self, now: Instant) {
        self.wait = (self.wait * 2).min(self.pace.most);
        self.due = now + self.wait;
    }
}

/// The last 16 bits of a block's number.
pub fn low(number: u64) -> u16 {
    let [.., high, low] = number.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// The state of a transfer to the client.
#[derive(Debug, Clone)]
pub struct Sending {
    window: u16,
    /// The last block. It is shorter than the others, and may be empty.
    last: u64,
    acked: u64,
    sent: u64,
    greeting: bool,
    heard: bool,
    timer: Timer,
}

impl Sending {
    /// A transfer of `size` bytes, and its first step.
    pub fn start(terms: Terms, size: u64, now: Instant) -> (Self, SendStep) {
        let last = size / u64::from(terms.block.max(1)) + 1;
        let timer = Timer::new(terms.pace, now);
        let window = terms.window.max(1);
        let greeting = terms.options;
        let mut new = Self { window, last, acked: 0, sent: 0, greeting, heard: false, timer };
        let step = new.current();
        (new, step)
    }

    /// What is sent, for the first time or again.
    fn current(&mut self) -> SendStep {
        if self.greeting {
            return SendStep::Options;
        }
        let left = self.last - self.acked;
        let count = u16::try_from(left).map_or(self.window, |left| left.min(self.window));
        self.sent = self.sent.max(self.acked + u64::from(count));
        SendStep::Blocks { first: self.acked + 1, count }
    }

    /// The client has everything up to this block.
    pub fn on_ack(&mut self, block: u16, now: Instant) -> SendStep {
        if self.greeting {
            if block != 0 {
                return SendStep::Nothing;
            }
            self.greeting = false;
        } else {
            let further = u64::from(block.wrapping_sub(low(self.acked)));
            // Nothing new, or something that was never sent.
            if further == 0 || further > self.sent - self.acked {
                return SendStep::Nothing;
            }
            self.acked += further;
            if self.acked == self.last {
                return SendStep::Done;
            }
        }
        self.heard = true;
        self.timer.progress(now);
        self.current()
    }

    /// To be called when [`Self::deadline`] is over.
    pub fn on_time(&mut self, now: Instant) -> SendStep {
        if now >= self.timer.end {
            return SendStep::GiveUp;
        }
        if now < self.timer.due {
            return SendStep::Nothing;
        }
        self.timer.repeat(now);
        self.current()
    }

    /// When [`Self::on_time`] wants to be called.
    pub fn deadline(&self) -> Instant {
        self.timer.deadline()
    }

    /// Whether the client has answered at all.
    pub fn heard(&self) -> bool {
        self.heard
    }
}

/// The state of a transfer from the client.
#[derive(Debug, Clone)]
pub struct Receiving {
    block: u16,
    window: u16,
    received: u64,
    unacked: u16,
    /// A missing block was told already.
    gap: bool,
    greeting: bool,
    finished: bool,
    timer: Timer,
}

impl Receiving {
    /// A transfer, and its first step.
    pub fn start(terms: Terms, now: Instant) -> (Self, ReceiveStep) {
        let new = Self {
            block: terms.block,
            window: terms.window.max(1),
            received: 0,
            unacked: 0,
            gap: false,
            greeting: terms.options,
            finished: false,
            timer: Timer::new(terms.pace, now),
        };
        let step = new.current();
        (new, step)
    }

    /// What is sent, for the first time or again.
    fn current(&self) -> ReceiveStep {
        if self.greeting { ReceiveStep::Options } else { ReceiveStep::Ack(low(self.received)) }
    }

    /// A block of `len` bytes has come, which is not more than the size of a block.
    pub fn on_data(&mut self, block: u16, len: usize, now: Instant) -> ReceiveStep {
        let last_seen = block == low(self.received) && self.received > 0;
        if self.finished {
            return if last_seen { ReceiveStep::Ack(block) } else { ReceiveStep::Nothing };
        }
        let ahead = block.wrapping_sub(low(self.received)).wrapping_sub(1);
        if ahead == 0 {
            return self.next(block, len, now);
        }
        if ahead < self.window && !self.gap {
            // The client starts again behind what is here.
            (self.gap, self.unacked) = (true, 0);
            return ReceiveStep::Ack(low(self.received));
        }
        // Our acknowledgement was lost; in the middle of a window there was none.
        if last_seen && self.unacked == 0 { ReceiveStep::Ack(block) } else { ReceiveStep::Nothing }
    }

    fn next(&mut self, block: u16, len: usize, now: Instant) -> ReceiveStep {
        self.received += 1;
        (self.gap, self.greeting) = (false, false);
        self.timer.progress(now);
        self.finished = len < usize::from(self.block);
        if self.finished {
            self.timer.dally(now);
            return ReceiveStep::Store { ack: Some(block), last: true };
        }
        self.unacked += 1;
        if self.unacked < self.window {
            return ReceiveStep::Store { ack: None, last: false };
        }
        self.unacked = 0;
        ReceiveStep::Store { ack: Some(block), last: false }
    }

    /// To be called when [`Self::deadline`] is over.
    pub fn on_time(&mut self, now: Instant) -> ReceiveStep {
        if now >= self.timer.end {
            return if self.finished { ReceiveStep::Done } else { ReceiveStep::GiveUp };
        }
        if now < self.timer.due {
            return ReceiveStep::Nothing;
        }
        self.timer.repeat(now);
        self.unacked = 0;
        self.current()
    }

    /// When [`Self::on_time`] wants to be called.
    pub fn deadline(&self) -> Instant {
        self.timer.deadline()
    }

    /// Whether any block has come.
    pub fn heard(&self) -> bool {
        self.received > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        first: Duration::from_millis(100),
        most: Duration::from_millis(400),
        patience: Duration::from_secs(2),
        dally: Duration::from_secs(1),
    };

    fn terms(window: u16, options: bool) -> Terms {
        Terms { block: 8, window, options, pace: PACE }
    }

    fn blocks(first: u64, count: u16) -> SendStep {
        SendStep::Blocks { first, count }
    }

    #[test]
    fn a_repeated_acknowledgement_sends_nothing_again() {
        let now = Instant::now();
        let (mut sending, step) = Sending::start(terms(1, true), 20, now);
        assert_eq!(step, SendStep::Options);
        assert_eq!(sending.on_ack(1, now), SendStep::Nothing);
        assert_eq!(sending.on_ack(0, now), blocks(1, 1));
        assert_eq!(sending.on_ack(0, now), SendStep::Nothing);
        assert_eq!(sending.on_ack(1, now), blocks(2, 1));
        assert_eq!(sending.on_ack(1, now), SendStep::Nothing);
        assert_eq!(sending.on_ack(3, now), SendStep::Nothing, "it was never sent");
        assert_eq!(sending.on_ack(2, now), blocks(3, 1));
        assert_eq!(sending.on_ack(3, now), SendStep::Done);
    }

    #[test]
    fn a_file_of_whole_blocks_ends_with_an_empty_one() {
        let now = Instant::now();
        let (mut sending, step) = Sending::start(terms(1, false), 8, now);
        assert_eq!(step, blocks(1, 1));
        assert_eq!(sending.on_ack(1, now), blocks(2, 1));
        assert_eq!(sending.on_ack(2, now), SendStep::Done);
        let (mut empty, step) = Sending::start(terms(4, false), 0, now);
        assert_eq!(step, blocks(1, 1));
        assert_eq!(empty.on_ack(1, now), SendStep::Done);
    }

    #[test]
    fn after_block_65535_comes_block_0() {
        let now = Instant::now();
        let (mut sending, _) = Sending::start(terms(1, false), 8 * 140_000, now);
        let (mut receiving, _) = Receiving::start(terms(1, false), now);
        for number in 1..=140_000_u64 {
            let stored = receiving.on_data(low(number), 8, now);
            assert_eq!(stored, ReceiveStep::Store { ack: Some(low(number)), last: false });
            assert_eq!(sending.on_ack(low(number), now), blocks(number + 1, 1));
        }
        assert_eq!(low(65536), 0);
        assert_eq!(sending.on_ack(low(140_001), now), SendStep::Done);
    }

    #[test]
    fn silence_is_answered_ever_more_slowly_and_then_ends_it() {
        let start = Instant::now();
        let (mut sending, _) = Sending::start(terms(1, false), 8, start);
        let (mut receiving, _) = Receiving::start(terms(1, true), start);
        let mut times = Vec::new();
        loop {
            let now = sending.deadline();
            assert_eq!(receiving.deadline(), now);
            times.push((now - start).as_millis());
            let (sent, received) = (sending.on_time(now), receiving.on_time(now));
            if sent == SendStep::GiveUp {
                assert_eq!(received, ReceiveStep::GiveUp);
                break;
            }
            assert_eq!((sent, received), (blocks(1, 1), ReceiveStep::Options));
        }
        assert_eq!(times, [100, 300, 700, 1100, 1500, 1900, 2000]);
    }

    #[test]
    fn a_gap_in_a_window_is_told_once() {
        let now = Instant::now();
        let (mut receiving, _) = Receiving::start(terms(4, false), now);
        assert_eq!(receiving.on_data(1, 8, now), ReceiveStep::Store { ack: None, last: false });
        assert_eq!(receiving.on_data(3, 8, now), ReceiveStep::Ack(1));
        assert_eq!(receiving.on_data(4, 8, now), ReceiveStep::Nothing);
        assert_eq!(receiving.on_data(9, 8, now), ReceiveStep::Nothing, "out of any window");
        assert_eq!(receiving.on_data(2, 8, now), ReceiveStep::Store { ack: None, last: false });
        let (mut sending, step) = Sending::start(terms(4, false), 100, now);
        assert_eq!(step, blocks(1, 4));
        assert_eq!(sending.on_ack(1, now), blocks(2, 4));
        assert_eq!(sending.on_ack(5, now), blocks(6, 4));
    }

    #[test]
    fn the_last_acknowledgement_is_given_again_for_a_while() {
        let now = Instant::now();
        let (mut receiving, step) = Receiving::start(terms(1, false), now);
        assert_eq!(step, ReceiveStep::Ack(0));
        assert_eq!(receiving.on_data(1, 3, now), ReceiveStep::Store { ack: Some(1), last: true });
        assert_eq!(receiving.on_data(1, 3, now), ReceiveStep::Ack(1));
        assert_eq!(receiving.on_data(2, 3, now), ReceiveStep::Nothing);
        assert_eq!(receiving.deadline(), now + PACE.dally);
        assert_eq!(receiving.on_time(now + PACE.dally), ReceiveStep::Done);
    }
}

//! Transfers over a simulated network that loses, doubles, delays and reorders packets, repeatable
//! from a seed.

use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::transfer::{Pace, ReceiveStep, Receiving, SendStep, Sending, Terms, low};

const PACE: Pace = Pace {
    first: Duration::from_millis(100),
    most: Duration::from_secs(1),
    patience: Duration::from_secs(10),
    dally: Duration::from_secs(4),
};

/// Chances in 256.
#[derive(Debug, Clone, Copy)]
struct Faults {
    lost: u64,
    doubled: u64,
    late: u64,
}

/// xorshift: enough for a simulation.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn hits(&mut self, of_256: u64) -> bool {
        self.next() >> 20 & 255 < of_256
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Wire {
    Options,
    Data(u16, Vec<u8>),
    Ack(u16),
}

struct Network {
    now: Instant,
    chance: Chance,
    faults: Faults,
    /// Soonest first: time, running number, whether to the receiver.
    packets: BinaryHeap<std::cmp::Reverse<(Instant, u64, bool, Wire)>>,
    sent: u64,
}

impl Network {
    fn send(&mut self, to_receiver: bool, packet: &Wire) {
        let copies = if self.chance.hits(self.faults.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            self.sent += 1;
            if self.chance.hits(self.faults.lost) {
                continue;
            }
            // Packets stay in order if none is late.
            let spread = match self.faults.late {
                0 => 1,
                late if self.chance.hits(late) => 300_000,
                _ => 200,
            };
            let delay = Duration::from_micros(50 + self.chance.next() % spread);
            self.packets.push(std::cmp::Reverse((self.now + delay, self.sent, to_receiver, packet.clone())));
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    GaveUp,
}

/// Both ends of a transfer; either may be the server, the protocol is the same.
struct Ends {
    block: usize,
    content: Vec<u8>,
    sending: Sending,
    receiving: Receiving,
    arrived: Vec<u8>,
    complete: bool,
    sender: Option<End>,
    receiver_gone: bool,
}

impl Ends {
    fn on_send(&mut self, step: SendStep, network: &mut Network) {
        match step {
            SendStep::Nothing => {}
            SendStep::Options => network.send(true, &Wire::Options),
            SendStep::Blocks { first, count } => {
                for number in first..first + u64::from(count) {
                    let start = usize::try_from(number - 1).unwrap() * self.block;
                    let end = self.content.len().min(start + self.block);
                    network.send(true, &Wire::Data(low(number), self.content[start..end].to_vec()));
                }
            }
            SendStep::Done => self.sender = Some(End::Whole),
            SendStep::GiveUp => self.sender = Some(End::GaveUp),
        }
    }

    fn on_receive(&mut self, step: ReceiveStep, data: &[u8], network: &mut Network) {
        match step {
            ReceiveStep::Nothing => {}
            ReceiveStep::Options => network.send(false, &Wire::Options),
            ReceiveStep::Ack(block) => network.send(false, &Wire::Ack(block)),
            ReceiveStep::Store { ack, last } => {
                assert!(!self.complete, "a block after the last");
                self.arrived.extend_from_slice(data);
                self.complete = last;
                if let Some(block) = ack {
                    network.send(false, &Wire::Ack(block));
                }
            }
            ReceiveStep::Done | ReceiveStep::GiveUp => {
                assert_eq!(step == ReceiveStep::Done, self.complete);
                self.receiver_gone = true;
            }
        }
    }

    fn deliver(&mut self, to_receiver: bool, packet: Wire, network: &mut Network) {
        let now = network.now;
        match (to_receiver, packet) {
            (true, Wire::Data(block, data)) if !self.receiver_gone => {
                let step = self.receiving.on_data(block, data.len(), now);
                self.on_receive(step, &data, network);
            }
            // A client that gets acknowledged options answers with the acknowledgement of block 0,
            // or with block 1.
            (true, Wire::Options) => network.send(false, &Wire::Ack(0)),
            (false, Wire::Options) => {
                let step = self.sending.on_ack(0, now);
                self.on_send(step, network);
            }
            (false, Wire::Ack(block)) if self.sender.is_none() => {
                let step = self.sending.on_ack(block, now);
                self.on_send(step, network);
            }
            _ => {}
        }
    }
}

/// Runs a transfer to its end; answers how the sender sees it, and the packets that it took.
fn run(seed: u64, size: usize, block: u16, window: u16, put: bool, faults: Faults) -> (End, u64) {
    let start = Instant::now();
    let chance = Chance(seed | 1);
    let mut network = Network { now: start, chance, faults, packets: BinaryHeap::new(), sent: 0 };
    let content: Vec<u8> = (0..size).map(|_| low(network.chance.next() >> 9).to_be_bytes()[0]).collect();
    let terms = |options| Terms { block, window, options, pace: PACE };
    // Who gets a file never begins; who puts one waits for the server's word.
    let (sending, first) = Sending::start(terms(true), content.len() as u64, start);
    let (receiving, second) = Receiving::start(terms(put), start);
    let mut ends = Ends {
        block: block.into(),
        content,
        sending,
        receiving,
        arrived: Vec::new(),
        complete: false,
        sender: None,
        receiver_gone: false,
    };
    if put {
        ends.on_receive(second, &[], &mut network);
    } else {
        ends.on_send(first, &mut network);
    }
    while ends.sender.is_none() || !ends.receiver_gone {
        step(&mut ends, &mut network, put);
        assert!(network.now < start + Duration::from_secs(100_000), "it never ends");
        assert!(network.sent < 1_000_000, "packets multiply");
    }
    let whole = ends.complete && ends.arrived == ends.content;
    assert!(whole || !ends.complete, "it is complete, but not what was sent");
    let end = ends.sender.unwrap();
    assert!(end == End::GaveUp || whole, "the sender believes that it arrived");
    (end, network.sent)
}

/// The next thing in time: a packet, or the clock of either end.
fn step(ends: &mut Ends, network: &mut Network, put: bool) {
    let packet = network.packets.peek().map(|next| next.0.0);
    let sender = ends.sender.is_none().then(|| ends.sending.deadline());
    let receiver = (!ends.receiver_gone).then(|| ends.receiving.deadline());
    let next = [packet, sender, receiver].into_iter().flatten().min().unwrap();
    network.now = network.now.max(next);
    if packet == Some(next) {
        if let Some(std::cmp::Reverse((_, _, to_receiver, packet))) = network.packets.pop() {
            ends.deliver(to_receiver, packet, network);
        }
    } else if sender == Some(next) {
        // A client waits for the server's word in silence: it has sent its request, which here is
        // always there.
        match ends.sending.on_time(network.now) {
            SendStep::Options if put => {}
            step => ends.on_send(step, network),
        }
    } else {
        let step = ends.receiving.on_time(network.now);
        ends.on_receive(step, &[], network);
    }
}

#[test]
fn without_faults_each_packet_is_sent_once() {
    let none = Faults { lost: 0, doubled: 0, late: 0 };
    // 100 blocks and an empty one, an acknowledgement each, the options and their acknowledgement.
    assert_eq!(run(7, 800, 8, 1, false, none), (End::Whole, 204));
    assert_eq!(run(7, 800, 8, 1, true, none), (End::Whole, 203));
    // A window of 16 needs 7 acknowledgements.
    assert_eq!(run(7, 800, 8, 16, true, none), (End::Whole, 109));
}

#[test]
fn doubled_packets_do_not_multiply() {
    let (end, sent) = run(3, 8000, 8, 1, false, Faults { lost: 0, doubled: 256, late: 0 });
    assert_eq!(end, End::Whole);
    // Each of 1001 blocks once, each doubled by the network; both copies acknowledged, and these
    // doubled again.
    assert!(sent <= 1010 * 6, "{sent} packets");
}

#[test]
fn a_dead_network_ends_both_sides() {
    let dead = Faults { lost: 256, doubled: 0, late: 0 };
    assert_eq!(run(5, 100, 8, 1, false, dead).0, End::GaveUp);
    assert_eq!(run(5, 100, 8, 4, true, dead).0, End::GaveUp);
}

#[test]
fn a_file_of_more_than_65536_blocks_arrives_whole_over_a_bad_network() {
    let bad = Faults { lost: 2, doubled: 8, late: 1 };
    for (window, put) in [(1, true), (1, false), (16, false)] {
        assert_eq!(run(11, 8 * 66_000 + 3, 8, window, put, bad).0, End::Whole);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn what_arrives_is_whole_or_the_transfer_fails(
        seed in any::<u64>(), size in 0_usize..6000, block in 8_u16..80, window in 1_u16..20, put in any::<bool>(),
        lost in 0_u64..120, doubled in 0_u64..100, late in 0_u64..60,
    ) {
        run(seed, size, block, window, put, Faults { lost, doubled, late });
    }

    #[test]
    fn on_a_passable_network_it_always_arrives(
        seed in any::<u64>(), size in 0_usize..3000, window in 1_u16..9, put in any::<bool>(),
    ) {
        let end = run(seed, size, 32, window, put, Faults { lost: 12, doubled: 12, late: 6 }).0;
        prop_assert_eq!(end, End::Whole);
    }
}

//! How the memory of a task is divided among its build machine and those that serve it.
//!
//! Each machine gets its minimum first. What is left is shared in rounds: in each, every machine
//! that may have more gets another step of the size of its minimum, or what is missing to its
//! maximum. What is less than the next step stays with the host.

use crewboss_protocol::limits::AUXILIARIES_MAX;

/// Memory that guests leave to the host, in hundredths: its kernel, QEMU itself, the page cache for
/// their disks.
const HOST_PERCENT: u64 = 10;

/// What a slot has of a host's memory for all guests of its task together, in bytes.
pub fn slot_share(total: u64, slots: u32) -> u64 {
    total / 100 * (100 - HOST_PERCENT) / u64::from(slots.max(1))
}

/// What a machine needs and may have, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// The least that it runs in.
    pub min: u64,
    /// The most that it should get, if there is a limit.
    pub max: Option<u64>,
}

impl Wish {
    fn most(self) -> u64 {
        self.max.unwrap_or(u64::MAX)
    }

    /// What it gets next if it has `has`; 0 if it has all that it may have.
    fn step(self, has: u64) -> u64 {
        self.min.min(self.most().saturating_sub(has))
    }
}

/// Memory of each machine in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division {
    /// Of the build machine.
    pub build: u64,
    /// Of the auxiliary machines, in their order.
    pub auxiliary: Vec<u64>,
}

/// Divides `total` bytes. `None` if the minimums do not fit, a maximum is below its minimum, or
/// there are more auxiliary machines than a target may have. The same wishes always give the same
/// division.
pub fn divide(total: u64, build: Wish, auxiliary: &[Wish]) -> Option<Division> {
    if auxiliary.len() > AUXILIARIES_MAX {
        return None;
    }
    let wishes: Vec<Wish> = std::iter::once(build).chain(auxiliary.iter().copied()).collect();
    if wishes.iter().any(|wish| wish.most() < wish.min) {
        return None;
    }
    let needed = wishes.iter().try_fold(0_u64, |sum, wish| sum.checked_add(wish.min))?;
    let mut left = total.checked_sub(needed)?;
    let mut shares: Vec<u64> = wishes.iter().map(|wish| wish.min).collect();
    left = whole_rounds(&wishes, &mut shares, left);
    last_rounds(&wishes, &mut shares, left);
    let mut shares = shares.into_iter();
    Some(Division { build: shares.next()?, auxiliary: shares.collect() })
}

/// Gives as many full steps to all as nobody reaches the maximum in and the rest allows, at once:
/// with a small minimum and much memory there may be millions of rounds. Returns what is left.
fn whole_rounds(wishes: &[Wish], shares: &mut [u64], mut left: u64) -> u64 {
    loop {
        let open: Vec<usize> =
            (0..wishes.len()).filter(|index| wishes[*index].step(shares[*index]) > 0).collect();
        let round = open.iter().fold(0_u64, |sum, index| sum.saturating_add(wishes[*index].min));
        let room = open.iter().map(|index| (wishes[*index].most() - shares[*index]) / wishes[*index].min);
        let Some(rounds) = room.min().map(|room| room.min(left / round.max(1))).filter(|rounds| *rounds > 0)
        else {
            return left;
        };
        for index in open {
            shares[index] += rounds * wishes[index].min;
        }
        left -= rounds * round;
    }
}

/// The rounds in which not everybody gets a full step: each but the last brings somebody to the
/// maximum.
fn last_rounds(wishes: &[Wish], shares: &mut [u64], mut left: u64) {
    loop {
        let mut given = false;
        for (wish, share) in wishes.iter().zip(shares.iter_mut()) {
            let step = wish.step(*share);
            if step > 0 && step <= left {
                *share += step;
                left -= step;
                given = true;
            }
        }
        if !given {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn wish(min: u64, max: Option<u64>) -> Wish {
        Wish { min: min * MIB, max: max.map(|max| max * MIB) }
    }

    #[test]
    fn two_machines_share_four_gibibytes_as_in_bbot() {
        let division = divide(4096 * MIB, wish(512, None), &[wish(1024, Some(1536))]).unwrap();
        assert_eq!(division, Division { build: 2560 * MIB, auxiliary: vec![1536 * MIB] });
        // Either way round.
        let division = divide(4096 * MIB, wish(1024, Some(1536)), &[wish(512, None)]).unwrap();
        assert_eq!(division, Division { build: 1536 * MIB, auxiliary: vec![2560 * MIB] });
    }

    #[test]
    fn the_shares_of_all_slots_leave_some_memory_to_the_host() {
        assert_eq!(slot_share(1000, 3), 300);
        assert_eq!(slot_share(1000, 0), 900);
        assert!(slot_share(u64::MAX, 1) < u64::MAX / 100 * 91);
    }

    #[test]
    fn steps_are_those_of_the_minimum() {
        let alone = |total: u64, max| divide(total * MIB, wish(256, max), &[]).map(|d| d.build / MIB);
        assert_eq!(alone(255, None), None);
        assert_eq!(alone(256, None), Some(256));
        assert_eq!(alone(1000, None), Some(768));
        assert_eq!(alone(1000, Some(600)), Some(600));
        let equal = divide(1100 * MIB, wish(100, None), &[wish(100, None); 3]).unwrap();
        assert_eq!(equal, Division { build: 300 * MIB, auxiliary: [300, 300, 200].map(|n| n * MIB).into() });
    }

    #[test]
    fn what_cannot_be_divided_is_not() {
        assert_eq!(divide(u64::MAX, wish(1, None), &[wish(1, None); 10]), None);
        assert_eq!(divide(u64::MAX, Wish { min: u64::MAX, max: None }, &[wish(1, None)]), None);
        assert_eq!(divide(u64::MAX, wish(2, Some(1)), &[]), None);
    }

    fn wishes() -> impl Strategy<Value = Vec<Wish>> {
        let one = (0..5000_u64, prop::option::of(0..5000_u64));
        let wish = one.prop_map(|(min, more)| Wish { min, max: more.map(|more| min + more) });
        prop::collection::vec(wish, 1..=10)
    }

    /// The rounds of the definition, one by one.
    fn slowly(mut left: u64, wishes: &[Wish]) -> Vec<u64> {
        let mut shares: Vec<u64> = wishes.iter().map(|wish| wish.min).collect();
        left -= shares.iter().sum::<u64>();
        last_rounds(wishes, &mut shares, left);
        shares
    }

    proptest! {
        #[test]
        fn nobody_gets_too_little_or_too_much(wishes in wishes(), total in 0..100_000_u64) {
            let least: u64 = wishes.iter().map(|wish| wish.min).sum();
            let division = divide(total, wishes[0], &wishes[1..]);
            prop_assert_eq!(division.is_some(), least <= total);
            let Some(division) = division else { return Ok(()) };
            let shares: Vec<u64> = std::iter::once(division.build).chain(division.auxiliary.clone()).collect();
            prop_assert_eq!(shares.len(), wishes.len());
            prop_assert!(shares.iter().sum::<u64>() <= total);
            for (share, wish) in shares.iter().zip(&wishes) {
                prop_assert!(*share >= wish.min && *share <= wish.most());
            }
            prop_assert_eq!(divide(total, wishes[0], &wishes[1..]), Some(division));
            prop_assert_eq!(&shares, &slowly(total, &wishes), "the short way gives something else");
        }

        #[test]
        fn equal_machines_differ_by_one_step_at_most(count in 1..=10_usize, total in 0..100_000_u64) {
            let one = Wish { min: 1000, max: None };
            if let Some(division) = divide(total, one, &vec![one; count - 1]) {
                let shares = std::iter::once(division.build).chain(division.auxiliary);
                prop_assert!(shares.clone().max().unwrap_or(0) - shares.min().unwrap_or(0) <= 1000);
            }
        }

        #[test]
        fn any_numbers_will_do(total: u64, min: u64, max: Option<u64>, other: u64) {
            let wishes = [Wish { min, max }, Wish { min: other, max: None }];
            let sum = divide(total, wishes[0], &wishes[1..]).map(|division| division.build + division.auxiliary[0]);
            prop_assert!(sum.is_none_or(|sum| sum <= total));
        }
    }
}

//! Who a guest is that went on from saved memory, and whether it has become that; all but the
//! random bytes is pure.
//!
//! Every guest of a template wakes up as the one that was saved: with its clock, its random
//! numbers, its names. It is told who it is now, and nothing runs in it before its answer, read
//! back from its kernel, says so.

use std::fs::File;
use std::io::{self, Read as _};

use crewboss_protocol::Name;
use crewboss_protocol::guest::Identity;

/// How far the clock of a guest may be off.
const CLOCK_MS_MAX: u64 = 1000;

/// Random bytes for the kernel of a guest: twice what it keeps.
const SEED_BYTES: usize = 64;

/// Longest host name of Linux.
const HOST_NAME_MAX: usize = 64;

/// What an answer leaves to doubt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The clock alone is wrong: it took long until the guest heard what time it is. It may be told
    /// again.
    #[error("its clock is {ms} ms off")]
    Clock {
        /// By so much.
        ms: u64,
    },
    /// It is still somebody else.
    #[error("its {what} is not what it was told")]
    Other {
        /// What.
        what: &'static str,
    },
}

/// Makes up an identity: random numbers and machine id that no other guest has, the name that the
/// machine itself would have, the time `now` in milliseconds since 1970.
///
/// # Errors
/// If there are no random bytes to be had.
#[expect(clippy::disallowed_methods, reason = "a device of the system")]
pub fn make_up(machine: &Name, mac: Option<String>, now: u64) -> io::Result<Identity> {
    let mut random = [0; SEED_BYTES + 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let (seed, id) = random.split_at(SEED_BYTES);
    Ok(Identity { clock_ms: now, seed: hex(seed), machine_id: hex(id), host_name: host_name(machine), mac })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The host name that a machine has: its own, without what host names cannot have.
fn host_name(machine: &Name) -> Name {
    let mut text = machine.as_str().replace(['.', '_', '+'], "-");
    text.truncate(HOST_NAME_MAX);
    text.trim_matches('-').parse().unwrap_or_else(|_| machine.clone())
}

/// Whether a guest that was told to be `told` is that, by what it answered at the time `now`.
///
/// # Errors
/// What it is not.
pub fn prove(told: &Identity, answered: &Identity, now: u64) -> Result<(), Doubt> {
    let differs = |what| Err(Doubt::Other { what });
    let seed: Option<Vec<u8>> = told.seed.as_bytes().chunks(2).map(byte).collect();
    if seed.is_none_or(|seed| blake3::hash(&seed).to_hex().as_str() != answered.seed) {
        return differs("random seed");
    }
    if told.machine_id != answered.machine_id {
        return differs("machine id");
    }
    if told.host_name != answered.host_name {
        return differs("host name");
    }
    if told.mac != answered.mac {
        return differs("network address");
    }
    let ms = answered.clock_ms.abs_diff(now);
    if ms > CLOCK_MS_MAX { Err(Doubt::Clock { ms }) } else { Ok(()) }
}

fn byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Identity {
        let machine: Name = "debian_12.gcc".parse().unwrap();
        make_up(&machine, Some("52:54:00:00:00:01".to_owned()), 5_000_000).unwrap()
    }

    fn answer(told: &Identity) -> Identity {
        let seed: Vec<u8> = told.seed.as_bytes().chunks(2).map(|digits| byte(digits).unwrap()).collect();
        Identity { seed: blake3::hash(&seed).to_hex().to_string(), ..told.clone() }
    }

    #[test]
    fn no_two_guests_are_the_same() {
        let (one, other) = (told(), told());
        assert_eq!(one.host_name.as_str(), "debian-12-gcc");
        assert_eq!((one.machine_id.len(), one.seed.len()), (32, 2 * SEED_BYTES));
        assert!(one.machine_id != other.machine_id && one.seed != other.seed);
    }

    #[test]
    fn only_a_guest_that_is_all_that_it_was_told_to_be_is_believed() {
        let told = told();
        assert_eq!(prove(&told, &answer(&told), 5_000_900), Ok(()));
        let doubt = |change: &dyn Fn(&mut Identity)| {
            let mut answer = answer(&told);
            change(&mut answer);
            prove(&told, &answer, 5_000_000).unwrap_err()
        };
        assert_eq!(doubt(&|one| one.clock_ms += 1001), Doubt::Clock { ms: 1001 });
        assert_eq!(doubt(&|one| one.clock_ms -= 1001), Doubt::Clock { ms: 1001 });
        let other = |what| Doubt::Other { what };
        assert_eq!(doubt(&|one| one.seed.clone_from(&told.seed)), other("random seed"));
        assert_eq!(doubt(&|one| one.machine_id = "0".repeat(32)), other("machine id"));
        assert_eq!(doubt(&|one| one.host_name = "x".parse().unwrap()), other("host name"));
        assert_eq!(doubt(&|one| one.mac = None), other("network address"));
    }

    #[test]
    fn a_host_name_is_one_that_linux_takes() {
        let name = |text: &str| host_name(&text.parse().unwrap()).to_string();
        assert_eq!(name("tiny"), "tiny");
        assert_eq!(name("a_b.c+d"), "a-b-c-d");
        assert_eq!(name(&"x".repeat(90)).len(), HOST_NAME_MAX);
    }
}

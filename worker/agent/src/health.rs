//! How the guest is.

use crewboss_host::storage::free_bytes;
use crewboss_protocol::guest::{FromGuest, GuestLoad};

use super::place::Place;

/// The answer to a ping; `busy` while a job runs. What cannot be read is 0.
pub(super) fn alive(place: &Place, number: u64, busy: bool) -> FromGuest {
    let read = |path| crewboss_ground::kernel_text(path).unwrap_or_default();
    // The work directory may not have been made yet.
    let free = free_bytes(&place.work()).or_else(|_| free_bytes(&place.at("/")));
    FromGuest::Alive {
        number,
        load: GuestLoad {
            load_percent: load(&read("/proc/loadavg")).unwrap_or(0),
            memory_available: available(&read("/proc/meminfo")).unwrap_or(0),
            disk_free: free.unwrap_or(0),
        },
        busy,
    }
}

fn load(text: &str) -> Option<u32> {
    let (whole, part) = text.split(' ').next()?.split_once('.')?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.get(..2)?.parse().ok()?)
}

fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(load("1.07 0.50 0.10 1/99 1234\n"), Some(107));
        assert_eq!(load("x"), None);
        assert_eq!(available("MemTotal: 10 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available(""), None);
    }
}

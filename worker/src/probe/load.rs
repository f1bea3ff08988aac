//! The state of the host right now. Read every few seconds, so only a handful of small files.

use std::fs;
use std::path::Path;

use crewboss_host::layout::Layout;
use crewboss_protocol::Load;

/// What the host is doing. Whatever cannot be read is 0 or missing.
pub fn load(layout: &Layout) -> Load {
    Load {
        load_percent: load_percent(),
        memory_available: memory().map_or(0, |system| system.available_memory()),
        disk_free: disk_free(layout.work()),
        cpu_pressure: crewboss_ground::kernel_text("/proc/pressure/cpu")
            .ok()
            .and_then(|text| pressure(&text)),
        temperature: temperature(),
    }
}

/// All memory, in bytes; of our control group if that has less.
pub(super) fn memory_total() -> u64 {
    let Some(system) = memory() else { return 0 };
    let total = system.total_memory();
    let limit = crewboss_ground::kernel_text("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    limit.map_or(total, |limit: u64| limit.min(total))
}

fn memory() -> Option<sysinfo::System> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory_specifics(sysinfo::MemoryRefreshKind::nothing().with_ram());
    Some(system)
}

fn disk_free(work: &Path) -> u64 {
    crewboss_host::storage::free_bytes(work).unwrap_or(0)
}

fn load_percent() -> u32 {
    let text = crewboss_ground::kernel_text("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(hundredths).unwrap_or(0)
}

/// A number like `1.07` in hundredths, without floating point.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.')?;
    let part: u32 = part.get(..2)?.parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part)
}

/// `some avg10=0.12 avg60=...`
fn pressure(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("avg10=")).and_then(hundredths)
}

/// The hottest of all sensors, in thousandths of a degree.
fn temperature() -> Option<i32> {
    let sensors = inputs("/sys/class/thermal", "thermal_zone", |name| name == "temp");
    let sensors = if sensors.is_empty() {
        inputs("/sys/class/hwmon", "hwmon", |name| name.starts_with("temp") && name.ends_with("_input"))
    } else {
        sensors
    };
    // Some drivers say 0 or far below zero when they do not know.
    sensors.into_iter().filter(|degrees| (1..200_000).contains(degrees)).max()
}

fn inputs(class: &str, device: &str, is_input: impl Fn(&str) -> bool) -> Vec<i32> {
    let Ok(devices) = fs::read_dir(class) else { return Vec::new() };
    let devices = devices
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(device));
    let files = devices.filter_map(|entry| fs::read_dir(entry.path()).ok()).flatten().filter_map(Result::ok);
    let files = files.filter(|entry| is_input(&entry.file_name().to_string_lossy()));
    files.filter_map(|entry| crewboss_ground::kernel_text(entry.path()).ok()?.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_two_decimals_become_hundredths() {
        assert_eq!(hundredths("1.07"), Some(107));
        assert_eq!(hundredths("0.00"), Some(0));
        for text in ["", "1", "1.", "1.5", "x.yz", "-1.00", "99999999999.00"] {
            assert_eq!(hundredths(text), None, "{text:?}");
        }
    }

    #[test]
    fn pressure_is_that_of_some_tasks_over_ten_seconds() {
        let text = "some avg10=1.23 avg60=4.56 avg300=7.89 total=1\nfull avg10=9.99 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(pressure(text), Some(123));
        assert_eq!(pressure("nonsense"), None);
    }
}

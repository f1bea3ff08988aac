//! Durations and sizes as people write them.

use std::time::Duration;

use bytesize::ByteSize;
use jiff::{Span, SpanRelativeTo};

/// Longest duration that makes sense anywhere: beyond it a unit was mistaken.
const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Reads a duration such as `30m`, `1h 30m`, `7d` or `500ms`: more than nothing, at most 30 days.
///
/// # Errors
/// A sentence for a person.
pub fn duration(text: &str) -> Result<Duration, String> {
    let refuse = |why: &str| format!("{text:?} is no duration: {why}; write it as \"30m\" or \"1h 30m\"");
    let number = text.starts_with(|c: char| c.is_ascii_digit());
    if number && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse("its unit is missing"));
    }
    let unknown = || refuse("it is not made of numbers and units (d, h, m, s, ms)");
    let span: Span = text.parse().map_err(|_| unknown())?;
    // Months and years have no length of their own.
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| unknown())?;
    if text.contains('-') || text.contains('+') || text.contains("ago") {
        return Err(refuse("it cannot have a sign"));
    }
    let duration = Duration::try_from(signed).map_err(|_| refuse("it cannot be negative"))?;
    if duration < Duration::from_millis(1) {
        return Err(refuse("it is nothing"));
    }
    if duration > DURATION_MAX {
        return Err(refuse("it is longer than 30 days"));
    }
    Ok(duration)
}

/// Reads an amount of bytes such as `4 GiB` or `500 MB`.
///
/// # Errors
/// A sentence for a person.
pub fn size(text: &str) -> Result<u64, String> {
    let refuse = |why: &str| format!("{text:?} is no size: {why}; write it as \"4 GiB\" or \"500 MB\"");
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(refuse("it does not begin with a number"));
    }
    if !text.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(refuse("its unit is missing"));
    }
    let size: ByteSize = text.parse().map_err(|_| refuse("number or unit is unknown"))?;
    if size.0 == u64::MAX { Err(refuse("it is too large")) } else { Ok(size.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let seconds = |text: &str| duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("30m"), Ok(1800.0));
        assert_eq!(seconds("1h 30m"), Ok(5400.0));
        assert_eq!(seconds("7d"), Ok(7.0 * 86_400.0));
        assert_eq!(seconds("90 seconds"), Ok(90.0));
        assert_eq!(seconds("250ms"), Ok(0.25));
        let refused = [
            "",
            "30",
            "-5m",
            "+5m",
            "5m ago",
            "90 seconds ago",
            "0s",
            "1ns",
            "1000h",
            "31d",
            "1 month",
            "soon",
            "9999999999999999h",
        ];
        for text in refused {
            assert!(duration(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("4 GiB"), Ok(4 << 30));
        assert_eq!(size("1.5 KiB"), Ok(1536));
        assert_eq!(size("500 MB"), Ok(500_000_000));
        for text in ["", "4", "-4 GiB", "4 XB", "GiB", "nan", "99999999999999 PiB"] {
            assert!(size(text).is_err(), "{text:?} was accepted");
        }
    }
}

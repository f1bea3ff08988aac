//! Durations and sizes as people write them.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// Longest duration that makes sense anywhere: beyond it a unit was mistaken.
const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// A duration such as `"30m"`, `"1h 30m"` or `"500ms"`; more than nothing, at most 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeSpan(pub Duration);

/// As [`TimeSpan`], or `"0"` for no time at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeSpanOrNone(pub Duration);

/// An amount of bytes such as `"4 GiB"` or `"500 MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub u64);

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a duration in quotes, such as \"30m\" or \"1h 30m\"", |text| {
            parse_duration(text).map(TimeSpan)
        })
    }
}

impl<'de> Deserialize<'de> for TimeSpanOrNone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a duration in quotes, such as \"1h\", or \"0\" for never", |text| {
            parse_duration_or_none(text).map(TimeSpanOrNone)
        })
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a size in quotes, such as \"4 GiB\" or \"500 MB\"", |text| {
            parse_size(text).map(Amount)
        })
    }
}

/// A duration, or `0` for none at all.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn parse_duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration(text).map_err(|why| format!("{why}, or \"0\" for never"))
}

/// A duration.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = |why: &str| format!("{text:?} is no duration: {why}; write it as \"30m\" or \"1h 30m\"");
    let number = text.starts_with(|c: char| c.is_ascii_digit());
    if number && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse("its unit is missing"));
    }
    // Days are common in speech but not part of the library's exact durations.
    let signed: SignedDuration =
        text.parse().map_err(|_| refuse("it is not made of numbers and units (h, m, s, ms)"))?;
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

fn parse_size(text: &str) -> Result<u64, String> {
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

/// Reads a text, so that an error says what was expected and stands at its place.
pub fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(TextVisitor { expected, parse })
}

struct TextVisitor<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let seconds = |text: &str| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("30m"), Ok(1800.0));
        assert_eq!(seconds("1h 30m"), Ok(5400.0));
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
            "soon",
            "9999999999999999h",
        ];
        for text in refused {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(parse_duration_or_none("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration_or_none("1h"), Ok(Duration::from_secs(3600)));
        assert!(parse_duration_or_none("00").is_err());
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("4 GiB"), Ok(4 << 30));
        assert_eq!(parse_size("1.5 KiB"), Ok(1536));
        assert_eq!(parse_size("500 MB"), Ok(500_000_000));
        for text in ["", "4", "-4 GiB", "4 XB", "GiB", "nan", "99999999999999 PiB"] {
            assert!(parse_size(text).is_err(), "{text:?} was accepted");
        }
    }
}

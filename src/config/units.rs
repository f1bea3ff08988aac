//! Durations and sizes as people write them.

use std::fmt;
use std::time::Duration;

use crewboss_protocol::units;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

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
            units::duration(text).map(TimeSpan)
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
            units::size(text).map(Amount)
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
    units::duration(text).map_err(|why| format!("{why}, or \"0\" for never"))
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
    fn no_time_at_all_is_written_as_zero() {
        assert_eq!(parse_duration_or_none("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration_or_none("1h"), Ok(Duration::from_secs(3600)));
        assert!(parse_duration_or_none("00").is_err());
    }
}

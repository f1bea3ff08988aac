//! What is told in messages: texts that fit into them, and durations.

use std::time::Duration;

use crewboss_protocol::limits::TEXT_BYTES_MAX;

/// At most as much of a text as a message may hold.
pub fn shortened(mut text: String) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

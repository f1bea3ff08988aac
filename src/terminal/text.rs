//! Text for the screen: made harmless, shortened, coloured, and numbers as people read them.

use std::fmt;

use bytesize::ByteSize;
use crewboss_protocol::Outcome;
use crewboss_protocol::harmless::is_harmful;
pub use crewboss_protocol::harmless::{harmless, one_line};

/// Last lines of output shown with a failure.
pub const TAIL_LINES_MAX: usize = 20;

/// Longest line of such a tail, in characters.
const TAIL_LINE_CHARS_MAX: usize = 400;

/// A line of a file as it stands there, each character that could do harm replaced by `?`, so that
/// places in it stay where they are.
pub fn in_place(line: &str) -> String {
    let shown = |c| {
        if c == '\t' {
            ' '
        } else if c == '\n' || is_harmful(c) {
            '?'
        } else {
            c
        }
    };
    line.chars().map(shown).collect()
}

/// Adds formatted text. Writing into a `String` cannot fail.
pub fn put(into: &mut String, text: fmt::Arguments<'_>) {
    fmt::Write::write_fmt(into, text).unwrap_or_default();
}

/// At most so many characters, with `...` for what is left out at the end.
pub fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let kept: String = text.chars().take(max.saturating_sub(3)).collect();
    format!("{kept}...")
}

/// The last lines of foreign output, harmless and indented, each ended by a newline.
pub fn tail(output: &str, indent: &str) -> String {
    let clean = harmless(output);
    let lines: Vec<&str> = clean.trim_end().lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES_MAX);
    let mut shown = String::new();
    for line in &lines[skipped..] {
        let line = shortened(line.trim_end(), TAIL_LINE_CHARS_MAX);
        shown.extend([indent, line.as_str(), "\n"]);
    }
    shown
}

/// Bytes as people read them.
pub fn bytes(count: u64) -> String {
    ByteSize(count).to_string()
}

/// Milliseconds as people read them, never wider than seven characters below a hundred days.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..10 => format!("{seconds}.{}s", ms % 1000 / 100),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Milliseconds as a running clock shows them, in whole seconds.
pub fn clock(ms: u64) -> String {
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    if hours == 0 { format!("{minutes}:{seconds:02}") } else { format!("{hours}:{minutes:02}:{seconds:02}") }
}

/// A count with its noun, in the plural where it belongs.
pub fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Whether and how words are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Palette {
    /// Whether at all.
    pub colour: bool,
}

impl Palette {
    /// No colours.
    #[cfg(test)]
    pub const PLAIN: Self = Self { colour: false };

    /// A word in the colour of an outcome.
    pub fn outcome(self, outcome: Outcome, word: impl fmt::Display) -> String {
        let code = match outcome {
            Outcome::Success => "32",
            Outcome::Warning => "33",
            Outcome::Failure | Outcome::Timeout | Outcome::Abnormal => "31",
            Outcome::Infrastructure | Outcome::Interrupted | Outcome::Cancelled => "35",
            Outcome::Skipped => "36",
        };
        self.paint(code, word)
    }

    /// A word that stands out.
    pub fn strong(self, word: impl fmt::Display) -> String {
        self.paint("1", word)
    }

    fn paint(self, code: &str, word: impl fmt::Display) -> String {
        if self.colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_short() {
        let long = (0..100).map(|n| format!("line {n}\n")).collect::<String>();
        assert_eq!(tail(&long, "  ").lines().count(), TAIL_LINES_MAX);
        assert!(tail(&long, "  ").ends_with("  line 99\n"));
        assert_eq!(tail(&"x".repeat(100_000), "").len(), TAIL_LINE_CHARS_MAX + 1);
        assert_eq!(tail("", "  "), "");
    }

    #[test]
    fn numbers_are_readable() {
        let shown: Vec<String> = [0, 9_949, 59_999, 61_000, 3_600_000, 90_000_000].map(duration).into();
        assert_eq!(shown, ["0.0s", "9.9s", "59s", "1m 01s", "1h 00m", "1d 01h"]);
        assert_eq!([0, 65_999, 3_605_000].map(clock), ["0:00", "1:05", "1:00:05"]);
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(counted(1_u32, "task"), "1 task");
        assert_eq!(counted(0_u32, "task"), "0 tasks");
    }
}

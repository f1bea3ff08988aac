//! Lines: finding them in a stream of bytes, and writing them.
//!
//! Every line of ours begins with [`PREFIX`]. A remote shell may print whatever it likes before,
//! between and after; such a line is handed out as stray output and never parsed. Memory is bounded
//! by [`LINE_BYTES_MAX`] whatever arrives.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::LINE_BYTES_MAX;
use crate::message::{Invalid, Validate};

/// What every line of ours begins with.
pub const PREFIX: &[u8] = b"@cb ";

/// Longest piece of stray output handed out at once; a longer line comes in pieces.
const STRAY_BYTES_MAX: usize = 4096;

/// One thing found in the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// The text of one of our lines, without prefix and newline.
    Ours(&'a [u8]),
    /// Something else that was printed, or a part of it.
    Stray(&'a [u8]),
    /// One of our lines was longer than [`LINE_BYTES_MAX`]. The rest of it is skipped.
    TooLong,
}

/// Why a line of ours could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is longer than the limit.
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// It is not a message. The source says where.
    #[error("not a message: {excerpt:?}")]
    Syntax {
        /// The beginning of the line.
        excerpt: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// It is a message with impossible content.
    #[error("a message with impossible content")]
    Invalid(#[source] Invalid),
    /// The stream ended inside a line: the other side died while it spoke.
    #[error("the stream ended inside a line")]
    Torn,
}

/// Splits a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    /// Where the part that was not handed out yet begins.
    start: usize,
    /// Where to go on looking for a newline, so that no byte is looked at twice.
    scanned: usize,
    skipping: bool,
}

impl LineDecoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they were read. Call [`Self::next_line`] until it returns `None` before adding
    /// more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line, or `None` if more bytes are needed.
    pub fn next_line(&mut self) -> Option<Line<'_>> {
        loop {
            let newline = memchr::memchr(b'\n', &self.buffer[self.scanned..]).map(|at| self.scanned + at);
            let Some(end) = newline else {
                self.scanned = self.buffer.len();
                return self.unfinished();
            };
            let from = std::mem::replace(&mut self.start, end + 1);
            self.scanned = self.start;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            let line = &self.buffer[from..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            return Some(match line.strip_prefix(PREFIX) {
                Some(_) if end + 1 - from > LINE_BYTES_MAX => Line::TooLong,
                Some(text) => Line::Ours(text),
                None => Line::Stray(&line[..line.len().min(STRAY_BYTES_MAX)]),
            });
        }
    }

    /// Takes up to `max` bytes that were added already and follow the last line that was handed
    /// out, whatever is in them: data whose length that line said.
    pub fn take_raw(&mut self, max: usize) -> &[u8] {
        let from = self.start;
        self.start += max.min(self.buffer.len() - from);
        self.scanned = self.start;
        &self.buffer[from..self.start]
    }

    /// Keeps memory bounded while no newline comes.
    fn unfinished(&mut self) -> Option<Line<'_>> {
        let pending = &self.buffer[self.start..];
        let ours = pending.starts_with(PREFIX);
        if self.skipping {
            self.start = self.buffer.len();
            None
        } else if ours && pending.len() > LINE_BYTES_MAX {
            self.skipping = true;
            self.start = self.buffer.len();
            Some(Line::TooLong)
        } else if !ours && pending.len() > STRAY_BYTES_MAX {
            let from = std::mem::replace(&mut self.start, self.buffer.len());
            self.skipping = true;
            Some(Line::Stray(&self.buffer[from..from + STRAY_BYTES_MAX]))
        } else {
            None
        }
    }

    /// Call at the end of the stream: whatever is left is half a line.
    pub fn finish(&mut self) -> Result<(), DecodeError> {
        let torn = !self.skipping && self.buffer[self.start..].starts_with(PREFIX);
        self.buffer.clear();
        (self.start, self.scanned, self.skipping) = (0, 0, false);
        if torn { Err(DecodeError::Torn) } else { Ok(()) }
    }
}

/// Turns the text of one of our lines into a valid message.
pub fn parse<M: DeserializeOwned + Validate>(text: &[u8]) -> Result<M, DecodeError> {
    let message: M = serde_json::from_slice(text).map_err(|source| DecodeError::Syntax {
        excerpt: String::from_utf8_lossy(&text[..text.len().min(120)]).into_owned(),
        source,
    })?;
    message.validate().map_err(DecodeError::Invalid)?;
    Ok(message)
}

/// Appends a message to a buffer as one line.
///
/// # Panics
/// If the message cannot be written as JSON, which none of this crate's types can bring about.
pub fn encode<M: Serialize>(message: &M, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    buffer.extend_from_slice(PREFIX);
    serde_json::to_writer(&mut *buffer, message)
        .expect("our own messages have string keys and finite numbers");
    buffer.push(b'\n');
    debug_assert!(buffer.len() - start <= LINE_BYTES_MAX, "a message of ours is longer than a line may be");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(decoder: &mut LineDecoder, bytes: &[u8]) -> Vec<String> {
        decoder.push(bytes);
        let mut found = Vec::new();
        while let Some(line) = decoder.next_line() {
            found.push(match line {
                Line::Ours(text) => format!("ours {}", String::from_utf8_lossy(text)),
                Line::Stray(text) => format!("stray {}", String::from_utf8_lossy(text)),
                Line::TooLong => "too long".to_owned(),
            });
        }
        found
    }

    #[test]
    fn a_banner_is_stray_and_lines_may_come_in_pieces() {
        let mut decoder = LineDecoder::new();
        assert_eq!(lines(&mut decoder, b"Welcome to lab1\n@cb {\"a\""), ["stray Welcome to lab1"]);
        assert_eq!(lines(&mut decoder, b":1}\r\n\n@c"), ["ours {\"a\":1}", "stray "]);
        assert_eq!(lines(&mut decoder, b"b x\n"), ["ours x"]);
        decoder.finish().unwrap();
    }

    #[test]
    fn a_huge_line_is_reported_once_and_then_skipped() {
        let mut decoder = LineDecoder::new();
        let mut seen = lines(&mut decoder, PREFIX);
        for _ in 0..40 {
            seen.extend(lines(&mut decoder, &[b'x'; 64 << 10]));
            assert!(decoder.buffer.capacity() < 4 * LINE_BYTES_MAX);
        }
        seen.extend(lines(&mut decoder, b"\n@cb y\n"));
        assert_eq!(seen, ["too long", "ours y"]);
    }

    #[test]
    fn a_stream_that_ends_inside_a_line_is_torn() {
        let mut decoder = LineDecoder::new();
        lines(&mut decoder, b"@cb {\"a\"");
        assert!(matches!(decoder.finish(), Err(DecodeError::Torn)));
    }

    #[test]
    fn data_after_a_line_is_no_line() {
        let mut decoder = LineDecoder::new();
        decoder.push(b"@cb 5\na\n@c");
        assert_eq!(decoder.next_line(), Some(Line::Ours(b"5")));
        assert_eq!(decoder.take_raw(5), b"a\n@c");
        assert_eq!(decoder.take_raw(1), b"");
        decoder.push(b"x@cb y\n");
        assert_eq!(decoder.take_raw(1), b"x");
        assert_eq!(decoder.next_line(), Some(Line::Ours(b"y")));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_lines(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'@'), Just(b'c'), Just(b'b'), Just(b' '), any::<u8>()], 0..600),
            cut in 1_usize..50,
        ) {
            let whole = lines(&mut LineDecoder::new(), &bytes);
            let mut decoder = LineDecoder::new();
            let pieces: Vec<String> = bytes.chunks(cut).flat_map(|piece| lines(&mut decoder, piece)).collect();
            prop_assert_eq!(whole, pieces);
        }
    }
}

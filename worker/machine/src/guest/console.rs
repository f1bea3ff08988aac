//! What a guest prints on its serial console: its beginning and its end are kept, however much
//! there is between.

use std::collections::VecDeque;

use crewboss_protocol::harmless::one_line;

/// Kept from the beginning: the boot.
const HEAD_BYTES: usize = 128 << 10;

/// Kept from the end: what led to it.
const TAIL_BYTES: usize = 384 << 10;

/// What the last words are looked for in: a kernel that panics prints up to 4 KiB after it has said
/// why.
const LAST_BYTES: usize = 8 << 10;

/// A console's text.
#[derive(Debug, Default)]
pub struct Console {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Console {
    /// Adds what was printed.
    pub fn push(&mut self, bytes: &[u8]) {
        let room = (HEAD_BYTES - self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend_from_slice(first);
        let rest = &rest[self.note_dropped(rest.len().saturating_sub(TAIL_BYTES))..];
        let over = (self.tail.len() + rest.len()).saturating_sub(TAIL_BYTES);
        let over = self.note_dropped(over);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    fn note_dropped(&mut self, bytes: usize) -> usize {
        self.dropped += bytes as u64;
        bytes
    }

    /// Whether nothing was printed.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// All that is kept, with a line where something was left out.
    pub fn text(&self) -> Vec<u8> {
        let mut text = self.head.clone();
        if self.dropped > 0 {
            text.extend_from_slice(format!("\n[crewboss: {} bytes left out]\n", self.dropped).as_bytes());
        }
        text.extend(&self.tail);
        text
    }

    /// The last lines that say something, for a message. Of a kernel that panicked it is why, and
    /// not the registers.
    pub fn last_words(&self, lines: usize) -> String {
        let text = self.text();
        let mut start = text.len().saturating_sub(LAST_BYTES);
        // Not from the middle of a line: what is left of an escape sequence would pass for text.
        if start > 0 {
            start += text[start..].iter().position(|byte| *byte == b'\n').unwrap_or(0);
        }
        let text = String::from_utf8_lossy(&text[start..]);
        // Line by line, so that a string that is never ended takes no other line with it.
        let said: Vec<String> =
            text.split('\n').map(one_line).filter(|line| !line.trim().is_empty()).collect();
        let panic = said.iter().rposition(|line| line.contains("Kernel panic - not syncing"));
        match panic {
            Some(panic) => said[panic].clone(),
            None => said[said.len().saturating_sub(lines)..].join(" | "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flood_keeps_its_beginning_and_its_end() {
        let mut console = Console::default();
        console.push(b"first line\n");
        for number in 0..200_000 {
            console.push(format!("line {number}\n").as_bytes());
        }
        let text = String::from_utf8(console.text()).unwrap();
        assert!(text.len() < HEAD_BYTES + TAIL_BYTES + 100);
        assert!(text.starts_with("first line\n") && text.ends_with("line 199999\n"));
        assert!(text.contains("bytes left out]"));
        assert_eq!(console.last_words(2), "line 199998 | line 199999");
    }

    #[test]
    fn of_a_panic_the_reason_is_told() {
        let mut console = Console::default();
        console.push(b"booting\r\n[    2.8] Kernel panic - not syncing: No working init found.\r\n");
        console
            .push(b"[    2.9] CPU: 0 PID: 1\r\n[    2.9]  </TASK>\r\n[    2.9] Kernel Offset: 0x7c00000\r\n");
        assert_eq!(console.last_words(3), "[    2.8] Kernel panic - not syncing: No working init found.");
    }

    #[test]
    fn of_escape_sequences_nothing_is_left() {
        let mut console = Console::default();
        console.push(
            b"\x1b]0;title\x07\x1b[1;31mmake: \x1bP1;2q~\x1b\\*** Error 2\x1b[0m\r\n\x1b[2K\r10%\r100%\r\n",
        );
        console.push(b"\x1b[?25hbye\r\n");
        assert_eq!(console.last_words(9), "make: *** Error 2 | 100% | bye");
        // One whose beginning is further back than what is looked at.
        console.push(&[b"\x1b]0;".to_vec(), vec![b'x'; LAST_BYTES], b"\x07\r\nlast\r\n".to_vec()].concat());
        assert_eq!(console.last_words(9), "last");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_while_it_is_short(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..40)) {
            let mut console = Console::default();
            pieces.iter().for_each(|piece| console.push(piece));
            prop_assert_eq!(console.text(), pieces.concat());
        }

        #[test]
        fn every_byte_is_kept_or_counted(sizes in prop::collection::vec(0_usize..900_000, 0..6)) {
            let mut console = Console::default();
            sizes.iter().for_each(|size| console.push(&vec![b'x'; *size]));
            let kept = console.head.len() + console.tail.len();
            prop_assert_eq!(kept as u64 + console.dropped, sizes.iter().sum::<usize>() as u64);
        }
    }
}

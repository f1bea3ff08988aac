//! Foreign text, made fit for a person's terminal.

use std::borrow::Cow;

/// Removes from foreign text whatever could drive the terminal: escape sequences, control
/// characters, and the marks that reverse the direction of writing. Newlines and tabs stay. Of a
/// line that was overwritten by carriage returns, as progress bars do it, the last state stays.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut line_start = 0;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => skip_escape(&mut chars),
            // The same sequences, begun by a single C1 character.
            '\u{9b}' => skip_control_sequence(&mut chars),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => skip_string(&mut chars),
            '\r' if chars.peek().is_none_or(|next| *next == '\n' || *next == '\r') => {}
            '\r' => clean.truncate(line_start),
            c if is_harmful(c) => {}
            c => {
                clean.push(c);
                if c == '\n' {
                    line_start = clean.len();
                }
            }
        }
    }
    Cow::Owned(clean)
}

/// Foreign text as one harmless line, for a message.
pub fn one_line(text: &str) -> String {
    let clean = harmless(text.trim_end());
    clean.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).collect()
}

/// Whether a character does something else than to be seen: what Unicode calls a control, a format,
/// or a separator of lines and paragraphs. Newlines and tabs are none here: whoever shows one line
/// only has [`one_line`].
pub fn is_harmful(c: char) -> bool {
    if c < '\u{80}' {
        return c.is_ascii_control() && c != '\n' && c != '\t';
    }
    c.is_control() || FORMAT_AND_SEPARATORS.iter().any(|&(first, last)| (first..=last).contains(&c))
}

/// The categories Cf, Zl and Zp of Unicode 16, and the blocks of tags and interlinear marks whole:
/// what is not given away there would be of the same kind.
const FORMAT_AND_SEPARATORS: [(char, char); 19] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e007f}'),
];

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn skip_escape(chars: &mut Chars<'_>) {
    match chars.peek() {
        Some('[') => {
            chars.next();
            skip_control_sequence(chars);
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            chars.next();
            skip_string(chars);
        }
        // Two or more characters: intermediates, then a final one.
        Some(' '..='~') => {
            while chars.next_if(|c| matches!(c, ' '..='/')).is_some() || {
                chars.next_if(|c| matches!(c, '0'..='~'));
                false
            } {}
        }
        _ => {}
    }
}

/// Up to the final byte; anything that cannot belong to the sequence ends it, so that no text is
/// swallowed.
fn skip_control_sequence(chars: &mut Chars<'_>) {
    while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
    chars.next_if(|c| matches!(c, '@'..='~'));
}

/// A title or the like: up to BEL or the string terminator, but never beyond the line.
fn skip_string(chars: &mut Chars<'_>) {
    while let Some(c) = chars.next_if(|c| *c != '\n') {
        match c {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                chars.next_if(|c| *c == '\\');
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_output_cannot_drive_the_terminal() {
        let cases = [
            ("plain é 日本\n\ttab\n", "plain é 日本\n\ttab\n"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b]never ended\nnext", "\nnext"),
            ("\x1bP1;2q...\x1b\\x", "x"),
            ("\u{9b}2Jx\u{9d}0;t\u{9c}y", "xy"),
            ("a\x08\x00\x07b\x7f", "ab"),
            ("\x1b(Bx\x1b=y\x1b", "xy"),
            ("10%\r50%\r100%\r\ndone\r\n", "100%\ndone\n"),
            ("a\u{202e}b\u{2066}c", "abc"),
            ("\x1b[\x1b[2Jx", "x"),
            ("a\u{61c}b\u{200b}c\u{e0041}d\u{ad}e\u{2028}f", "abcdef"),
        ];
        for (hostile, clean) in cases {
            assert_eq!(harmless(hostile), clean, "{hostile:?}");
        }
    }

    #[test]
    fn a_message_has_one_line_of_it() {
        assert_eq!(one_line("\x1b[1;31mred\x1b[0m\tand\nmore\x1b]0;t\x07\n"), "red and more");
    }

    #[test]
    fn no_combination_of_bytes_leaves_a_control_character() {
        let alphabet = ['\x1b', '[', ']', '\r', '\n', 'm', '\u{9b}', '\u{9d}', '\x07', '\\', '1', ' '];
        let mut state = 7_usize;
        for _ in 0..20_000 {
            let text: String = (0..12)
                .map(|_| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    alphabet[(state >> 33) % alphabet.len()]
                })
                .collect();
            assert!(!harmless(&text).chars().any(is_harmful), "{text:?}");
        }
    }
}

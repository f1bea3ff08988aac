//! JSON that a person may look at in a terminal: files, and what programs are given. Not what goes
//! over a channel.

use serde::Serialize;

use crate::harmless::is_harmful;

/// One line, without its newline.
///
/// # Errors
/// If the value has no form in JSON.
pub fn line<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    serde_json::to_string(value).map(escaped)
}

/// In many lines, without the last newline.
///
/// # Errors
/// If the value has no form in JSON.
pub fn pretty<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(escaped)
}

/// Writes each character that could drive a terminal by its number. Nothing is lost: such
/// characters stand only within strings, and a program reads the same string as before.
fn escaped(json: String) -> String {
    if !json.chars().any(is_harmful) {
        return json;
    }
    let mut clean = String::with_capacity(json.len() + json.len() / 8);
    for c in json.chars() {
        if is_harmful(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                clean.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            clean.push(c);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "é\x1b[2J\x7f\u{85}\u{9b}31m\u{202e}\u{2028}\u{61c}\u{e0041}\\\u{ad}\"\n\t日本";

    #[test]
    fn what_could_drive_a_terminal_is_written_by_its_number_and_read_as_it_was() {
        let value = vec![FOREIGN.to_owned(), "plain é".to_owned()];
        for text in [line(&value).unwrap(), pretty(&value).unwrap()] {
            assert!(!text.chars().any(is_harmful), "{text:?}");
            assert!(text.contains("\\u009b31m\\u202e") && text.contains("\\udb40\\udc41"), "{text}");
            assert!(text.contains("plain é") && text.contains("日本"), "{text}");
            assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), value);
        }
        assert_eq!(line(&value).unwrap().lines().count(), 1);
    }
}

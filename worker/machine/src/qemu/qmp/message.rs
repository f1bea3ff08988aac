//! The messages of QMP, from bytes; pure.

use serde_json::{Map, Value, json};

use super::super::version::Version;

/// Longest line that is believed. Nothing that is asked for here comes near it.
pub const LINE_BYTES_MAX: usize = 256 << 10;

/// Longest words of QEMU that are kept.
const TEXT_BYTES_MAX: usize = 2048;

/// Longest piece of garbage that is shown.
const SHOWN_BYTES_MAX: usize = 80;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    /// A line without end.
    #[error("a line of more than {LINE_BYTES_MAX} bytes")]
    Long,
    /// A line that is nothing known.
    #[error("a line that is no message: {shown:?}")]
    Line {
        /// Its beginning.
        shown: String,
    },
}

/// A message of QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first one.
    Greeting(Version),
    /// A command succeeded; what it returns.
    Return(u64, Value),
    /// A command failed.
    Error(u64, CommandError),
    /// Something happened.
    Event(Event),
}

/// A command that QEMU refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{description} ({class})")]
pub struct CommandError {
    /// Its class, as `GenericError`.
    pub class: String,
    /// A sentence.
    pub description: String,
}

/// What happened to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// QEMU is about to end.
    Shutdown {
        /// The guest wanted it: it powered itself off, reset itself, or panicked.
        guest: bool,
        /// As `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`.
        reason: String,
    },
    /// It was reset and starts again.
    Reset {
        /// The guest wanted it.
        guest: bool,
        /// As `guest-reset`.
        reason: String,
    },
    /// Its processors stand still.
    Stop,
    /// Its processors run.
    Resume,
    /// Its kernel said that it panics.
    GuestPanicked {
        /// What follows, as `shutdown`.
        action: String,
    },
    /// The saving or loading of its state went on.
    Migration(Migration),
    /// A disk failed; a full host disk, mostly.
    BlockIoError {
        /// The disk's node.
        node: String,
        /// `read` or `write`.
        operation: String,
        /// The system's words.
        reason: String,
        /// What followed, as `report` or `stop`.
        action: String,
    },
    /// Anything else, by its name.
    Other(String),
}

/// How far the saving or loading of a state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// It goes on.
    Going,
    /// It is done.
    Completed,
    /// It failed or was cancelled.
    Failed,
}

/// The line of a command.
pub(crate) fn command(id: u64, name: &str, arguments: &Value) -> Vec<u8> {
    let mut message = json!({ "execute": name, "id": id });
    if !arguments.is_null() {
        message["arguments"] = arguments.clone();
    }
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// Takes more bytes and returns the messages that they complete.
    ///
    /// # Errors
    /// At the first thing that is no message. What follows cannot be trusted then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, Garbage> {
        let mut messages = Vec::new();
        let mut rest = bytes;
        while let Some(end) = memchr(rest) {
            self.take(&rest[..end])?;
            let line = std::mem::take(&mut self.bytes);
            messages.extend(parse(&line)?);
            rest = &rest[end + 1..];
        }
        self.take(rest)?;
        Ok(messages)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Garbage> {
        if self.bytes.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(Garbage::Long);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

/// One line. An empty one is no message and no fault; neither is an answer that belongs to no
/// command, which is what QEMU sends for a line that it could not read.
pub fn parse(line: &[u8]) -> Result<Option<Message>, Garbage> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let garbage = || {
        let shown = String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES_MAX)]).into_owned();
        Garbage::Line { shown }
    };
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else { return Err(garbage()) };
    let id = object.get("id").and_then(Value::as_u64);
    if let Some(returned) = object.remove("return") {
        return Ok(id.map(|id| Message::Return(id, returned)));
    }
    let message = match (&object.get("error"), &object.get("event"), &object.get("QMP")) {
        (Some(Value::Object(error)), _, _) => {
            let (class, description) = (text(error, "class"), text(error, "desc"));
            return Ok(id.map(|id| Message::Error(id, CommandError { class, description })));
        }
        (_, Some(Value::String(name)), _) => {
            let data = object.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
            Some(Message::Event(event(name, &data)))
        }
        (_, _, Some(Value::Object(greeting))) => version(greeting).map(Message::Greeting),
        _ => None,
    };
    message.map(Some).ok_or_else(garbage)
}

fn version(greeting: &Map<String, Value>) -> Option<Version> {
    let numbers = greeting.get("version")?.get("qemu")?;
    let number = |name| numbers.get(name)?.as_u64().and_then(|number| u32::try_from(number).ok());
    Some(Version { major: number("major")?, minor: number("minor")?, micro: number("micro")? })
}

fn event(name: &str, data: &Map<String, Value>) -> Event {
    let guest = data.get("guest").and_then(Value::as_bool).unwrap_or(false);
    match name {
        "SHUTDOWN" => Event::Shutdown { guest, reason: text(data, "reason") },
        "RESET" => Event::Reset { guest, reason: text(data, "reason") },
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        "GUEST_PANICKED" => Event::GuestPanicked { action: text(data, "action") },
        "MIGRATION" => Event::Migration(match text(data, "status").as_str() {
            "completed" => Migration::Completed,
            "failed" | "cancelled" => Migration::Failed,
            _ => Migration::Going,
        }),
        "BLOCK_IO_ERROR" => Event::BlockIoError {
            node: text(data, "node-name"),
            operation: text(data, "operation"),
            reason: text(data, "reason"),
            action: text(data, "action"),
        },
        other => Event::Other(short(other)),
    }
}

fn text(object: &Map<String, Value>, name: &str) -> String {
    short(object.get(name).and_then(Value::as_str).unwrap_or_default())
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Message {
        parse(line.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn what_qemu_says_is_understood() {
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}"#;
        assert_eq!(one(greeting), Message::Greeting(Version { major: 7, minor: 2, micro: 22 }));
        assert_eq!(one(r#"{"return": {"a": 1}, "id": 7}"#), Message::Return(7, json!({ "a": 1 })));
        let error = r#"{"id": 8, "error": {"class": "CommandNotFound", "desc": "no such"}}"#;
        let expected =
            CommandError { class: "CommandNotFound".to_owned(), description: "no such".to_owned() };
        assert_eq!(one(error), Message::Error(8, expected));
        let off = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        let expected = Event::Shutdown { guest: true, reason: "guest-reset".to_owned() };
        assert_eq!(one(off), Message::Event(expected));
        let migration = r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#;
        assert_eq!(one(migration), Message::Event(Event::Migration(Migration::Completed)));
        assert_eq!(one(r#"{"event": "NEW"}"#), Message::Event(Event::Other("NEW".to_owned())));
    }

    #[test]
    fn garbage_is_an_error_that_shows_it() {
        for bad in ["login:", "[1]", "{}", r#"{"QMP": 1}"#, r#"{"event": 3}"#, "{\"QMP\":{\"version\":{}}}"] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("no message"), "{bad}: {error}");
        }
        assert_eq!(parse(b" \r").unwrap(), None);
        let mut lines = Lines::default();
        assert_eq!(lines.push(&vec![b'x'; LINE_BYTES_MAX]), Ok(Vec::new()));
        assert_eq!(lines.push(b"x"), Err(Garbage::Long));
    }

    #[test]
    fn a_command_is_one_line() {
        assert_eq!(command(1, "stop", &Value::Null), b"{\"execute\":\"stop\",\"id\":1}\n");
        let line = command(2, "x", &json!({ "a": "b\nc" }));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut lines = Lines::default();
            drop(lines.push(&bytes));
            drop(lines.push(b"\n"));
        }

        #[test]
        fn no_json_makes_it_panic(
            key in "QMP|event|error|return|id|data|x",
            other in "QMP|event|error|return|id|data|x",
            value in r#"1|-1|1e99|"[a-z"]{0,3}|null|\{"version":1\}|\{"qemu":\{\}\}|\[\]|true|"SHUTDOWN""#,
        ) {
            drop(parse(format!("{{\"{key}\": {value}, \"{other}\": {value}}}").as_bytes()));
        }

        #[test]
        fn where_the_stream_is_cut_does_not_matter(cuts in prop::collection::vec(1_usize..20, 0..20)) {
            let stream = b"{\"return\": {}, \"id\": 1}\r\n\n{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n";
            let (mut lines, mut found, mut rest) = (Lines::default(), Vec::new(), &stream[..]);
            for cut in cuts {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                found.extend(lines.push(piece).unwrap());
                rest = later;
            }
            found.extend(lines.push(rest).unwrap());
            prop_assert_eq!(found.len(), 3);
            prop_assert_eq!(&found[2], &Message::Event(Event::Resume));
        }
    }
}

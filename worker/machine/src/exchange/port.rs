//! The host's end of the agent's port: a pure decoder of what a guest sends, and an encoder of what
//! it is told.

use crewboss_protocol::chain;
use crewboss_protocol::codec::{self, DecodeError, Line, LineDecoder};
use crewboss_protocol::guest::{FromGuest, GuestStream, ToGuest};
use crewboss_protocol::limits::LINE_BYTES_MAX;
use crewboss_protocol::message::Validate as _;

/// Something that a guest sent.
#[derive(Debug, PartialEq, Eq)]
pub enum PortEvent<'a> {
    /// A message; never [`FromGuest::Log`].
    Message(FromGuest),
    /// A piece of output, in the size in which it came.
    Output(GuestStream, &'a [u8]),
    /// Something that no agent of ours sends: what it is, for a person. It is the last event of
    /// this port, since nobody knows where the next message begins.
    Bad(String),
}

/// Why a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The agent would not read it.
    #[error("a message to the guest would be {bytes} bytes long; {LINE_BYTES_MAX} is the most")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is one that the agent refuses.
    #[error("the guest would refuse a message: {0}")]
    Invalid(crewboss_protocol::message::Invalid),
}

/// Takes the stream of a guest apart. Its memory is bounded by the longest line and what is added
/// at once.
#[derive(Debug, Default)]
pub struct PortDecoder {
    lines: LineDecoder,
    /// Output that follows the last `log`.
    output: Option<(GuestStream, usize)>,
    broken: bool,
}

impl PortDecoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they were read. Call [`Self::next_event`] until it returns `None` before
    /// adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.broken {
            self.lines.push(bytes);
        }
    }

    /// The next event, or `None` if more bytes are needed.
    pub fn next_event(&mut self) -> Option<PortEvent<'_>> {
        loop {
            if self.broken {
                return None;
            }
            if let Some((stream, rest)) = self.output {
                let taken = self.lines.take_raw(rest);
                let left = rest - taken.len();
                self.output = (left > 0).then_some((stream, left));
                return (!taken.is_empty()).then_some(PortEvent::Output(stream, taken));
            }
            let bad = match self.lines.next_line()? {
                Line::Ours(text) => match codec::parse::<FromGuest>(text) {
                    Ok(FromGuest::Log { stream, bytes }) => {
                        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                        self.output = (bytes > 0).then_some((stream, bytes));
                        continue;
                    }
                    Ok(message) => return Some(PortEvent::Message(message)),
                    Err(error) => chain(&error),
                },
                Line::Stray(text) => {
                    let text = String::from_utf8_lossy(&text[..text.len().min(120)]);
                    format!("{text:?} is no line of the agent")
                }
                Line::TooLong => chain(&DecodeError::TooLong),
            };
            self.broken = true;
            return Some(PortEvent::Bad(bad));
        }
    }
}

/// Appends a message for the agent to a buffer.
///
/// # Errors
/// If the agent would not take it; the buffer is as it was then.
pub fn encode(message: &ToGuest, buffer: &mut Vec<u8>) -> Result<(), EncodeError> {
    message.validate().map_err(EncodeError::Invalid)?;
    let bytes = serde_json::to_vec(message).map_or(usize::MAX, |text| text.len());
    let bytes = bytes.saturating_add(codec::PREFIX.len() + 1);
    if bytes > LINE_BYTES_MAX {
        return Err(EncodeError::TooLong { bytes });
    }
    codec::encode(message, buffer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a stream means, whatever pieces it came in.
    fn meaning(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = PortDecoder::new();
        let mut seen: Vec<String> = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(event) = decoder.next_event() {
                match event {
                    PortEvent::Message(message) => seen.push(format!("{message:?}")),
                    PortEvent::Output(stream, bytes) => {
                        // Each byte a character of its own, so that pieces can be put together.
                        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
                        let key = format!("{stream:?} ");
                        match seen.last_mut().filter(|last| last.starts_with(&key)) {
                            Some(last) => last.push_str(&text),
                            None => seen.push(format!("{key}{text}")),
                        }
                    }
                    PortEvent::Bad(text) => seen.push(format!("bad {text}")),
                }
            }
        }
        seen
    }

    #[test]
    fn output_is_taken_by_its_length_and_not_by_its_lines() {
        let stream = b"@cb {\"ready\":{\"agent\":1}}\n@cb {\"log\":{\"stream\":\"out\",\"bytes\":14}}\na\n@cb prepared\n\
            @cb \"prepared\"\n@cb {\"log\":{\"stream\":\"err\",\"bytes\":0}}\n@cb \"prepared\"\n";
        let expected = ["Ready { agent: 1 }", "Out a\n@cb prepared", "bad \"\" is no line of the agent"];
        assert_eq!(meaning(&[stream]), expected);
        let good = b"@cb {\"log\":{\"stream\":\"err\",\"bytes\":2}}\n\xff\n@cb \"prepared\"\n";
        assert_eq!(meaning(&[good]), ["Err \u{ff}\n", "Prepared"]);
    }

    #[test]
    fn what_no_agent_sends_is_told_once_and_ends_the_port() {
        let huge = [b"@cb ".as_slice(), &[b'x'; 2 * LINE_BYTES_MAX], b"\n"].concat();
        let long = format!("@cb {{\"log\":{{\"stream\":\"out\",\"bytes\":{}}}}}\n", (64 << 10) + 1);
        for (bytes, why) in [
            (b"login: \n".as_slice(), "no line of the agent"),
            (&[b'x'; 100_000], "no line of the agent"),
            (&huge, "longer than"),
            (b"@cb {\"unknown\":1}\n", "unknown variant"),
            (b"@cb \xff\xfe\n", "not a message"),
            (long.as_bytes(), "over the limit"),
            (b"@cb {\"log\":{\"stream\":\"out\",\"bytes\":-1}}\n", "not a message"),
        ] {
            let seen = meaning(&[bytes, b"\n@cb \"prepared\"\n"]);
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert!(seen[0].starts_with("bad ") && seen[0].contains(why), "{seen:?} lacks {why:?}");
        }
    }

    #[test]
    fn what_the_agent_would_not_read_is_not_sent() {
        let mut buffer = Vec::new();
        encode(&ToGuest::Ping { number: 3 }, &mut buffer).unwrap();
        assert_eq!(buffer, b"@cb {\"ping\":{\"number\":3}}\n");
        let document = "\n".repeat(LINE_BYTES_MAX - 100);
        let error = encode(&ToGuest::Task { document }, &mut buffer).unwrap_err();
        assert!(matches!(error, EncodeError::TooLong { .. }));
        assert_eq!(buffer.len(), 25 + 1);
    }

    proptest! {
        #[test]
        fn any_pieces_mean_the_same_and_nothing_panics(
            parts in prop::collection::vec(prop_oneof![
                Just(b"@cb \"prepared\"\n".to_vec()),
                Just(b"@cb {\"log\":{\"stream\":\"out\",\"bytes\":5}}\n".to_vec()),
                prop::collection::vec(any::<u8>(), 0..12),
                Just(b"hello".to_vec()),
            ], 0..12),
            cut in 1_usize..40,
        ) {
            let stream = parts.concat();
            let pieces: Vec<&[u8]> = stream.chunks(cut).collect();
            prop_assert_eq!(meaning(&[&stream]), meaning(&pieces));
        }
    }
}

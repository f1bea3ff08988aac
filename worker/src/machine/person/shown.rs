//! Output of a stage on a person's terminal: whatever a task prints, it is text and nothing else.

use std::io::{self, Write as _};

use crewboss_protocol::guest::GuestStream;
use crewboss_protocol::harmless::harmless;

/// What is kept of a line that does not end.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Both outputs, shown a line at a time: a sequence that drives a terminal may come in two pieces.
#[derive(Debug, Default)]
pub(super) struct Shown {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Shown {
    /// Shows what has come, but for a line that has not ended.
    pub(super) fn take(&mut self, stream: GuestStream, bytes: &[u8]) {
        let line = match stream {
            GuestStream::Out => &mut self.out,
            GuestStream::Err => &mut self.err,
        };
        line.extend_from_slice(bytes);
        let whole = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let whole = if line.len() - whole > LINE_BYTES_MAX { line.len() } else { whole };
        show(stream, &line[..whole]);
        line.drain(..whole);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        show(GuestStream::Out, &self.out);
        show(GuestStream::Err, &self.err);
    }
}

fn show(stream: GuestStream, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let text = harmless(&text);
    // That nobody reads it shows by the end of input.
    drop(match stream {
        GuestStream::Out => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
        GuestStream::Err => io::stderr().write_all(text.as_bytes()),
    });
}

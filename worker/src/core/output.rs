//! What waits to be written to the boss. Control messages are never lost; live output is, when the
//! boss is slow.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use crewboss_protocol::limits::LIVE_BUFFER_BYTES_MAX;
use crewboss_protocol::{FromWorker, TaskRef, codec};

/// With this much waiting nothing more is taken from the runners, which then wait themselves.
pub const FULL_BYTES: usize = 4 * LIVE_BUFFER_BYTES_MAX;

/// The queue.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    written: usize,
    lost: BTreeMap<TaskRef, u64>,
    broken: bool,
}

impl Output {
    /// Whether something waits.
    pub fn is_waiting(&self) -> bool {
        !self.broken && !self.is_empty()
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.written
    }

    /// Whether nobody listens any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Adds a message.
    pub fn send(&mut self, message: &FromWorker) {
        if !self.broken {
            codec::encode(message, &mut self.bytes);
        }
    }

    /// Adds a line as a runner wrote it.
    pub fn forward(&mut self, line: &[u8]) {
        if !self.broken {
            self.bytes.extend_from_slice(line);
        }
    }

    /// Adds a line of live output, unless too much waits; then it is counted, and the next one
    /// tells how much is missing.
    pub fn live(&mut self, at: TaskRef, bytes: u64, line: &[u8]) {
        if self.len() + line.len() > LIVE_BUFFER_BYTES_MAX {
            *self.lost.entry(at).or_default() += bytes;
            return;
        }
        let Some(missing) = self.lost.remove(&at) else { return self.forward(line) };
        let text = line.strip_prefix(codec::PREFIX).unwrap_or(line);
        if let Ok(FromWorker::Log { at, seq, text, lost }) = codec::parse(text) {
            self.send(&FromWorker::Log { at, seq, text, lost: lost + missing });
        }
    }

    /// Forgets what was lost of an attempt that has ended.
    pub fn ended(&mut self, at: TaskRef) {
        self.lost.remove(&at);
    }

    /// Writes as much as goes without waiting; the descriptor must be non-blocking.
    pub fn write(&mut self, fd: BorrowedFd<'_>) {
        while self.is_waiting() {
            match rustix::io::write(fd, &self.bytes[self.written..]) {
                Ok(len) => self.written += len,
                Err(error) if io::Error::from(error).kind() == io::ErrorKind::WouldBlock => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => self.broken = true,
            }
        }
        if self.broken || self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
        } else if self.written > LIVE_BUFFER_BYTES_MAX {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(output: &mut Output, seq: u64, text: &str) {
        let at = "1.1".parse().unwrap();
        let mut line = Vec::new();
        codec::encode(&FromWorker::Log { at, seq, text: text.to_owned(), lost: 0 }, &mut line);
        output.live(at, text.len() as u64, &line);
    }

    #[test]
    fn live_output_gives_way_and_says_how_much_is_missing() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let mut output = Output::default();
        let piece = "x".repeat(32 << 10);
        for seq in 0..40 {
            live(&mut output, seq, &piece);
        }
        assert!(output.len() <= LIVE_BUFFER_BYTES_MAX);
        output.send(&FromWorker::Finished);
        let mut seen = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while output.is_waiting() {
            output.write(std::os::fd::AsFd::as_fd(&writer));
            let len = rustix::io::read(&reader, &mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..len]);
        }
        live(&mut output, 40, "end");
        output.write(std::os::fd::AsFd::as_fd(&writer));
        while let Ok(len) = rustix::io::read(&reader, &mut buffer) {
            seen.extend_from_slice(&buffer[..len]);
        }
        let text = String::from_utf8(seen).unwrap();
        assert!(text.contains("\"finished\""));
        let pieces = text.lines().filter(|line| line.contains("xxx")).count() as u64;
        assert!(text.ends_with(&format!("\"text\":\"end\",\"lost\":{}}}}}\n", (40 - pieces) * (32 << 10))));
    }
}

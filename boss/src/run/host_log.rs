//! `host-<name>.log`: every protocol line of a host, and everything else it printed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use crewboss_protocol::HostName;

/// What is kept of one stray line.
const STRAY_BYTES_MAX: usize = 4096;

/// The log of one host.
#[derive(Debug)]
pub struct HostLog {
    file: Option<BufWriter<File>>,
    /// Bytes that may still be written.
    room: u64,
}

impl HostLog {
    /// Opens it for appending. If that fails, the run goes on without.
    ///
    /// A host can say as much as it likes; no more than `room` bytes of it are written down.
    pub fn open(root: &Path, host: &HostName, room: u64) -> Self {
        let path = root.join(format!("host-{host}.log"));
        match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => Self { file: Some(BufWriter::new(file)), room },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no log for this host");
                Self { file: None, room }
            }
        }
    }

    /// Lines that were sent, each ending in a newline.
    pub fn sent(&mut self, lines: &[u8]) {
        for line in lines.split_inclusive(|&byte| byte == b'\n') {
            self.write(b"> ", line);
        }
    }

    /// A line that was received, without its newline.
    pub fn received(&mut self, line: &[u8]) {
        self.write(b"< ", line);
        self.write(b"", b"\n");
    }

    /// Something else that came over the channel.
    pub fn stray(&mut self, text: &[u8]) {
        let text = String::from_utf8_lossy(&text[..text.len().min(STRAY_BYTES_MAX)]);
        for line in text.lines() {
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            self.write(b"! ", line.as_bytes());
            self.write(b"", b"\n");
        }
    }

    /// Hands what is buffered to the kernel.
    pub fn flush(&mut self) {
        let flushed = self.file.as_mut().map(BufWriter::flush);
        self.check(flushed.unwrap_or(Ok(())));
    }

    fn write(&mut self, mark: &[u8], text: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let bytes = (mark.len() + text.len()) as u64;
        if bytes > self.room {
            let full = b"\n! the rest is not written down: this log is as long as it may be (`host_log` in [limits])\n";
            let written = file.write_all(full).and_then(|()| file.flush());
            self.check(written);
            self.file = None;
            return;
        }
        self.room -= bytes;
        let written = file.write_all(mark).and_then(|()| file.write_all(text));
        self.check(written);
    }

    /// A log that cannot be written is given up, once and loudly; results are stored elsewhere.
    fn check(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(%error, "gave up the log of a host");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_ends_where_it_is_long_enough_and_says_so() {
        let root = tempfile::tempdir().unwrap();
        let host: HostName = "lab1".parse().unwrap();
        let mut log = HostLog::open(root.path(), &host, 1000);
        for _ in 0..10_000 {
            log.stray(b"nonsense");
            log.received(b"more");
        }
        log.flush();
        let text = std::fs::read_to_string(root.path().join("host-lab1.log")).unwrap();
        assert!(text.len() < 1200 && text.starts_with("! nonsense\n< more\n"), "{text}");
        assert!(text.ends_with("as long as it may be (`host_log` in [limits])\n"), "{text}");
    }
}

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
}

impl HostLog {
    /// Opens it for appending. If that fails, the run goes on without.
    pub fn open(root: &Path, host: &HostName) -> Self {
        let path = root.join(format!("host-{host}.log"));
        match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => Self { file: Some(BufWriter::new(file)) },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no log for this host");
                Self { file: None }
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

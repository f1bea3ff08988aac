//! `host-<name>.log`: every protocol line of a host, and everything else it printed.

use std::path::Path;

use crewboss_ground::Open;
use crewboss_protocol::HostName;

use super::log::outlet;
use crate::one_line;
use crate::outlet::{Outlet, Weight};

/// What is kept of one stray line.
const STRAY_BYTES_MAX: usize = 4096;

/// What a log that is long enough ends with.
const FULL: &str =
    "! the rest is not written down: this log is as long as it may be (`host_log` in [limits])\n";

/// The log of one host. If it cannot be written, the run goes on without; that is said at the end.
#[derive(Debug)]
pub struct HostLog {
    out: Option<Outlet>,
    /// Bytes that may still be written; `None` once it was said that there is no room for more.
    room: Option<u64>,
}

impl HostLog {
    /// Opens it for appending. A host can say as much as it likes; no more than `room` bytes of it
    /// are written down.
    pub fn open(root: &Path, host: &HostName, room: u64) -> Self {
        let path = root.join(format!("host-{host}.log"));
        let theirs = path.clone();
        // The disk may stand still, so it is opened where that is waited for.
        let out = outlet(&path, move || Ok(Open::append().path(&theirs)?));
        if let Err(error) = &out {
            tracing::warn!(path = %path.display(), %error, "no log for this host");
        }
        Self { out: out.ok(), room: Some(room) }
    }

    /// Lines that were sent, each ending in a newline.
    pub fn sent(&mut self, lines: &[u8]) {
        let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
        lines.split(|&byte| byte == b'\n').for_each(|line| self.write("> ", line));
    }

    /// A line that was received, without its newline.
    pub fn received(&mut self, line: &[u8]) {
        self.write("< ", line);
    }

    /// Something else that came over the channel.
    pub fn stray(&mut self, text: &[u8]) {
        let text = &text[..text.len().min(STRAY_BYTES_MAX)];
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        text.split(|&byte| byte == b'\n').for_each(|line| self.write("! ", line));
    }

    /// Foreign text is one line here, whatever is in it.
    fn write(&mut self, mark: &str, text: &[u8]) {
        let (Some(out), Some(room)) = (&self.out, self.room) else { return };
        let line = format!("{mark}{}\n", one_line(&String::from_utf8_lossy(text)));
        self.room = room.checked_sub(line.len() as u64);
        out.put(Weight::News, if self.room.is_some() { line.as_bytes() } else { FULL.as_bytes() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a log of so many bytes holds of what is said to it.
    fn logged(room: u64, say: impl FnOnce(&mut HostLog)) -> String {
        let root = tempfile::tempdir().unwrap();
        let mut log = HostLog::open(root.path(), &"lab1".parse().unwrap(), room);
        say(&mut log);
        assert!(log.out.as_ref().unwrap().settle(&mut |still| still.as_secs() > 60).is_none());
        std::fs::read_to_string(root.path().join("host-lab1.log")).unwrap()
    }

    #[test]
    fn a_host_cannot_forge_a_line_or_drive_the_terminal_of_who_reads_its_log() {
        let text = logged(1000, |log| {
            log.sent(b"one\ntwo\n");
            log.received("{\"text\":\"\u{9b}2Jx\u{202e}\"}\r> forged".as_bytes());
            log.stray(b"motd\r\n\x1b]0;title\x07hello\n");
        });
        assert_eq!(text, "> one\n> two\n< {\"text\":\"x\"}; > forged\n! motd\n! hello\n");
    }

    #[test]
    fn a_log_ends_where_it_is_long_enough_and_says_so() {
        let text = logged(1000, |log| {
            for _ in 0..10_000 {
                log.stray(b"nonsense");
                log.received(b"more");
            }
        });
        assert!(text.len() < 1200 && text.starts_with("! nonsense\n< more\n"), "{text}");
        assert!(text.ends_with("as long as it may be (`host_log` in [limits])\n"), "{text}");
    }
}

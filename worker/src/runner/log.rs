//! The stored output of one attempt: in memory while it is short, since then it travels in the
//! result, else in a file.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crewboss_ground::Open;
use crewboss_protocol::limits::INLINE_LOG_BYTES_MAX;
use crewboss_protocol::message::LogEnd;

/// One stream's log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
}

impl Log {
    /// An empty log, which will lie at `path` if it gets long.
    pub fn new(path: PathBuf) -> Self {
        Self { path, memory: Vec::new(), file: None }
    }

    /// Whether it has outgrown memory.
    pub fn is_long(&self) -> bool {
        self.file.is_some()
    }

    /// Appends.
    ///
    /// # Errors
    /// If the file cannot be made or written, mostly for want of space.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() && self.memory.len() + bytes.len() <= INLINE_LOG_BYTES_MAX {
            self.memory.extend_from_slice(bytes);
            return Ok(());
        }
        self.spill()?.write_all(bytes)
    }

    fn spill(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let mut file = self.create()?;
            file.write_all(&self.memory)?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("the log has no file"))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "its directory is the build's, which may have made anything of it"
    )]
    fn create(&self) -> io::Result<File> {
        // The build may have removed the directory: its log is kept all the same.
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        Ok(Open::create().readable().path(&self.path)?)
    }

    /// What the result says about it.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn end(&mut self) -> io::Result<LogEnd> {
        if self.file.is_none() {
            match String::from_utf8(std::mem::take(&mut self.memory)) {
                Ok(text) => return Ok(LogEnd { bytes: text.len() as u64, text: Some(text) }),
                Err(error) => self.memory = error.into_bytes(),
            }
        }
        self.spill()?;
        self.restore()?;
        // What is there, and not what was to be written: a disk that is full takes a part of it.
        let bytes = self.spill()?.metadata()?.len();
        Ok(LogEnd { bytes, text: None })
    }

    /// Brings the file back if the build has removed or replaced it. What was written is still
    /// behind the descriptor.
    fn restore(&mut self) -> io::Result<()> {
        let Some(mut old) = self.file.take() else { return Ok(()) };
        let meta = old.metadata()?;
        let there = std::fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (meta.dev(), meta.ino())) {
            self.file = Some(old);
            return Ok(());
        }
        // Whatever took its name goes; the new file must not be written through a link.
        let _gone = std::fs::remove_file(&self.path);
        let mut new = self.create()?;
        io::Seek::rewind(&mut old)?;
        io::copy(&mut old, &mut new)?;
        self.file = Some(new);
        Ok(())
    }
}

/// Looks for `warning:`, in any case, in a stream that comes in pieces. This is what makes a good
/// task a `warning`.
#[derive(Debug, Default)]
pub struct WarningScan {
    found: bool,
    tail: Vec<u8>,
}

const WARNING: &[u8] = b"warning:";

impl WarningScan {
    /// Whether it was there.
    pub fn found(&self) -> bool {
        self.found
    }

    /// Looks at the next piece.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.found || bytes.is_empty() {
            return;
        }
        let keep = WARNING.len() - 1;
        let mut seam = std::mem::take(&mut self.tail);
        seam.extend_from_slice(&bytes[..bytes.len().min(keep)]);
        self.found = has_warning(&seam) || has_warning(bytes);
        let last = if bytes.len() >= keep { bytes } else { &seam };
        self.tail = last[last.len().saturating_sub(keep)..].to_vec();
    }
}

fn has_warning(bytes: &[u8]) -> bool {
    let mut from = WARNING.len() - 1;
    while let Some(colon) = bytes.get(from..).and_then(|rest| rest.iter().position(|byte| *byte == b':')) {
        let end = from + colon + 1;
        if bytes[end - WARNING.len()..end].eq_ignore_ascii_case(WARNING) {
            return true;
        }
        from = end;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_log_needs_no_file_and_a_long_one_comes_back_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attempt/log");
        let mut log = Log::new(path.clone());
        log.write(b"hello").unwrap();
        assert_eq!(log.end().unwrap(), LogEnd { bytes: 5, text: Some("hello".to_owned()) });
        assert!(!path.exists());

        let mut log = Log::new(path.clone());
        let piece = vec![b'x'; INLINE_LOG_BYTES_MAX];
        log.write(&piece).unwrap();
        assert!(!log.is_long());
        log.write(b"more").unwrap();
        assert!(log.is_long() && path.exists());
        std::fs::remove_dir_all(dir.path().join("attempt")).unwrap();
        log.write(b"end").unwrap();
        let end = log.end().unwrap();
        assert_eq!((end.bytes, end.text), (piece.len() as u64 + 7, None));
        assert!(std::fs::read(&path).unwrap().ends_with(b"xmoreend"));
    }

    #[test]
    fn bytes_that_are_no_text_go_to_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path().join("log"));
        log.write(&[0xff, 0xfe]).unwrap();
        assert_eq!(log.end().unwrap(), LogEnd { bytes: 2, text: None });
        assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), [0xff, 0xfe]);
    }

    #[test]
    fn a_log_that_fills_the_disk_says_what_is_there_of_it() {
        let mount = crewboss_host::testing::Mount::tmpfs(1);
        let path = mount.path().join("log");
        let mut log = Log::new(path.clone());
        let piece = vec![b'x'; INLINE_LOG_BYTES_MAX];
        assert!((0..1000).any(|_| log.write(&piece).is_err()));
        let end = log.end().unwrap();
        assert_eq!((end.bytes, end.text), (std::fs::metadata(&path).unwrap().len(), None));
        assert!(end.bytes > 0);

        // One that is still in memory, and finds no room for a file.
        let mut log = Log::new(mount.path().join("other"));
        log.write(&piece).unwrap();
        log.write(&piece).unwrap_err();
        let end = log.end().unwrap();
        assert_eq!((end.bytes, end.text.unwrap().len()), (piece.len() as u64, piece.len()));
    }

    proptest! {
        #[test]
        fn a_warning_is_found_however_it_is_cut(
            before in "[wW:arni g]{0,20}", middle in "(warning:|WARNING:|Warning :|warnin)", cut in 1_usize..9,
        ) {
            let text = format!("{before}{middle}x");
            let mut scan = WarningScan::default();
            text.as_bytes().chunks(cut).for_each(|piece| scan.push(piece));
            prop_assert_eq!(scan.found(), text.to_lowercase().contains("warning:"));
        }
    }
}

//! The person's terminal.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Ctrl-] leaves, as with telnet.
pub(super) const LEAVE: u8 = 0x1d;

/// What is read at once.
const PIECE: usize = 4096;

/// Standard input and output, raw if they are a terminal; as before when dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    before: Option<Termios>,
}

/// What came from the keyboard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These, and then the key that leaves.
    Leave(Vec<u8>),
    /// Nothing will come any more.
    End,
}

impl Terminal {
    /// Takes over.
    ///
    /// # Errors
    /// If it is a terminal that cannot be made raw.
    pub(super) fn raw() -> io::Result<Self> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Self { before: Some(before) })
    }

    /// Rows and columns, as the shell in a guest is told.
    pub(super) fn size(&self) -> Vec<u8> {
        match self.before.as_ref().and_then(|_| tcgetwinsize(io::stdin()).ok()) {
            Some(size) if size.ws_row > 0 && size.ws_col > 0 => {
                format!("\0{} {}\n", size.ws_row, size.ws_col).into_bytes()
            }
            // One that is no terminal, or does not know: what terminals had for decades.
            _ => b"\x0024 80\n".to_vec(),
        }
    }

    /// What a person types can be read when this is readable.
    pub(super) fn keyboard() -> BorrowedFd<'static> {
        rustix::stdio::stdin()
    }

    /// Reads once.
    pub(super) fn read(&self) -> Typed {
        let mut buffer = [0; PIECE];
        match rustix::io::read(Self::keyboard(), &mut buffer) {
            Ok(count) if count > 0 => typed(&buffer[..count]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Typed::Bytes(Vec::new()),
            _ => Typed::End,
        }
    }

    /// Shows something. Says whether anybody is there to see it.
    pub(super) fn show(bytes: &[u8]) -> bool {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).is_ok()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that is gone needs nothing.
            let _gone = tcsetattr(io::stdin().as_fd(), OptionalActions::Drain, before);
        }
    }
}

fn typed(bytes: &[u8]) -> Typed {
    match bytes.iter().position(|byte| *byte == LEAVE) {
        Some(at) => Typed::Leave(bytes[..at].to_vec()),
        None => Typed::Bytes(bytes.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_leaves() {
        assert_eq!(typed(b"ls\n"), Typed::Bytes(b"ls\n".to_vec()));
        assert_eq!(typed(b"ls\x1dignored"), Typed::Leave(b"ls".to_vec()));
        assert_eq!(typed(b"\x1d"), Typed::Leave(Vec::new()));
    }
}

//! What can be wrong with a file or directory, in words.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

/// A path cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {fault}{}", path.display(), self.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default())]
pub struct Error {
    /// Which path.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a path.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Something else has the name.
    #[error("it is {} and not {}", name(*.found), name(*.wanted))]
    Kind {
        /// What it is.
        found: FileType,
        /// What it should be.
        wanted: FileType,
    },
    /// It is somebody else's.
    #[error("it belongs to {}", crate::user_name(*.owner))]
    Owner {
        /// The number of that user.
        owner: u32,
    },
    /// Others than its owner may write to it.
    #[error("other users can write to it (its mode is {mode:03o})")]
    Writable {
        /// Its permissions.
        mode: u32,
    },
    /// It is longer than anything that is written there.
    #[error("it is longer than {max} bytes")]
    TooLong {
        /// The limit.
        max: u64,
    },
    /// The system refused.
    #[error(transparent)]
    Io(io::Error),
}

impl Error {
    pub(crate) fn new(path: &Path, fault: impl Into<Fault>) -> Self {
        Self { path: path.to_owned(), fault: fault.into() }
    }

    /// A command that helps, to be pasted into a shell; `None` if it depends on what is wanted.
    pub fn hint(&self) -> Option<String> {
        let path = in_shell(&self.path);
        match &self.fault {
            Fault::Kind { .. } | Fault::TooLong { .. } => {
                let away = in_shell(&with_end(&self.path, ".away"));
                Some(format!("`mv {path} {away}` puts it out of the way"))
            }
            Fault::Writable { .. } => Some(format!("`chmod go-w {path}` keeps them out")),
            Fault::Owner { .. } | Fault::Io(_) => None,
        }
    }

    /// For who names the path in words of their own: what the system said, with its number.
    pub fn without_path(self) -> io::Error {
        match self.fault {
            Fault::Io(error) => error,
            fault => io::Error::new(io::ErrorKind::InvalidData, fault),
        }
    }

    /// What the system's own kind of this error is.
    pub fn kind(&self) -> io::ErrorKind {
        match &self.fault {
            Fault::Io(error) => error.kind(),
            Fault::Owner { .. } | Fault::Writable { .. } => io::ErrorKind::PermissionDenied,
            Fault::Kind { .. } | Fault::TooLong { .. } => io::ErrorKind::InvalidData,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(end);
    longer.into()
}

/// A path as one word of a POSIX shell, for a command that is to be pasted.
pub fn in_shell(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_is_wrong_and_what_helps() {
        let path = Path::new("/srv/it's/locks");
        let kind = Fault::Kind { found: FileType::Fifo, wanted: FileType::RegularFile };
        let texts = [
            (
                kind,
                "it is a FIFO and not a file; hint: `mv '/srv/it'\\''s/locks' '/srv/it'\\''s/locks.away'` puts it out of the way",
            ),
            (
                Fault::Writable { mode: 0o666 },
                "other users can write to it (its mode is 666); hint: `chmod go-w '/srv/it'\\''s/locks'` keeps them out",
            ),
            (Fault::Owner { owner: 4_000_000_000 }, "it belongs to the user with the number 4000000000"),
            (Fault::Io(io::ErrorKind::NotFound.into()), "entity not found"),
        ];
        for (fault, text) in texts {
            assert_eq!(Error::new(path, fault).to_string(), format!("cannot use /srv/it's/locks: {text}"));
        }
    }

    #[test]
    fn the_kind_of_an_error_survives() {
        let full = Error::new(Path::new("/x"), io::Error::from(io::ErrorKind::StorageFull));
        let full = io::Error::from(full);
        assert_eq!(
            (full.kind(), full.to_string().as_str()),
            (io::ErrorKind::StorageFull, "cannot use /x: no storage space")
        );
    }
}

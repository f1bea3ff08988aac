//! Whose files may say what is run.
//!
//! A crew or build file, and what it includes, has commands run. So it is opened once, what is open
//! is looked at, and that is what is read: nobody can put another file in its place between the
//! look and the reading. Whoever owns it, and whoever can write to it, could have anything run.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crewboss_boss::source::{is_accepted_by_git, repository_of};
use crewboss_ground::{Fault, Open};
use rustix::fs::FileType;

use super::error::ConfigError;

/// How a file came to be used.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// A person has named it, and with it whoever owns it. It may be a link.
    Named,
    /// Another file that is trusted, and belongs to this user, has named it.
    NamedBy(u32),
    /// It lies where this user's own configuration does. It may be a link.
    Own,
    /// It was met on the way up from the working directory, where it might be anybody's.
    Met {
        /// The repository that it lies in, if it does.
        repository: Option<&'a Repository>,
        /// The option that would name it.
        option: &'static str,
    },
}

/// A file that may say what is run.
#[derive(Debug)]
pub struct Trusted {
    /// The open file.
    pub file: File,
    /// Its owner.
    pub owner: u32,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", self.message(), hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default())]
pub struct Refusal {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
    /// What may help.
    pub hint: Option<String>,
}

impl Refusal {
    /// Of a file that the system does not let us read.
    pub fn unreadable(path: &Path, source: std::io::Error) -> Self {
        let denied = source.kind() == std::io::ErrorKind::PermissionDenied;
        let hint = denied.then(|| "you have no right to read it".to_owned());
        Self { path: path.to_owned(), fault: Fault::Io(source), hint }
    }

    /// What is wrong, without the hint.
    pub fn message(&self) -> String {
        let path = self.path.display();
        match &self.fault {
            Fault::Io(_) => format!("cannot read {path}: {}", self.fault),
            Fault::Owner { .. } => {
                format!("cannot use {path}: {}, who could have anything run by it", self.fault)
            }
            Fault::Writable { .. } => {
                format!("cannot use {path}: {}, and have anything run by it", self.fault)
            }
            fault => format!("cannot use {path}: {fault}"),
        }
    }
}

/// Opens a file, if it can be trusted.
pub fn open(path: &Path, way: Way<'_>) -> Result<Trusted, Refusal> {
    let unreadable = |error| Refusal::unreadable(path, error);
    let mut owners = own_users();
    let mut place = path.to_owned();
    if let Way::Met { repository, .. } = way {
        owners.extend(repository.and_then(|repository| repository.stranger));
    } else {
        let found = path.metadata().map_err(unreadable)?;
        let (owner, kind) = (found.uid(), FileType::from_raw_mode(found.mode()));
        if matches!(kind, FileType::Fifo | FileType::Socket) {
            let fault = Fault::Kind { found: kind, wanted: FileType::RegularFile };
            let hint = Some("write what it gives into a file, and name that".to_owned());
            return Err(Refusal { path: path.to_owned(), fault, hint });
        }
        match way {
            Way::Named => owners.push(owner),
            Way::NamedBy(other) => owners.push(other),
            Way::Own | Way::Met { .. } => {}
        }
        // What a link leads to is what was named. If it leads to another link by then, that is not
        // followed.
        place = path.canonicalize().unwrap_or(place);
    }
    match Open::read().also_of(&owners).path(&place) {
        Ok(file) => {
            let owner = file.metadata().map_err(unreadable)?.uid();
            Ok(Trusted { file, owner })
        }
        Err(error) => {
            let hint = hint(&error, way);
            match error.fault {
                Fault::Io(source) => Err(unreadable(source)),
                fault => Err(Refusal { path: path.to_owned(), fault, hint }),
            }
        }
    }
}

/// Reads a short file whole, if it can be trusted.
pub fn read(path: &Path, way: Way<'_>, max: u64) -> Result<Vec<u8>, Refusal> {
    let file = open(path, way)?.file;
    let mut bytes = Vec::new();
    let read = file.take(max.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| Refusal::unreadable(path, error))?;
    if bytes.len() as u64 > max {
        return Err(Refusal { path: path.to_owned(), fault: Fault::TooLong { max }, hint: None });
    }
    Ok(bytes)
}

fn hint(error: &crewboss_ground::Error, way: Way<'_>) -> Option<String> {
    match (&error.fault, way) {
        (Fault::Kind { found, .. }, _) if found.is_dir() => {
            Some("name the file itself, not its directory".to_owned())
        }
        // Naming it does not help with what is neither a file nor leads to one.
        (Fault::Kind { found, .. }, Way::Met { .. }) if !found.is_symlink() => error.hint(),
        (Fault::Kind { .. } | Fault::Owner { .. }, Way::Met { option, .. }) => {
            let file = crewboss_ground::in_shell(&error.path);
            Some(format!("if you trust what it says, name it with `{option} {file}`"))
        }
        (Fault::Kind { .. }, _) => None,
        _ => error.hint(),
    }
}

/// Who this user is to git: also whoever has called sudo, to root.
fn own_users() -> Vec<u32> {
    let is_root = rustix::process::geteuid().is_root();
    let caller = std::env::var("SUDO_UID").ok().and_then(|text| text.parse().ok());
    caller.filter(|_| is_root).into_iter().collect()
}

/// A repository that a search came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The directory that has the `.git`.
    pub top: PathBuf,
    /// Somebody else, whose repository it is, if git would work in it all the same.
    stranger: Option<u32>,
}

impl Repository {
    /// The nearest repository at or above a directory. A `.git` is a directory, or a file or link
    /// that leads to one.
    pub fn around(from: &Path) -> Result<Option<Self>, ConfigError> {
        let Some(top) = repository_of(from) else { return Ok(None) };
        let git = top.join(".git");
        let found = git.symlink_metadata().map_err(|error| Refusal::unreadable(&git, error))?;
        Self::owned_by(found.uid(), top).map(Some)
    }

    fn owned_by(owner: u32, top: PathBuf) -> Result<Self, ConfigError> {
        let own = rustix::process::geteuid().as_raw();
        let known = owner == own || owner == 0 || own_users().contains(&owner);
        if !known && !is_accepted_by_git(&top) {
            return Err(ConfigError::ForeignRepository { top, owner });
        }
        Ok(Self { top, stranger: (!known).then_some(owner) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::config::document::Document;

    const STRANGER: u32 = 987_654;
    const MET: Way<'static> = Way::Met { repository: None, option: "--crew" };

    fn write(path: &Path, text: &str, owner: u32) {
        std::fs::write(path, text).unwrap();
        chown(path, Some(owner), Some(owner)).unwrap();
    }

    fn told(path: &Path, way: Way<'_>) -> String {
        open(path, way)
            .map(|trusted| format!("user {}", trusted.owner))
            .unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn who_has_named_a_file_has_chosen_its_owner() {
        let top = tempfile::tempdir().unwrap();
        let (theirs, ours, link) =
            (top.path().join("theirs"), top.path().join("ours"), top.path().join("link"));
        write(&theirs, "", STRANGER);
        write(&ours, "", 0);
        symlink("ours", &link).unwrap();
        assert_eq!(told(&theirs, Way::Named), "user 987654");
        assert_eq!(told(&theirs, Way::NamedBy(STRANGER)), "user 987654");
        for way in [Way::NamedBy(0), Way::Own, MET] {
            let text = told(&theirs, way);
            assert!(
                text.contains("belongs to the user with the number 987654, who could have anything run"),
                "{text}"
            );
            assert_eq!(told(&ours, way), "user 0");
        }
        assert!(told(&theirs, MET).ends_with(&format!("name it with `--crew '{}'`", theirs.display())));
        assert_eq!(told(&link, Way::Own), "user 0");
        assert!(told(&link, MET).contains("it is a symbolic link and not a file\n  hint: "));
        std::fs::set_permissions(&ours, std::os::unix::fs::PermissionsExt::from_mode(0o646)).unwrap();
        for way in [Way::Named, Way::Own, MET] {
            let text = told(&ours, way);
            assert!(
                text.contains("(its mode is 646), and have anything run by it\n  hint: `chmod go-w "),
                "{text}"
            );
        }
    }

    #[test]
    fn a_pipe_is_no_file_whatever_its_name() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let of_shell = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        for (path, way, hint) in [
            (path.as_path(), Way::Named, "write what it gives into a file, and name that"),
            (Path::new(&of_shell), Way::Named, "write what it gives into a file, and name that"),
            (&path, MET, "puts it out of the way"),
        ] {
            let text = told(path, way);
            assert!(text.contains("it is a FIFO and not a file") && text.ends_with(hint), "{text}");
        }
    }

    #[test]
    fn what_was_looked_at_is_what_is_read() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("crew.toml");
        let (ours, theirs) = (top.path().join("ours"), top.path().join("theirs"));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    write(&ours, "ours", 0);
                    std::fs::rename(&ours, &path).unwrap();
                    write(&theirs, "theirs", STRANGER);
                    std::fs::rename(&theirs, &path).unwrap();
                }
            });
            let (mut read, mut refused) = (0, 0);
            while read < 100 || refused < 100 {
                match Document::read(&path, MET) {
                    Ok(document) => {
                        assert_eq!(document.text(), "ours");
                        read += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

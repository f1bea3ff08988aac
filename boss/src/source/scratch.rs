//! The repository beside the user's own: it has the objects that only the disk had, and sees the
//! user's.
//!
//! It is the only one that libgit2 opens to read objects, and the only one that anything is written
//! to. So neither the user's configuration nor an extension of the user's repository has a say in
//! how objects are read.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crewboss_ground::{Open, Replace};
use git2::{Repository, RepositoryInitOptions};

use super::Settings;
use super::error::SourceError;
use super::git::as_path;
use crate::link::Private;

/// A repository may borrow from another that borrows; git follows no more than this.
const BORROWED_MAX: usize = 5;

/// Longest list of borrowed directories that is read.
const ALTERNATES_BYTES_MAX: u64 = 1 << 20;

/// Removed when dropped, or by the next crewboss if this one is killed.
#[derive(Debug)]
pub(super) struct Scratch {
    git_dir: PathBuf,
    _private: Private,
}

impl Scratch {
    /// Makes one that sees these objects, where temporary files go.
    pub(super) fn new(objects: &Path, settings: &Settings) -> Result<Self, SourceError> {
        let named = std::env::var_os("TMPDIR").filter(|named| !named.is_empty());
        Self::within(&named.map_or_else(|| "/tmp".into(), PathBuf::from), objects, settings)
    }

    pub(super) fn within(base: &Path, objects: &Path, settings: &Settings) -> Result<Self, SourceError> {
        let failed = |(path, source)| SourceError::Scratch { path, source };
        let private = Private::new().map_err(failed)?;
        let git_dir = private.elsewhere(base).map_err(|source| failed((base.to_owned(), source)))?;
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(&git_dir, &options)
            .map_err(|source| SourceError::Keep { path: git_dir.clone(), source: source.into() })?;
        let mut lent = Vec::new();
        borrow(objects, &mut lent, 0);
        lend(&lent, settings, &git_dir).map_err(|source| failed((git_dir.clone(), source)))?;
        Ok(Self { git_dir, _private: private })
    }

    pub(super) fn path(&self) -> &Path {
        &self.git_dir
    }
}

/// Object directories, each followed by those that it borrows from.
fn borrow(objects: &Path, lent: &mut Vec<PathBuf>, depth: usize) {
    let Ok(objects) = fs::canonicalize(objects) else { return };
    if depth > BORROWED_MAX || lent.contains(&objects) {
        return;
    }
    let mut more = Vec::new();
    // The repository is a person's. Git itself says so if it cannot be read.
    let _none = Open::read()
        .of_anybody()
        .path(&objects.join("info/alternates"))
        .map_err(io::Error::from)
        .and_then(|file| file.take(ALTERNATES_BYTES_MAX).read_to_end(&mut more));
    lent.push(objects.clone());
    for line in more.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#') {
        borrow(&objects.join(as_path(line)), lent, depth + 1);
    }
}

/// Names the directories by links, so that no character of a path means anything in the list.
fn lend(lent: &[PathBuf], settings: &Settings, scratch: &Path) -> io::Result<()> {
    let mut alternates = Vec::new();
    for (number, objects) in lent.iter().enumerate() {
        symlink(objects, scratch.join(format!("lent{number}")))?;
        alternates.extend_from_slice(format!("../lent{number}\n").as_bytes());
    }
    match fs::create_dir(scratch.join("objects/info")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let written = Replace::with_mode(0o600);
    written.path(&scratch.join("objects/info/alternates"), &alternates)?;
    let abbrev = settings.abbrev.map(|digits| format!("\tabbrev = {digits}\n")).unwrap_or_default();
    let config = format!("[core]\n\trepositoryformatversion = 0\n\tbare = true\n{abbrev}[gc]\n\tauto = 0\n");
    Ok(written.path(&scratch.join("config"), config.as_bytes())?)
}

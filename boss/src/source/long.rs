//! Sending files that are too long for a pack, none of which is ever whole in memory.

use std::io::Write;
use std::path::Path;

use crewboss_ground::Watched;
use git2::{ErrorCode, Oid};

use super::error::SourceError;
use super::git::program;
use super::pack::{copy, pass_on, start};

/// Writes the content of one.
pub(super) fn write(git_dir: &Path, id: Oid, out: &mut dyn Write) -> Result<(), SourceError> {
    let failed = |source: git2::Error| SourceError::Git { doing: "read a long file", source: source.into() };
    let repository = super::open(git_dir)?;
    let odb = repository.odb().map_err(failed)?;
    // Works for what was taken from the disk, and not in packs: those only git reads piece by
    // piece.
    if let Ok((mut reader, _, _)) = odb.reader(id) {
        copy(&mut reader, out).map_err(SourceError::Write)?;
        return out.flush().map_err(SourceError::Write);
    }
    if let Some(git) = start_git(git_dir, id) {
        return pass_on(git, "cat-file", |_| (), out);
    }
    let content = odb.read(id).map_err(|source| match source.code() {
        ErrorCode::NotFound => SourceError::absent(id.to_string(), ""),
        _ => failed(source),
    })?;
    out.write_all(content.data()).and_then(|()| out.flush()).map_err(SourceError::Write)
}

fn start_git(git_dir: &Path, id: Oid) -> Option<Watched> {
    let mut git = program()?;
    git.arg("--git-dir").arg(git_dir).args(["cat-file", "blob", &id.to_string()]);
    start(git, "cat-file")
}

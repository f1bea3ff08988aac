//! Where the user's repository is.

use std::path::{Path, PathBuf};

use super::git::Git;

/// The nearest directory that has a `.git`, whatever that is: a directory, the file of a linked
/// working tree, of a submodule or of `--separate-git-dir`, a link. That directory is the working
/// tree, and nothing else is.
pub fn repository_of(from: &Path) -> Option<PathBuf> {
    from.ancestors().find(|directory| directory.join(".git").symlink_metadata().is_ok()).map(Path::to_owned)
}

/// The nearest directory that is a repository itself, without a working tree around it.
pub fn bare_repository_of(from: &Path) -> Option<PathBuf> {
    let is_bare = |directory: &&Path| {
        directory.join("HEAD").is_file()
            && directory.join("objects").is_dir()
            && directory.join("refs").is_dir()
    };
    from.ancestors().find(is_bare).map(Path::to_owned)
}

/// Whether git itself would work in a repository, though it is another user's: by any form of
/// `safe.directory`.
pub fn is_accepted_by_git(top: &Path) -> bool {
    Git::at(top).is_some_and(|git| git.objects().is_ok())
}

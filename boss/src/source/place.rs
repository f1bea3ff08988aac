//! Where the user's repository is.

use std::path::{Path, PathBuf};

/// The nearest directory that has a `.git`, whatever that is: a directory, the file of a linked working tree, of a submodule
/// or of `--separate-git-dir`, a link. That directory is the working tree, and nothing else is.
pub fn repository_of(from: &Path) -> Option<PathBuf> {
    from.ancestors().find(|directory| directory.join(".git").symlink_metadata().is_ok()).map(Path::to_owned)
}

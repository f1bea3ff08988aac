//! What lies where in the directory of a guest, and what its files are called by TFTP.

use std::path::{Path, PathBuf};

/// Names of what is got and put by TFTP.
pub const TASK: &str = "task";
/// The source, as an archive.
pub const SOURCE: &str = "source.tar";
/// Agent and toolchain, as an archive.
pub const TOOLCHAIN: &str = "toolchain.tar";
/// Says that the guest is to be bootstrapped.
pub const BOOTSTRAP: &str = "bootstrap";
/// Says that the guest is to serve.
pub const SERVE: &str = "serve";
/// The name of the stage that begins, in a line; put anew at each.
pub const STAGE: &str = "stage";
/// Both outputs of the stages.
pub const LOG: &str = "log";
/// Standard error alone.
pub const ERR: &str = "err";
/// The archive of artifacts.
pub const ARTIFACTS: &str = "artifacts.tar";
/// The result, which comes last.
pub const RESULT: &str = "result";
/// What a bootstrap reports.
pub const BOOTSTRAPPED: &str = "bootstrapped";
/// What an auxiliary machine reports.
pub const ENVIRONMENT: &str = "environment";

/// The file of the result disk, in the guest's snapshot.
const RESULT_IMAGE: &str = "result.img";

/// Where what was put by TFTP lies, in the guest's snapshot.
const PUT: &str = "put";

/// Everything that a guest puts lies below this.
pub fn put_directory(directory: &Path) -> PathBuf {
    directory.join(PUT)
}

/// What a guest puts under a name lies here.
pub fn put_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(PUT).join(name)
}

/// The result disk of a guest lies here.
pub fn result_disk(directory: &Path) -> PathBuf {
    directory.join(RESULT_IMAGE)
}

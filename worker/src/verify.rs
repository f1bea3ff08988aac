//! The binary's own hash: what makes boss and worker the same build.

use std::io::{self, Read as _};
use std::process::ExitCode;

use sha2::{Digest as _, Sha256};

/// Digits of a SHA-256.
const DIGITS: usize = 64;

/// `crewboss verify SHA256`: whether this binary has that hash.
pub fn main(expected: &str) -> ExitCode {
    match own_hash() {
        Ok(hash) if hash.eq_ignore_ascii_case(expected) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The SHA-256 of the running binary, computed.
///
/// # Errors
/// If `/proc/self/exe` cannot be read.
pub fn own_hash() -> io::Result<String> {
    let mut file = crewboss_ground::own_program()?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            len => hasher.update(&buffer[..len]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The SHA-256 of the running binary: from the name of its directory if that is one (it was
/// verified when it was put there), else computed; empty if it cannot be read.
pub fn build() -> String {
    let path = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let directory = path.parent().and_then(|parent| parent.file_name()).and_then(|name| name.to_str());
    match directory {
        Some(name) if name.len() == DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            name.to_ascii_lowercase()
        }
        _ => own_hash().unwrap_or_default(),
    }
}

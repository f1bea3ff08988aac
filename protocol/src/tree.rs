//! What a git tree may hold to be checked out on a host. The worker relies on it; the boss checks
//! it before anything is sent, so that one bad commit ends a run at its start rather than every
//! host's session.

/// Longest name of a file on Linux, in bytes.
pub const FILE_NAME_MAX: usize = 255;

/// Longest target of a symbolic link on Linux, in bytes.
pub const LINK_MAX: usize = 4095;

/// Directories within directories; each holds an open file while a tree is checked out.
pub const DEPTH_MAX: usize = 400;

/// Why a name cannot be that of a file in a checked out tree.
///
/// # Errors
/// If it could leave its directory, is git's own, is too long or holds a NUL.
pub fn check_name(name: &[u8]) -> Result<(), String> {
    let shown = || String::from_utf8_lossy(&name[..name.len().min(80)]).into_owned();
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(format!("the name {:?} could leave its directory", shown()));
    }
    if name.eq_ignore_ascii_case(b".git") {
        return Err(format!("the name {:?} is reserved", shown()));
    }
    if name.len() > FILE_NAME_MAX {
        let bytes = name.len();
        return Err(format!("the name {:?}... has {bytes} bytes; the limit is {FILE_NAME_MAX}", shown()));
    }
    Ok(())
}

/// Why what a link holds cannot be a link's target.
///
/// # Errors
/// If it is empty, too long or holds a NUL.
pub fn check_link(target: &[u8]) -> Result<(), String> {
    match target.len() {
        0 => Err("the link leads nowhere".to_owned()),
        1..=LINK_MAX if !target.contains(&0) => Ok(()),
        1..=LINK_MAX => Err("the link's target holds a NUL".to_owned()),
        bytes => Err(format!("the link's target has {bytes} bytes; the limit is {LINK_MAX}")),
    }
}

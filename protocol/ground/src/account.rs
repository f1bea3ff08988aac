//! Whose process this is.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::owner::{PASSWD, account_of, list};
use crate::{output, program};

/// The account that this process runs under. Not what the environment says: `sudo` and services
/// leave there whatever was in it before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name, or its number if nobody knows one.
    pub name: String,
    /// Its home directory, if `/etc/passwd` names one.
    pub home: Option<PathBuf>,
}

/// The account of this process.
pub fn account() -> &'static Account {
    static ACCOUNT: OnceLock<Account> = OnceLock::new();
    ACCOUNT.get_or_init(|| {
        let uid = rustix::process::geteuid().as_raw();
        account_of(uid, &list(PASSWD)).unwrap_or_else(|| Account { name: asked("id", uid), home: None })
    })
}

/// The directory that `~` stands for: `HOME`, or the account's if that is not set.
pub fn home() -> Option<PathBuf> {
    let set = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    set.or_else(|| account().home.clone())
}

/// Who is not in the list may be in a directory service, which `id` knows how to ask: linked
/// dynamically, it can.
fn asked(id: impl AsRef<OsStr>, uid: u32) -> String {
    let said = output(program(id).arg("-un"), "id -un", b"");
    let name = said.ok().filter(|said| said.status.success());
    let name = name.and_then(|said| String::from_utf8(said.stdout).ok());
    let name = name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    name.filter(|name| !name.chars().any(char::is_control)).unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_found_by_its_number_whatever_the_environment_says() {
        let list = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nnone:x:7:7:::\n";
        let of = |uid| account_of(uid, list).map(|account| (account.name, account.home));
        assert_eq!(of(1000), Some(("ann".to_owned(), Some("/home/ann".into()))));
        assert_eq!(of(7), Some(("none".to_owned(), None)));
        assert_eq!(of(1), None);
        let said = std::process::Command::new("id").arg("-un").output().unwrap();
        if said.status.success() {
            assert_eq!(account().name, String::from_utf8(said.stdout).unwrap().trim());
        }
        // Nobody has this number, so `id` answers for another user or not at all.
        assert!(!asked("id", 4_000_000_000).is_empty());
    }

    #[test]
    fn a_directory_service_that_does_not_answer_is_not_waited_for() {
        crate::set_patience(std::time::Duration::from_millis(400));
        let dir = tempfile::tempdir().unwrap();
        let id = dir.path().join("id");
        // By a child: while another thread starts a program, that has open what this process
        // writes, and nobody can run it.
        let write = r##"printf '#!/bin/sh\nexec sleep 1000\n' >"$0" && chmod 755 "$0""##;
        let mut shell = std::process::Command::new("sh");
        assert!(shell.args(["-c", write]).arg(&id).status().unwrap().success());
        assert_eq!(asked(&id, 54_321), "54321");
    }
}

//! Who may have written what we read.
//!
//! Users and groups are looked up in `/etc/passwd` and `/etc/group` alone: a static binary that
//! goes through the name service of the C library crashes on systems with another one.

use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::Stat;

use crate::account::Account;
use crate::error::Fault;

/// Most that is read of `/etc/passwd` and `/etc/group`.
const LIST_BYTES_MAX: u64 = 16 << 20;

/// Refuses what belongs to somebody else than this user, root and those in `also`, or can be
/// written by others than its owner: by everybody, or by a group that has other members.
pub(crate) fn check(open: BorrowedFd<'_>, found: &Stat, also: &[u32]) -> Result<(), Fault> {
    let owner = found.st_uid;
    let own = rustix::process::geteuid().as_raw();
    if owner != own && owner != 0 && !also.contains(&owner) {
        return Err(Fault::Owner { owner });
    }
    let mode = found.st_mode & 0o7777;
    if mode & 0o002 != 0 || (mode & 0o020 != 0 && !is_private_to_owner(open, found)) {
        return Err(Fault::Writable { mode });
    }
    Ok(())
}

/// Whether nobody but the owner is in the group, as with files that were made under a umask of 002
/// where each user has a group of their own. With an access list the bits of the group stand for
/// others as well.
fn is_private_to_owner(open: BorrowedFd<'_>, found: &Stat) -> bool {
    let mut none: [u8; 0] = [];
    let has_list = rustix::fs::fgetxattr(open, "system.posix_acl_access", &mut none).is_ok();
    !has_list && is_private(found.st_gid, found.st_uid, &list(PASSWD), &list("/etc/group"))
}

/// The file of all users.
pub(crate) const PASSWD: &str = "/etc/passwd";

pub(crate) fn list(path: &str) -> String {
    let mut bytes = Vec::new();
    // Without the list nobody is known to be in it: then only the numbers tell.
    let _unread =
        std::fs::File::open(path).and_then(|file| file.take(LIST_BYTES_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A group is its owner's own if it has the owner's number or name, which is how systems make
/// private ones. Lists may be incomplete (users can come from a directory service), so a shared
/// group that nobody is listed in is not taken for one.
fn is_private(group: u32, owner: u32, passwd: &str, groups: &str) -> bool {
    let owner_name = user(owner, passwd);
    let entry = fields(groups).find(|entry| number(entry, 2) == Some(group));
    let group_name = entry.as_ref().and_then(|entry| entry.first().copied());
    let own = group == owner || group == 0 || (group_name.is_some() && group_name == owner_name);
    let trusted = |name: &str| Some(name) == owner_name || name == "root";
    let listed = entry.as_ref().and_then(|entry| entry.get(3).copied()).unwrap_or_default();
    let members = listed.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut first = fields(passwd).filter(|entry| number(entry, 3) == Some(group));
    own && members.into_iter().all(trusted)
        && first.all(|entry| number(&entry, 2).is_some_and(|user| user == owner || user == 0))
}

fn fields(list: &str) -> impl Iterator<Item = Vec<&str>> {
    list.lines().map(|line| line.split(':').collect())
}

fn number(entry: &[&str], at: usize) -> Option<u32> {
    entry.get(at)?.parse().ok()
}

fn user(number_of: u32, passwd: &str) -> Option<&str> {
    let found = fields(passwd).find(|entry| number(entry, 2) == Some(number_of))?;
    found.first().copied().filter(|name| !name.is_empty())
}

/// What a list says of a user.
pub(crate) fn account_of(uid: u32, passwd: &str) -> Option<Account> {
    let name = user(uid, passwd)?.to_owned();
    let found = fields(passwd).find(|entry| number(entry, 2) == Some(uid))?;
    let home = found.get(5).map(PathBuf::from).filter(|home| home.is_absolute());
    Some(Account { name, home })
}

/// A user for a sentence: the name, if `/etc/passwd` has one, and the number.
pub fn user_name(uid: u32) -> String {
    match user(uid, &list(PASSWD)) {
        Some(name) => format!("the user {name} ({uid})"),
        None => format!("the user with the number {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n\
                          bob:x:1001:100::/home/bob:/bin/sh\neve:x:1002:1500::/home/eve:/bin/sh\n";
    const GROUPS: &str =
        "root:x:0:\nusers:x:100:\nann:x:1000:\nteam:x:1400:ann,bob\neve:x:1500:\nbob:x:1501:ann\n";

    #[test]
    fn a_group_is_private_if_it_is_the_owner_s_and_nobody_else_is_in_it() {
        let private = |group, owner| is_private(group, owner, PASSWD, GROUPS);
        assert!(private(1000, 1000), "the same number");
        assert!(private(1500, 1002), "the same name");
        assert!(private(0, 0) && private(0, 1000), "root may write to everything anyhow");
        assert!(!private(100, 1001), "all users may come from elsewhere");
        assert!(!private(1400, 1000) && !private(1000, 1001));
        assert!(!private(1501, 1001), "ann was put into bob's group");
        assert!(
            private(70_000, 70_000) && !private(70_001, 70_000),
            "of users from elsewhere only numbers are known"
        );
        let shared = "ann:x:1000:1000:::\nbob:x:1001:1000:::\n";
        assert!(!is_private(1000, 1000, shared, "ann:x:1000:\n"));
        assert!(!is_private(0, 1000, "bob:x:1001:0:::\n", GROUPS));
    }

    #[test]
    fn odd_lines_of_the_lists_harm_nobody() {
        for odd in ["", ":::\n", "+\n", "ann\n", "ann:x:many:more\n", "\u{0}:\u{0}:1000:1000"] {
            assert!(is_private(7, 7, odd, odd) && !is_private(8, 7, odd, odd), "{odd:?}");
        }
        assert!(user_name(0).contains("root (0)"));
    }
}

//! What tests of several crates share: what must be true of a host, and file systems of their own.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "for tests, of other crates as well"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crewboss_protocol::message::Hello;

use crate::owner::Owner;
use crate::process::{ProcessId, boot_id};

/// What a boss says first.
pub fn hello(session: &str) -> Hello {
    let text = format!(
        r#"{{"protocol":1,"build":"","boss":"a@b","run":"r","session":"{session}","host":"h","heartbeat_ms":10,"silence_ms":20}}"#
    );
    serde_json::from_str(&text).unwrap()
}

/// A file on btrfs that is swapped to: even root can neither remove nor change it. It can be
/// removed when this is dropped.
#[derive(Debug)]
pub struct Swap(PathBuf);

impl Swap {
    /// Makes the file and swaps to it; panics with the reason if that cannot be done.
    pub fn on(path: &Path) -> Self {
        use std::os::unix::fs::PermissionsExt;
        fs::write(path, "").unwrap();
        // No hole may be in it, and nothing of it may be copied on write.
        run(Command::new("chattr").arg("+C").arg(path));
        fs::write(path, vec![0; 1 << 20]).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        run(Command::new("mkswap").arg("-q").arg(path));
        run(Command::new("swapon").arg(path));
        Self(path.to_owned())
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        drop(Command::new("swapoff").arg(&self.0).status());
    }
}

/// A file system of the test's own. Unmounted when dropped, also by a panic.
#[derive(Debug)]
pub struct Mount {
    directory: tempfile::TempDir,
}

impl Mount {
    /// An empty tmpfs of some mebibytes. Needs root; panics with the reason otherwise.
    pub fn tmpfs(mebibytes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "none"])
            .arg(&mount));
        Self { directory }
    }

    /// A new btrfs on a loop device. Needs root and `mkfs.btrfs`; panics with the reason otherwise.
    pub fn btrfs() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { directory }
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Detached at once even if a failed test still has something open; the loop device goes
        // with the mount.
        let status = Command::new("umount").arg("-l").arg(self.path()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.path().display());
        }
    }
}

/// Runs a command to its end; panics with what it says unless that is good.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} (as root?): {}", String::from_utf8_lossy(&output.stderr));
}

/// Does something with no more rights on files than a stranger has, also where the tests run as
/// root: in a thread of its own, of which alone the kernel then thinks so.
pub fn as_stranger<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const NOBODY: u32 = 65_534;
    let stranger = || {
        // SAFETY: changes numbers of this thread and touches no memory.
        unsafe { libc::syscall(libc::SYS_setresuid, u32::MAX, NOBODY, u32::MAX) };
        work()
    };
    std::thread::scope(|scope| scope.spawn(stranger).join())
        .unwrap_or_else(|why| std::panic::resume_unwind(why))
}

/// Writes a script that can be run at once. A child does it: while this process has a file open for
/// writing, a program that another thread starts has it open too, and nobody can run it.
pub fn write_script(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", r#"cat >"$1" && chmod 755 "$1""#, "sh"]).arg(path).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success(), "cannot write {}", path.display());
}

/// The record of a session whose guardian and worker are the same process.
pub fn owner_of(session: &str, process: &ProcessId) -> Owner {
    Owner {
        session: session.parse().unwrap(),
        boss: "me@here".to_owned(),
        run: "run".parse().unwrap(),
        host: "lab".parse().unwrap(),
        priority: 0,
        silence_ms: 20_000,
        boot: boot_id(),
        guardian: process.clone(),
        worker: process.clone(),
        cgroup: None,
        machines: None,
        short: None,
    }
}

/// Every file below a directory with its content, links as `-> target`.
pub fn content(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_symlink() {
                found.push((name, format!("-> {}", fs::read_link(&path).unwrap().display())));
            } else if kind.is_dir() {
                pending.push(path);
            } else {
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

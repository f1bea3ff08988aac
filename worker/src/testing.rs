//! What tests of this crate share: a btrfs of their own, and repositories made of a few words.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crewboss_protocol::TreeId;
use crewboss_protocol::message::Hello;
use git2::{ObjectType, Oid, Repository};

use crate::layout::Layout;

/// What a boss says first.
pub(crate) fn hello(session: &str) -> Hello {
    let text = format!(
        r#"{{"protocol":1,"build":"","boss":"a@b","run":"r","session":"{session}","host":"h","heartbeat_ms":10,"silence_ms":20}}"#
    );
    serde_json::from_str(&text).unwrap()
}

/// A file on btrfs that is swapped to: even root can neither remove nor change it. It can be
/// removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Swap(PathBuf);

impl Swap {
    /// Makes the file and swaps to it; panics with the reason if that cannot be done.
    pub(crate) fn on(path: &Path) -> Self {
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
pub(crate) struct Mount {
    directory: tempfile::TempDir,
}

impl Mount {
    /// An empty tmpfs of some mebibytes. Needs root; panics with the reason otherwise.
    pub(crate) fn tmpfs(mebibytes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "none"])
            .arg(&mount));
        Self { directory }
    }

    /// A new btrfs on a loop device. Needs root and `mkfs.btrfs`; panics with the reason otherwise.
    pub(crate) fn btrfs() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
        let mount = directory.path().join("mount");
        fs::create_dir(&mount).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { directory }
    }

    pub(crate) fn path(&self) -> PathBuf {
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

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} (as root?): {}", String::from_utf8_lossy(&output.stderr));
}

/// Does something with no more rights on files than a stranger has, also where the tests run as
/// root: in a thread of its own, of which alone the kernel then thinks so.
pub(crate) fn as_stranger<T: Send>(work: impl FnOnce() -> T + Send) -> T {
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
pub(crate) fn write_script(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", r#"cat >"$1" && chmod 755 "$1""#, "sh"]).arg(path).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success(), "cannot write {}", path.display());
}

/// Stores a tree in `objects.git`. Files are `path`, `mode`, `content`.
pub(crate) fn store(layout: &Layout, files: &[(&str, u32, &str)]) -> TreeId {
    fs::create_dir_all(layout.work()).unwrap();
    let repository = Repository::open_bare(layout.objects())
        .unwrap_or_else(|_| Repository::init_bare(layout.objects()).unwrap());
    tree_of(&repository, files)
}

pub(crate) fn tree_of(repository: &Repository, files: &[(&str, u32, &str)]) -> TreeId {
    let owned: Vec<_> = files.iter().map(|(path, mode, text)| ((*path).to_owned(), *mode, *text)).collect();
    TreeId(write_tree(repository, &owned).as_bytes().try_into().unwrap())
}

fn write_tree(repository: &Repository, files: &[(String, u32, &str)]) -> Oid {
    let mut entries: Vec<(String, String, Oid)> = Vec::new();
    let mut inner: std::collections::BTreeMap<String, Vec<(String, u32, &str)>> = Default::default();
    for (path, mode, text) in files {
        match path.split_once('/') {
            Some((directory, rest)) => {
                inner.entry(directory.to_owned()).or_default().push((rest.to_owned(), *mode, text));
            }
            None => {
                let id = repository.blob(text.as_bytes()).unwrap();
                entries.push((path.clone(), format!("{mode:o}"), id));
            }
        }
    }
    for (name, files) in inner {
        entries.push((name, "40000".to_owned(), write_tree(repository, &files)));
    }
    entries.sort();
    let content: Vec<u8> = entries
        .iter()
        .flat_map(|(name, mode, id)| [mode.as_bytes(), b" ", name.as_bytes(), b"\0", id.as_bytes()].concat())
        .collect();
    repository.odb().unwrap().write(ObjectType::Tree, &content).unwrap()
}

/// Every file below a directory with its content, links as `-> target`.
pub(crate) fn content(directory: &Path) -> Vec<(String, String)> {
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

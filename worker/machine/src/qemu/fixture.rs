//! Real guests for tests: a kernel of the host, and busybox with a script as all there is in the
//! guest.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_host::sys;
use crewboss_protocol::machine::Accelerator;
use rustix::event::{PollFd, PollFlags};

use super::command::{Backing, Boot, GuestConfig};
use super::process::Qemu;
use super::version::Program;

/// A guest that takes longer for anything here hangs, on however busy a host.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What the guest prints when its shell listens on the console.
pub(crate) const UP: &str = "GUEST-UP";

/// Obeys lines from the console. `say X` prints `PONG X` and the time since it booted.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
/bin/busybox stty -F /dev/ttyS0 -echo
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo GUEST-UP
while read word rest; do
  case "$word" in
    off) /bin/busybox poweroff -f ;;
    reset) /bin/busybox reboot -f ;;
    panic) echo c >/proc/sysrq-trigger ;;
    say) echo "PONG $rest" ;;
    run) eval "$rest"; echo "RAN $?" ;;
  esac
done
"#;

/// The kernel of test guests: `CREWBOSS_TEST_KERNEL`, or else the newest cloud kernel in `/boot`.
/// Panics with the reason if there is none.
pub(crate) fn kernel() -> PathBuf {
    if let Some(kernel) = std::env::var_os("CREWBOSS_TEST_KERNEL") {
        let kernel = PathBuf::from(kernel);
        assert!(kernel.is_file(), "CREWBOSS_TEST_KERNEL names {}, which is no file", kernel.display());
        return kernel;
    }
    let kernels = fs::read_dir("/boot").into_iter().flatten().flatten().map(|entry| entry.path());
    let cloud = kernels.filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
    });
    let newest = cloud.max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok());
    newest.expect(
        "no kernel for test guests: set CREWBOSS_TEST_KERNEL, or `apt install linux-image-cloud-amd64` for /boot/vmlinuz-*-cloud-amd64",
    )
}

/// Writes an initial file system of busybox, this script as `/init`, and more files (path, mode,
/// content).
pub(crate) fn initrd(path: &Path, init: &str, files: &[(&str, u32, &[u8])]) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.expect("no /bin/busybox for test guests: `apt install busybox-static`");
    let mut archive = Vec::new();
    for directory in ["bin", "dev", "proc", "sys", "tmp"] {
        entry(&mut archive, directory, 0o40755, b"");
    }
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, init.as_bytes());
    for (name, mode, content) in files {
        entry(&mut archive, name, 0o100_000 | mode, content);
    }
    entry(&mut archive, "TRAILER!!!", 0, b"");
    File::create(path).unwrap().write_all(&archive).unwrap();
}

/// An entry of a cpio archive in the format `newc`.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let inode = archive.len();
    let (size, name_size) = (content.len(), name.len() + 1);
    write!(archive, "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}", 0, 1).unwrap();
    write!(archive, "{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}{name}\0", 0).unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A directory of a guest, with its configuration.
pub(crate) struct Scene {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) config: GuestConfig,
}

impl Scene {
    /// A guest under emulation that obeys lines from the console.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        initrd(&directory.path().join("initrd"), INIT, &[]);
        let boot = Boot::Kernel {
            kernel: kernel(),
            initrd: Some("initrd".into()),
            append: "console=ttyS0 quiet".to_owned(),
        };
        let config = GuestConfig {
            name: "test".to_owned(),
            accelerator: Accelerator::Tcg,
            cpu: None,
            memory: 128 << 20,
            backing: Backing::Anonymous,
            processors: 1,
            boot,
            disks: Vec::new(),
            agent: true,
            shell: false,
            networks: Vec::new(),
            firmware_entries: Vec::new(),
            display: None,
            incoming: false,
            options: Vec::new(),
        };
        Self { directory, config }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(Vec::new())
    }

    pub(crate) fn start_with(&self, networks: Vec<OwnedFd>) -> Running {
        let program = Program::find().unwrap_or_else(|error| panic!("{error}"));
        let qemu = Qemu::start(&program, &self.config, self.directory.path(), networks).unwrap();
        Running { qemu, seen: String::new() }
    }
}

/// A guest that runs, and what it printed.
pub(crate) struct Running {
    pub(crate) qemu: Qemu,
    pub(crate) seen: String,
}

impl Running {
    /// Waits until a word is on the console; returns what was before it, and forgets both.
    pub(crate) fn expect(&mut self, word: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(word) {
                let before = self.seen[..at].to_owned();
                self.seen.drain(..at + word.len());
                return before;
            }
            assert!(Instant::now() < end, "no {word:?}: {:?} {}", self.seen, self.qemu.child.said());
            if !self.read(end) {
                let said = self.last_words();
                panic!("QEMU ended before {word:?}: {:?} {said}", self.seen);
            }
        }
    }

    /// Takes from the console what comes until then. Returns false once QEMU has closed it. A guest
    /// whose console nobody reads stands still when it prints.
    pub(crate) fn read(&mut self, until: Instant) -> bool {
        let console = &self.qemu.console;
        let mut fds = [PollFd::from_borrowed_fd(console.as_fd(), PollFlags::IN)];
        sys::poll(&mut fds, Some(until.saturating_duration_since(Instant::now()))).unwrap();
        let mut buffer = [0; 4096];
        match rustix::io::read(console, &mut buffer) {
            Ok(0) => return false,
            Ok(len) => self.seen.push_str(&String::from_utf8_lossy(&buffer[..len])),
            Err(error) => assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock),
        }
        true
    }

    fn last_words(&mut self) -> String {
        self.qemu.child.wait(Instant::now() + LIMIT);
        self.qemu.child.said()
    }

    /// Says a line to the console.
    pub(crate) fn say(&self, line: &str) {
        let line = format!("{line}\n");
        assert_eq!(rustix::io::write(&self.qemu.console, line.as_bytes()), Ok(line.len()));
    }

    /// Whether its shell answers.
    pub(crate) fn answers(&mut self, word: &str) {
        self.say(&format!("say {word}"));
        self.expect(&format!("PONG {word}"));
    }
}

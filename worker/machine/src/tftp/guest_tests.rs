//! A server and a real guest: QEMU with its user network, a Debian kernel and busybox.
//!
//! The kernel is the one that `CREWBOSS_TEST_KERNEL` names (as `.../boot/vmlinuz-VERSION`, its
//! modules in `../lib/modules/VERSION` beside it or in `/lib/modules/VERSION`), or the newest cloud
//! kernel in `/boot`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::event::{Counts, Event, Refusal};
use super::lab::{noise, turn};
use super::server::{Limits, Offer, PutRule, Server};

/// What a virtual network card needs, in this order.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Software emulation on a busy machine takes a while.
const LONG: Duration = Duration::from_secs(300);

/// Gets a file and puts it back, in two ways; tries what is not allowed; and says how it all went.
const INIT: &str = r#"#!/bin/busybox sh
busybox mount -t proc proc /proc
for module in $MODULES; do busybox insmod /modules/$module.ko; done
busybox ip link set eth0 up
busybox ip address add 10.0.2.15/24 dev eth0
for word in $(busybox cat /proc/cmdline); do
    case $word in test.tftp=*) port=${word##*:} ;; esac
done
try() {
    word=$1; shift
    if busybox tftp "$@" 10.0.2.2 $port; then echo "$word good"; else echo "$word bad"; fi >>/report
}
try get -g -r source.tar -l /small
try put -p -r small -l /small
try get65464 -b 65464 -g -r source.tar -l /large
try put65464 -b 65464 -p -r large -l /large
try upwards -g -r ../source.tar -l /none
try absolute -p -r /small -l /small
try result -p -r result -l /report
busybox poweroff -f
"#;

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    fn find() -> Self {
        let image = match std::env::var_os("CREWBOSS_TEST_KERNEL") {
            Some(path) => PathBuf::from(path),
            None => newest().expect("no kernel: set CREWBOSS_TEST_KERNEL or install linux-image-cloud-amd64"),
        };
        let name = image.file_name().unwrap().to_str().unwrap();
        let version = name.strip_prefix("vmlinuz-").expect("the kernel is to be called vmlinuz-VERSION");
        let beside = image.parent().unwrap().join("../lib/modules").join(version);
        let modules = [beside, Path::new("/lib/modules").join(version)];
        let modules = modules.into_iter().find(|path| path.is_dir());
        let modules = modules.unwrap_or_else(|| panic!("there are no modules of {}", image.display()));
        Self { image, modules }
    }

    /// The path of a module, wherever below the kernel's directory.
    fn module(&self, name: &str) -> PathBuf {
        let mut pending = vec![self.modules.join("kernel")];
        let file = format!("{name}.ko");
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    pending.push(entry.path());
                } else if entry.file_name() == file.as_str() {
                    return entry.path();
                }
            }
        }
        panic!("{} has no module {file}", self.modules.display());
    }
}

fn newest() -> Option<PathBuf> {
    let path = |entry: std::io::Result<fs::DirEntry>| Some(entry.ok()?.path());
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
    };
    let changed = |path: &PathBuf| fs::metadata(path).and_then(|found| found.modified()).ok();
    fs::read_dir("/boot").ok()?.filter_map(path).filter(ours).max_by_key(changed)
}

/// An archive as the kernel unpacks it: cpio in the "newc" format.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let mut head = String::from("070701");
        let mode = usize::try_from(mode).unwrap();
        let numbers = [0, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for number in numbers {
            write!(head, "{number:08X}").unwrap();
        }
        for part in [head.as_bytes(), name.as_bytes(), b"\0"] {
            self.0.extend_from_slice(part);
        }
        self.pad();
        self.0.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

fn initramfs(kernel: &Kernel) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["bin", "proc", "modules", "dev"] {
        archive.add(directory, 0o40755, b"");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    archive.add("bin/busybox", 0o100_755, &busybox.expect("busybox is needed (the package busybox-static)"));
    for name in MODULES {
        archive.add(&format!("modules/{name}.ko"), 0o100_644, &fs::read(kernel.module(name)).unwrap());
    }
    archive.add("init", 0o100_755, INIT.replace("$MODULES", &MODULES.join(" ")).as_bytes());
    archive.add("TRAILER!!!", 0, b"");
    archive.0
}

/// QEMU, ended when dropped.
struct Guest {
    process: Child,
    console: PathBuf,
}

impl Guest {
    fn start(kernel: &Kernel, directory: &Path, port: u16) -> Self {
        let (initrd, console) = (directory.join("initrd"), directory.join("console"));
        fs::write(&initrd, initramfs(kernel)).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-accel", "tcg", "-cpu", "max", "-m", "256"]);
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initrd);
        command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 test.tftp=10.0.2.2:{port}"));
        let process = command.stdin(Stdio::null()).spawn().expect("qemu-system-x86_64 is needed");
        Self { process, console }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
fn a_guest_in_qemu_gets_and_puts_and_nobody_else_does() {
    let kernel = Kernel::find();
    let directory = tempfile::tempdir().unwrap();
    let (source, out) = (directory.path().join("source"), directory.path().join("out"));
    let content = noise(3_000_001);
    fs::write(&source, &content).unwrap();
    fs::create_dir(&out).unwrap();
    let put = |name: &str| {
        let rule =
            PutRule { path: out.join(name), max: 1 << 30, replaceable: false, closes: name == "result" };
        (name.to_owned(), rule)
    };
    let offers = BTreeMap::from([("source.tar".to_owned(), Offer::File(source))]);
    let puts = ["small", "large", "result"].map(put).into();
    let mut server = Server::start(offers, puts, Limits { reserve: 0, ..Limits::default() }).unwrap();
    let mut guest = Guest::start(&kernel, directory.path(), server.port());
    server.guest_is(guest.process.id());
    // Somebody else on this computer.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"\0\x01source.tar\0octet\0", ("127.0.0.1", server.port())).unwrap();

    let (end, mut events) = (Instant::now() + LONG, Vec::new());
    while guest.process.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the guest does not end: {events:?}\n{}", guest.console());
        turn(&mut server, &mut events);
    }
    let report = fs::read_to_string(out.join("result"));
    let report = report.unwrap_or_else(|error| panic!("{error}: {events:?}\n{}", guest.console()));
    let expected = "get good\nput good\nget65464 good\nput65464 good\nupwards bad\nabsolute bad\n";
    assert_eq!(report, expected, "{events:?}\n{}", guest.console());
    for name in ["small", "large"] {
        assert!(fs::read(out.join(name)).unwrap() == content, "{name} is not what was sent");
    }
    let refused = |what: &str, why| Event::Refused { what: what.to_owned(), why, untold: 0 };
    assert!(events.contains(&refused("../source.tar", Refusal::Upwards)), "{events:?}");
    assert!(events.contains(&refused("/small", Refusal::Absolute)), "{events:?}");
    let bytes = 4 * content.len() as u64 + report.len() as u64;
    let counts = Counts { got: 2, put: 3, bytes, foreign: 1, ..Counts::default() };
    assert_eq!(Counts { refused: 0, ..server.counts() }, counts);
    // Who waits long for an answer asks again.
    assert!(server.counts().refused >= 2, "{:?}", server.counts());
    stranger.set_nonblocking(true).unwrap();
    assert!(stranger.recv(&mut [0; 100]).is_err(), "a stranger was answered");
}

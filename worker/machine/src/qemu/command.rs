//! The command line of a guest; pure.
//!
//! - The machine is `q35`: every QEMU has it, and whatever has a driver for virtio boots in it.
//!   With five devices on its bus a Linux guest takes a fifth less time to boot than in `pc`, whose
//!   interrupts ACPI has to route for each of them. `microvm` would be faster still, but hung in
//!   early boot one time in three under emulation.
//! - Nothing is there that is not asked for: no default devices, no configuration of the user, no
//!   window.
//! - Disks are virtio-blk. Those of guests that are thrown away take no flush (`cache=unsafe`):
//!   whatever a crash of the host could lose is gone with the guest anyway, and what a crash of
//!   QEMU leaves is in the host's page cache. A disk that is kept, as that of a bootstrap, honours
//!   flushes (`cache=writeback`).
//! - A reset ends QEMU, as a power-off does, so that a guest that resets in a loop shows at once. A
//!   panic is told by the `pvpanic` device if the guest has a driver for it; a Linux that is booted
//!   directly is told to reset when it panics, unless its command line says otherwise.
//! - The user network has no `restrict`: that would cut off the host too, and with it the TFTP
//!   server. So a guest with this network reaches what its host reaches, the host's own services on
//!   10.0.2.2 included; it is given to a guest only if its manifest says so, or if it speaks TFTP.
//! - QEMU itself is locked up (`-sandbox`): it can start no program and change no user.
//! - `vmgenid` tells a guest that it was restored from a saved state, so that its kernel gets new
//!   random numbers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crewboss_protocol::guest::{AGENT_PORT, SHELL_PORT};
use crewboss_protocol::machine::Accelerator;
use serde::{Deserialize, Serialize};

use super::firmware::Uefi;

/// What QEMU may not do: start programs, become somebody else, use calls that nobody needs.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What a machine's memory is called in saved states. The same with and without a file behind it,
/// so that a state that was saved with one is restored with the other.
const MEMORY: &str = "pc.ram";

const MEBIBYTE: u64 = 1 << 20;

/// Everything that says how a guest is started, without descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// What it is called in lists of processes.
    pub name: String,
    /// What runs its processor.
    pub accelerator: Accelerator,
    /// The processor model; `None`: [`default_cpu`].
    pub cpu: Option<String>,
    /// Memory in bytes; whole mebibytes of it are given.
    pub memory: u64,
    /// Where its memory lies.
    pub backing: Backing,
    /// Processors.
    pub processors: u32,
    /// What it starts from.
    pub boot: Boot,
    /// Its disks, in this order: `/dev/vda` and so on. Firmware boots from the first one.
    pub disks: Vec<Disk>,
    /// Whether it has the agent's port.
    pub agent: bool,
    /// Whether it has the port of a person's shell.
    pub shell: bool,
    /// Its network cards.
    pub networks: Vec<Nic>,
    /// Entries of its firmware configuration: name (`opt/...`) and text.
    pub firmware_entries: Vec<(String, String)>,
    /// A VGA card, shown by VNC on this socket file. A relative path is one in the guest's
    /// directory.
    pub display: Option<PathBuf>,
    /// It waits for a saved state instead of booting.
    pub incoming: bool,
    /// More options, from its manifest. They come last.
    pub options: Vec<String>,
}

/// Where the memory of a guest lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// In memory of QEMU.
    Anonymous,
    /// In this file: what the guest writes is in it. For the guest that a warm start is saved from.
    Shared(PathBuf),
    /// In this file until it is written to: the file never changes. For guests that start warm.
    Private(PathBuf),
}

/// What a guest starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// This kernel, without firmware of the disk having a say.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Its initial file system.
        initrd: Option<PathBuf>,
        /// Its command line.
        append: String,
    },
    /// The boot sector of the first disk.
    Bios,
    /// The boot loader of the first disk; the variables must be this guest's own.
    Uefi(Uefi),
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file. QEMU locks it, so that two guests never write to one.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its serial number, by which the guest finds it; at most 20 bytes count.
    pub serial: Option<String>,
    /// What the guest may do with it.
    pub access: Access,
}

/// The format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Bytes as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
}

/// What a guest may do with a disk, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// It reads.
    ReadOnly,
    /// It writes, and nobody will miss it after a crash of the host.
    Throwaway,
    /// It writes, and what it flushed must be there.
    Kept,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// What it is connected to.
    pub link: Link,
    /// Its address; `None`: QEMU's usual one.
    pub mac: Option<String>,
}

/// What a network card is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// A network of QEMU's own, from which the host is 10.0.2.2.
    User,
    /// A TAP device that is passed.
    Tap,
    /// A passed datagram socket that carries a frame at a time: the private network of the guests
    /// of one task.
    Frames,
}

impl Link {
    /// Whether it needs a descriptor.
    pub fn is_passed(self) -> bool {
        self != Link::User
    }
}

/// The numbers of the descriptors that are passed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passed {
    /// Its monitor.
    pub monitor: i32,
    /// Its serial console.
    pub console: i32,
    /// The agent's port, if it has one.
    pub agent: i32,
    /// The shell's port, if it has one.
    pub shell: i32,
    /// One for each card that needs one, in their order.
    pub networks: Vec<i32>,
}

/// The processor model of guests that name none: everything that the accelerator can do. Images are
/// built to run on any host, and builds may look at the processor, but no guest moves from host to
/// host.
pub fn default_cpu(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    }
}

/// The arguments that start a guest.
pub fn arguments(config: &GuestConfig, passed: &Passed) -> Vec<OsString> {
    let mut line = Line::default();
    line.two("-name", "guest=").escaped(&config.name);
    line.basics(config.accelerator, config.cpu.as_deref());
    line.machine(config);
    line.two("-smp", format!("cpus={}", config.processors.max(1)));
    // `-no-reboot` is what `-action reboot=shutdown` does; both are said by one option.
    line.two("-action", "reboot=shutdown,shutdown=poweroff,panic=shutdown");
    line.channel("monitor", passed.monitor);
    line.two("-mon", "chardev=monitor,mode=control");
    line.channel("console", passed.console);
    line.two("-serial", "chardev:console");
    line.two("-object", "rng-builtin,id=random");
    line.two("-device", "virtio-rng-pci,rng=random");
    line.two("-device", "pvpanic");
    line.two("-device", "vmgenid,guid=auto");
    line.ports(config, passed);
    for (index, disk) in config.disks.iter().enumerate() {
        line.disk(index, disk, index == 0 && !matches!(config.boot, Boot::Kernel { .. }));
    }
    let mut numbers = passed.networks.iter();
    for (index, nic) in config.networks.iter().enumerate() {
        let number = if nic.link.is_passed() { numbers.next() } else { None };
        line.network(index, nic, number.copied().unwrap_or(-1));
    }
    for (name, text) in &config.firmware_entries {
        line.two("-fw_cfg", "name=").escaped(name).push(",string=").escaped(text);
    }
    line.display(config.display.as_deref());
    line.boot(&config.boot);
    if config.incoming {
        line.two("-incoming", "defer");
    }
    line.0.extend(config.options.iter().map(OsString::from));
    line.0
}

/// The arguments that start the trial guest of an accelerator, with the processor of real guests.
pub fn trial_arguments(accelerator: Accelerator, cpu: &str, rom: &Path, console: i32) -> Vec<OsString> {
    let mut line = Line::default();
    line.two("-name", "guest=crewboss-trial");
    line.basics(accelerator, Some(cpu));
    line.two("-machine", "pc");
    line.two("-m", "16M");
    line.two("-action", "reboot=shutdown");
    line.two("-bios", rom);
    line.channel("console", console);
    line.two("-serial", "chardev:console");
    line.0
}

/// What a saved state depends on as far as the command line says it: the same without what may
/// differ between the guest that was saved and the one that is restored, which is names, addresses,
/// and where files lie.
pub fn shape(config: &GuestConfig) -> Vec<OsString> {
    let mut shape = config.clone();
    shape.name.clear();
    shape.backing = Backing::Anonymous;
    shape.incoming = false;
    shape.cpu = Some(shape.cpu.unwrap_or_else(|| default_cpu(shape.accelerator).to_owned()));
    shape.display = shape.display.map(|_| PathBuf::new());
    shape.disks.iter_mut().for_each(|disk| disk.path.clear());
    shape.networks.iter_mut().for_each(|nic| nic.mac = None);
    shape.firmware_entries.iter_mut().for_each(|(_, text)| text.clear());
    match &mut shape.boot {
        Boot::Bios => {}
        Boot::Kernel { kernel, initrd, .. } => {
            kernel.clear();
            *initrd = initrd.is_some().then(PathBuf::new);
        }
        Boot::Uefi(uefi) => *uefi = Uefi { code: PathBuf::new(), variables: PathBuf::new() },
    }
    arguments(&shape, &Passed::default())
}

#[derive(Default)]
struct Line(Vec<OsString>);

/// The last argument, to be continued.
struct Last<'a>(&'a mut OsString);

impl Last<'_> {
    fn push(self, text: impl AsRef<OsStr>) -> Self {
        self.0.push(text);
        self
    }

    /// A value in a list: QEMU takes two commas for one.
    fn escaped(self, value: impl AsRef<OsStr>) -> Self {
        let mut bytes = Vec::new();
        for byte in value.as_ref().as_bytes() {
            bytes.extend_from_slice(if *byte == b',' { b",," } else { std::slice::from_ref(byte) });
        }
        self.push(OsString::from_vec(bytes))
    }
}

impl Line {
    fn two(&mut self, option: &str, value: impl Into<OsString>) -> Last<'_> {
        self.0.push(option.into());
        self.0.push(value.into());
        let last = self.0.len() - 1;
        Last(&mut self.0[last])
    }

    fn basics(&mut self, accelerator: Accelerator, cpu: Option<&str>) {
        self.0.extend(["-nodefaults", "-no-user-config"].map(OsString::from));
        self.two("-sandbox", SANDBOX);
        self.two("-accel", accelerator.as_str());
        self.two("-cpu", cpu.unwrap_or_else(|| default_cpu(accelerator)));
        self.0.extend(["-display", "none"].map(OsString::from));
    }

    fn machine(&mut self, config: &GuestConfig) {
        let mebibytes = config.memory / MEBIBYTE;
        // No core dump of QEMU holds a guest's memory.
        let machine = self.two("-machine", "q35,dump-guest-core=off");
        let machine = match config.boot {
            Boot::Uefi(_) => machine.push(",pflash0=firmware,pflash1=variables"),
            Boot::Kernel { .. } | Boot::Bios => machine,
        };
        let (path, share) = match &config.backing {
            Backing::Anonymous => {
                self.two("-m", format!("{mebibytes}M"));
                return;
            }
            Backing::Shared(path) => (path, "on"),
            Backing::Private(path) => (path, "off"),
        };
        machine.push(",memory-backend=").push(MEMORY);
        self.two("-m", format!("{mebibytes}M"));
        self.two(
            "-object",
            format!("memory-backend-file,id={MEMORY},size={mebibytes}M,share={share},mem-path="),
        )
        .escaped(path);
    }

    fn channel(&mut self, id: &str, descriptor: i32) {
        self.two("-chardev", format!("socket,id={id},fd={descriptor}"));
    }

    fn ports(&mut self, config: &GuestConfig, passed: &Passed) {
        if config.agent || config.shell {
            self.two("-device", "virtio-serial-pci,id=ports");
        }
        let ports = [(config.agent, AGENT_PORT, passed.agent), (config.shell, SHELL_PORT, passed.shell)];
        for (index, (_, name, descriptor)) in ports.into_iter().enumerate().filter(|(_, port)| port.0) {
            let number = index + 1;
            self.channel(&format!("port{number}"), descriptor);
            let port = format!("virtserialport,bus=ports.0,nr={number},chardev=port{number},name={name}");
            self.two("-device", port);
        }
    }

    fn disk(&mut self, index: usize, disk: &Disk, boots: bool) {
        let format = match disk.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        let (read_only, no_flush) = match disk.access {
            Access::ReadOnly => ("on", "off"),
            Access::Throwaway => ("off", "on"),
            Access::Kept => ("off", "off"),
        };
        let cache = format!("read-only={read_only},cache.direct=off,cache.no-flush={no_flush}");
        let node = format!("driver={format},node-name=disk{index},{cache},discard=unmap");
        // The same for the file below: that is what is locked and flushed.
        let file = format!(",file.driver=file,file.locking=on,file.read-only={read_only}");
        let file = format!("{file},file.cache.direct=off,file.cache.no-flush={no_flush},file.discard=unmap");
        self.two("-blockdev", node + &file + ",file.filename=").escaped(&disk.path);
        let mut device = self.two("-device", format!("virtio-blk-pci,drive=disk{index}"));
        if let Some(serial) = &disk.serial {
            device = device.push(",serial=").escaped(serial);
        }
        if boots {
            device.push(",bootindex=0");
        }
    }

    fn network(&mut self, index: usize, nic: &Nic, descriptor: i32) {
        let netdev = match nic.link {
            Link::User => format!("user,id=net{index},ipv6=off"),
            Link::Tap => format!("tap,id=net{index},fd={descriptor}"),
            Link::Frames => format!("dgram,id=net{index},local.type=fd,local.str={descriptor}"),
        };
        self.two("-netdev", netdev);
        // Without a boot ROM, which some packages of QEMU leave to another package.
        let device = self.two("-device", format!("virtio-net-pci,netdev=net{index},romfile="));
        if let Some(mac) = &nic.mac {
            device.push(",mac=").escaped(mac);
        }
    }

    fn display(&mut self, socket: Option<&Path>) {
        if let Some(socket) = socket {
            self.two("-device", "VGA");
            self.two("-vnc", "unix:").escaped(socket);
        }
    }

    fn boot(&mut self, boot: &Boot) {
        match boot {
            Boot::Bios => {}
            Boot::Kernel { kernel, initrd, append } => {
                self.two("-kernel", kernel);
                if let Some(initrd) = initrd {
                    self.two("-initrd", initrd);
                }
                // First, so that what the machine itself says of it comes later and counts.
                self.two("-append", format!("panic=-1 {append}"));
            }
            Boot::Uefi(uefi) => {
                let node = "node-name=firmware,driver=raw,read-only=on,file.driver=file,file.filename=";
                self.two("-blockdev", node).escaped(&uefi.code);
                let node = "node-name=variables,driver=raw,file.driver=file,file.filename=";
                self.two("-blockdev", node).escaped(&uefi.variables);
            }
        }
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;

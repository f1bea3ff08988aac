//! What a guest is started with: its disks, its network, what it may get and put.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crewboss_ground::{Directory, Open};
use crewboss_protocol::chain;
use crewboss_protocol::guest::{BOOTSTRAP_DISK, NETWORK_BITS, RESULT_DISK, SOURCE_DISK};
use crewboss_protocol::machine::Accelerator;

use super::kept::Kept;
use super::new_guest::NewGuest;
use super::running::{DOCUMENT_BYTES_MAX, Guest, Parts};
use super::verdict::Stop;
use crate::exchange::{SOURCE_DISK_BYTES, archive_length};
use crate::images::directory::Machines;
use crate::images::files::{
    ARTIFACTS, BOOTSTRAP, BOOTSTRAPPED, ENVIRONMENT, ERR, LOG, RESULT, SERVE, SOURCE, STAGE, TASK, TOOLCHAIN,
    put_directory, result_disk,
};
use crate::images::manifest::{Boot, DiskFormat, Exchange, Manifest, Network};
use crate::qemu::command::{self, Access, Backing, Disk, Format, GuestConfig, Link, Nic};
use crate::qemu::error::QemuError;
use crate::qemu::firmware::Uefi;
use crate::qemu::process::Qemu;
use crate::qemu::saved;
use crate::qemu::version::Program;
use crate::tftp::server::{Limits, Offer, PutRule, Server};

/// The file of a guest's own UEFI variables, in its snapshot.
const UEFI_VARIABLES: &str = "uefi-variables";

/// QEMU greets at once; a host that is short of everything may let it wait.
const GREETING_WITHIN: Duration = Duration::from_secs(30);

/// What a guest is for.
#[derive(Debug)]
pub enum Purpose<'a> {
    /// To run a task.
    Task {
        /// The source, as an archive.
        source: &'a Path,
        /// The task, as a document.
        document: String,
    },
    /// To become a bootstrapped copy.
    Bootstrap {
        /// Agent and toolchain, as an archive.
        archive: &'a Path,
        /// The toolchain's name.
        document: String,
    },
    /// To serve a task.
    Serve {
        /// What the task calls it.
        document: String,
    },
}

/// How a guest comes to life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It boots.
    Boot,
    /// It boots with its memory in this file, in which it is then saved.
    Template(PathBuf),
    /// It goes on from a saved state, with its memory in this file, which does not change.
    Saved(PathBuf),
}

/// Everything about a guest before it runs. Its snapshot is there.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The machine directory.
    pub machines: &'a Machines,
    /// Its record and its snapshot.
    pub guest: NewGuest,
    /// Its machine.
    pub manifest: &'a Manifest,
    /// What runs its processor.
    pub accelerator: Accelerator,
    /// Its memory in bytes.
    pub memory: u64,
    /// Its processors, unless the machine takes fewer.
    pub processors: u32,
    /// What it is for.
    pub purpose: Purpose<'a>,
    /// How it comes to life.
    pub life: Life,
    /// Its end of the private network of its task, if that has one.
    pub wire: Option<Wire>,
    /// Whether its console belongs into the live view.
    pub shows_console: bool,
}

/// An end of a private network.
#[derive(Debug)]
pub struct Wire {
    /// For QEMU.
    pub end: OwnedFd,
    /// The guest's address in it.
    pub address: Ipv4Addr,
}

impl Plan<'_> {
    /// What tells whether a saved guest can go on as this one; `image` is what it was booted from.
    ///
    /// # Errors
    /// If this host cannot start it.
    pub(crate) fn key(&self, image: &[&str]) -> Result<String, Stop> {
        let program = Program::find().map_err(|error| Stop::qemu(&error))?;
        let config = self.config(&self.guest.snapshot(), None)?;
        Ok(saved::key(program.identity(), &config, image))
    }

    /// The address of its network card, if it has one.
    pub(crate) fn address(&self) -> Option<String> {
        (self.manifest.network != Network::None).then(|| self.mac())
    }

    /// Starts QEMU. If that fails the guest is removed.
    ///
    /// # Errors
    /// If the host cannot run it.
    pub fn start(mut self) -> Result<Guest, Stop> {
        let directory = self.guest.snapshot();
        self.make_files(&directory)?;
        let mut server = match self.manifest.exchange {
            Exchange::Tftp => Some(self.server(&directory)?),
            Exchange::Agent => None,
        };
        let config = self.config(&directory, server.as_ref())?;
        let mut networks = match &self.manifest.network {
            Network::Bridge(bridge) => vec![super::tap::open(bridge).map_err(|error| {
                let text = chain(&error);
                if error.is_lasting() { Stop::Lasting(text) } else { Stop::Host(text) }
            })?],
            Network::None | Network::User => Vec::new(),
        };
        let private = self.wire.as_ref().map(|wire| (self.private_mac(), wire.address));
        networks.extend(self.wire.take().map(|wire| wire.end));
        let program = Program::find().map_err(|error| Stop::qemu(&error))?;
        let started = Instant::now();
        let mut qemu =
            Qemu::start(&program, &config, &directory, networks).map_err(|error| Stop::qemu(&error))?;
        if let Some(server) = &mut server {
            server.guest_is(qemu.child.pid());
        }
        // What QEMU has against a guest it says before its greeting, and it comes of the manifest
        // mostly.
        let greeted = qemu.wait_ready(Instant::now() + GREETING_WITHIN);
        let version = greeted.map_err(|error| match error {
            QemuError::Killed => Stop::host(&error),
            error if error.is_lasting() => Stop::Lasting(chain(&error)),
            error => Stop::Machine(chain(&error)),
        })?;
        let kept = self.kept(config, &version.to_string());
        Ok(Guest::new(Parts {
            machines: self.machines.clone(),
            kept,
            record: self.guest.run(),
            qemu,
            started,
            server,
            private,
            shows_console: self.shows_console,
        }))
    }

    fn kept(&self, config: GuestConfig, qemu: &str) -> Kept {
        Kept {
            config,
            bridge: match &self.manifest.network {
                Network::Bridge(bridge) => Some(bridge.clone()),
                Network::None | Network::User => None,
            },
            instances: self.manifest.instances_max(),
            startup_ms: u64::try_from(self.manifest.limits.startup.as_millis()).unwrap_or(u64::MAX),
            memory: false,
            prepared: false,
            qemu: qemu.to_owned(),
            document: match &self.purpose {
                Purpose::Task { document, .. }
                | Purpose::Bootstrap { document, .. }
                | Purpose::Serve { document } => document.clone(),
            },
        }
    }

    fn config(&self, directory: &Path, server: Option<&Server>) -> Result<GuestConfig, Stop> {
        let agent = self.manifest.exchange == Exchange::Agent;
        let address = server.map(|server| format!("10.0.2.2:{}", server.port()));
        let mut networks = match &self.manifest.network {
            Network::None => Vec::new(),
            Network::User => vec![self.nic(Link::User)],
            Network::Bridge(_) => vec![self.nic(Link::Tap)],
        };
        // What its manifest asks for stays first.
        networks
            .extend(self.wire.as_ref().map(|_| Nic { link: Link::Frames, mac: Some(self.private_mac()) }));
        let words = self.words(address.as_deref());
        let entry = |(name, value): &(&str, String)| (format!("opt/crewboss/{name}"), value.clone());
        Ok(GuestConfig {
            name: self.guest.record().id.to_string(),
            accelerator: self.accelerator,
            cpu: self.manifest.cpu.clone(),
            memory: self.memory,
            backing: match &self.life {
                Life::Boot => Backing::Anonymous,
                Life::Template(memory) => Backing::Shared(memory.clone()),
                Life::Saved(memory) => Backing::Private(memory.clone()),
            },
            processors: self.manifest.processors(self.processors),
            boot: self.boot(directory, &words)?,
            disks: self.disks(directory, agent),
            agent,
            shell: agent,
            networks,
            firmware_entries: words.iter().map(entry).collect(),
            display: self.manifest.display.then(|| PathBuf::from("vnc")),
            incoming: matches!(self.life, Life::Saved(_)),
            options: self.manifest.options.clone(),
        })
    }

    fn nic(&self, link: Link) -> Nic {
        Nic { link, mac: Some(self.mac()) }
    }

    /// The machine's address, or one made of the guest's name: local, and another for each guest.
    fn mac(&self) -> String {
        if let Some(mac) = &self.manifest.mac {
            return mac.to_string();
        }
        let hash = blake3::hash(self.guest.record().id.as_str().as_bytes());
        let [a, b, c, ..] = *hash.as_bytes();
        format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
    }

    /// The address of its card in the private network, of another part of the hash than the other
    /// one.
    fn private_mac(&self) -> String {
        let hash = blake3::hash(self.guest.record().id.as_str().as_bytes());
        let [_, _, _, a, b, c, ..] = *hash.as_bytes();
        format!("52:54:01:{a:02x}:{b:02x}:{c:02x}")
    }

    /// What a guest finds on its kernel's command line, or in its firmware's configuration.
    fn words(&self, tftp: Option<&str>) -> Vec<(&'static str, String)> {
        let private = |wire: &Wire| format!("{}/{NETWORK_BITS},{}", wire.address, self.private_mac());
        let tftp = tftp.map(|tftp| ("tftp", tftp.to_owned()));
        tftp.into_iter().chain(self.wire.as_ref().map(|wire| ("address", private(wire)))).collect()
    }

    fn boot(&self, directory: &Path, words: &[(&str, String)]) -> Result<command::Boot, Stop> {
        Ok(match &self.manifest.boot {
            Boot::Bios => command::Boot::Bios,
            Boot::Uefi => {
                let uefi = Uefi::find().map_err(|error| Stop::qemu(&error))?;
                command::Boot::Uefi(Uefi { variables: directory.join(UEFI_VARIABLES), ..uefi })
            }
            Boot::Kernel { kernel, initrd, append } => command::Boot::Kernel {
                kernel: directory.join(kernel),
                initrd: initrd.as_ref().map(|initrd| directory.join(initrd)),
                append: words.iter().fold(append.clone(), |append, (name, value)| {
                    format!("{append} crewboss.{name}={value}")
                }),
            },
        })
    }

    /// Makes the files of a guest that are neither of its machine nor of its task. One that goes on
    /// has them.
    fn make_files(&self, directory: &Path) -> Result<(), Stop> {
        if let Boot::Uefi = &self.manifest.boot {
            let uefi = Uefi::find().and_then(|uefi| uefi.with_own_variables(&directory.join(UEFI_VARIABLES)));
            uefi.map_err(|error| Stop::qemu(&error))?;
        }
        let is_task = matches!(self.purpose, Purpose::Task { .. });
        if is_task && self.manifest.exchange == Exchange::Agent && !matches!(self.life, Life::Saved(_)) {
            make_result_disk(directory)?;
        }
        Ok(())
    }

    fn disks(&self, directory: &Path, agent: bool) -> Vec<Disk> {
        let format = match self.manifest.format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        };
        let is_kept = matches!(self.purpose, Purpose::Bootstrap { .. });
        let access = if is_kept { Access::Kept } else { Access::Throwaway };
        let mut disks =
            vec![Disk { path: directory.join(&self.manifest.disk), format, serial: None, access }];
        let mut add = |path: PathBuf, serial: &str, access| {
            disks.push(Disk { path, format: Format::Raw, serial: Some(serial.to_owned()), access });
        };
        match &self.purpose {
            Purpose::Task { source, .. } if agent => {
                add(source.to_path_buf(), SOURCE_DISK, Access::ReadOnly);
                add(result_disk(directory), RESULT_DISK, Access::Throwaway);
            }
            Purpose::Bootstrap { archive, .. } if agent => {
                add(archive.to_path_buf(), BOOTSTRAP_DISK, Access::ReadOnly);
            }
            _ => {}
        }
        disks
    }

    /// The server of a guest that speaks TFTP.
    fn server(&self, directory: &Path) -> Result<Server, Stop> {
        let text = |text: &String| Offer::Bytes(text.clone().into_bytes().into());
        let (offers, names): (Vec<(&str, Offer)>, &[&str]) = match &self.purpose {
            Purpose::Task { source, document } => {
                let length = archive_length(source)
                    .map_err(|error| Stop::Host(format!("cannot read {}: {error}", source.display())))?;
                let source = Offer::Part(source.to_path_buf(), length);
                (vec![(TASK, text(document)), (SOURCE, source)], &[STAGE, LOG, ERR, ARTIFACTS, RESULT])
            }
            Purpose::Bootstrap { archive, document } => {
                let archive = Offer::File(archive.to_path_buf());
                (vec![(BOOTSTRAP, text(document)), (TOOLCHAIN, archive)], &[BOOTSTRAPPED])
            }
            Purpose::Serve { document } => (vec![(SERVE, text(document))], &[ENVIRONMENT]),
        };
        let put = put_directory(directory);
        Directory::make(&put)
            .map_err(|error| Stop::Host(format!("cannot make {}: {error}", put.display())))?;
        let rule = |name: &&str| {
            let big = matches!(*name, LOG | ERR | ARTIFACTS);
            let max = if big { SOURCE_DISK_BYTES } else { DOCUMENT_BYTES_MAX };
            let (replaceable, closes) = (*name == STAGE, *name == RESULT);
            let rule = PutRule { path: put.join(name), max, replaceable, closes };
            ((*name).to_owned(), rule)
        };
        let offers = offers.into_iter().map(|(name, offer)| (name.to_owned(), offer)).collect();
        let puts: BTreeMap<String, PutRule> = names.iter().map(rule).collect();
        Server::start(offers, puts, Limits::default()).map_err(|error| Stop::Host(chain(&error)))
    }
}

/// The disk that artifacts come out on: all of it a hole, and no larger than what the host could
/// hold.
fn make_result_disk(directory: &Path) -> Result<(), Stop> {
    let path = result_disk(directory);
    let made = result_disk_bytes_in(directory)
        .and_then(|bytes| Open::create().mode(0o600).path(&path)?.set_len(bytes));
    made.map_err(|error| Stop::Host(format!("cannot make {}: {error}", path.display())))
}

/// The size that a result disk would get in this directory now.
pub(crate) fn result_disk_bytes_in(directory: &Path) -> std::io::Result<u64> {
    Ok(result_disk_bytes(crewboss_host::storage::free_bytes(directory)?))
}

/// Half of what is free at most, and a power of two, so that it seldom changes: a guest that goes
/// on from saved memory must find a disk of the size that it knows.
fn result_disk_bytes(free: u64) -> u64 {
    const LEAST: u64 = 16 << 20;
    let half = (free / 2).max(LEAST);
    (1_u64 << half.ilog2()).min(SOURCE_DISK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_disk_never_holds_more_than_the_host_could() {
        assert_eq!(result_disk_bytes(0), 16 << 20);
        assert_eq!(result_disk_bytes(3 << 30), 1 << 30);
        assert_eq!(result_disk_bytes(4 << 30), 2 << 30);
        assert_eq!(result_disk_bytes(u64::MAX), SOURCE_DISK_BYTES);
    }
}

//! What the values of a manifest say together, and whether the files that it names are there.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use crewboss_ground::Open;
use crewboss_protocol::Name;

use super::raw::{Firmware, Raw, RawLimits};
use super::{Boot, DiskFormat, Exchange, Limits, Manifest, ManifestError, Network};

/// What a qcow2 image begins with.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// As much of its header is looked at.
const QCOW2_HEADER: u64 = 80;

/// The bit of version 3 that says that the content lies in another file.
const QCOW2_DATA_ELSEWHERE: u64 = 1 << 2;

/// Where a manifest lies and what it is read for.
struct Context<'a> {
    revision: &'a Path,
    path: &'a Path,
}

pub(super) fn check(raw: Raw, name: &Name, revision: &Path, path: &Path) -> Result<Manifest, ManifestError> {
    let context = Context { revision, path };
    if raw.name != *name {
        let why = format!("the machine's directory is called {name}, not {}", raw.name);
        return Err(context.contradiction("name", why, "a machine has the name of its directory"));
    }
    let (memory_min, memory_max) = (raw.memory.min.0, raw.memory.max.map(|max| max.0));
    if memory_max.is_some_and(|max| max < memory_min) {
        let why = "the maximum is less than the minimum".to_owned();
        return Err(context.contradiction("memory", why, "swap them, or leave out `max`"));
    }
    let manifest = Manifest {
        id: raw.id.0,
        name: raw.name,
        summary: raw.summary.map(|summary| summary.0).unwrap_or_default(),
        role: raw.role,
        memory_min,
        memory_max,
        processors: raw.processors.map(|processors| processors.0),
        disk: raw.disk.0,
        format: raw.format.into(),
        boot: context.boot(
            raw.kernel.map(|kernel| kernel.0),
            raw.initrd.map(|initrd| initrd.0),
            raw.append.map(|append| append.0),
            raw.firmware,
        )?,
        mac: raw.mac.map(|mac| mac.0),
        cpu: raw.cpu.map(|cpu| cpu.0),
        options: raw.options.map(|options| options.0).unwrap_or_default(),
        network: raw.network.map(|network| network.0).unwrap_or_default(),
        exchange: raw.exchange.into(),
        instances: raw.instances.map(|instances| instances.0),
        refresh: raw.refresh.map(|refresh| refresh.0),
        display: raw.display,
        warm_start: raw.warm_start,
        limits: limits(raw.limits),
    };
    context.network(&manifest)?;
    context.files(&manifest)?;
    Ok(manifest)
}

fn limits(raw: RawLimits) -> Limits {
    let default = Limits::default();
    Limits {
        startup: raw.startup.map_or(default.startup, |limit| limit.0),
        bootstrap: raw.bootstrap.map_or(default.bootstrap, |limit| limit.0),
        shutdown: raw.shutdown.map_or(default.shutdown, |limit| limit.0),
        misboots: raw.misboots.map_or(default.misboots, |misboots| misboots.0),
    }
}

impl Context<'_> {
    fn contradiction(&self, key: &'static str, why: String, hint: &'static str) -> ManifestError {
        ManifestError::Contradiction { path: self.path.to_owned(), key, why, hint }
    }

    fn boot(
        &self,
        kernel: Option<String>,
        initrd: Option<String>,
        append: Option<String>,
        firmware: Option<Firmware>,
    ) -> Result<Boot, ManifestError> {
        match (kernel, firmware) {
            (Some(_), Some(_)) => {
                let why = "it starts from a kernel, and firmware would start it from its disk".to_owned();
                Err(self.contradiction("firmware", why, "keep either `kernel` or `firmware`"))
            }
            (Some(kernel), None) => Ok(Boot::Kernel { kernel, initrd, append: append.unwrap_or_default() }),
            (None, _) if initrd.is_some() || append.is_some() => {
                let key = if initrd.is_some() { "initrd" } else { "append" };
                let why = "nothing uses it without `kernel`".to_owned();
                Err(self.contradiction(key, why, "name the kernel, or let the machine start from its disk"))
            }
            (None, Some(Firmware::Uefi)) => Ok(Boot::Uefi),
            (None, Some(Firmware::Bios) | None) => Ok(Boot::Bios),
        }
    }

    fn network(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        if manifest.exchange == Exchange::Tftp && manifest.network != Network::User {
            let why = "a guest reaches its TFTP server only over the network \"user\"".to_owned();
            return Err(self.contradiction("exchange", why, "set `network = \"user\"`"));
        }
        let shared = matches!(manifest.network, Network::Bridge(_)) && manifest.mac.is_some();
        if shared && manifest.instances.is_some_and(|instances| instances > 1) {
            let why = "several guests would have the same address on one bridge".to_owned();
            return Err(self.contradiction("instances", why, "leave out `mac`, so that each gets its own"));
        }
        if manifest.warm_start && !manifest.can_start_warm() {
            let why = "a guest gets its TFTP server, or its place on a bridge, only when it boots".to_owned();
            let hint = "leave it out, or use the exchange \"agent\" and the network \"none\" or \"user\"";
            return Err(self.contradiction("warm_start", why, hint));
        }
        if manifest.mac.is_some() && manifest.network == Network::None {
            let why = "a machine without network has no address".to_owned();
            return Err(self.contradiction("mac", why, "leave it out, or set `network`"));
        }
        Ok(())
    }

    fn files(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        self.file("disk", &manifest.disk)?;
        self.disk_format(manifest)?;
        if let Boot::Kernel { kernel, initrd, .. } = &manifest.boot {
            self.file("kernel", kernel)?;
            initrd.iter().try_for_each(|initrd| self.file("initrd", initrd))?;
        }
        Ok(())
    }

    fn file(&self, key: &'static str, name: &str) -> Result<(), ManifestError> {
        let refuse = |why: String, hint| Err(self.refused(key, name, why, hint));
        match fs::symlink_metadata(self.revision.join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse("is not there".to_owned(), "put the file into the revision, or correct the name")
            }
            Err(error) => {
                refuse(format!("cannot be used: {error}"), "look at the permissions of the revision")
            }
            Ok(found) if found.is_symlink() => refuse(
                "is a symbolic link, which could lead anywhere".to_owned(),
                "put the file itself into the revision; `cp --reflink` costs no space",
            ),
            Ok(found) if !found.is_file() => {
                refuse("is not a regular file".to_owned(), "put an image file into the revision")
            }
            Ok(found) if found.len() == 0 => {
                refuse("is empty".to_owned(), "it was not copied to its end, perhaps for want of space")
            }
            Ok(_) => Ok(()),
        }
    }

    /// A guest that is given the other format sees rubbish, and its writes destroy the image.
    fn disk_format(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let mut start = Vec::new();
        let read = Open::read()
            .of_anybody()
            .path(&self.revision.join(&manifest.disk))
            .map_err(std::io::Error::from)
            .and_then(|file| file.take(QCOW2_HEADER).read_to_end(&mut start));
        if let Err(error) = read {
            let hint = "look at the permissions of the revision";
            return Err(self.refused("disk", &manifest.disk, format!("cannot be read: {error}"), hint));
        }
        let (is, says) = (start.starts_with(&QCOW2_MAGIC), manifest.format == DiskFormat::Qcow2);
        match (is, says) {
            (true, false) => {
                let why = "is a qcow2 image".to_owned();
                Err(self.refused("format", &manifest.disk, why, "set `format = \"qcow2\"`"))
            }
            (false, true) => {
                let why = "is no qcow2 image".to_owned();
                Err(self.refused("format", &manifest.disk, why, "leave out `format`, or convert the image"))
            }
            (true, true) if needs_another_file(&start) => {
                let why =
                    "is not whole: a part of it lies in another file, which guests would not find".to_owned();
                let hint = "`qemu-img convert -O qcow2` makes a whole one of it";
                Err(self.refused("disk", &manifest.disk, why, hint))
            }
            _ => Ok(()),
        }
    }

    fn refused(&self, key: &'static str, name: &str, why: String, hint: &'static str) -> ManifestError {
        let file = self.path.with_file_name(name);
        ManifestError::File { path: self.path.to_owned(), key, file, why, hint }
    }
}

/// Whether the header of a qcow2 image names a backing file, or a file with its data. A guest that
/// is kept has its disks in another directory, and a snapshot holds the revision alone.
fn needs_another_file(header: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = header.get(at..at + length).unwrap_or_default();
        bytes.iter().fold(0, |number: u64, byte| (number << 8) | u64::from(*byte))
    };
    let (version, backing_file, features) = (number(4, 4), number(8, 8), number(72, 8));
    backing_file != 0 || (version >= 3 && features & QCOW2_DATA_ELSEWHERE != 0)
}

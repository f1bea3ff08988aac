//! Why QEMU cannot be used.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::qmp::QmpError;
use super::version::{OLDEST, Version};

/// What QEMU says when it cannot start for a reason that passes: want of memory or descriptors, a
/// file that is in use.
const PASSING: [&str; 6] = [
    "Cannot allocate memory",
    "Resource temporarily unavailable",
    "Too many open files",
    "No space left on device",
    "Input/output error",
    " lock",
];

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// It is not installed.
    #[error("there is no {program} on PATH; `apt install qemu-system-x86` or what your system calls it")]
    Missing {
        /// The program that was looked for.
        program: String,
    },
    /// Guests of this architecture are not known here.
    #[error("virtual machines on {architecture} hosts are not supported")]
    Architecture {
        /// The host's architecture.
        architecture: String,
    },
    /// It lacks what guests here need.
    #[error("{} is QEMU {version}; the oldest that will do is {OLDEST}", path.display())]
    TooOld {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        version: Version,
    },
    /// What it prints is no version.
    #[error("{} does not say its version as QEMU does: {said:?}", path.display())]
    NotQemu {
        /// Where it is.
        path: PathBuf,
        /// What it printed.
        said: String,
    },
    /// It does not even tell its version.
    #[error("{} --version did not end within {} s", path.display(), limit.as_secs())]
    Hangs {
        /// Where it is.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// It cannot be run.
    #[error("cannot start {}", path.display())]
    Start {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its channels cannot be made.
    #[error("cannot make {what} of a guest")]
    Channel {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that the guest needs.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// UEFI is asked for and not there.
    #[error(
        "there is no UEFI firmware for guests on this host; `apt install ovmf` or what your system calls it"
    )]
    NoUefi,
    /// It found no firmware.
    #[error("QEMU lacks firmware (`apt install seabios`, or `ovmf` for UEFI): {said}")]
    Firmware {
        /// Its own words.
        said: String,
    },
    /// It cannot use the accelerator.
    #[error("QEMU cannot use the accelerator: {said}")]
    Accelerator {
        /// Its own words.
        said: String,
    },
    /// It ended with an error before there was a guest: an option that it does not know, a file
    /// that it cannot open.
    #[error("QEMU refused to start the guest: {said}")]
    Refused {
        /// Its own words.
        said: String,
    },
    /// It ended without a word before there was a guest.
    #[error("QEMU ended at once, by {how}, and said nothing")]
    Silent {
        /// Exit code or signal.
        how: String,
    },
    /// Somebody else killed it before there was a guest: the kernel mostly.
    #[error("QEMU was killed before there was a guest; the host may lack memory")]
    Killed,
    /// No accelerator runs the trial guest.
    #[error("no trial guest ran: {why}")]
    Trial {
        /// What was tried and what happened.
        why: String,
    },
    /// The monitor does not answer as it should.
    #[error("the monitor of a guest failed")]
    Monitor(#[from] QmpError),
}

impl QemuError {
    /// What an early end of QEMU means, by its own words.
    pub fn of_early_end(how: &str, said: &str) -> Self {
        let said = said.trim().to_owned();
        let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
        if said.is_empty() {
            QemuError::Silent { how: how.to_owned() }
        } else if has(&["PC BIOS", "bios-256k", "kvmvapic", "vgabios", "OVMF", "firmware", "ROM file"]) {
            QemuError::Firmware { said }
        } else if has(&["Could not access KVM", "failed to initialize kvm", "failed to set MSR", "kvm_"]) {
            QemuError::Accelerator { said }
        } else {
            QemuError::Refused { said }
        }
    }

    /// Whether it would be the same at the next try: something is not installed, or an option makes
    /// no sense here.
    pub fn is_lasting(&self) -> bool {
        match self {
            QemuError::Missing { .. }
            | QemuError::Architecture { .. }
            | QemuError::TooOld { .. }
            | QemuError::NotQemu { .. }
            | QemuError::NoUefi
            | QemuError::Firmware { .. }
            | QemuError::Accelerator { .. } => true,
            QemuError::Refused { said } => !PASSING.iter().any(|passing| said.contains(passing)),
            QemuError::Hangs { .. }
            | QemuError::Start { .. }
            | QemuError::Channel { .. }
            | QemuError::File { .. }
            | QemuError::Silent { .. }
            | QemuError::Killed
            | QemuError::Trial { .. }
            | QemuError::Monitor(_) => false,
        }
    }

    /// A file that could not be handled.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| QemuError::File { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_own_words_say_what_is_missing() {
        let text = |said: &str| QemuError::of_early_end("code 1", said).to_string();
        assert!(text("qemu: could not load PC BIOS 'bios-256k.bin'\n").contains("apt install seabios"));
        assert!(text("Could not access KVM kernel module: Permission denied").contains("accelerator: Could"));
        assert!(text("-device bad: 'bad' is not a valid device model name").contains("refused"));
        assert_eq!(text(" \n"), "QEMU ended at once, by code 1, and said nothing");
    }

    #[test]
    fn what_will_be_the_same_next_time_is_told_from_what_passes() {
        let lasting = |said: &str| QemuError::of_early_end("code 1", said).is_lasting();
        for said in
            ["unable to find CPU model 'pentium9'", "-device bad: 'bad' is not a valid device model name"]
        {
            assert!(lasting(said), "{said}");
        }
        for said in [
            "cannot set up guest memory 'pc.ram': Cannot allocate memory",
            "Failed to get shared \"write\" lock",
            "",
        ] {
            assert!(!lasting(said), "{said}");
        }
        assert!(!QemuError::Killed.is_lasting() && QemuError::NoUefi.is_lasting());
    }
}
